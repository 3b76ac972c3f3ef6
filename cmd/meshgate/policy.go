// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// policyTimeout bounds the reading of a live mesh: seven lists.
const policyTimeout = 30 * time.Second

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "check roles and network ACLs, print and put them as one file",
		Args:  args(cobra.NoArgs, "a subcommand: test FILE, get or put FILE"),
		RunE:  func(*cobra.Command, []string) error { return usagef("want a subcommand: test FILE, get or put FILE") },
	}
	cmd.AddCommand(a.policyTestCommand(), a.policyGetCommand(), a.policyPutCommand())
	return cmd
}

func (a *app) policyTestCommand() *cobra.Command {
	var (
		to       access
		snapshot string
	)
	cmd := &cobra.Command{
		Use:   "test FILE",
		Short: "check that a policy does what a file of tests expects",
		Long: `Checks that roles and network ACLs do what FILE (YAML or JSON; - is standard
input) expects of them:

  tests:
    - {from: alice, to: "web-1:443", proto: tcp, expect: allow}
    - {as: alice, can: put routes/office, expect: deny}

The policy is that of --snapshot, else what FILE itself holds under nodes,
groups, roles, rolebindings, networkacls and routes, else that of a live mesh.
A live mesh has to know the names: write user:NAME for a user whom it names
nowhere. The exit code is 0 when all expectations hold, 1 when one does not.`,
		Args: args(cobra.ExactArgs(1), "one file of tests"),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := readPolicyFile(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			if len(file.tests) == 0 {
				return usagef("%s holds no tests; write them under the key tests", args[0])
			}
			s, err := chosenPolicy(cmd, &to, file, args[0], snapshot)
			if err != nil {
				return err
			}
			if snapshot == "" && file.snapshot == nil {
				if err := checkNames(s, file.tests); err != nil {
					return usagef("%s: %w", args[0], err)
				}
			}
			return a.reportTests(newChecker(s), file.tests)
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "file with the policy to test, in place of that of a live mesh")
	to.registerServer(cmd.Flags())
	return cmd
}

// chosenPolicy is the one that the tests of file are about: never two. Flags that
// say which gateway to ask are refused where none is: who gives them means that
// mesh, and would be told of another policy.
func chosenPolicy(cmd *cobra.Command, to *access, file policyFile, path, snapshot string) (*mesh.Snapshot, error) {
	live := gatewayFlags(cmd)
	switch {
	case snapshot != "" && file.snapshot != nil:
		return nil, usagef("which policy? Give one of --snapshot and objects in %s", path)
	case snapshot != "" && len(live) > 0:
		return nil, usagef("which policy? Give one of --snapshot and %s", strings.Join(live, ", "))
	case file.snapshot != nil && len(live) > 0:
		return nil, usagef("which policy? %s holds one, with which no gateway is asked: leave out %s, or its objects", path, strings.Join(live, ", "))
	case file.snapshot != nil:
		return file.snapshot, nil
	case snapshot == "":
		return livePolicy(cmd.Context(), cmd, to)
	}
	held, err := readPolicyFile(snapshot, cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	if held.snapshot == nil {
		return nil, usagef("%s holds no policy; want the keys %s", snapshot, policyKeys)
	}
	return held.snapshot, nil
}

// gatewayFlags are the flags given of those that say which gateway is asked, and how.
func gatewayFlags(cmd *cobra.Command) []string {
	var of access
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	of.registerServer(all)
	var given []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if all.Lookup(f.Name) != nil {
			given = append(given, "--"+f.Name)
		}
	})
	return given
}

// reportTests prints what became of the tests. The error counts failures.
func (a *app) reportTests(c *checker, tests []expectation) error {
	outcomes := make([]outcome, 0, len(tests))
	failed := 0
	for _, e := range tests {
		o := c.check(e)
		if !o.OK {
			failed++
		}
		outcomes = append(outcomes, o)
	}
	if err := a.printOutcomes(outcomes, failed); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d expectations do not hold", failed, len(tests))
	}
	return nil
}

