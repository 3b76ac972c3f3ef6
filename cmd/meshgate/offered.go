// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
)

// tellUnoffered says of the routes that wanted names which lead by nodes that do
// not forward to them. Who may not read all that this takes is told nothing: the
// routes stand all the same.
func (a *app) tellUnoffered(ctx context.Context, c calls, wanted func(route string) bool) {
	s, err := lookAtRoutes(ctx, c)
	if err != nil {
		return
	}
	for _, line := range unoffered(s, wanted) {
		fmt.Fprintln(a.stderr, line)
	}
}

// lookAtRoutes is the mesh as far as it says who forwards where.
func lookAtRoutes(ctx context.Context, c calls) (*mesh.Snapshot, error) {
	routes, err := c.Admin().ListRoutes(ctx, ask(c, &emptypb.Empty{}))
	if err != nil {
		return nil, err
	}
	groups, err := c.Admin().ListGroups(ctx, ask(c, &emptypb.Empty{}))
	if err != nil {
		return nil, err
	}
	nodes, err := c.Mesh().ListNodes(ctx, ask(c, &emptypb.Empty{}))
	if err != nil {
		return nil, err
	}
	s := &mesh.Snapshot{}
	for _, m := range routes.Msg.GetItems() {
		r, err := mesh.RouteFromProto(m)
		if err != nil {
			return nil, err
		}
		s.Routes = append(s.Routes, r)
	}
	for _, m := range groups.Msg.GetItems() {
		g, err := mesh.GroupFromProto(m)
		if err != nil {
			return nil, err
		}
		s.Groups = append(s.Groups, g)
	}
	for _, m := range nodes.Msg.GetNodes() {
		o, err := mesh.NodeFromProto(m)
		if err != nil {
			return nil, err
		}
		s.Nodes = s.Nodes.With(o)
	}
	return s, nil
}

// unoffered are sentences about the wanted routes of s by nodes that run Meshgate
// and do not forward to them, since they were not started with --routes. Gateways
// forward to all that leads by them; what other peers do nobody knows.
func unoffered(s *mesh.Snapshot, wanted func(route string) bool) []string {
	offers := make(map[mesh.NodeID][]netip.Prefix)
	for _, r := range s.Routes {
		if id := mesh.NodeID(r.Node); r.Name == registry.AutoRoute(id) {
			offers[id] = r.Destinations
		}
	}
	var lines []string
	for r, id := range policy.RouteForwarders(s) {
		o := s.Node(id)
		if !wanted(r.Name) || r.Name == registry.AutoRoute(id) || o == nil || !o.RunsMeshgate() || o.HoldsState() {
			continue
		}
		var lacks []string
		for _, network := range r.Destinations {
			if !slices.ContainsFunc(offers[id], func(p netip.Prefix) bool { return p.Bits() <= network.Bits() && p.Contains(network.Addr()) }) {
				lacks = append(lacks, network.String())
			}
		}
		if len(lacks) > 0 {
			list := strings.Join(lacks, ",")
			lines = append(lines, fmt.Sprintf("route %s: node %s does not forward to %s yet; start it with --routes %s", r.Name, id, list, list))
		}
	}
	slices.Sort(lines)
	return lines
}
