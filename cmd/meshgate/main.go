// SPDX-License-Identifier: Apache-2.0

// Command meshgate is the gateway, the node and the tool in one binary.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/heap"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// Exit codes that scripts may rely on.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	// exitRemoved is that of a gateway that was removed from its cluster: to start
	// it again as it is changes nothing. deploy/systemd knows it.
	exitRemoved = 3
)

// gcPercent is how much the heap may grow between two collections: less than
// usual. Most of a gateway's heap are WireGuard's packet buffers of 64 KiB, which
// cost a collection nothing, but would let as much garbage pile up beside them.
// GOGC overrides it.
const gcPercent = 75

// gcLeast is how much the heap of a gateway grows at least, in bytes: the garbage
// of several thousand calls.
const gcLeast = 32 << 20

// collectSeldom makes a gateway leave its garbage alone while it is little.
func collectSeldom() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	return heap.Keep(gcPercent, gcLeast)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// usageError is a mistake in the command line, as opposed to a failure.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitOK
	}
	fmt.Fprintf(stderr, "meshgate: %s\n", explain(err))
	code := exitCode(err)
	if code == exitUsage {
		fmt.Fprintln(stderr, `Run "meshgate help" for the commands, or "meshgate COMMAND --help" for one of them.`)
	}
	return code
}

// exitCode is that of a command that fails with err.
func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, raftstore.ErrRemoved):
		return exitRemoved
	default:
		return exitFailed
	}
}

// usageText is what meshgate prints without a command.
const usageText = `meshgate is an edge gateway into WireGuard meshes.

Try it:
  meshgate demo                    a gateway and two peers on this machine, and one URL to open

Run:
  meshgate up                      run a gateway (--dev for one on loopback without root or TLS)
  meshgate join URL                run a node behind a gateway

Look:
  meshgate status [NODE]           how a node is, and whom it reaches by what path
  meshgate ping NODE               whether a node answers, and by what path (--until-direct)
  meshgate netcheck [URL]          what this network lets through, and how far the gateways are
  meshgate get KIND [NAME]         nodes, roles, rolebindings, groups, networkacls, routes, edges, graph

Connect:
  meshgate port-forward NODE LPORT:HOST:RPORT
                                   a port of this machine leads to HOST:RPORT on NODE

Manage:
  meshgate put KIND NAME           create or replace a role, a route, ... (meshgate put --help)
  meshgate delete KIND NAME...     remove objects, or nodes from the mesh
  meshgate peer create NAME        let in a WireGuard device that runs no Meshgate (--qr for phones)
  meshgate peer delete NAME        remove a node or a peer from the mesh
  meshgate policy test FILE        check that roles and network ACLs do what a file expects
  meshgate policy get              print them as one file; policy put FILE puts its objects
  meshgate token create NAME       a token that lets NAME in; token list, token revoke NAME
  meshgate turn list               who is relayed by the gateways' TURN; turn close ID ends it
  meshgate cluster status          the gateways that keep the state (promote, demote, remove, transfer)
  meshgate backup FILE             write the state of the mesh to a file; meshgate restore FILE reads it
  meshgate context set NAME        keep how to reach a gateway (list, use, delete)
  meshgate version                 what this binary is
  meshgate completion SHELL        completion for bash, zsh, fish or powershell

Run "meshgate COMMAND --help" for its flags.
`

// app is what the commands share.
type app struct {
	stdout, stderr io.Writer
	output         string
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	a := &app{stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:               "meshgate",
		Short:             "edge gateway into WireGuard meshes",
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.stdout, usageText)
			return err
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			for _, text := range unknownEnv(cmd.Root(), os.Environ()) {
				fmt.Fprintf(a.stderr, "meshgate: warning: %s\n", text)
			}
			if a.output != "table" && a.output != "json" && a.output != "yaml" {
				return usagef("--output %q: want table, json or yaml", a.output)
			}
			return nil
		},
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{valueError(err)} })
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "what goes to standard output: table, json or yaml")
	root.AddCommand(
		a.upCommand(), a.demoCommand(), a.joinCommand(), a.statusCommand(), a.exitCommand(), a.pingCommand(), a.netcheckCommand(),
		a.getCommand(), a.putCommand(), a.deleteCommand(), a.contextCommand(),
		a.peerCommand(), a.policyCommand(), a.portForwardCommand(), a.tokenCommand(), a.turnCommand(),
		a.clusterCommand(), a.backupCommand(), a.restoreCommand(), a.versionCommand(),
	)
	return root
}

// args wraps a cobra check so that its complaint counts as a usage error.
func args(check cobra.PositionalArgs, form string) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		if err := check(c, given); err != nil {
			return usagef("want %s", form)
		}
		return nil
	}
}
