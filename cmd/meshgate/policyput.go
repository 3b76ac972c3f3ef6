// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func (a *app) policyGetCommand() *cobra.Command {
	var to access
	cmd := &cobra.Command{
		Use:   "get",
		Short: "print the policy of a mesh as a file that test and put take",
		Long: `Prints all that decides who may do what in a mesh: groups, roles, rolebindings,
networkacls and routes, and, for tests only, the nodes with their addresses and
the voters, who are the gateways. It is YAML, or JSON with --output json, as
policy test --snapshot and policy put take it:

  meshgate policy get > policy.yaml`,
		Args: args(cobra.NoArgs, "no arguments; it prints to standard output"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := livePolicy(cmd.Context(), cmd, &to)
			if err != nil {
				return err
			}
			printer := *a
			if !a.structured() {
				printer.output = "yaml"
			}
			document, err := policyDocument(s)
			return errors.Join(err, printer.print(document))
		},
	}
	to.registerServer(cmd.Flags())
	return cmd
}

// policyPutOptions are what the flags of policy put say.
type policyPutOptions struct{ prune, dryRun bool }

func (a *app) policyPutCommand() *cobra.Command {
	var to access
	var o policyPutOptions
	cmd := &cobra.Command{
		Use:   "put FILE",
		Short: "create or replace the objects of a policy file",
		Long: `Puts the groups, roles, rolebindings, networkacls and routes of FILE (YAML or
JSON; - is standard input) in one change of the mesh: all of it, or nothing when
the file has a mistake or the mesh would not take a part. What is in the mesh and
not in the file stays, unless --prune is given: then it is removed in the same
change where the file has a list of its kind, an empty one included. What the
mesh was made with and the routes that nodes offer themselves stay in any case.
--dry-run says what would be done, and what the mesh would refuse, and does
nothing. More than 4096 objects, or 2.5 MiB of them, take several changes. What
the file says of nodes, voters, rbac and tests is not used: gateways come and go
with meshgate put groups voters --add and meshgate cluster remove, and no file
brings a removed one back.`,
		Args: args(cobra.ExactArgs(1), "one policy file"),
		RunE: func(cmd *cobra.Command, given []string) error { return a.putPolicy(cmd, &to, o, given[0]) },
	}
	to.registerServer(cmd.Flags())
	cmd.Flags().BoolVar(&o.prune, "prune", false, "remove what is in the mesh and not in the file's lists; see --dry-run")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only print what would be created, replaced and removed")
	return cmd
}

// putPolicy puts the objects of a policy file, and removes others if it is told to.
func (a *app) putPolicy(cmd *cobra.Command, to *access, o policyPutOptions, path string) error {
	file, err := readPolicyFile(path, cmd.InOrStdin())
	if err != nil {
		return err
	}
	kinds := putKinds(file)
	if slices.ContainsFunc(file.policy().Groups, isVoters) && !file.lists["voters"] {
		fmt.Fprintf(a.stderr, "groups %s: left as it is; meshgate put groups %s --add --node ID adds a gateway, meshgate cluster remove ID takes one out\n",
			registry.GroupVoters, registry.GroupVoters)
	}
	if !slices.ContainsFunc(kinds, func(k policyKind) bool { return len(k.objects) > 0 || o.prune && file.lists[k.key] }) {
		return usagef("%s holds nothing to put; want groups, roles, rolebindings, networkacls or routes", path)
	}
	var c calls
	if c.Public, err = to.dial(cmd.Context(), cmd.Flags()); err != nil {
		return err
	}
	defer c.Close()
	wishes := fileWishes(file)
	var steps []policyStep
	if o.prune || o.dryRun {
		if steps, err = stepsOf(cmd.Context(), c, file, o); err != nil {
			return err
		}
		wishes = append(wishes, removals(steps)...)
	}
	if o.dryRun {
		return errors.Join(a.printSteps(steps), tryAll(cmd.Context(), c, wishes))
	}
	return a.putWishes(cmd.Context(), c, wishes, path)
}

// stepsOf reads the mesh and says what putting a file does to it.
func stepsOf(ctx context.Context, c calls, file policyFile, o policyPutOptions) ([]policyStep, error) {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	live, err := fetchPolicy(ctx, c.Public)
	if err != nil {
		return nil, err
	}
	return policySteps(file, live, o.prune), nil
}

// tryAll is why the mesh would not take wishes; nil when it takes all.
func tryAll(ctx context.Context, c calls, wishes []wish) error {
	if len(wishes) == 0 {
		return nil
	}
	if len(partsOf(wishes)) > 1 { // what comes first is not there when the rest is tried
		return foresee(ctx, c, wishes)
	}
	_, err := together(ctx, c, wishes, nil, true)
	if unknownTogether(err) {
		return foresee(ctx, c, wishes)
	}
	return err
}

