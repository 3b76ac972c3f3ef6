// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/mesh"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "bearer tokens of a gateway",
		Args:  args(cobra.NoArgs, "create"),
		RunE:  func(*cobra.Command, []string) error { return usagef("want token create NAME") },
	}
	cmd.AddCommand(a.tokenCreateCommand())
	return cmd
}

// tokenOutput is the JSON form of a new token.
type tokenOutput struct {
	ID    string `json:"id"`
	Token string `json:"token"`
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var file, dataDir string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "make a token that lets NAME in",
		Long: "create makes a random token for the node or user NAME, prints it, and adds its hash to\n" +
			"the tokens of this host's gateway, where it counts at once. To revoke a token, remove its\n" +
			"line from that file. A token lets a node join under its own name; more takes a role.",
		Args: args(cobra.ExactArgs(1), "one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromSources(cmd.Flags(), ""); err != nil {
				return err
			}
			if err := mesh.ValidName(args[0]); err != nil {
				return usageError{err}
			}
			if file == "" {
				if _, err := os.Stat(dataDir); errors.Is(err, fs.ErrNotExist) {
					return usagef("there is no gateway in %s: give its --data-dir, or --file to add the token to a file for --auth.tokens-file", dataDir)
				}
				file = filepath.Join(dataDir, tokensFile)
			}
			token := rand.Text()
			if err := appendLine(file, fmt.Sprintf("%x %s", sha256.Sum256([]byte(token)), args[0])); err != nil {
				return fmt.Errorf("add to tokens: %w", err)
			}
			if a.structured() {
				return a.print(tokenOutput{ID: args[0], Token: token})
			}
			_, err := fmt.Fprintln(a.stdout, token)
			return err
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir, "data directory of this host's gateway")
	cmd.Flags().StringVar(&file, "file", "", "add it to this file instead, which is made if it is not there")
	return cmd
}

// makeTokens makes an empty file of tokens unless there is one.
func makeTokens(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make file of tokens: %w", err)
	}
	return f.Close()
}

// appendLine adds a line to a file of secrets.
func appendLine(path, line string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil {
		return err
	} else if n := info.Size(); n > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, n-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			line = "\n" + line
		}
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		return err
	}
	return f.Sync()
}
