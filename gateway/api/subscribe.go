// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// gatherTime is the least time between two looks at the state for one
// subscriber. A change after a quiet time is sent at once; changes that follow
// it closely are sent together, this much later.
const gatherTime = 50 * time.Millisecond

// catchUpTimeout bounds the wait for the state that a subscriber has already.
const catchUpTimeout = 3 * time.Second

// SubscribePeers sends a node's configuration at once, and again whenever it
// differs from the last one sent. Each stream goes its own pace: while a client
// does not read, nothing is queued for it, and it gets the latest configuration
// when it reads again.
func (m *membershipService) SubscribePeers(ctx context.Context, req *connect.Request[v1.SubscribePeersRequest], stream *connect.ServerStream[v1.PeerConfigurations]) error {
	id, err := mesh.ParseNodeID(req.Msg.GetId())
	if err != nil {
		return err
	}
	s, err := m.caughtUp(ctx, id, req.Msg.GetAfter())
	if err != nil {
		return err
	}
	sub := &subscriber{service: m, id: id}
	var sent *v1.PeerConfigurations
	for {
		looked := time.Now()
		c, err := sub.configuration(s)
		if err != nil {
			return err
		}
		if !sameConfiguration(sent, c) {
			if err := stream.Send(c); err != nil {
				return err
			}
			sent = c
		}
		if s, err = m.next(ctx, s.Version, looked); err != nil {
			return err
		}
	}
}

// caughtUp returns what this gateway knows, at once: a cluster without a leader
// goes on telling it. Only for a subscriber that has a later state from another
// gateway, or that joined there a moment ago, it catches up first.
func (m *membershipService) caughtUp(ctx context.Context, id mesh.NodeID, after uint64) (*mesh.Snapshot, error) {
	s, err := held(m.state)
	if err != nil || s.Revision >= after && s.Node(id) != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	latest, err := m.state.Sync(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("catch up with change %d: %w", after, err)
	case latest.Revision < after:
		return nil, fmt.Errorf("%w: this mesh has not got change %d, which the node says it has: the state was restored; the node has to be adopted, or join", mesh.ErrUnavailable, after)
	}
	return latest, nil
}

// sameConfiguration reports whether a differs from b in its revision at most.
func sameConfiguration(a, b *v1.PeerConfigurations) bool {
	if a == nil || b == nil {
		return a == b
	}
	revision := b.Revision
	b.Revision = a.Revision // to compare the rest
	same := proto.Equal(a, b)
	b.Revision = revision
	return same
}

// next returns the latest snapshot after a version, gatherTime after the last
// look or later.
func (m *membershipService) next(ctx context.Context, version uint64, looked time.Time) (*mesh.Snapshot, error) {
	s, err := m.state.Wait(ctx, version)
	if err != nil {
		return nil, err
	}
	rest := gatherTime - time.Since(looked)
	if rest <= 0 {
		return s, nil
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
	}
	return m.state.Wait(ctx, s.Version-1)
}

// subscriber makes the configurations of one node. One goroutine uses it.
type subscriber struct {
	service *membershipService
	id      mesh.NodeID

	// acls are those that concern the node, of the lists told and groups.
	acls   []*v1.NetworkACL
	told   []mesh.ACL
	groups []mesh.Group
}

// configuration is what the node needs to follow s.
func (b *subscriber) configuration(s *mesh.Snapshot) (*v1.PeerConfigurations, error) {
	m := b.service
	if s.Node(b.id) == nil {
		return nil, fmt.Errorf("%w: node %q is not, or no longer, in this mesh; join first", mesh.ErrNotFound, b.id)
	}
	plan, err := m.state.Plan(s, b.id)
	if err != nil {
		return nil, fmt.Errorf("plan for node %q: %w", b.id, err)
	}
	c := &v1.PeerConfigurations{
		GatewayId:   string(m.state.Self()),
		NetworkAcls: b.concerning(s),
		DnsServers:  m.directory.dnsServers(s, b.id),
		Gateways:    m.directory.gatewaysBut(s, b.id),
		Revision:    s.Revision,
	}
	needICE := false
	for _, p := range plan.Peers {
		c.Peers = append(c.Peers, peerToProto(p))
		needICE = needICE || p.Endpoint == "" || p.Protocol == v1.ConnectProtocol_CONNECT_ICE
	}
	if needICE {
		c.IceServers = m.directory.iceServers(s)
	}
	return c, nil
}

// concerning returns the ACLs that concern the node. Lists of a snapshot that
// did not change are the same memory as before.
func (b *subscriber) concerning(s *mesh.Snapshot) []*v1.NetworkACL {
	if !mesh.SameList(b.told, s.ACLs) || !mesh.SameList(b.groups, s.Groups) {
		b.acls = nil
		for _, acl := range policy.Concerning(s, b.id) {
			b.acls = append(b.acls, mesh.ACLToProto(acl))
		}
		b.told, b.groups = s.ACLs, s.Groups
	}
	return b.acls
}

