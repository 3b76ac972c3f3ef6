// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// clockOff is how far the clock may differ from the gateway's unnoticed.
const clockOff = 10 * time.Second

// accept takes the answer to a join and keeps it for the next start.
func (f *follower) accept(r *v1.JoinResponse) error {
	if t := r.GetTime(); t.IsValid() {
		if off := time.Until(t.AsTime()); off.Abs() > clockOff {
			f.node.log.Warn("this machine's clock is not that of the gateway: a WireGuard peer takes no handshake of a clock that went back, so set it right",
				"gateway", t.AsTime(), "here", time.Now().UTC())
		}
	}
	if err := f.publish(r); err != nil {
		return fmt.Errorf("answer of the gateway: %w", err)
	}
	if err := f.save(r); err != nil {
		// The node goes on; only its next start needs the gateway's public address.
		f.node.log.Warn("membership not kept for the next start", "err", err)
	}
	return nil
}

// revision is the change of the mesh's state up to which the node knows it.
func (f *follower) revision() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined.GetRevision()
}

// update takes a new configuration from the subscription, unless it is older
// than the one that the node has: from a gateway that lags behind, or of a mesh
// that was restored. The answer to a join, or to being adopted, is never old.
func (f *follower) update(c *v1.PeerConfigurations) error {
	f.mu.Lock()
	base := f.joined
	f.mu.Unlock()
	if c.GetRevision() != 0 && c.GetRevision() < base.GetRevision() {
		return fmt.Errorf("%w: gateway %q sent the configuration of change %d to a node that has that of %d",
			mesh.ErrUnavailable, c.GetGatewayId(), c.GetRevision(), base.GetRevision())
	}
	return f.accept(updated(base, c))
}

// updated is the answer to a join with what a later configuration says in its
// place. What that does not carry stays, and so does the gateway: it is the one
// that took the node, also where another tells the news. It shares parts with c.
func updated(base *v1.JoinResponse, c *v1.PeerConfigurations) *v1.JoinResponse {
	r := proto.CloneOf(base)
	r.Time = nil // that was the gateway's clock when the node joined
	r.Peers, r.IceServers, r.DnsServers = c.GetPeers(), c.GetIceServers(), c.GetDnsServers()
	r.NetworkAcls, r.Gateways, r.Revision = c.GetNetworkAcls(), c.GetGateways(), c.GetRevision()
	return r
}

// publish turns a gateway's answer into the next snapshot and plan.
func (f *follower) publish(r *v1.JoinResponse) error {
	s, plan, err := f.build(r)
	if err != nil {
		return err
	}
	gateways := f.knownGateways(r)
	for _, g := range gateways {
		// Gateways call the node, peers of it or not.
		if s.Node(g.ID) == nil {
			s.Nodes = s.Nodes.With(g)
		}
	}
	f.mu.Lock()
	f.base, f.basePlan, f.joined, f.gateways = s, plan, r, gateways
	f.mergeLocked()
	f.mu.Unlock()
	if pairs := f.node.pairs; pairs != nil {
		pairs.Follow(plan, s.Contains)
		pairs.Offer(f.relayServers(r.GetRelayServers()))
	}
	return nil
}

