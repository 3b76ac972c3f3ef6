// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

func (a *app) putCommand() *cobra.Command {
	const want = "a kind: roles, rolebindings, groups, networkacls, routes or edges; or --file with a policy file"
	var to access
	var file string
	cmd := &cobra.Command{
		Use:   "put",
		Short: "create or replace objects of the mesh",
		Args:  args(cobra.NoArgs, want),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("want %s", want)
			}
			return a.putPolicy(cmd, &to, policyPutOptions{}, file)
		},
	}
	to.registerServer(cmd.Flags())
	cmd.Flags().StringVarP(&file, "file", "f", "", "put the groups, roles, rolebindings, networkacls and routes of this policy file; - is standard input")
	cmd.AddCommand(
		a.putRoleCommand(), a.putBindingCommand(), a.putGroupCommand(),
		a.putACLCommand(), a.putRouteCommand(), a.putEdgeCommand(),
	)
	return cmd
}

// putter is a command that puts an object from flags, or objects from a file.
type putter[M proto.Message] struct {
	kind  string
	alias []string
	// empty is the object to be filled.
	empty M
	// named says that the object has a name, which is the argument.
	named bool
	// fill completes the object from the flags.
	fill func(name string) error
	// put, when set, puts what was filled in place of putObject.
	put func(ctx context.Context, c calls) error
}

// command makes the command; its own flags are added by the caller.
func (p putter[M]) command(a *app) *cobra.Command {
	var to access
	var file string
	use, check, form := p.kind+" NAME", cobra.ExactArgs(1), "one name"
	if !p.named {
		use, check, form = p.kind, cobra.NoArgs, "no arguments: give --from and --to"
	}
	cmd := &cobra.Command{
		Use:     use,
		Aliases: p.alias,
		Short:   "create or replace one of the " + p.kind,
		Long: "put replaces the object as a whole. With --file it is read from a file, \"-\" for standard input,\n" +
			"as meshgate get " + p.kind + " --output yaml (or json) prints one or all of them, or as a policy file\n" +
			"has them, and put in one change of the mesh, all or none; the other flags are not used.",
		Args: func(cmd *cobra.Command, given []string) error {
			if file != "" && len(given) == 0 {
				return nil
			}
			return args(check, form)(cmd, given)
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			objects, err := p.objects(cmd.InOrStdin(), file, strings.Join(given, ""))
			if err != nil {
				return err
			}
			var c calls
			if c.Public, err = to.dial(cmd.Context(), cmd.Flags()); err != nil {
				return err
			}
			defer c.Close()
			if file == "" {
				err = flagged("put "+p.kind, p.putOne(cmd.Context(), a, c))
			} else {
				err = a.makeAll(cmd.Context(), c, wishesFor(p.kind, objects))
			}
			if err == nil {
				a.tellUndone(cmd.Context(), c, p.kind, objects)
			}
			return err
		},
	}
	to.registerServer(cmd.Flags())
	cmd.Flags().StringVarP(&file, "file", "f", "", "read the objects from this file (YAML or JSON) instead of flags; - is standard input")
	return cmd
}

// putOne puts what was filled from flags, and tells of it.
func (p putter[M]) putOne(ctx context.Context, a *app, c calls) error {
	put := func(ctx context.Context, c calls) error { return putObject(ctx, c, p.empty) }
	if p.put != nil {
		put = p.put
	}
	name := objectName(p.empty)
	if err := put(ctx, c); err != nil {
		return fmt.Errorf("put %s %s: %w", p.kind, name, err)
	}
	fmt.Fprintf(a.stderr, "%s %s: put\n", p.kind, name)
	return nil
}

// tellUndone says what objects that were put do not do yet, and why.
func (a *app) tellUndone(ctx context.Context, c calls, kind string, objects []proto.Message) {
	switch kind {
	case "routes":
		a.tellUnoffered(ctx, c, func(route string) bool {
			return slices.ContainsFunc(objects, func(m proto.Message) bool { return objectName(m) == route })
		})
	case "edges":
		for _, m := range objects {
			a.tellUncallable(ctx, c, m)
		}
	}
}

// objects are what is to be put: of a file, those named name, or all.
func (p putter[M]) objects(stdin io.Reader, file, name string) ([]proto.Message, error) {
	if file == "" {
		return []proto.Message{p.empty}, p.fill(name)
	}
	raw, err := readFile(file, stdin)
	if err != nil {
		return nil, err
	}
	all, err := parseObjects(raw, p.kind, p.empty)
	if err != nil {
		return nil, usagef("%s: %w", file, err)
	}
	objects := all
	if name != "" {
		objects = slices.DeleteFunc(slices.Clone(all), func(m proto.Message) bool { return objectName(m) != name })
	}
	if len(objects) == 0 && len(all) == 1 {
		return nil, usagef("%s holds %q, not %q", file, objectName(all[0]), name)
	}
	if len(objects) == 0 && name != "" {
		return nil, usagef("%s holds no %s %q", file, p.kind, name)
	}
	return objects, nil
}

