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
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/ipam"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// edgeWeight is the weight of an edge that a join makes, as v1 nodes give it.
const edgeWeight = 1

// Config says where members are kept.
type Config struct {
	// Registry is required.
	Registry *registry.Registry
	// Self is the node that takes joins; joiners get an edge to it. Required.
	Self mesh.NodeID
	// Logger is told who joins and leaves; nil discards.
	Logger *slog.Logger
}

// Members changes who is in the mesh. It is safe for concurrent use.
//
// Errors name the field of the request that they are about. They wrap
// mesh.ErrInvalid for what can never be accepted, mesh.ErrExists for what
// somebody else has, mesh.ErrNotFound for a node that is not there, and
// mesh.ErrExhausted when there is no address left.
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
// change. The returned snapshot holds it.
//
// An id belongs to the key that it first joined with, until the node leaves. A
// node that joins again with the same id and key keeps its addresses and gets
// what it now says of itself; another key for its id, or its key under another
// id, is mesh.ErrExists. A node that takes itself for a member of this mesh and
// is none was removed: mesh.ErrNotFound.
func (m *Members) Join(ctx context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error) {
	if err := checkJoin(r); err != nil {
		return nil, fmt.Errorf("join of node %q: %w", r.Node.ID, err)
	}
	again := false
	s, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		_, again = tx.Snapshot().Nodes[r.Node.ID]
		return m.join(tx, r)
	})
	if err != nil {
		return nil, fmt.Errorf("join of node %q: %w", r.Node.ID, err)
	}
	m.log.Info("node joined", "peer", string(r.Node.ID), "again", again, "addr", s.Nodes[r.Node.ID].Addrs())
	return s, nil
}

// join writes the change that makes r.Node a member.
func (m *Members) join(tx *registry.Tx, r mesh.JoinRequest) error {
	s := tx.Snapshot()
	if !s.IPv6.IsValid() {
		return fmt.Errorf("%w: there is no mesh yet", mesh.ErrPrecondition)
	}
	if _, ok := s.Nodes[r.Node.ID]; !ok && r.MemberOf == s.IPv6 {
		return fmt.Errorf("%w: id: the node is not in this mesh any more: it was removed", mesh.ErrNotFound)
	}
	if err := checkFree(tx, r.Node.ID, r.Node.PublicKey); err != nil {
		return err
	}
	if err := checkEndpoints(s, &r.Node, m.self); err != nil {
		return err
	}
	if err := checkRoutes(s, r.Node.ID, r.Routes); err != nil {
		return err
	}
	n := r.Node
	if err := assign(s, &n, r.AssignIPv4); err != nil {
		return err
	}
	if err := tx.PutNode(&n); err != nil {
		return err
	}
	if len(r.Routes) == 0 {
		tx.DeleteRoute(registry.AutoRoute(n.ID))
	}
	if err := putRoutes(tx, n.ID, r.Routes); err != nil {
		return err
	}
	return m.putEdges(tx, &n, r)
}

// checkFree refuses an id that another key holds, and a key that another id holds.
func checkFree(tx *registry.Tx, id mesh.NodeID, key mesh.PublicKey) error {
	if tx.Unreadable(id) {
		return fmt.Errorf("%w: id: there is a record of the node that makes no sense; remove the node first", mesh.ErrExists)
	}
	old, ok := tx.Snapshot().Nodes[id]
	if ok && !old.PublicKey.IsZero() && old.PublicKey != key {
		return fmt.Errorf("%w: public_key: the id is bound to another key; choose another id, or remove the old node first", mesh.ErrExists)
	}
	if other, ok := tx.Snapshot().NodeByKey(key.WireGuard()); ok && other.ID != id {
		return fmt.Errorf("%w: public_key: another node has this key; each node needs a key of its own", mesh.ErrExists)
	}
	return nil
}