// putWishes makes the wishes of a file come true. Where that takes more than one
// call, the mesh is looked at before, so that it rarely ends half done.
func (a *app) putWishes(ctx context.Context, c calls, wishes []wish, path string) error {
	if len(wishes) == 0 {
		return nil
	}
	parts := partsOf(wishes)
	if len(parts) == 1 {
		effects, err := together(ctx, c, wishes, nil, false)
		switch {
		case err == nil:
			a.tellAll(wishes, effects)
			return nil
		case undecided(err):
			return halted(err, 0)
		case !unknownTogether(err):
			return fmt.Errorf("%w; nothing of %s is put", err, path)
		}
	}
	if err := foresee(ctx, c, wishes); err != nil {
		return fmt.Errorf("%w; nothing of %s is put", err, path)
	}
	if len(parts) == 1 {
		return a.makeEach(ctx, c, wishes)
	}
	return a.makeParts(ctx, c, parts)
}

// fileWishes are the objects of a file as they are to be.
func fileWishes(file policyFile) []wish {
	var out []wish
	for _, k := range putKinds(file) {
		out = append(out, wishesFor(k.key, k.objects)...)
	}
	return out
}

// putKinds are the objects of a file that policy put may put. The group of the
// voters is not among them: a file that is older than the removal of a gateway
// would give its name the rights of a gateway again, to whoever takes it, and one
// that is older than a new gateway would take them from it.
func putKinds(file policyFile) []policyKind {
	s := *file.policy()
	s.Groups = slices.DeleteFunc(slices.Clone(s.Groups), isVoters)
	return policyKinds(&s)
}

func isVoters(g mesh.Group) bool { return g.Name == registry.GroupVoters }

// policyKind is the objects of one kind, under their key in a policy file.
type policyKind struct {
	key     string
	objects []proto.Message
}

// policyKinds are the objects of a policy, those that are named before those that
// name them.
func policyKinds(s *mesh.Snapshot) []policyKind {
	return []policyKind{
		{"groups", messages(s.Groups, mesh.GroupToProto)},
		{"roles", messages(s.Roles, mesh.RoleToProto)},
		{"rolebindings", messages(s.Bindings, mesh.RoleBindingToProto)},
		{"networkacls", messages(s.ACLs, mesh.ACLToProto)},
		{"routes", messages(s.Routes, mesh.RouteToProto)},
	}
}

func messages[V any, P proto.Message](list []V, to func(V) P) []proto.Message {
	out := make([]proto.Message, 0, len(list))
	for _, v := range list {
		out = append(out, to(v))
	}
	return out
}

// policyText is a policy file.
type policyText struct {
	RBAC         string            `json:"rbac,omitempty"`
	Nodes        []json.RawMessage `json:"nodes"`
	Voters       []json.RawMessage `json:"voters"`
	Groups       []json.RawMessage `json:"groups"`
	Roles        []json.RawMessage `json:"roles"`
	RoleBindings []json.RawMessage `json:"rolebindings"`
	NetworkACLs  []json.RawMessage `json:"networkacls"`
	Routes       []json.RawMessage `json:"routes"`
}

// policyDocument is the policy file of s. Of nodes it has what policy is about.
// The group of the voters stands apart, with the nodes: tests need it, and it is
// not put.
func policyDocument(s *mesh.Snapshot) (policyText, error) {
	var out policyText
	if s.RBACDisabled {
		out.RBAC = "off"
	}
	var nodes []proto.Message
	for _, n := range s.Nodes.All() {
		p := &v1.MeshNode{Id: string(n.ID)}
		if n.IPv4.IsValid() {
			p.PrivateIpv4 = n.IPv4.String()
		}
		if n.IPv6.IsValid() {
			p.PrivateIpv6 = n.IPv6.String()
		}
		nodes = append(nodes, p)
	}
	var voters []proto.Message
	for _, g := range s.Groups {
		if isVoters(g) {
			voters = messages(mesh.GroupToProto(g).GetSubjects(), func(x *v1.Subject) *v1.Subject { return x })
		}
	}
	lists := append([]policyKind{{"nodes", nodes}, {"voters", voters}}, putKinds(policyFile{snapshot: s})...)
	for i, into := range []*[]json.RawMessage{&out.Nodes, &out.Voters, &out.Groups, &out.Roles, &out.RoleBindings, &out.NetworkACLs, &out.Routes} {
		*into = make([]json.RawMessage, 0, len(lists[i].objects))
		for _, m := range lists[i].objects {
			raw, err := protojson.Marshal(m)
			if err != nil {
				return out, fmt.Errorf("write %s: %w", lists[i].key, err)
			}
			*into = append(*into, raw)
		}
	}
	return out, nil
}
