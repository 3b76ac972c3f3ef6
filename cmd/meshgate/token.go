// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "bearer tokens of the mesh",
		Args:  args(cobra.NoArgs, "create, list or revoke"),
		RunE: func(*cobra.Command, []string) error {
			return usagef("want token create NAME, token list, or token revoke NAME|FINGERPRINT")
		},
	}
	cmd.AddCommand(a.tokenCreateCommand(),
		a.onGateway("list", "show who has tokens",
			"list shows the holders of all tokens of the mesh, and a fingerprint by which each can be revoked.\nTokens in files of gateways are not listed.",
			args(cobra.NoArgs, "no arguments"), a.tokenList),
		a.onGateway("revoke NAME|FINGERPRINT", "end the tokens of NAME, or one token",
			"revoke ends tokens at every gateway. What was opened with them ends within seconds. A node that was\n"+
				"joined with them has a key of its own, and stays: delete nodes removes it.",
			args(cobra.ExactArgs(1), "the holder of tokens, or the fingerprint of one"), a.tokenRevoke))
	return cmd
}

// tokenOutput is the JSON form of a new token.
type tokenOutput struct {
	ID    string `json:"id"`
	Token string `json:"token"`
}

// tokenEntry is the JSON form of a token in a list.
type tokenEntry struct {
	ID          string    `json:"id"`
	Fingerprint string    `json:"fingerprint"`
	CreatedAt   time.Time `json:"created_at"`
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var file string
	var to access
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "make a token that lets NAME in",
		Long: "create makes a random token for the node or user NAME and prints it. It counts at every gateway\n" +
			"of the mesh, which keeps its hash, until it is revoked. A token lets a node join under its own\n" +
			"name; more takes a role. With --file its hash goes to a file for --auth.tokens-file instead, and\n" +
			"counts at the gateways that read it until its line is removed; no gateway is asked for that.",
		Args: args(cobra.ExactArgs(1), "one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				file = os.Getenv(envName("file"))
			}
			if err := mesh.ClearName(args[0]); err != nil {
				return usageError{err}
			}
			token := rand.Text()
			hash := sha256.Sum256([]byte(token))
			if file != "" {
				if err := appendLine(file, fmt.Sprintf("%x %s", hash, args[0])); err != nil {
					return fmt.Errorf("add to tokens: %w", err)
				}
				return a.printToken(args[0], token)
			}
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			if _, err := gate.Tokens().CreateToken(cmd.Context(), connect.NewRequest(&meshgatev1.CreateTokenRequest{Holder: args[0], Hash: hash[:]})); err != nil {
				return fmt.Errorf("make a token for %s (or give --file to add it to a file for --auth.tokens-file): %w", args[0], err)
			}
			return a.printToken(args[0], token)
		},
	}
	to.registerServer(cmd.Flags())
	cmd.Flags().StringVar(&file, "file", "", "add it to this file, which is made if it is not there, instead of to the mesh")
	return cmd
}

func (a *app) printToken(id, token string) error {
	if a.structured() {
		return a.print(tokenOutput{ID: id, Token: token})
	}
	_, err := fmt.Fprintln(a.stdout, token)
	return err
}

func (a *app) tokenList(ctx context.Context, gate *peer.Public, _ []string) error {
	answer, err := gate.Tokens().ListTokens(ctx, connect.NewRequest(&meshgatev1.ListTokensRequest{}))
	if err != nil {
		return fmt.Errorf("list tokens: %w", err)
	}
	list := make([]tokenEntry, 0, len(answer.Msg.GetTokens()))
	rows := [][]string{{"HOLDER", "FINGERPRINT", "CREATED"}}
	for _, t := range answer.Msg.GetTokens() {
		e := tokenEntry{ID: t.GetHolder(), Fingerprint: t.GetFingerprint(), CreatedAt: t.GetCreatedAt().AsTime()}
		list = append(list, e)
		rows = append(rows, []string{e.ID, e.Fingerprint, e.CreatedAt.Format(time.RFC3339)})
	}
	if a.structured() {
		return a.printList(list)
	}
	return table(a.stdout, rows)
}

// fingerprint is how the list names a token. A holder may have such a name, too;
// then its tokens have fingerprints.
var fingerprint = regexp.MustCompile(`^[0-9a-f]{16}$`) //nolint:gochecknoglobals // a constant

func (a *app) tokenRevoke(ctx context.Context, gate *peer.Public, given []string) error {
	r := &meshgatev1.RevokeTokensRequest{Holder: given[0]}
	if fingerprint.MatchString(given[0]) {
		r = &meshgatev1.RevokeTokensRequest{Fingerprint: given[0]}
	}
	answer, err := gate.Tokens().RevokeTokens(ctx, connect.NewRequest(r))
	if err == nil {
		a.tellNodes(ctx, gate, answer.Msg.GetTokens())
	}
	return a.tell("revoked", given, err)
}

// tellNodes says which nodes have the names of the holders of tokens that ended,
// and so their roles: who held a token may have joined them.
func (a *app) tellNodes(ctx context.Context, gate *peer.Public, ended []*meshgatev1.Token) {
	told := map[string]bool{}
	for _, t := range ended {
		id := t.GetHolder()
		if told[id] {
			continue
		}
		told[id] = true
		n, err := gate.Mesh().GetNode(ctx, connect.NewRequest(&v1.GetNodeRequest{Id: id}))
		if err != nil || n.Msg.GetPublicKey() == "" {
			continue // there is none, or this is only said on top
		}
		fmt.Fprintf(a.stderr, "node %s stays in the mesh, with its own key and the roles of its name: "+
			"meshgate delete nodes %s, if it was joined by somebody who should not have\n", id, id)
	}
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