// exclusive refuses more than one of the named flags.
func exclusive(cmd *cobra.Command, flags ...string) {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		var given []string
		for _, name := range flags {
			if cmd.Flags().Changed(name) {
				given = append(given, "--"+name)
			}
		}
		if len(given) > 1 {
			return usagef("%s exclude each other: give one of them", strings.Join(given, " and "))
		}
		return nil
	}
}

func (a *app) putRoleCommand() *cobra.Command {
	var verbs, resources, names []string
	r := &v1.Role{}
	cmd := putter[*v1.Role]{
		kind: "roles", alias: []string{"role"}, empty: r, named: true,
		fill: func(name string) error {
			rule := &v1.Rule{ResourceNames: names}
			for _, text := range verbs {
				v, err := long(text, "VERB_", v1.RuleVerb_value)
				if err != nil {
					return usagef("--verb %w", err)
				}
				rule.Verbs = append(rule.Verbs, v1.RuleVerb(v))
			}
			for _, text := range resources {
				v, err := long(text, "RESOURCE_", v1.RuleResource_value)
				if err != nil {
					return usagef("--resource %w", err)
				}
				rule.Resources = append(rule.Resources, v1.RuleResource(v))
			}
			if len(rule.Verbs) == 0 || len(rule.Resources) == 0 {
				return usagef("a role grants verbs on resources: give --verb and --resource, or --file")
			}
			r.Name, r.Rules = name, []*v1.Rule{rule}
			return nil
		},
	}.command(a)
	f := cmd.Flags()
	f.StringSliceVar(&verbs, "verb", nil, "what the role may do: get, put, delete or *")
	f.StringSliceVar(&resources, "resource", nil, "on what: votes, roles, rolebindings, groups, networkacls, routes, datachannels, edges, observers, pubsub or *")
	f.StringSliceVar(&names, "resource-name", nil, "on these of them by name and no list of all; without, only what has no name, such as lists")
	return cmd
}

// long is the number of an enum value that people write short.
func long(text, prefix string, values map[string]int32) (int32, error) {
	var known []string
	for name, v := range values {
		if s := short(name, prefix); v != 0 {
			if s == strings.ToLower(text) {
				return v, nil
			}
			known = append(known, s)
		}
	}
	slices.Sort(known)
	return 0, fmt.Errorf("%q: want one of %s", text, strings.Join(known, ", "))
}

// subjectFlags are the flags that name subjects.
type subjectFlags struct{ nodes, users, groups []string }

func (s *subjectFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&s.nodes, "node", nil, "a node; it need not be there yet")
	cmd.Flags().StringSliceVar(&s.users, "user", nil, "a user")
	cmd.Flags().StringSliceVar(&s.groups, "group", nil, "a group")
}

func (s *subjectFlags) subjects() ([]*v1.Subject, error) {
	var out []*v1.Subject
	add := func(list []string, kind v1.SubjectType) {
		for _, name := range list {
			out = append(out, &v1.Subject{Name: name, Type: kind})
		}
	}
	add(s.nodes, v1.SubjectType_SUBJECT_NODE)
	add(s.users, v1.SubjectType_SUBJECT_USER)
	add(s.groups, v1.SubjectType_SUBJECT_GROUP)
	if len(out) == 0 {
		return nil, usagef("who? Give --node, --user or --group, or --file")
	}
	return out, nil
}

func (a *app) putBindingCommand() *cobra.Command {
	var role string
	var who subjectFlags
	b := &v1.RoleBinding{}
	cmd := putter[*v1.RoleBinding]{
		kind: "rolebindings", alias: []string{"rolebinding", "rb"}, empty: b, named: true,
		fill: func(name string) (err error) {
			if role == "" {
				return usagef("which role? Give --role")
			}
			b.Name, b.Role = name, role
			b.Subjects, err = who.subjects()
			return err
		},
	}.command(a)
	cmd.Flags().StringVar(&role, "role", "", "the role that the subjects get")
	who.register(cmd)
	return cmd
}

