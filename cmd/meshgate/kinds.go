// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// kind is a kind of objects that get and delete know.
type kind struct {
	// name is what people type, or one of aliases.
	name    string
	aliases []string
	heading []string
	// get reads the object that want names.
	get func(ctx context.Context, c calls, want target) (proto.Message, error)
	// list reads all of them in one call.
	list func(ctx context.Context, c calls) (proto.Message, error)
	// remove deletes the object that want names.
	remove func(ctx context.Context, c calls, want target) error
	// rows are the lines of a table for what get and list read.
	rows func(m proto.Message) [][]string
}

// target names an object: an edge by its ends, all others by name.
type target struct{ name, from, to string }

func (t target) String() string {
	if t.from != "" || t.to != "" {
		return t.from + " to " + t.to
	}
	return t.name
}

// calls makes calls to a gateway.
type calls struct {
	*peer.Public
	// stale asks for what the gateway knows, without its leader.
	stale bool
}

// ask makes the request of a read.
func ask[M any](c calls, m *M) *connect.Request[M] {
	r := connect.NewRequest(m)
	if c.stale {
		r.Header().Set(api.HeaderStale, "true")
	}
	return r
}

func msg[M any, P interface {
	*M
	proto.Message
}](r *connect.Response[M], err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return P(r.Msg), nil
}

func none[M any](_ *connect.Response[M], err error) error { return err }

// rowsOf makes rows of one object or of a list of them.
func rowsOf[M, L any](items func(*L) []*M, rows func(*M) [][]string) func(proto.Message) [][]string {
	return func(m proto.Message) [][]string {
		var list []*M
		switch m := any(m).(type) {
		case *M:
			list = []*M{m}
		case *L:
			list = items(m)
		}
		var out [][]string
		for _, item := range list {
			out = append(out, rows(item)...)
		}
		return out
	}
}

// kinds are all kinds, in the order of the usage.
func kinds() []kind {
	return []kind{nodeKind(), roleKind(), bindingKind(), groupKind(), aclKind(), routeKind(), edgeKind()}
}

// findKind returns the kind that name means.
func findKind(name string) (kind, error) {
	var names []string
	for _, k := range kinds() {
		if k.name == name || slices.Contains(k.aliases, name) {
			return k, nil
		}
		names = append(names, k.name)
	}
	return kind{}, usagef("%q is no kind of object; there are %s", name, strings.Join(names, ", "))
}

// nodesKind is the name of the kind of nodes.
const nodesKind = "nodes"

func nodeKind() kind {
	return kind{
		name: nodesKind, aliases: []string{"node", "no"},
		heading: []string{"NODE", "ADDRESSES", "ENDPOINT", "ZONE", "FEATURES", "JOINED"},
		get: func(ctx context.Context, c calls, want target) (proto.Message, error) {
			return msg(c.Mesh().GetNode(ctx, ask(c, &v1.GetNodeRequest{Id: want.name})))
		},
		list: func(ctx context.Context, c calls) (proto.Message, error) {
			return msg(c.Mesh().ListNodes(ctx, ask(c, &emptypb.Empty{})))
		},
		remove: func(ctx context.Context, c calls, want target) error {
			return none(c.Membership().Leave(ctx, connect.NewRequest(&v1.LeaveRequest{Id: want.name})))
		},
		rows: rowsOf((*v1.NodeList).GetNodes, func(n *v1.MeshNode) [][]string {
			var features []string
			for _, f := range n.GetFeatures() {
				features = append(features, short(f.GetFeature().String(), "FEATURE_"))
			}
			joined := ""
			if at := n.GetJoinedAt(); at != nil {
				joined = at.AsTime().UTC().Format(time.RFC3339)
			}
			addresses := strings.TrimSpace(hostOf(n.GetPrivateIpv4()) + " " + hostOf(n.GetPrivateIpv6()))
			return [][]string{{n.GetId(), addresses, n.GetPrimaryEndpoint(), n.GetZoneAwarenessId(), strings.Join(features, ","), joined}}
		}),
	}
}

