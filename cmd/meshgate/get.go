// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// kindsUsage names what get and delete take.
const kindsUsage = "nodes, roles, rolebindings, groups, networkacls, routes or edges"

func (a *app) getCommand() *cobra.Command {
	var to access
	var c calls
	var want target
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "show objects of the mesh",
		Long: "get shows all objects of a kind (" + kindsUsage + "), or the named one.\n" +
			"An edge is named by --from and --to. get graph prints the mesh in the language of Graphviz:\n\n" +
			"  meshgate get graph | dot -Tsvg > mesh.svg",
		Args: args(cobra.RangeArgs(1, 2), "a kind ("+kindsUsage+", or graph), and at most one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := kindOf(args[0])
			if err != nil {
				return err
			}
			if len(args) == 2 {
				want.name = args[1]
			}
			if err := want.check(args[0], k.name == "edges", false); err != nil {
				return err
			}
			if c.Public, err = to.dial(cmd.Context(), cmd.Flags()); err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), getTimeout)
			defer cancel()
			if k.name == "" {
				err = a.getGraph(ctx, c)
			} else {
				err = a.get(ctx, c, k, want)
			}
			if !c.stale && connect.CodeOf(err) == connect.CodeUnavailable && strings.Contains(err.Error(), "no leader") {
				return fmt.Errorf("%w; with --stale, get shows what this gateway knows", err)
			}
			return err
		},
	}
	to.registerServer(cmd.Flags())
	cmd.Flags().BoolVar(&c.stale, "stale", false, "take what the gateway knows, also without a leader; the last changes may be missing")
	want.register(cmd)
	return cmd
}

// getTimeout bounds a read: ten thousand nodes are megabytes, and a line may be
// slow.
const getTimeout = time.Minute

// kindOf is findKind that knows the graph, too, which is the kind without a name.
func kindOf(name string) (kind, error) {
	if name == "graph" {
		return kind{}, nil
	}
	return findKind(name)
}

func (t *target) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.from, "from", "", "one end of an edge")
	cmd.Flags().StringVar(&t.to, "to", "", "the other end of an edge")
}

// check refuses names that do not fit the kind; must wants one.
func (t target) check(kind string, edge, must bool) error {
	switch {
	case kind == "graph" && t != target{}:
		return usagef("a graph has no name and no ends")
	case edge && t.name != "":
		return usagef("an edge has no name: give --from and --to")
	case edge && (t.from == "") != (t.to == ""):
		return usagef("an edge has two ends: give --from and --to")
	case !edge && (t.from != "" || t.to != ""):
		return usagef("--from and --to are for edges; name %s instead", kind)
	case must && edge && t.from == "":
		return usagef("which edge? Give --from and --to")
	}
	return nil
}

func (a *app) get(ctx context.Context, c calls, k kind, want target) error {
	if want == (target{}) {
		m, err := k.list(ctx, c)
		if err != nil {
			return fmt.Errorf("get %s: %w", k.name, err)
		}
		if a.structured() {
			return a.printProtos(itemsOf(m))
		}
		return a.printObjects(ctx, c, k, want, m)
	}
	m, err := k.get(ctx, c, want)
	if err != nil {
		return fmt.Errorf("get %s %s: %w", k.name, want, err)
	}
	if a.structured() {
		return a.printProto(m)
	}
	return a.printObjects(ctx, c, k, want, m)
}

// printObjects prints an object, or all of a kind, as a table, with what it is of
// them that an admin has yet to do.
func (a *app) printObjects(ctx context.Context, c calls, k kind, want target, m proto.Message) error {
	rows := append([][]string{k.heading}, k.rows(m)...)
	if k.name == nodesKind {
		rows = a.withPresence(ctx, c, rows)
	}
	if err := table(a.stdout, rows); err != nil || k.name != "routes" {
		return err
	}
	a.tellUnoffered(ctx, c, func(route string) bool { return want.name == "" || route == want.name })
	return nil
}

