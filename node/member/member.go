// SPDX-License-Identifier: Apache-2.0

// Package member decides who is in the mesh: it checks join, update and leave
// for validity against the latest state and turns each into one atomic change.
//
// Whether the caller may ask for it is decided before, by the gateway.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/ipam"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// edgeWeight is the weight of an edge that a join makes, as v1 nodes give it.
const edgeWeight = 1

// Config says where members are kept.
type Config struct {
	// Registry is required.
	Registry *registry.Registry
	// Self is the node that takes joins; joiners get an edge to it.
	Self mesh.NodeID
	// Logger is told who joins and leaves; nil discards.
	Logger *slog.Logger
}

// Members changes who is in the mesh. It is safe for concurrent use.
type Members struct {
	registry *registry.Registry
	self     mesh.NodeID
	log      *slog.Logger
}

// New makes Members.
func New(cfg Config) (*Members, error) {
	if cfg.Registry == nil || cfg.Self == "" {
		return nil, errors.New("member: Config.Registry and Config.Self are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Members{registry: cfg.Registry, self: cfg.Self, log: cfg.Logger.With("component", "member")}, nil
}

// Join makes a node a member: its record, addresses, edges and routes are one
// change. The returned snapshot holds it. A node that joins again with the
// same id and key keeps its addresses; an id or a key that somebody else holds
// is mesh.ErrExists.
func (m *Members) Join(ctx context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error) {
	if err := checkJoin(r); err != nil {
		return nil, err
	}
	s, err := m.registry.Update(ctx, func(s *mesh.Snapshot, c *registry.Change) error {
		return m.join(s, c, r)
	})
	if err != nil {
		return nil, fmt.Errorf("join of node %q: %w", r.Node.ID, err)
	}
	m.log.Info("node joined", "peer", string(r.Node.ID), "addr", s.Nodes[r.Node.ID].Addrs())
	return s, nil
}

// join writes the change that makes r.Node a member of s.
func (m *Members) join(s *mesh.Snapshot, c *registry.Change, r mesh.JoinRequest) error {
	if err := free(s, r.Node.ID, r.Node.PublicKey); err != nil {
		return err
	}
	if err := checkRoutes(s, r.Node.ID, r.Routes); err != nil {
		return err
	}
	n := r.Node
	if err := assign(s, &n, r.AssignIPv4); err != nil {
		return err
	}
	c.PutNode(&n)
	putRoutes(s, c, n.ID, r.Routes)
	edges, err := m.edges(s, &n, r.DirectPeers)
	if err != nil {
		return err
	}
	for _, e := range edges {
		c.PutEdge(e)
	}
	return nil
}

// free refuses an id that another key holds, and a key that another id holds.
func free(s *mesh.Snapshot, id mesh.NodeID, key mesh.PublicKey) error {
	if old, ok := s.Nodes[id]; ok && !old.PublicKey.IsZero() && old.PublicKey != key {
		return fmt.Errorf("%w: public_key: the id is bound to another key; choose another id, or remove the old node first (meshgate peer delete)", mesh.ErrExists)
	}
	if other, ok := s.NodeByKey(key.WireGuard()); ok && other.ID != id {
		return fmt.Errorf("%w: public_key: another node has this key; each node needs a key of its own", mesh.ErrExists)
	}
	return nil
}

// assign gives n the addresses that it has, or new ones.
func assign(s *mesh.Snapshot, n *mesh.Node, wantIPv4 bool) error {
	n.IPv6 = mesh.NodeIPv6(s.IPv6, n.PublicKey.WireGuard())
	n.IPv4 = netip.Prefix{}
	n.JoinedAt = time.Now().UTC().Truncate(time.Second)
	old, again := s.Nodes[n.ID]
	if again {
		n.IPv4, n.JoinedAt = old.IPv4, old.JoinedAt
		if old.IPv6.IsValid() {
			n.IPv6 = old.IPv6
		}
	}
	if other, ok := s.NodeByAddr(n.IPv6.Addr()); ok && other.ID != n.ID {
		return fmt.Errorf("%w: public_key: its IPv6 address belongs to node %q; make a new key", mesh.ErrExists, other.ID)
	}
	if !wantIPv4 || n.IPv4.IsValid() {
		return nil
	}
	taken := make(map[netip.Addr]bool, len(s.Nodes))
	for _, o := range s.Nodes {
		taken[o.IPv4.Addr()] = true
	}
	var err error
	if n.IPv4, err = ipam.Next(s.IPv4, func(a netip.Addr) bool { return taken[a] }); err != nil {
		return fmt.Errorf("assign_ipv4: %w", err)
	}
	return nil
}

// edges are those that a join makes: to the node that takes it, to public
// nodes of the same zone, and to the direct peers that were asked for.
func (m *Members) edges(s *mesh.Snapshot, n *mesh.Node, direct map[mesh.NodeID]v1.ConnectProtocol) ([]mesh.Edge, error) {
	wanted := map[mesh.NodeID]map[string]string{}
	if n.ID != m.self {
		wanted[m.self] = nil
	}
	for id, o := range s.Nodes {
		if id != n.ID && n.Zone != "" && o.Zone == n.Zone && o.PrimaryEndpoint != "" {
			wanted[id] = nil
		}
	}
	for id, protocol := range direct {
		if _, ok := s.Nodes[id]; !ok {
			return nil, fmt.Errorf("%w: direct_peers: no node %q in the mesh", mesh.ErrNotFound, id)
		}
		wanted[id] = map[string]string{attribute(protocol): "true"}
	}
	out := make([]mesh.Edge, 0, len(wanted))
	for id, attributes := range wanted {
		e := mesh.Edge{Source: min(n.ID, id), Target: max(n.ID, id), Weight: edgeWeight, Attributes: attributes}
		if attributes == nil {
			if old, ok := edgeOf(s, e.Source, e.Target); ok {
				e = old // what somebody set on the edge stays
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// attribute is the name of the edge attribute for a protocol.
func attribute(p v1.ConnectProtocol) string {
	switch p {
	case v1.ConnectProtocol_CONNECT_ICE:
		return v1.EdgeAttribute_EDGE_ATTRIBUTE_ICE.String()
	case v1.ConnectProtocol_CONNECT_LIBP2P:
		return v1.EdgeAttribute_EDGE_ATTRIBUTE_LIBP2P.String()
	default:
		return v1.EdgeAttribute_EDGE_ATTRIBUTE_NATIVE.String()
	}
}

func edgeOf(s *mesh.Snapshot, source, target mesh.NodeID) (mesh.Edge, bool) {
	i, ok := slices.BinarySearchFunc(s.Edges, mesh.Edge{Source: source, Target: target}, func(a, b mesh.Edge) int {
		if c := strings.Compare(string(a.Source), string(b.Source)); c != 0 {
			return c
		}
		return strings.Compare(string(a.Target), string(b.Target))
	})
	if !ok {
		return mesh.Edge{}, false
	}
	return s.Edges[i], true
}

// Update changes the fields of a member that are not empty in r.
func (m *Members) Update(ctx context.Context, r mesh.UpdateRequest) error {
	if err := checkUpdate(r); err != nil {
		return err
	}
	_, err := m.registry.Update(ctx, func(s *mesh.Snapshot, c *registry.Change) error {
		old, ok := s.Nodes[r.ID]
		if !ok {
			return fmt.Errorf("%w: no node %q in the mesh; it has to join first", mesh.ErrNotFound, r.ID)
		}
		if !r.PublicKey.IsZero() && r.PublicKey != old.PublicKey {
			return fmt.Errorf("%w: public_key: the id is bound to another key", mesh.ErrExists)
		}
		if err := checkRoutes(s, r.ID, r.Routes); err != nil {
			return err
		}
		n := updated(*old, r)
		if !equal(&n, old) {
			c.PutNode(&n)
		}
		putRoutes(s, c, r.ID, r.Routes)
		return nil
	})
	if err != nil {
		return fmt.Errorf("update of node %q: %w", r.ID, err)
	}
	return nil
}

// updated is n with the fields of r that are not empty.
func updated(n mesh.Node, r mesh.UpdateRequest) mesh.Node {
	if r.PrimaryEndpoint != "" {
		n.PrimaryEndpoint = r.PrimaryEndpoint
	}
	if len(r.WireGuardEndpoints) > 0 {
		n.WireGuardEndpoints = r.WireGuardEndpoints
	}
	if r.Zone != "" {
		n.Zone = r.Zone
	}
	if len(r.Features) > 0 {
		n.Features = r.Features
	}
	if len(r.Services) > 0 {
		n.Services = r.Services
	}
	if len(r.Multiaddrs) > 0 {
		n.Multiaddrs = r.Multiaddrs
	}
	return n
}

// equal compares what an update can change.
func equal(a, b *mesh.Node) bool {
	return a.PrimaryEndpoint == b.PrimaryEndpoint && a.Zone == b.Zone &&
		slices.Equal(a.WireGuardEndpoints, b.WireGuardEndpoints) && slices.Equal(a.Features, b.Features) &&
		slices.Equal(a.Services, b.Services) && slices.Equal(a.Multiaddrs, b.Multiaddrs)
}

// Leave removes a node with its edges and routes. Removing a node that is not
// there is no error; the node that holds the state cannot be removed.
func (m *Members) Leave(ctx context.Context, id mesh.NodeID) error {
	if id == m.self {
		return fmt.Errorf("%w: node %q holds the mesh's state and cannot leave it", mesh.ErrPrecondition, id)
	}
	gone := false
	_, err := m.registry.Update(ctx, func(s *mesh.Snapshot, c *registry.Change) error {
		if _, gone = s.Nodes[id]; gone {
			c.DeleteNode(id)
		}
		for _, e := range s.Edges {
			if e.Source == id || e.Target == id {
				c.DeleteEdge(e.Source, e.Target)
			}
		}
		for _, r := range s.Routes {
			if r.Node == string(id) {
				c.DeleteRoute(r.Name)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("leave of node %q: %w", id, err)
	}
	if gone {
		m.log.Info("node left", "peer", string(id))
	}
	return nil
}

// putRoutes makes the routes that a node offers itself exactly list. An empty
// list changes nothing, as in v1.
func putRoutes(s *mesh.Snapshot, c *registry.Change, id mesh.NodeID, list []netip.Prefix) {
	if len(list) == 0 {
		return
	}
	want := mesh.Route{Name: routeName(id), Node: string(id), Destinations: list}
	for _, r := range s.Routes {
		if r.Name == want.Name && r.Node == want.Node && slices.Equal(r.Destinations, list) {
			return
		}
	}
	c.PutRoute(want)
}

// routeName is the name of the route object that a node's own routes make.
func routeName(id mesh.NodeID) string { return string(id) + "-auto" }
