// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// subscribeGrace is how long a subscription may take to say its first word
	// before the node joins again: a WireGuard handshake (5 s retry) and a few
	// lost packets fit.
	subscribeGrace = 15 * time.Second
	// backoffMin and backoffMax bound the pause between two attempts.
	backoffMin = 500 * time.Millisecond
	backoffMax = 15 * time.Second
	// shakeEach is the pause between two attempts at a new WireGuard session.
	shakeEach = 2 * time.Second
	// lostGrace is how long a gateway may be away before the node is not
	// healthy: a restart fits.
	lostGrace = time.Minute
	// clockOff is how far the clock may differ from the gateway's unnoticed.
	clockOff = 10 * time.Second
	// leaveTimeout bounds the last call of a node that keeps nothing.
	leaveTimeout = 2 * time.Second
)

// Gateway is the membership API of a gateway, as seen by a node that follows it.
type Gateway interface {
	// Join asks for membership and proves that the node holds key. It may
	// change r.
	Join(ctx context.Context, r *v1.JoinRequest, key mesh.PrivateKey) (*v1.JoinResponse, error)
	// Leave ends the membership of node id.
	Leave(ctx context.Context, id string) error
	// SubscribePeers calls each for every configuration of node id, the first
	// at once, until the stream breaks or ctx ends.
	SubscribePeers(ctx context.Context, id string, each func(*v1.PeerConfigurations) error) error
}

// Follow configures a node that gets its peers from a gateway.
type Follow struct {
	// Public is the gateway on its public address, with the join token.
	Public Gateway
	// Mesh makes the client of a gateway on its mesh address, where the node
	// is known by its WireGuard key.
	Mesh func(addr netip.AddrPort) Gateway
	// DataDir keeps the membership over restarts. Empty keeps it in memory, and
	// the node leaves the mesh when it ends.
	DataDir string
	// Again joins anew, whatever DataDir says of an earlier membership: for a
	// node that was removed.
	Again bool
	// Refused reports whether an error of Join is final (the token or the id
	// was refused), so that trying again is pointless.
	Refused func(error) bool
	// Removed reports whether an error of Join says that the mesh has removed
	// the node.
	Removed func(error) bool
}

// follower is the source of a node that follows a gateway. Its snapshots are
// partial: the node itself, its peers and the ACLs that concern it.
type follower struct {
	node *Node
	cfg  Follow

	// lost is when the gateway was heard last, or else when the node began;
	// nil while it is heard.
	lost atomic.Pointer[time.Time]

	mu      sync.Mutex // guards the fields below
	latest  *mesh.Snapshot
	plans   mesh.Plan
	changed chan struct{} // closed and replaced at every publish
	joined  *v1.JoinResponse
	asked   *v1.JoinRequest // what joined answers
}

func newFollower(n *Node, cfg Follow) (*follower, error) {
	if cfg.Public == nil || cfg.Mesh == nil || cfg.Refused == nil || cfg.Removed == nil {
		return nil, fmt.Errorf("%w: following needs a public and a mesh client, and the meaning of their errors", mesh.ErrInvalid)
	}
	f := &follower{node: n, cfg: cfg, changed: make(chan struct{})}
	now := time.Now()
	f.lost.Store(&now)
	return f, nil
}

// run joins, subscribes, and does both again whenever the gateway is lost.
// The data plane keeps its last plan meanwhile.
func (f *follower) run(ctx context.Context) error {
	if err := f.load(); err != nil {
		return err
	}
	delay := backoffMin
	for {
		alive, err := f.follow(ctx)
		if ctx.Err() != nil {
			f.leave(ctx)
			return ctx.Err()
		}
		if err := f.final(err); err != nil {
			return err
		}
		if alive {
			delay = backoffMin
		}
		f.node.log.Warn(f.trouble(err), "err", err, "dur", delay)
		if err := pause(ctx, delay); err != nil {
			return err
		}
		delay = min(2*delay, backoffMax)
	}
}

// follow runs one subscription to its end, joining first where it must. alive
// tells that the gateway was heard.
func (f *follower) follow(ctx context.Context) (alive bool, err error) {
	asked := f.request()
	if f.isMember() && f.known(asked) {
		if alive, err = f.subscribe(ctx); alive {
			return alive, err
		}
	}
	r, joinErr := f.cfg.Public.Join(ctx, proto.CloneOf(asked), f.node.cfg.Key)
	if joinErr != nil {
		return false, errors.Join(err, &joinError{joinErr})
	}
	f.mu.Lock()
	f.asked = asked
	f.mu.Unlock()
	if err := f.accept(r); err != nil {
		return false, err
	}
	return f.subscribe(ctx)
}

