// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/mesh"
)

// maxContexts bounds the file of contexts, in bytes.
const maxContexts = 1 << 20

// contexts are the gateways that a person calls, by name, as they stand in a
// file. It may hold tokens, so that only its owner may read it.
type contexts struct {
	// Current names the context of commands that name none; empty: none.
	Current  string                  `yaml:"current,omitempty"`
	Contexts map[string]savedContext `yaml:"contexts,omitempty"`
}

// savedContext says how to reach a gateway. The fields are those flags.
type savedContext struct {
	Server    string `yaml:"server"`
	Pin       string `yaml:"pin,omitempty"`
	CAFile    string `yaml:"ca-file,omitempty"`
	Token     string `yaml:"token,omitempty"`
	TokenFile string `yaml:"token-file,omitempty"`
}

// contextsPath is where contexts are kept unless path says otherwise.
func contextsPath(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", usagef("no place for contexts (%w): give --contexts-file", err)
	}
	return filepath.Join(dir, "meshgate", "contexts.yaml"), nil
}

// readContexts reads the file at path; one that is not there has no contexts.
func readContexts(path string) (*contexts, error) {
	c := &contexts{Contexts: map[string]savedContext{}}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("contexts in %s may hold tokens, and others can read them: chmod 600 %s", path, path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxContexts+1))
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	if len(raw) > maxContexts {
		return nil, fmt.Errorf("contexts in %s are longer than %d bytes", path, maxContexts)
	}
	if err := parseContexts(raw, c); err != nil {
		return nil, fmt.Errorf("contexts in %s: %w; mend the file, or remove it and use meshgate context set", path, err)
	}
	return c, nil
}

// parseContexts reads raw into c.
func parseContexts(raw []byte, c *contexts) error {
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if c.Contexts == nil {
		c.Contexts = map[string]savedContext{}
	}
	for name, saved := range c.Contexts {
		if err := mesh.ValidName(name); err != nil {
			return fmt.Errorf("contexts: %w", err)
		}
		if saved.Server == "" {
			return fmt.Errorf("context %q has no server", name)
		}
	}
	if _, ok := c.Contexts[c.Current]; !ok && c.Current != "" {
		return fmt.Errorf("current: there is no context %q", c.Current)
	}
	return nil
}

// write replaces the file at path.
func (c *contexts) write(path string) error {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(c), e.Close()); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	if err := durable.WriteFile(path, b.Bytes()); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	return nil
}

// find returns the named context.
func (c *contexts) find(name string) (savedContext, error) {
	saved, ok := c.Contexts[name]
	if ok {
		return saved, nil
	}
	if len(c.Contexts) == 0 {
		return saved, usagef("there is no context %q, nor any other; make one: meshgate context set %s --server https://host:port --token-file FILE", name, name)
	}
	return saved, usagef("there is no context %q; there is %s", name, strings.Join(slices.Sorted(maps.Keys(c.Contexts)), ", "))
}

// fromContext completes c from the context that it names, else from the current
// one, if there is any.
func (c *access) fromContext() error {
	path, err := contextsPath(c.contextsFile)
	if err != nil {
		if c.context == "" { // without a home there is no current one
			return nil
		}
		return err
	}
	all, err := readContexts(path)
	if err != nil {
		return err
	}
	name := c.context
	if name == "" {
		name = all.Current
	}
	if name == "" {
		return nil
	}
	saved, err := all.find(name)
	if err != nil {
		return err
	}
	c.URL = saved.Server
	if c.Pin == "" && c.caFile == "" {
		c.Pin, c.caFile = saved.Pin, saved.CAFile
	}
	if c.Token == "" && c.tokenFile == "" {
		c.Token, c.tokenFile = saved.Token, saved.TokenFile
	}
	return nil
}

func (a *app) contextCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "the gateways that you call, by name",
		Args:  args(cobra.NoArgs, "list, use, set or delete"),
		RunE:  func(*cobra.Command, []string) error { return usagef("want context list, use, set or delete") },
	}
	cmd.AddCommand(a.contextListCommand(), a.contextUseCommand(), a.contextSetCommand(), a.contextDeleteCommand())
	return cmd
}

// contextsOf reads the contexts that a command is about, from the file at path.
func contextsOf(cmd *cobra.Command) (path string, all *contexts, err error) {
	if err := fromSources(cmd.Flags(), ""); err != nil {
		return "", nil, err
	}
	file, err := cmd.Flags().GetString("contexts-file")
	if err != nil {
		return "", nil, err
	}
	if path, err = contextsPath(file); err != nil {
		return "", nil, err
	}
	all, err = readContexts(path)
	return path, all, err
}

