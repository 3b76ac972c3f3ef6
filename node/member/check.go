// SPDX-License-Identifier: Apache-2.0

package member

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
)

// Limits of what one node says of itself. They bound a record, which every
// peer of the node gets.
const (
	maxRoutes      = 256
	maxEndpoints   = 16
	maxServices    = 256
	maxFeatures    = 64
	maxMultiaddrs  = 64
	maxMultiaddr   = 1024 // bytes
	maxDirectPeers = 256
)

// checkJoin refuses what is wrong whatever the state is. The registry checks
// the rest of a record when it is written.
func checkJoin(r mesh.JoinRequest) error {
	if _, err := mesh.ParseNodeID(string(r.Node.ID)); err != nil {
		return fmt.Errorf("id: %w", err)
	}
	if r.Node.PublicKey.IsZero() {
		return fmt.Errorf("%w: public_key: it is missing", mesh.ErrInvalid)
	}
	if _, err := mesh.ParsePublicKey(r.Node.PublicKey.Encode()); err != nil {
		return fmt.Errorf("public_key: %w", err)
	}
	if _, ok := r.DirectPeers[r.Node.ID]; ok {
		return fmt.Errorf("%w: direct_peers: the node names itself", mesh.ErrInvalid)
	}
	if err := atMost(maxDirectPeers, "direct_peers", len(r.DirectPeers)); err != nil {
		return err
	}
	return checkNode(&r.Node, r.Routes)
}

// checkNew refuses an id that looks like another one, unless the mesh has it
// already.
func checkNew(s *mesh.Snapshot, id mesh.NodeID) error {
	if s.Node(id) != nil {
		return nil
	}
	if err := mesh.ClearName(string(id)); err != nil {
		return fmt.Errorf("id: %w", err)
	}
	return nil
}

// checkUpdate is checkJoin for an update.
func checkUpdate(r mesh.UpdateRequest) error {
	if _, err := mesh.ParseNodeID(string(r.ID)); err != nil {
		return fmt.Errorf("id: %w", err)
	}
	return checkNode(&mesh.Node{Features: r.Features, Services: r.Services, Multiaddrs: r.Multiaddrs,
		WireGuardEndpoints: r.WireGuardEndpoints}, r.Routes)
}

func checkNode(n *mesh.Node, routes []netip.Prefix) error {
	for _, list := range []struct {
		limit int
		field string
		n     int
	}{
		{maxRoutes, "routes", len(routes)},
		{maxEndpoints, "wireguard_endpoints", len(n.WireGuardEndpoints)},
		{maxServices, "services", len(n.Services)},
		{maxFeatures, "features", len(n.Features)},
		{maxMultiaddrs, "multiaddrs", len(n.Multiaddrs)},
	} {
		if err := atMost(list.limit, list.field, list.n); err != nil {
			return err
		}
	}
	for _, a := range n.Multiaddrs {
		if len(a) > maxMultiaddr {
			return fmt.Errorf("%w: multiaddrs: one is longer than %d bytes", mesh.ErrInvalid, maxMultiaddr)
		}
	}
	for i, f := range n.Features {
		for _, other := range n.Features[:i] {
			if f.Kind == other.Kind {
				return fmt.Errorf("%w: features: %v is there twice", mesh.ErrInvalid, f.Kind)
			}
		}
	}
	seen := make(map[mesh.Service]bool, len(n.Services))
	for _, s := range n.Services {
		s.Kind = ""
		if seen[s] {
			return fmt.Errorf("%w: services: %s port %d is there twice", mesh.ErrInvalid, s.Protocol, s.Port)
		}
		seen[s] = true
	}
	return nil
}

func atMost(limit int, field string, n int) error {
	if n > limit {
		return fmt.Errorf("%w: %s: %d are too many, the most is %d", mesh.ErrInvalid, field, n, limit)
	}
	return nil
}