// joinError is what a gateway said to a join.
type joinError struct{ error }

func (e *joinError) Unwrap() error { return e.error }

// final is err when no further attempt can help, with what to do about it;
// nil when the node goes on trying.
func (f *follower) final(err error) error {
	join, ok := errors.AsType[*joinError](err)
	switch {
	case !ok:
		return nil
	case !f.isMember() && f.cfg.Refused(join.error):
		return fmt.Errorf("join: %w", join.error)
	case f.isMember() && f.cfg.Removed(join.error):
		return fmt.Errorf("%w: node %q was removed from the mesh; if it shall be a member again, start it once with --again and a token",
			mesh.ErrNotFound, f.node.cfg.ID)
	case f.isMember() && f.cfg.Refused(join.error) && !f.known(f.request()):
		return fmt.Errorf("the settings of node %q have changed since it joined, and the gateway refuses the new ones "+
			"(start it once with a token that may make it join): %w", f.node.cfg.ID, join.error)
	}
	return nil
}

// trouble says in the log what err means for the node, which tries again.
func (f *follower) trouble(err error) string {
	join, ok := errors.AsType[*joinError](err)
	switch {
	case !f.isMember():
		return "gateway not reached yet, trying again"
	case ok && f.cfg.Refused(join.error):
		return "gateway not heard on the mesh, and it refuses to let this node join again: if the node was removed, it needs a token and --again"
	}
	return "gateway lost, trying again"
}

// leave ends the membership of a node that forgets its key, so that its id is
// free for the next one. ctx has ended.
func (f *follower) leave(ctx context.Context) {
	if f.cfg.DataDir != "" || !f.isMember() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	_, at, err := f.gateway()
	if err == nil {
		err = f.cfg.Mesh(at).Leave(ctx, string(f.node.cfg.ID))
	}
	if err != nil {
		f.node.log.Warn("did not leave the mesh; remove the node before one of its id joins again", "err", err)
	}
}

// subscribe follows the gateway over the mesh. The stream has to say its first
// word within subscribeGrace.
func (f *follower) subscribe(ctx context.Context) (alive bool, err error) {
	// The way to the gateway is in the plan; it has to be in force first.
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-f.node.ready:
	}
	gate, at, err := f.gateway()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The gateway may have started anew since the session was made.
	ended := make(chan struct{})
	heard := make(chan struct{})
	go func() {
		defer close(ended)
		f.shake(ctx, gate.PublicKey.WireGuard(), heard)
	}()
	defer func() { cancel(nil); <-ended }()
	grace := time.AfterFunc(subscribeGrace, func() {
		cancel(fmt.Errorf("%w: gateway %s did not answer over the mesh within %s", mesh.ErrUnavailable, at, subscribeGrace))
	})
	defer grace.Stop()
	err = f.cfg.Mesh(at).SubscribePeers(ctx, string(f.node.cfg.ID), func(c *v1.PeerConfigurations) error {
		if !alive {
			f.node.log.Info("gateway heard", "addr", at.String())
			alive = true
			grace.Stop()
			close(heard)
			f.lost.Store(nil)
		}
		return f.update(c)
	})
	if alive {
		now := time.Now()
		f.lost.Store(&now)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return alive, err
}

// shake asks the gateway for a new session, again and again until it is heard
// or ctx ends.
func (f *follower) shake(ctx context.Context, key mesh.WireGuardKey, heard <-chan struct{}) {
	tick := time.NewTicker(shakeEach)
	defer tick.Stop()
	for {
		f.node.device.Handshake(key)
		select {
		case <-ctx.Done():
			return
		case <-heard:
			return
		case <-tick.C:
		}
	}
}

// healthy is nil while a gateway is heard, or was not long ago.
func (f *follower) healthy() error {
	if lost := f.lost.Load(); lost != nil && time.Since(*lost) > lostGrace {
		return fmt.Errorf("%w: no gateway has been heard since %s; the node goes on with what it knew then",
			mesh.ErrUnavailable, lost.UTC().Format(time.RFC3339))
	}
	return nil
}

