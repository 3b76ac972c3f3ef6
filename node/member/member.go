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

const (
	// edgeWeight is the weight of an edge that a join makes, as v1 nodes give it.
	edgeWeight = 1
	// maxZoneEdges is how many public nodes of its zone a node without a public
	// address of its own gets an edge to.
	maxZoneEdges = 8
)

// Config says where members are kept.
type Config struct {
	// Registry is required.
	Registry *registry.Registry
	// Self is the node that takes joins; joiners get an edge to it. Required.
	Self mesh.NodeID
	// StaticIPv4 are the addresses of nodes that must have a certain one; no
	// other node gets them. Nil: none.
	StaticIPv4 map[mesh.NodeID]netip.Addr
	// AllowUnproven lets nodes join that do not prove that they hold their key,
	// as v1 nodes do not.
	AllowUnproven bool
	// Replicas returns the addresses at which gateways keep the state together,
	// which no route may hold; nil: there is one gateway only.
	Replicas func() []netip.Addr
	// Logger is told who joins and leaves; nil discards.
	Logger *slog.Logger
}

// Members changes who is in the mesh. It is safe for concurrent use.
//
// Errors name the field of the request that they are about. They wrap
// mesh.ErrInvalid for what can never be accepted, mesh.ErrExists for what
// somebody else has, mesh.ErrNotFound for a node that is not there, and
// mesh.ErrExhausted when there is no address left, and mesh.ErrDenied for a join
// that is not proven.
type Members struct {
	registry *registry.Registry
	self     mesh.NodeID
	pool     *ipam.Pool
	unproven bool
	replicas func() []netip.Addr
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
	if cfg.Replicas == nil {
		cfg.Replicas = func() []netip.Addr { return nil }
	}
	pool, err := ipam.New(cfg.StaticIPv4)
	if err != nil {
		return nil, fmt.Errorf("member: %w", err)
	}
	return &Members{
		registry: cfg.Registry, self: cfg.Self, pool: pool, unproven: cfg.AllowUnproven, replicas: cfg.Replicas,
		log: cfg.Logger.With("component", "member"),
	}, nil
}

// Join makes a node a member: its record, addresses, edges and routes are one
// change. The returned snapshot holds it.
//
// An id belongs to the key that it first joined with, until the node leaves; a
// purge does not free it. A node that joins again with the same id and key keeps its addresses and gets
// what it now says of itself; another key for its id, or its key under another
// id, is mesh.ErrExists. A node that takes itself for a member of this mesh and
// is none was removed: mesh.ErrRemoved.
func (m *Members) Join(ctx context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error) {
	if err := checkJoin(r); err != nil {
		return nil, fmt.Errorf("join of node %q: %w", r.Node.ID, err)
	}
	again := false
	s, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		again = tx.Snapshot().Node(r.Node.ID) != nil
		return m.join(tx, r)
	})
	if err != nil {
		return nil, fmt.Errorf("join of node %q: %w", r.Node.ID, err)
	}
	m.log.Info("node joined", "peer", string(r.Node.ID), "again", again, "addr", s.Node(r.Node.ID).Addrs())
	return s, nil
}