func roleKind() kind {
	return kind{
		name: "roles", aliases: []string{"role"},
		heading: []string{"ROLE", "VERBS", "RESOURCES", "NAMES"},
		get: func(ctx context.Context, c calls, want target) (proto.Message, error) {
			return msg(c.Admin().GetRole(ctx, ask(c, &v1.Role{Name: want.name})))
		},
		list: func(ctx context.Context, c calls) (proto.Message, error) {
			return msg(c.Admin().ListRoles(ctx, ask(c, &emptypb.Empty{})))
		},
		remove: func(ctx context.Context, c calls, want target) error {
			return none(c.Admin().DeleteRole(ctx, connect.NewRequest(&v1.Role{Name: want.name})))
		},
		rows: rowsOf((*v1.Roles).GetItems, func(r *v1.Role) [][]string {
			var rows [][]string
			for _, rule := range r.GetRules() {
				rows = append(rows, []string{
					r.GetName(), strings.Join(shortAll(rule.GetVerbs(), "VERB_"), ","),
					strings.Join(shortAll(rule.GetResources(), "RESOURCE_"), ","), strings.Join(rule.GetResourceNames(), ","),
				})
			}
			return rows
		}),
	}
}

func bindingKind() kind {
	return kind{
		name: "rolebindings", aliases: []string{"rolebinding", "rb"},
		heading: []string{"BINDING", "ROLE", "SUBJECTS"},
		get: func(ctx context.Context, c calls, want target) (proto.Message, error) {
			return msg(c.Admin().GetRoleBinding(ctx, ask(c, &v1.RoleBinding{Name: want.name})))
		},
		list: func(ctx context.Context, c calls) (proto.Message, error) {
			return msg(c.Admin().ListRoleBindings(ctx, ask(c, &emptypb.Empty{})))
		},
		remove: func(ctx context.Context, c calls, want target) error {
			return none(c.Admin().DeleteRoleBinding(ctx, connect.NewRequest(&v1.RoleBinding{Name: want.name})))
		},
		rows: rowsOf((*v1.RoleBindings).GetItems, func(b *v1.RoleBinding) [][]string {
			return [][]string{{b.GetName(), b.GetRole(), subjectsText(b.GetSubjects())}}
		}),
	}
}

func groupKind() kind {
	return kind{
		name: "groups", aliases: []string{"group"},
		heading: []string{"GROUP", "SUBJECTS"},
		get: func(ctx context.Context, c calls, want target) (proto.Message, error) {
			return msg(c.Admin().GetGroup(ctx, ask(c, &v1.Group{Name: want.name})))
		},
		list: func(ctx context.Context, c calls) (proto.Message, error) {
			return msg(c.Admin().ListGroups(ctx, ask(c, &emptypb.Empty{})))
		},
		remove: func(ctx context.Context, c calls, want target) error {
			return none(c.Admin().DeleteGroup(ctx, connect.NewRequest(&v1.Group{Name: want.name})))
		},
		rows: rowsOf((*v1.Groups).GetItems, func(g *v1.Group) [][]string {
			return [][]string{{g.GetName(), subjectsText(g.GetSubjects())}}
		}),
	}
}