// peerToProto writes a peer as v1 nodes expect it: with the endpoint to dial,
// "host:port", in place of the node's primary endpoint.
func peerToProto(p mesh.Peer) *v1.WireGuardPeer {
	w := &v1.WireGuardPeer{Node: mesh.NodeToProto(p.Node), Proto: p.Protocol}
	w.Node.PrimaryEndpoint = p.Endpoint
	for _, prefix := range p.AllowedIPs {
		w.AllowedIps = append(w.AllowedIps, prefix.String())
	}
	return w
}

// maxServers bounds each list of servers that a node is told.
const maxServers = 64

// directory is the servers of the mesh. It is the same for all who ask about
// one snapshot.
type directory struct {
	mu    sync.Mutex // guards the fields below
	nodes mesh.Nodes
	ice   []string
	dns   []dnsServer

	gateways []*v1.MeshNode
	// granted is what the gateways were chosen by, beside nodes.
	granted grants
}

// grants are the lists of a snapshot that say who may do what.
type grants struct {
	nodes    mesh.Nodes
	roles    []mesh.Role
	bindings []mesh.RoleBinding
	groups   []mesh.Group
}

// of reports whether the grants are those of s.
func (g *grants) of(s *mesh.Snapshot) bool {
	return g.nodes == s.Nodes && mesh.SameList(g.roles, s.Roles) && mesh.SameList(g.bindings, s.Bindings) && mesh.SameList(g.groups, s.Groups)
}

// gatewaysBut are the gateways of the mesh without node id, as they are now: not
// those that say they are gateways and may not be.
func (d *directory) gatewaysBut(s *mesh.Snapshot, id mesh.NodeID) []*v1.MeshNode {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.granted.of(s) {
		d.granted = grants{nodes: s.Nodes, roles: s.Roles, bindings: s.Bindings, groups: s.Groups}
		d.gateways = nil
		vote := mesh.Action{Resource: v1.RuleResource_RESOURCE_VOTES, Verb: v1.RuleVerb_VERB_PUT}
		for n := range s.Nodes.Gateways() {
			if len(d.gateways) < maxServers && policy.Allowed(s, string(n.ID), vote) {
				d.gateways = append(d.gateways, mesh.NodeToProto(n))
			}
		}
	}
	list := d.gateways
	if i := slices.IndexFunc(list, func(n *v1.MeshNode) bool { return n.GetId() == string(id) }); i >= 0 {
		list = slices.Delete(slices.Clone(list), i, i+1)
	}
	return list
}

// dnsServer is a node that knows the names of the mesh.
type dnsServer struct {
	id mesh.NodeID
	at string
}

// iceServers are the nodes through which ICE peers find each other, as "ip:port"
// of their RPC service. Only those with an IP address as endpoint are named,
// because v1 nodes parse it as one.
func (d *directory) iceServers(s *mesh.Snapshot) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readLocked(s)
	return d.ice
}

// dnsServers are the DNS servers for node id, "ip:port" in the mesh.
func (d *directory) dnsServers(s *mesh.Snapshot, id mesh.NodeID) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readLocked(s)
	var list []string
	for _, server := range d.dns {
		if server.id != id {
			list = append(list, server.at)
		}
	}
	return list
}

// isServer reports whether n, which may be nil, is for a directory.
func isServer(n *mesh.Node) bool {
	return n != nil && (n.HasFeature(v1.Feature_ICE_NEGOTIATION) || n.HasFeature(v1.Feature_MESH_DNS))
}

// readLocked makes the lists those of s. It costs what changed since the last
// snapshot that was asked about, unless a server did.
func (d *directory) readLocked(s *mesh.Snapshot) {
	moved := false
	for before, after := range s.Nodes.Changes(d.nodes) {
		if moved = isServer(before) || isServer(after); moved {
			break
		}
	}
	d.nodes = s.Nodes
	if !moved {
		return
	}
	d.ice, d.dns = nil, nil
	for id, n := range s.Nodes.All() {
		if port, ok := n.FeaturePort(v1.Feature_ICE_NEGOTIATION); ok && len(d.ice) < maxServers {
			if _, err := netip.ParseAddr(n.PrimaryEndpoint); err == nil {
				d.ice = append(d.ice, net.JoinHostPort(n.PrimaryEndpoint, strconv.Itoa(int(port))))
			}
		}
		if port, ok := n.FeaturePort(v1.Feature_MESH_DNS); ok && len(n.Addrs()) > 0 && len(d.dns) < maxServers {
			d.dns = append(d.dns, dnsServer{id, netip.AddrPortFrom(n.Addrs()[0], port).String()})
		}
	}
}