func (a *app) printOutcomes(outcomes []outcome, failed int) error {
	if a.structured() {
		return a.print(struct {
			Passed int       `json:"passed"`
			Failed int       `json:"failed"`
			Tests  []outcome `json:"tests"`
		}{len(outcomes) - failed, failed, outcomes})
	}
	rows := [][]string{{"RESULT", "LINE", "TEST", "EXPECT", "GOT", "WHY"}}
	for _, o := range outcomes {
		result := "ok"
		if !o.OK {
			result = "FAIL"
		}
		rows = append(rows, []string{result, fmt.Sprint(o.Line), o.Test, o.Expect, o.Got, o.Why})
	}
	return table(a.stdout, rows)
}

// livePolicy reads the policy of a mesh.
func livePolicy(ctx context.Context, cmd *cobra.Command, to *access) (*mesh.Snapshot, error) {
	gate, err := to.dial(cmd.Context(), cmd.Flags())
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	return fetchPolicy(ctx, gate)
}

// fetchPolicy reads all that policy is made of. The lists are read one after
// another: a change in between may be in one and not in another.
func fetchPolicy(ctx context.Context, gate *peer.Public) (*mesh.Snapshot, error) {
	s := &mesh.Snapshot{}
	admin := gate.Admin()
	nodes, err := fetchList(ctx, "nodes", gate.Mesh().ListNodes, (*v1.NodeList).GetNodes, mesh.NodeFromProto)
	if err != nil {
		return nil, err
	}
	s.Nodes = mesh.NodesOf(nodes...)
	if s.Groups, err = fetchList(ctx, "groups", admin.ListGroups, (*v1.Groups).GetItems, mesh.GroupFromProto); err != nil {
		return nil, err
	}
	if s.Roles, err = fetchList(ctx, "roles", admin.ListRoles, (*v1.Roles).GetItems, mesh.RoleFromProto); err != nil {
		return nil, err
	}
	if s.Bindings, err = fetchList(ctx, "role bindings", admin.ListRoleBindings, (*v1.RoleBindings).GetItems, mesh.RoleBindingFromProto); err != nil {
		return nil, err
	}
	if s.ACLs, err = fetchList(ctx, "network ACLs", admin.ListNetworkACLs, (*v1.NetworkACLs).GetItems, mesh.ACLFromProto); err != nil {
		return nil, err
	}
	if s.Routes, err = fetchList(ctx, "routes", admin.ListRoutes, (*v1.Routes).GetItems, mesh.RouteFromProto); err != nil {
		return nil, err
	}
	if s.RBACDisabled, err = fetchRBACDisabled(ctx, gate); err != nil {
		return nil, err
	}
	return s, finish(s)
}

// fetchList reads one list of the mesh.
func fetchList[L any, P proto.Message, V any](
	ctx context.Context, what string,
	list func(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[L], error),
	items func(*L) []P, from func(P) (V, error),
) ([]V, error) {
	answer, err := list(ctx, connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	var values []V
	for i, p := range items(answer.Msg) {
		v, err := from(p)
		if err != nil {
			return nil, fmt.Errorf("read %s: [%d]: %w", what, i, err)
		}
		values = append(values, v)
	}
	return values, nil
}

// keyRBACDisabled is where the mesh keeps that RBAC is off: its presence says so.
const keyRBACDisabled = "/registry/rbac-disabled"

// fetchRBACDisabled reads whether RBAC is off. The answer to a query of a key
// that is not there is an error text (v1 behaviour) or code.
func fetchRBACDisabled(ctx context.Context, gate *peer.Public) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := gate.StorageQuery().Query(ctx, connect.NewRequest(&v1.QueryRequest{
		Command: v1.QueryRequest_GET, Query: keyRBACDisabled,
	}))
	if err == nil {
		defer func() { _ = stream.Close() }() // only the first message is wanted
		if stream.Receive() {
			return stream.Msg().GetError() == "" && len(stream.Msg().GetValue()) > 0, nil
		}
		err = stream.Err()
	}
	if err == nil || connect.CodeOf(err) == connect.CodeNotFound {
		return false, nil
	}
	return false, fmt.Errorf("read whether RBAC is on: %w", err)
}