func aclKind() kind {
	return kind{
		name: "networkacls", aliases: []string{"networkacl", "nacls", "nacl", "acls", "acl"},
		heading: []string{"PRIORITY", "ACL", "ACTION", "FROM", "TO", "PROTOCOLS", "PORTS"},
		get: func(ctx context.Context, c calls, want target) (proto.Message, error) {
			return msg(c.Admin().GetNetworkACL(ctx, ask(c, &v1.NetworkACL{Name: want.name})))
		},
		list: func(ctx context.Context, c calls) (proto.Message, error) {
			return msg(c.Admin().ListNetworkACLs(ctx, ask(c, &emptypb.Empty{})))
		},
		remove: func(ctx context.Context, c calls, want target) error {
			return none(c.Admin().DeleteNetworkACL(ctx, connect.NewRequest(&v1.NetworkACL{Name: want.name})))
		},
		rows: rowsOf((*v1.NetworkACLs).GetItems, func(a *v1.NetworkACL) [][]string {
			side := func(lists ...[]string) string {
				all := slices.Concat(lists...)
				if !slices.ContainsFunc(all, func(s string) bool { return s != "*" }) {
					return "*"
				}
				return strings.Join(all, ",")
			}
			var ports []string
			for _, p := range a.GetPorts() {
				ports = append(ports, strconv.Itoa(int(p)))
			}
			return [][]string{{
				strconv.Itoa(int(a.GetPriority())), a.GetName(), short(a.GetAction().String(), "ACTION_"),
				side(a.GetSourceNodes(), a.GetSourceCidrs()), side(a.GetDestinationNodes(), a.GetDestinationCidrs()),
				side(a.GetProtocols()), side(ports),
			}}
		}),
	}
}

func routeKind() kind {
	return kind{
		name: "routes", aliases: []string{"route", "rt"},
		heading: []string{"ROUTE", "NODE", "NETWORKS", "NEXT HOP"},
		get: func(ctx context.Context, c calls, want target) (proto.Message, error) {
			return msg(c.Admin().GetRoute(ctx, ask(c, &v1.Route{Name: want.name})))
		},
		list: func(ctx context.Context, c calls) (proto.Message, error) {
			return msg(c.Admin().ListRoutes(ctx, ask(c, &emptypb.Empty{})))
		},
		remove: func(ctx context.Context, c calls, want target) error {
			return none(c.Admin().DeleteRoute(ctx, connect.NewRequest(&v1.Route{Name: want.name})))
		},
		rows: rowsOf((*v1.Routes).GetItems, func(r *v1.Route) [][]string {
			return [][]string{{r.GetName(), r.GetNode(), strings.Join(r.GetDestinationCidrs(), ","), r.GetNextHopNode()}}
		}),
	}
}

func edgeKind() kind {
	return kind{
		name: "edges", aliases: []string{"edge"},
		heading: []string{"FROM", "TO", "WEIGHT", "BY"},
		get: func(ctx context.Context, c calls, want target) (proto.Message, error) {
			return msg(c.Admin().GetEdge(ctx, ask(c, &v1.MeshEdge{Source: want.from, Target: want.to})))
		},
		list: func(ctx context.Context, c calls) (proto.Message, error) {
			return msg(c.Admin().ListEdges(ctx, ask(c, &emptypb.Empty{})))
		},
		remove: func(ctx context.Context, c calls, want target) error {
			return none(c.Admin().DeleteEdge(ctx, connect.NewRequest(&v1.MeshEdge{Source: want.from, Target: want.to})))
		},
		rows: rowsOf((*v1.MeshEdges).GetItems, func(e *v1.MeshEdge) [][]string {
			var by []string
			for name, value := range e.GetAttributes() {
				if value == "true" {
					by = append(by, short(name, "EDGE_ATTRIBUTE_"))
				}
			}
			slices.Sort(by)
			return [][]string{{e.GetSource(), e.GetTarget(), strconv.Itoa(int(e.GetWeight())), strings.Join(by, ",")}}
		}),
	}
}

// short is the name of an enum value as people type it: "datachannels" of
// RESOURCE_DATA_CHANNELS, and "*" of the value that stands for all.
func short(name, prefix string) string {
	name = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", ""))
	if name == "all" {
		return "*"
	}
	return name
}

func shortAll[E fmt.Stringer](list []E, prefix string) []string {
	var out []string
	for _, e := range list {
		out = append(out, short(e.String(), prefix))
	}
	return out
}

// subjectsText writes subjects as "user:alice,group:staff"; "*" is everyone.
func subjectsText(list []*v1.Subject) string {
	var out []string
	for _, s := range list {
		text := short(s.GetType().String(), "SUBJECT_") + ":" + s.GetName()
		if text == "*:*" {
			text = "*"
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}