// withPresence puts into rows of nodes whether they are up, which is no part of what
// the mesh keeps of them.
func (a *app) withPresence(ctx context.Context, c calls, rows [][]string) [][]string {
	answer, err := c.Presence().ListPresence(ctx, connect.NewRequest(&meshgatev1.ListPresenceRequest{}))
	if err != nil {
		switch connect.CodeOf(err) {
		case connect.CodePermissionDenied, connect.CodeUnimplemented, connect.CodeUnavailable: // a caller or a gateway without it
		default:
			fmt.Fprintf(a.stderr, "which nodes are up is not known: %s\n", explain(err))
		}
		return rows
	}
	told := presenceOf(answer.Msg.GetNodes())
	for i, row := range rows {
		state := "STATE"
		if i > 0 {
			state = ""
			if p := told[row[0]]; p != nil {
				state = presenceState(p, time.Now())
			}
		}
		rows[i] = slices.Insert(row, 1, state)
	}
	return rows
}

// itemsOf are the objects of a list of the API, which is a message with one field.
func itemsOf(list proto.Message) []proto.Message {
	m := list.ProtoReflect()
	items := m.Get(m.Descriptor().Fields().Get(0)).List()
	out := make([]proto.Message, items.Len())
	for i := range out {
		out[i] = items.Get(i).Message().Interface()
	}
	return out
}

func (a *app) getGraph(ctx context.Context, c calls) error {
	r, err := c.Mesh().GetMeshGraph(ctx, ask(c, &emptypb.Empty{}))
	if err != nil {
		return fmt.Errorf("get graph: %w", err)
	}
	if a.structured() {
		return a.printProto(r.Msg)
	}
	_, err = io.WriteString(a.stdout, r.Msg.GetDot())
	return err
}

func (a *app) deleteCommand() *cobra.Command {
	var to access
	var want target
	cmd := &cobra.Command{
		Use:   "delete KIND NAME...",
		Short: "remove objects of the mesh",
		Long: "delete removes the named objects of a kind (" + kindsUsage + ").\n" +
			"An edge is named by --from and --to. One that is not there is no error, and told; a node has\n" +
			"to be there, and leaves the mesh. The id of one that went silent and was removed is freed for\n" +
			"another key.",
		Args: args(cobra.MinimumNArgs(1), "a kind ("+kindsUsage+") and names"),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := findKind(args[0])
			if err != nil {
				return err
			}
			edge := k.name == "edges"
			if edge {
				want.name = strings.Join(args[1:], " ")
			}
			if err := want.check(k.name, edge, true); err != nil {
				return err
			}
			if !edge && len(args) == 1 {
				return usagef("which of the %s? Give one or more names", k.name)
			}
			var c calls
			if c.Public, err = to.dial(cmd.Context(), cmd.Flags()); err != nil {
				return err
			}
			defer c.Close()
			targets := []target{want}
			if !edge {
				targets = nil
				for _, name := range args[1:] {
					targets = append(targets, target{name: name})
				}
			}
			for _, t := range targets {
				if err := a.deleteOne(cmd.Context(), c, k, t); err != nil {
					return err
				}
			}
			return nil
		},
	}
	to.registerServer(cmd.Flags())
	want.register(cmd)
	return cmd
}

// deleteOne removes one object, and says when there was none: its name may be
// mistyped. The id of a node that is gone may be bound to its key still, and is
// freed.
func (a *app) deleteOne(ctx context.Context, c calls, k kind, t target) error {
	result := "deleted"
	_, err := k.get(ctx, c, t)
	switch code := connect.CodeOf(err); {
	case err == nil:
	case code == connect.CodeNotFound && k.name != "nodes":
		fmt.Fprintf(a.stderr, "%s %s: was not there\n", k.name, t)
		return nil
	case code == connect.CodeNotFound:
		result = "was gone; any key may have its id now" // else its removal is refused
	case code == connect.CodePermissionDenied && k.name != "nodes": // who may delete need not be one who may read
		result = "deleted, if it was there"
	default:
		return fmt.Errorf("delete %s %s: %w", k.name, t, err)
	}
	if err := k.remove(ctx, c, t); err != nil {
		return fmt.Errorf("delete %s %s: %w", k.name, t, err)
	}
	fmt.Fprintf(a.stderr, "%s %s: %s\n", k.name, t, result)
	return nil
}