// checkEndpoints refuses endpoints at which the mesh cannot reach a node: an
// endpoint inside the mesh would send the tunnel through itself. Loopback ones
// are for a mesh on one machine: where self has one, others may, too.
func checkEndpoints(s *mesh.Snapshot, n *mesh.Node, self mesh.NodeID) error {
	local := n.ID == self
	if gateway := s.Node(self); gateway != nil && !local {
		addr, err := netip.ParseAddr(gateway.PrimaryEndpoint)
		local = err == nil && addr.IsLoopback()
	}
	check := func(field string, addr netip.Addr) error {
		zoned := addr.Zone() != ""
		addr = addr.Unmap()
		switch {
		case !addr.IsValid() || zoned || !addr.IsLoopback() && (mesh.IsSpecial(addr) || mesh.EmbedsIPv4(addr)):
			return fmt.Errorf("%w: %s: %v is no address at which others can reach the node", mesh.ErrInvalid, field, addr)
		case addr.IsLoopback() && !local:
			return fmt.Errorf("%w: %s: %v means another machine on each node; leave it out if the node has no public address", mesh.ErrInvalid, field, addr)
		case s.Contains(addr):
			return fmt.Errorf("%w: %s: %v is inside the mesh; give the address that the node has outside of it", mesh.ErrInvalid, field, addr)
		}
		return nil
	}
	if addr, err := netip.ParseAddr(n.PrimaryEndpoint); err == nil {
		if err := check("primary_endpoint", addr); err != nil {
			return err
		}
	} else if err := checkName(n.PrimaryEndpoint); err != nil {
		return err
	}
	for _, e := range n.WireGuardEndpoints {
		if err := check("wireguard_endpoints", e.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses names that are no public DNS names: whoever looks one of
// those up finds itself, or a service of the network that it happens to be in.
// What a name resolves to is checked again by those who use it (node/wg). The
// empty name is fine.
func checkName(name string) error {
	if name == "" {
		return nil
	}
	// A port would be taken for a part of the name.
	if host, err := mesh.ParsePrimaryEndpoint(name); err != nil || host != name {
		return fmt.Errorf("%w: primary_endpoint: %q is neither an IP address nor a DNS name; give it without a port", mesh.ErrInvalid, name)
	}
	labels := strings.Split(strings.ToLower(strings.TrimSuffix(name, ".")), ".")
	switch last := labels[len(labels)-1]; last {
	case "localhost", "localdomain", "internal", "local":
		return fmt.Errorf("%w: primary_endpoint: names under %q mean another machine on each network; give an IP address or a public DNS name", mesh.ErrInvalid, last)
	}
	return nil
}

// checkRoutes refuses networks that would take traffic from somebody else:
// those that touch the mesh's own, other nodes' addresses and routes, the
// default route, whole or in parts, and networks that mean something else on
// every host.
func checkRoutes(s *mesh.Snapshot, id mesh.NodeID, routes []netip.Prefix) error {
	for _, p := range routes {
		switch {
		case !p.IsValid() || p != p.Masked():
			return fmt.Errorf("%w: routes: %v has bits set behind its length; want %v", mesh.ErrInvalid, p, p.Masked())
		case mesh.TooWide(p):
			return fmt.Errorf("routes: %w", mesh.CheckWidth(p))
		case touchesMesh(s, p):
			return fmt.Errorf("%w: routes: %v touches a network of the mesh itself; leave it out", mesh.ErrInvalid, p)
		}
		if err := mesh.CheckSpecial(p); err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		if n, ok := s.Nodes.Overlapping(p); ok {
			return fmt.Errorf("%w: routes: %v holds an address of node %q", mesh.ErrInvalid, p, n.ID)
		}
	}
	if len(routes) == 0 {
		return nil
	}
	if err := policy.CheckSpan(s, mesh.Route{Name: registry.AutoRoute(id), Node: string(id), Destinations: routes}); err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	return checkOwners(s, id, routes)
}

// checkOwners refuses networks that overlap, or that somebody else has some of.
// Several nodes may offer one network that an admin gave to all of them.
func checkOwners(s *mesh.Snapshot, id mesh.NodeID, routes []netip.Prefix) error {
	routes = slices.SortedFunc(slices.Values(routes), netip.Prefix.Compare)
	for i, p := range routes[1:] {
		if p.Overlaps(routes[i]) {
			return fmt.Errorf("%w: routes: %v and %v overlap; name the wider one only", mesh.ErrInvalid, routes[i], p)
		}
	}
	shares := policy.Sharing(s, &mesh.Route{Name: registry.AutoRoute(id), Node: string(id)}, registry.IsAuto)
	own, _ := autoRoute(s, id)
	for i := range s.Routes {
		r := &s.Routes[i]
		if r.Name == registry.AutoRoute(id) || r.Node == string(id) && r.NextHop == "" {
			continue // with a next hop it is another node that forwards
		}
		for _, q := range r.Destinations {
			p, ok := overlapping(routes, q.Masked())
			if ok && r.Node == string(id) && slices.Contains(own.Destinations, p) {
				continue // of before: a node has to start all the same
			}
			if ok && (p != q.Masked() || !shares(r, p)) {
				return fmt.Errorf("%w: routes: %v overlaps %v, which %q offers; only one node can offer a network, unless a route of an admin gives exactly that network to a group with both",
					mesh.ErrExists, p, q, r.Node)
			}
		}
	}
	return nil
}

// overlapping returns the network of list that overlaps q. The list is sorted
// and its networks do not overlap each other.
func overlapping(list []netip.Prefix, q netip.Prefix) (netip.Prefix, bool) {
	i, _ := slices.BinarySearchFunc(list, q, netip.Prefix.Compare)
	for _, j := range []int{i - 1, i} {
		if j >= 0 && j < len(list) && list[j].Overlaps(q) {
			return list[j], true
		}
	}
	return netip.Prefix{}, false
}

func touchesMesh(s *mesh.Snapshot, p netip.Prefix) bool {
	for _, own := range s.Networks() {
		if own.Overlaps(p) {
			return true
		}
	}
	return false
}