// assign gives n the addresses that it has, or new ones.
func assign(s *mesh.Snapshot, n *mesh.Node, wantIPv4 bool) error {
	n.IPv6 = mesh.NodeIPv6(s.IPv6, n.PublicKey.WireGuard())
	n.IPv4 = netip.Prefix{}
	n.JoinedAt = time.Now().UTC().Truncate(time.Second)
	if old, ok := s.Nodes[n.ID]; ok {
		n.IPv4 = old.IPv4
		if old.IPv6.IsValid() {
			n.IPv6 = old.IPv6
		}
		if !old.JoinedAt.IsZero() {
			n.JoinedAt = old.JoinedAt
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

// putEdges writes the edges that a join makes: to the node that takes it, to
// public nodes of the same zone, and to the direct peers that were asked for.
// What is set on an edge stays unless a direct peer says otherwise.
func (m *Members) putEdges(tx *registry.Tx, n *mesh.Node, r mesh.JoinRequest) error {
	near := map[mesh.NodeID]bool{m.self: true}
	for id, o := range tx.Snapshot().Nodes {
		if n.Zone != "" && o.Zone == n.Zone && o.PrimaryEndpoint != "" {
			near[id] = true
		}
	}
	delete(near, n.ID)
	for _, id := range slices.Sorted(maps.Keys(r.DirectPeers)) {
		if _, ok := tx.Snapshot().Nodes[id]; !ok {
			return fmt.Errorf("%w: direct_peers: no node %q in the mesh", mesh.ErrNotFound, id)
		}
		e, err := registry.Link(n.ID, id, r.DirectPeers[id])
		if err == nil {
			err = tx.PutEdge(e)
		}
		if err != nil {
			return fmt.Errorf("direct_peers: %q: %w", id, err)
		}
		delete(near, id)
	}
	for _, id := range slices.Sorted(maps.Keys(near)) {
		if _, ok := tx.Edge(n.ID, id); ok {
			continue
		}
		if err := tx.PutEdge(mesh.Edge{Source: n.ID, Target: id, Weight: edgeWeight}); err != nil {
			return err
		}
	}
	return nil
}

// Update changes the fields of a member that are not empty in r. The key of a
// member cannot change.
func (m *Members) Update(ctx context.Context, r mesh.UpdateRequest) error {
	if err := checkUpdate(r); err != nil {
		return fmt.Errorf("update of node %q: %w", r.ID, err)
	}
	_, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		s := tx.Snapshot()
		old, ok := s.Nodes[r.ID]
		if !ok {
			return fmt.Errorf("%w: no node %q in the mesh; it has to join first", mesh.ErrNotFound, r.ID)
		}
		if !r.PublicKey.IsZero() && r.PublicKey != old.PublicKey {
			return fmt.Errorf("%w: public_key: the id is bound to another key; leave and join again to change it", mesh.ErrExists)
		}
		said := mesh.Node{ID: r.ID, PrimaryEndpoint: r.PrimaryEndpoint, WireGuardEndpoints: r.WireGuardEndpoints}
		if err := checkEndpoints(s, &said, m.self); err != nil {
			return err
		}
		if err := checkRoutes(s, r.ID, r.Routes); err != nil {
			return err
		}
		n := updated(*old, r)
		if err := tx.PutNode(&n); err != nil {
			return err
		}
		return putRoutes(tx, r.ID, r.Routes)
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

// Leave removes a node with its edges and routes; ACLs, roles and groups that
// name it stay. Removing a node that is not there is no error. The node that
// holds the state cannot be removed: mesh.ErrPrecondition.
func (m *Members) Leave(ctx context.Context, id mesh.NodeID) error {
	if id == m.self {
		return fmt.Errorf("leave of node %q: %w: it holds the mesh's state and cannot leave it", id, mesh.ErrPrecondition)
	}
	was := false
	_, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		_, was = tx.Snapshot().Nodes[id]
		tx.DeleteNode(id)
		for _, r := range tx.Snapshot().Routes {
			if r.Node == string(id) {
				tx.DeleteRoute(r.Name)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("leave of node %q: %w", id, err)
	}
	if was {
		m.log.Info("node left", "peer", string(id))
	}
	return nil
}

// putRoutes makes the routes that a node offers itself exactly list. An empty
// list changes nothing.
func putRoutes(tx *registry.Tx, id mesh.NodeID, list []netip.Prefix) error {
	if len(list) == 0 {
		return nil
	}
	if err := tx.PutRoute(mesh.Route{Name: registry.AutoRoute(id), Node: string(id), Destinations: list}); err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	return nil
}