// request is the node as it wants to be known.
func (f *follower) request() *v1.JoinRequest {
	n := f.node
	self := mesh.NodeToProto(&mesh.Node{
		ID:                 n.cfg.ID,
		PublicKey:          n.cfg.Key.Public(),
		PrimaryEndpoint:    n.cfg.PrimaryEndpoint,
		WireGuardEndpoints: wireguardEndpoints(n.cfg.PrimaryEndpoint, n.device.ListenPort()),
		Zone:               n.cfg.Zone,
		Features:           n.cfg.Features,
		Services:           services(n.cfg.Expose),
	})
	r := &v1.JoinRequest{
		Id:                 self.GetId(),
		PublicKey:          self.GetPublicKey(),
		PrimaryEndpoint:    self.GetPrimaryEndpoint(),
		WireguardEndpoints: self.GetWireguardEndpoints(),
		ZoneAwarenessId:    self.GetZoneAwarenessId(),
		AssignIpv4:         true,
		Features:           self.GetFeatures(),
		Services:           self.GetServices(),
	}
	for _, p := range n.cfg.Routes {
		r.Routes = append(r.Routes, p.String())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.MemberOf = f.joined.GetNetworkIpv6()
	return r
}

// known reports whether the gateway knows of the node what r says.
func (f *follower) known(r *v1.JoinRequest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked == nil {
		return false
	}
	a, b := proto.CloneOf(f.asked), proto.CloneOf(r)
	a.MemberOf, b.MemberOf = "", ""
	return proto.Equal(a, b)
}

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

// update takes a new configuration from the subscription.
func (f *follower) update(c *v1.PeerConfigurations) error {
	f.mu.Lock()
	base := f.joined
	f.mu.Unlock()
	r := &v1.JoinResponse{
		AddressIpv4: base.GetAddressIpv4(), AddressIpv6: base.GetAddressIpv6(),
		NetworkIpv4: base.GetNetworkIpv4(), NetworkIpv6: base.GetNetworkIpv6(),
		MeshDomain: base.GetMeshDomain(), GatewayId: base.GetGatewayId(),
		Peers: c.GetPeers(), IceServers: c.GetIceServers(), DnsServers: c.GetDnsServers(),
		NetworkAcls: c.GetNetworkAcls(),
	}
	return f.accept(r)
}

// publish turns a gateway's answer into the next snapshot and plan.
func (f *follower) publish(r *v1.JoinResponse) error {
	s, plan, err := f.build(r)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.latest != nil {
		s.Version = f.latest.Version + 1
	}
	f.latest, f.plans, f.joined = s, plan, r
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

func (f *follower) build(r *v1.JoinResponse) (*mesh.Snapshot, mesh.Plan, error) {
	n := f.node
	self := &mesh.Node{
		ID: n.cfg.ID, PublicKey: n.cfg.Key.Public(), PrimaryEndpoint: n.cfg.PrimaryEndpoint,
		Zone: n.cfg.Zone, Features: n.cfg.Features, Services: services(n.cfg.Expose),
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
	for _, w := range r.GetPeers() {
		peer, err := peerFromProto(w)
		if err != nil {
			// One bad record must not cut the node off from the others.
			n.log.Warn("peer not used", "peer", w.GetNode().GetId(), "err", err)
			continue
		}
		s.Nodes = s.Nodes.With(peer.Node)
		plan.Peers = append(plan.Peers, peer)
	}
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

// gateway is the gateway to subscribe to, with its mesh address: the one that
// answered the join, else any peer with the membership service.
func (f *follower) gateway() (*mesh.Node, netip.AddrPort, error) {
	f.mu.Lock()
	nodes, preferred := f.latest.Nodes, mesh.NodeID(f.joined.GetGatewayId())
	f.mu.Unlock()
	at := func(o *mesh.Node) (netip.AddrPort, bool) {
		port, ok := o.FeaturePort(v1.Feature_MEMBERSHIP)
		addrs := o.Addrs()
		if !ok || len(addrs) == 0 {
			return netip.AddrPort{}, false
		}
		return netip.AddrPortFrom(addrs[0], port), true
	}
	if o, ok := nodes.Get(preferred); ok {
		if a, ok := at(o); ok {
			return o, a, nil
		}
	}
	for _, o := range nodes.All() {
		if a, ok := at(o); ok && o.ID != f.node.cfg.ID {
			return o, a, nil
		}
	}
	return nil, netip.AddrPort{}, fmt.Errorf("%w: no gateway among this node's peers: the mesh's network ACLs do not let it reach one", mesh.ErrUnavailable)
}

func (f *follower) isMember() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined != nil
}

func (f *follower) wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		f.mu.Lock()
		s, changed := f.latest, f.changed
		f.mu.Unlock()
		if s != nil && s.Version > after {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func (f *follower) plan(_ *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error) {
	if id != f.node.cfg.ID {
		return mesh.Plan{}, errNoState
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plans, nil
}

func (f *follower) close() error { return nil }