func (f *follower) build(r *v1.JoinResponse) (*mesh.Snapshot, mesh.Plan, error) {
	n := f.node
	self := &mesh.Node{
		ID: n.cfg.ID, PublicKey: n.cfg.Key.Public(), PrimaryEndpoint: n.cfg.PrimaryEndpoint,
		Zone: n.cfg.Zone, Features: n.cfg.Features, Services: services(n.cfg.Expose),
		Paths: f.cfg.Paths, Exit: n.cfg.Exit,
	}
	s := &mesh.Snapshot{Version: 1, Domain: r.GetMeshDomain(), Nodes: mesh.NodesOf(self)}
	for _, p := range []struct {
		field, text string
		into        *netip.Prefix
	}{
		{"address_ipv4", r.GetAddressIpv4(), &self.IPv4},
		{"address_ipv6", r.GetAddressIpv6(), &self.IPv6},
		{"network_ipv4", r.GetNetworkIpv4(), &s.IPv4},
		{"network_ipv6", r.GetNetworkIpv6(), &s.IPv6},
	} {
		if p.text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(p.text)
		if err != nil {
			return nil, mesh.Plan{}, fmt.Errorf("%w: %s %q: %w", mesh.ErrInvalid, p.field, p.text, err)
		}
		*p.into = prefix
	}
	// A v1 gateway may give a host address with the network's bits.
	if self.IPv4.IsValid() {
		self.IPv4 = netip.PrefixFrom(self.IPv4.Addr(), 32)
	}
	plan := mesh.Plan{Self: self}
	for _, p := range []netip.Prefix{s.IPv4, s.IPv6} {
		if p.IsValid() {
			plan.Routes = append(plan.Routes, p.Masked())
		}
	}
	var peers []mesh.Peer
	for _, w := range r.GetPeers() {
		peer, err := peerFromProto(w)
		if err != nil {
			// One bad record must not cut the node off from the others.
			n.log.Warn("peer not used", "peer", w.GetNode().GetId(), "err", err)
			continue
		}
		s.Nodes = s.Nodes.With(peer.Node)
		peers = append(peers, peer)
	}
	plan.Peers = mesh.PeersOf(peers...)
	plan.Routes = append(plan.Routes, behind(s, &plan)...)
	for _, w := range r.GetNetworkAcls() {
		acl, err := mesh.ACLFromProto(w)
		if err != nil {
			return nil, mesh.Plan{}, fmt.Errorf("network acl %q: %w", w.GetName(), err)
		}
		s.ACLs = append(s.ACLs, acl)
	}
	if len(n.cfg.Routes) > 0 {
		s.Routes = []mesh.Route{{Name: string(n.cfg.ID) + "-auto", Node: string(n.cfg.ID), Destinations: n.cfg.Routes}}
	}
	return s, plan, nil
}

// behind returns the networks outside of the mesh that lie behind peers, each
// once, of the families in which the node has an address. What the node offers
// itself lies behind nobody.
func behind(s *mesh.Snapshot, plan *mesh.Plan) []netip.Prefix {
	var list []netip.Prefix
	for peer := range plan.Peers.All() {
		for _, p := range peer.AllowedIPs {
			own := plan.Self.IPv6
			if p.Addr().Is4() {
				own = plan.Self.IPv4
			}
			if own.IsValid() && !s.Contains(p.Addr()) {
				list = append(list, p)
			}
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// knownGateways are the gateways that an answer names.
func (f *follower) knownGateways(r *v1.JoinResponse) []*mesh.Node {
	var list []*mesh.Node
	for _, w := range r.GetGateways() {
		g, err := mesh.NodeFromProto(w)
		if err != nil {
			f.node.log.Warn("gateway not used", "gateway", w.GetId(), "err", err)
			continue
		}
		if g.ID != f.node.cfg.ID {
			list = append(list, g)
		}
	}
	return list
}

// peerFromProto reads a WireGuardPeer; its primary_endpoint is "ip:port" as
// gateways rewrite it (v1 behaviour).
func peerFromProto(w *v1.WireGuardPeer) (mesh.Peer, error) {
	rec := w.GetNode()
	endpoint := rec.GetPrimaryEndpoint()
	o, err := mesh.NodeFromProto(rec)
	if err != nil {
		return mesh.Peer{}, err
	}
	p := mesh.Peer{Node: o, Endpoint: endpoint, Protocol: w.GetProto()}
	for _, text := range append(w.GetAllowedIps(), w.GetAllowedRoutes()...) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return mesh.Peer{}, fmt.Errorf("%w: allowed ip %q: %w", mesh.ErrInvalid, text, err)
		}
		p.AllowedIPs = append(p.AllowedIPs, prefix.Masked())
	}
	return p, nil
}