func (a *app) putGroupCommand() *cobra.Command {
	var who subjectFlags
	var add, remove bool
	g := &v1.Group{}
	cmd := putter[*v1.Group]{
		kind: "groups", alias: []string{"group"}, empty: g, named: true,
		fill: func(name string) (err error) {
			g.Name = name
			g.Subjects, err = who.subjects()
			return err
		},
		put: func(ctx context.Context, c calls) error {
			if !add && !remove {
				return putObject(ctx, c, g)
			}
			return a.regroup(ctx, c, g, add)
		},
	}.command(a)
	who.register(cmd)
	cmd.Flags().BoolVar(&add, "add", false, "keep who is in the group and add the named")
	cmd.Flags().BoolVar(&remove, "remove", false, "keep who is in the group but the named")
	exclusive(cmd, "add", "remove", "file")
	return cmd
}

func (a *app) putACLCommand() *cobra.Command {
	var accept, deny bool
	var ports []uint
	acl := &v1.NetworkACL{}
	cmd := putter[*v1.NetworkACL]{
		kind: "networkacls", alias: []string{"networkacl", "nacls", "nacl", "acls", "acl"}, empty: acl, named: true,
		fill: func(name string) error {
			acl.Name, acl.Action = name, v1.ACLAction_ACTION_ACCEPT
			if deny || !accept {
				acl.Action = v1.ACLAction_ACTION_DENY
			}
			for _, p := range ports {
				if p == 0 || p > 65535 {
					return usagef("--port %d: want 1 to 65535", p)
				}
				acl.Ports = append(acl.Ports, uint32(p))
			}
			return nil
		},
	}.command(a)
	f := cmd.Flags()
	f.Int32Var(&acl.Priority, "priority", 0, "ACLs of a higher priority are asked first")
	f.StringSliceVar(&acl.SourceNodes, "src-node", nil, "from these nodes, group:NAME or *; none: from all")
	f.StringSliceVar(&acl.DestinationNodes, "dst-node", nil, "to these nodes, group:NAME or *; none: to all")
	f.StringSliceVar(&acl.SourceCidrs, "src-cidr", nil, "from these networks or *; none: from all")
	f.StringSliceVar(&acl.DestinationCidrs, "dst-cidr", nil, "to these networks or *; none: to all")
	f.StringSliceVar(&acl.Protocols, "protocol", nil, "of these protocols, by name or number; none: of all")
	f.UintSliceVar(&ports, "port", nil, "to these ports; none: to all")
	f.BoolVar(&accept, "accept", true, "let the traffic pass")
	f.BoolVar(&deny, "deny", false, "stop the traffic")
	exclusive(cmd, "accept", "deny")
	return cmd
}

func (a *app) putRouteCommand() *cobra.Command {
	r := &v1.Route{}
	cmd := putter[*v1.Route]{
		kind: "routes", alias: []string{"route", "rt"}, empty: r, named: true,
		fill: func(name string) error {
			if r.Name = name; r.GetNode() == "" || len(r.GetDestinationCidrs()) == 0 {
				return usagef("a route leads by a node to networks: give --node and --cidr, or --file")
			}
			return nil
		},
	}.command(a)
	f := cmd.Flags()
	f.StringVar(&r.Node, "node", "", "the node that the networks are behind, or group:NAME")
	f.StringSliceVar(&r.DestinationCidrs, "cidr", nil, "a network")
	f.StringVar(&r.NextHopNode, "next-hop", "", "the node that forwards in its place")
	return cmd
}

func (a *app) putEdgeCommand() *cobra.Command {
	var ice, libp2p bool
	e := &v1.MeshEdge{}
	cmd := putter[*v1.MeshEdge]{
		kind: "edges", alias: []string{"edge"}, empty: e,
		fill: func(string) error {
			if e.GetSource() == "" || e.GetTarget() == "" {
				return usagef("which edge? Give --from and --to")
			}
			for name, on := range map[v1.EdgeAttribute]bool{v1.EdgeAttribute_EDGE_ATTRIBUTE_ICE: ice, v1.EdgeAttribute_EDGE_ATTRIBUTE_LIBP2P: libp2p} {
				if on && e.Attributes == nil {
					e.Attributes = map[string]string{}
				}
				if on {
					e.Attributes[name.String()] = "true"
				}
			}
			return nil
		},
	}.command(a)
	f := cmd.Flags()
	f.StringVar(&e.Source, "from", "", "one end of the edge")
	f.StringVar(&e.Target, "to", "", "the other end of the edge")
	f.Int32Var(&e.Weight, "weight", 1, "cost of the edge: of the ways with the fewest edges, traffic takes the one that costs least")
	f.BoolVar(&ice, "ice", false, "the nodes reach each other by ICE")
	f.BoolVar(&libp2p, "libp2p", false, "the nodes reach each other by libp2p")
	return cmd
}