// join writes the change that makes r.Node a member.
func (m *Members) join(tx *registry.Tx, r mesh.JoinRequest) error {
	s := tx.Snapshot()
	if !s.IPv6.IsValid() {
		return fmt.Errorf("%w: there is no mesh yet", mesh.ErrPrecondition)
	}
	if s.Node(r.Node.ID) == nil && r.MemberOf == s.IPv6 {
		return fmt.Errorf("%w: id: the node is not in this mesh any more: it was removed", mesh.ErrRemoved)
	}
	if err := checkNew(s, r.Node.ID); err != nil {
		return err
	}
	if err := m.checkProof(s, r); err != nil {
		return err
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
	if err := m.checkOutside(s, &r.Node, r.Routes, true); err != nil {
		return err
	}
	n := r.Node
	if err := m.assign(tx, &n, r.AssignIPv4); err != nil {
		return err
	}
	if err := tx.PutNode(&n); err != nil {
		return err
	}
	tx.UnbindKey(n.ID) // the record says it from now on
	tx.ClearSilent(n.ID)
	if len(r.Routes) == 0 {
		deleteRoutes(tx, n.ID)
	}
	if err := m.putRoutes(tx, n.ID, r.Routes); err != nil {
		return err
	}
	return m.putEdges(tx, &n, r)
}

// checkProof refuses a join by somebody who does not hold its key. A proof that
// is there has to be right even where none is needed.
func (m *Members) checkProof(s *mesh.Snapshot, r mesh.JoinRequest) error {
	if r.Proof != nil {
		if err := r.Proof.Check(r.Node.PublicKey, s.IPv6.String(), time.Now()); err != nil {
			return fmt.Errorf("proof: %w", err)
		}
		return nil
	}
	if m.unproven {
		return nil
	}
	return fmt.Errorf("%w: proof: it is missing, and this mesh takes none but nodes that prove that they hold their key; "+
		"v1 nodes get in where a gateway runs with --mesh.allow-unproven-joins", mesh.ErrDenied)
}

// checkFree refuses an id that another key holds, and a key that another id holds.
func checkFree(tx *registry.Tx, id mesh.NodeID, key mesh.PublicKey) error {
	if tx.Unreadable(id) {
		return fmt.Errorf("%w: id: there is a record of the node that makes no sense; remove the node first", mesh.ErrExists)
	}
	old := tx.Snapshot().Node(id)
	if old != nil && !old.PublicKey.IsZero() && old.PublicKey != key {
		return fmt.Errorf("%w: public_key: the id is bound to another key; choose another id, or have an admin remove the old node (meshgate delete nodes %s)", mesh.ErrExists, id)
	}
	if bound, ok := tx.BoundKey(id); ok && bound != key {
		return fmt.Errorf("%w: public_key: the id is bound to the key of a node that left or was purged; choose another id, or have an admin free it (meshgate delete nodes %s)", mesh.ErrExists, id)
	}
	if other, ok := tx.Snapshot().NodeByKey(key.WireGuard()); ok && other.ID != id {
		return fmt.Errorf("%w: public_key: another node has this key; each node needs a key of its own", mesh.ErrExists)
	}
	return nil
}

// assign gives n the addresses that it has, or new ones.
func (m *Members) assign(tx *registry.Tx, n *mesh.Node, wantIPv4 bool) error {
	s := tx.Snapshot()
	n.IPv6 = mesh.NodeIPv6(s.IPv6, n.PublicKey.WireGuard())
	n.IPv4 = netip.Prefix{}
	n.JoinedAt = time.Now().UTC().Truncate(time.Second)
	if old := s.Node(n.ID); old != nil {
		n.IPv4 = old.IPv4
		if old.IPv6.IsValid() {
			n.IPv6 = old.IPv6
		}
		if !old.JoinedAt.IsZero() {
			n.JoinedAt = old.JoinedAt
		}
	}
	if other, ok := s.Nodes.Overlapping(n.IPv6); ok && other.ID != n.ID {
		return fmt.Errorf("%w: public_key: its IPv6 address belongs to node %q; make a new key", mesh.ErrExists, other.ID)
	}
	static, isStatic := m.pool.Static(n.ID)
	if !wantIPv4 || (n.IPv4.IsValid() && (!isStatic || n.IPv4.Addr() == static)) {
		return nil
	}
	var err error
	if n.IPv4, err = m.pool.Choose(s.IPv4, n.ID, s.LastIPv4, s.Nodes); err != nil {
		return fmt.Errorf("assign_ipv4: %w", err)
	}
	if !isStatic {
		tx.SetLastIPv4(n.IPv4.Addr())
	}
	return nil
}

// putEdges writes the edges that a join makes: to the node that takes it, in
// place of the gateway that took it before, to some public nodes of the same zone, and to the direct peers that were asked
// for. What is set on an edge stays unless a direct peer says otherwise. Edges
// between public nodes follow from the nodes and are not stored.
func (m *Members) putEdges(tx *registry.Tx, n *mesh.Node, r mesh.JoinRequest) error {
	s := tx.Snapshot()
	near := map[mesh.NodeID]bool{m.self: true}
	if n.PrimaryEndpoint == "" || !n.RunsMeshgate() {
		for o := range s.Nodes.PublicInZone(n.Zone, n.ID) {
			if near[o.ID] = true; len(near) > maxZoneEdges {
				break
			}
		}
	}
	delete(near, n.ID)
	if !n.FollowsNone() {
		m.leaveOthers(tx, n)
	}
	for _, id := range slices.Sorted(maps.Keys(r.DirectPeers)) {
		if s.Node(id) == nil {
			return fmt.Errorf("%w: direct_peers: no node %q in the mesh; it has to join first", mesh.ErrNotFound, id)
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
		old := s.Node(r.ID)
		if old == nil {
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
		if err := m.checkOutside(s, &n, r.Routes, len(r.Routes) > 0); err != nil {
			return err
		}
		if err := tx.PutNode(&n); err != nil {
			return err
		}
		return m.putRoutes(tx, r.ID, r.Routes)
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

// Leave removes a node with its edges and routes, and frees its id for another
// key. ACLs, roles and groups that name it stay, but for the group of the
// gateways: whoever takes the id next is none. A node that is gone may still have
// its id bound to its key, or be named as a gateway, which ends, too. An id of
// which nothing is left is mesh.ErrNotFound: it may be mistyped. The node that
// holds the state cannot be removed: mesh.ErrPrecondition.
func (m *Members) Leave(ctx context.Context, id mesh.NodeID) error { return m.leave(ctx, id, false) }

// LeaveBound is Leave for somebody who has shown neither the node's key nor a
// right to it: the id stays bound to the key, so that nobody else takes it, and
// one that was named as a gateway may try again to be one.
func (m *Members) LeaveBound(ctx context.Context, id mesh.NodeID) error {
	return m.leave(ctx, id, true)
}

func (m *Members) leave(ctx context.Context, id mesh.NodeID, bound bool) error {
	if id == m.self {
		return fmt.Errorf("leave of node %q: %w: it holds the mesh's state and cannot leave it", id, mesh.ErrPrecondition)
	}
	was := false
	_, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		n := tx.Snapshot().Node(id)
		was = n != nil
		_, held := tx.BoundKey(id)
		named := !bound && registry.IsGateway(tx.Snapshot(), id) && string(id) != registry.Admin(tx.Snapshot())
		switch {
		case !was && !held && !named && !tx.Unreadable(id):
			return fmt.Errorf("%w: no node of this id in the mesh, and no key that the id is bound to; v1.Mesh/ListNodes names those that are", mesh.ErrNotFound)
		case !bound:
			tx.UnbindKey(id)
		case was && !n.PublicKey.IsZero():
			tx.BindKey(id, n.PublicKey)
		}
		remove(tx, id)
		if bound {
			return nil
		}
		return m.dismiss(tx, id)
	})
	if err != nil {
		return fmt.Errorf("leave of node %q: %w", id, err)
	}
	if was {
		m.log.Info("node left", "peer", string(id))
	}
	return nil
}

// dismiss ends that a node which is removed is named as a gateway. The admin stays
// named: who has the name may do everything anyway.
func (m *Members) dismiss(tx *registry.Tx, id mesh.NodeID) error {
	if string(id) == registry.Admin(tx.Snapshot()) {
		return nil
	}
	return tx.RemoveGateway(id, m.self)
}

// remove deletes a node's record, its edges and its routes.
func remove(tx *registry.Tx, id mesh.NodeID) {
	tx.DeleteNode(id)
	tx.ClearSilent(id)
	for _, r := range tx.Snapshot().Routes {
		if r.Node == string(id) {
			tx.DeleteRoute(r.Name)
		}
	}
}

// putRoutes makes the routes that a node offers itself exactly list. An empty
// list changes nothing. A route of that name that is somebody else's stays as it
// is, but for the gateway's own, which has to start.
func (m *Members) putRoutes(tx *registry.Tx, id mesh.NodeID, list []netip.Prefix) error {
	if len(list) == 0 {
		return nil
	}
	if r, ok := autoRoute(tx.Snapshot(), id); ok && r.Node != string(id) {
		if id != m.self {
			return fmt.Errorf("%w: routes: there is a route %q of %q already, which has the name of its own; have an admin put it under another name and delete it", mesh.ErrExists, r.Name, r.Node)
		}
		m.log.Warn("replaced a route that has the name of this node's own", "peer", r.Node)
	}
	if err := tx.PutRoute(mesh.Route{Name: registry.AutoRoute(id), Node: string(id), Destinations: list}); err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	return nil
}

// deleteRoutes withdraws what a node offers itself.
func deleteRoutes(tx *registry.Tx, id mesh.NodeID) {
	if r, ok := autoRoute(tx.Snapshot(), id); ok && r.Node == string(id) {
		tx.DeleteRoute(r.Name)
	}
}

// autoRoute returns the route that has the name of those that a node offers
// itself. It may be somebody else's: names were free once.
func autoRoute(s *mesh.Snapshot, id mesh.NodeID) (mesh.Route, bool) {
	name := registry.AutoRoute(id)
	if i := slices.IndexFunc(s.Routes, func(r mesh.Route) bool { return r.Name == name }); i >= 0 {
		return s.Routes[i], true
	}
	return mesh.Route{}, false
}