// changeContexts reads the contexts, lets change alter them, and writes them.
func changeContexts(cmd *cobra.Command, change func(*contexts) error) error {
	path, all, err := contextsOf(cmd)
	if err != nil {
		return err
	}
	if err := change(all); err != nil {
		return err
	}
	return all.write(path)
}

// contextOutput is the JSON form of a context. Tokens are not shown.
type contextOutput struct {
	Name    string `json:"name"`
	Server  string `json:"server"`
	Current bool   `json:"current"`
}

func (a *app) contextListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "show the contexts",
		Args:  args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, all, err := contextsOf(cmd)
			if err != nil {
				return err
			}
			out := []contextOutput{}
			rows := [][]string{{"", "CONTEXT", "SERVER"}}
			for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
				o := contextOutput{Name: name, Server: all.Contexts[name].Server, Current: name == all.Current}
				mark := ""
				if o.Current {
					mark = "*"
				}
				out, rows = append(out, o), append(rows, []string{mark, o.Name, o.Server})
			}
			if a.structured() {
				return a.printList(out)
			}
			return table(a.stdout, rows)
		},
	}
	contextsFlag(cmd)
	return cmd
}

func contextsFlag(cmd *cobra.Command) { cmd.Flags().String("contexts-file", "", contextsUsage) }

// contextsUsage explains the flag of every command that reads contexts.
const contextsUsage = "file of the contexts (default: meshgate/contexts.yaml in your configuration directory)"

func (a *app) contextUseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "use NAME",
		Short: "make a context the one of commands that name none",
		Args:  args(cobra.ExactArgs(1), "one name of a context"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeContexts(cmd, func(all *contexts) error {
				saved, err := all.find(args[0])
				if err == nil {
					all.Current = args[0]
					fmt.Fprintf(a.stderr, "commands go to %s at %s now\n", args[0], saved.Server)
				}
				return err
			})
		},
	}
	contextsFlag(cmd)
	return cmd
}

func (a *app) contextSetCommand() *cobra.Command {
	var to access
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "make a context, or change what the flags name of it",
		Long: "set keeps how to reach a gateway under NAME. The first context becomes the current one.\n" +
			"A token that is given with --token is kept in the file, which only you can read;\n" +
			"--token-file keeps the path alone.",
		Args: args(cobra.ExactArgs(1), "one name for the context"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := mesh.ValidName(args[0]); err != nil {
				return usageError{err}
			}
			return changeContexts(cmd, func(all *contexts) error {
				saved := all.Contexts[args[0]]
				if err := to.saveTo(cmd.Context(), &saved); err != nil {
					return err
				}
				if err := readableFile(saved.TokenFile); err != nil {
					fmt.Fprintf(a.stderr, "meshgate: warning: --token-file: %v; the context is kept, but of no use until that file can be read\n", err)
				}
				all.Contexts[args[0]] = saved
				if all.Current == "" {
					all.Current = args[0]
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&to.URL, "server", "", "URL of the gateway")
	to.registerTrust(cmd.Flags())
	contextsFlag(cmd)
	return cmd
}

// readableFile says why a file cannot be read; the empty path names none.
func readableFile(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// saveTo puts what the flags say into saved. Paths become absolute, as the next
// command may run elsewhere.
func (c *access) saveTo(ctx context.Context, saved *savedContext) error {
	for path, field := range map[*string]*string{&c.caFile: &saved.CAFile, &c.tokenFile: &saved.TokenFile} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*field = absolute
	}
	if c.Token != "" && c.tokenFile != "" {
		return usagef("--token and --token-file are two tokens; give one")
	}
	if c.URL != "" {
		saved.Server = c.URL
	}
	if c.Pin != "" {
		saved.Pin = c.Pin
	}
	switch {
	case c.Token != "":
		saved.Token, saved.TokenFile = c.Token, ""
	case c.tokenFile != "":
		saved.Token = ""
	}
	if saved.Server == "" {
		return usagef("which gateway? Give --server https://host:port")
	}
	check := access{URL: saved.Server, Pin: saved.Pin, caFile: saved.CAFile, Token: saved.Token}
	p, err := check.connect(ctx)
	if err != nil {
		return err
	}
	p.Close()
	return nil
}

func (a *app) contextDeleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "forget a context",
		Args:  args(cobra.ExactArgs(1), "one name of a context"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeContexts(cmd, func(all *contexts) error {
				if _, err := all.find(args[0]); err != nil {
					return err
				}
				delete(all.Contexts, args[0])
				if all.Current == args[0] {
					all.Current = ""
					fmt.Fprintln(a.stderr, "no context is the current one now; choose one: meshgate context use NAME")
				}
				return nil
			})
		},
	}
	contextsFlag(cmd)
	return cmd
}
