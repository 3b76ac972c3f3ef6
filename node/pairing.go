// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/pair"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/wg"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/turn/client"
)

// strangersRate and strangersBurst bound the answers to STUN per second, and at
// once, to each network (see package limiter). A node asks on the way that it uses
// each few seconds, and thousands of them may be behind one address: that of a NAT,
// or that of a gateway which has their relays. An answer is no longer than what it
// answers, so a forged source gains nothing over sending there itself; what it gets
// at most is 1.4 Mbit/s.
const strangersRate, strangersBurst = 2000, 6000

// pairDevice is the device as package pair sees it.
type pairDevice struct{ *wg.Device }

// OpenPath implements pair.Device.
func (d pairDevice) OpenPath(key mesh.WireGuardKey) (pair.Way, error) {
	way, err := d.Device.OpenPath(key)
	if err != nil {
		return nil, err
	}
	return way, nil
}

// newPairs makes the pairs of a node that follows a gateway; nil if it takes no
// part in them.
func (n *Node) newPairs(f *follower) (*pair.Pairs, error) {
	if !f.cfg.Paths {
		return nil, nil
	}
	return pair.New(pair.Config{
		Self: n.cfg.ID, Device: pairDevice{n.device}, Directory: pairDirectory{f}, Signals: pairSignals{f},
		Allocate: f.allocate, Addrs: n.hostAddrs, Beside: n.inOtherTunnel, Publish: f.renew,
		Logger: n.cfg.Logger, Registerer: n.cfg.Registerer,
	})
}

// stun takes the STUN messages that come to the device. A node that holds state
// answers those who ask where they come from, which is how nodes see that its
// port is open to them; of one network no more than strangersRate.
func (n *Node) stun(s wg.Socket, from netip.AddrPort, b []byte) {
	if n.pairs != nil {
		n.pairs.STUN(s, from, b)
		return
	}
	if answer, ok := n.tell(from, b); ok {
		_ = n.device.SendSTUN(s, from, answer) // who lost it asks again
	}
}

// tell is what a node that holds state answers to a STUN message, if anything.
func (n *Node) tell(from netip.AddrPort, b []byte) ([]byte, bool) {
	answer, ok := path.Answer(b, from)
	return answer, ok && n.strangers.Take(from.Addr().Unmap())
}

// hostAddrs are the addresses of the host's interfaces.
func (n *Node) hostAddrs() ([]netip.Addr, error) {
	v, err := n.locals.load(n.cfg.InterfaceAddrs)
	if err != nil {
		return nil, err
	}
	list := make([]netip.Addr, 0, len(v.networks))
	for _, p := range v.networks {
		list = append(list, p.Addr())
	}
	return list, nil
}

// look has the pairs see at once that the host's addresses may have changed, which
// they would find out by themselves a moment later.
func (n *Node) look() {
	if n.pairs != nil {
		n.locals.forget()
		n.tunnels.forget()
		n.pairs.HostChanged()
	}
}

// AnswerPath serves a channel on which another node tells how it can be reached;
// a gateway has said that it is that node. It returns when the channel is over.
func (n *Node) AnswerPath(ctx context.Context, from mesh.NodeID, ch pair.Channel) error {
	if n.pairs == nil {
		return fmt.Errorf("%w: this node takes no part in pairs", mesh.ErrUnsupported)
	}
	return n.pairs.Answer(ctx, from, ch)
}

// Paths says how packets get to the gateway and to nodes with a session of their
// own; nil for a node that takes no part in pairs.
func (n *Node) Paths() []pair.Status {
	if n.pairs == nil {
		return nil
	}
	return n.pairs.Status()
}

// renew merges the pairs into what the gateway said, again.
func (f *follower) renew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.base != nil {
		f.mergeLocked()
	}
}

// mergeLocked makes the next snapshot and plan, of what the gateway said and the
// pairs. The caller holds mu.
func (f *follower) mergeLocked() {
	s, plan := *f.base, f.basePlan
	stands := make(map[mesh.NodeID]bool)
	if f.node.pairs != nil {
		for _, st := range f.node.pairs.Status() {
			stands[st.Node] = st.Stands
		}
		view := f.node.pairs.View()
		plan = view.Apply(plan)
		for _, p := range view.Peers() {
			if s.Node(p.Node.ID) == nil {
				s.Nodes = s.Nodes.With(p.Node)
			}
		}
	}
	plan = unshared(plan, stands)
	if f.latest != nil {
		s.Version = f.latest.Version + 1
	}
	f.latest, f.plans = &s, plan
	close(f.changed)
	f.changed = make(chan struct{})
}

// pairGateway is the client of the gateway that the node follows, over the mesh.
func (f *follower) pairGateway() (PairGateway, error) {
	_, at, err := f.gateway()
	if err != nil {
		return nil, err
	}
	return f.cfg.MeshPairs(at), nil
}

// pairDirectory asks the gateway who other nodes are.
type pairDirectory struct{ *follower }

// Follow implements pair.Directory.
func (d pairDirectory) Follow(ctx context.Context) (pair.Book, error) {
	gate, err := d.pairGateway()
	if err != nil {
		return nil, err
	}
	return &pairBook{follower: d.follower, call: gate.FollowPairs(ctx)}, nil
}

// pairBook is a stream of answers.
type pairBook struct {
	*follower
	call peer.Call[meshgatev1.FollowPairsResponse, meshgatev1.FollowPairsRequest]
}

// Ask implements pair.Book.
func (b *pairBook) Ask(add, drop []string) error {
	return b.call.Send(&meshgatev1.FollowPairsRequest{NodeId: string(b.node.cfg.ID), Add: add, Drop: drop})
}

// Next implements pair.Book.
func (b *pairBook) Next() (pair.News, error) {
	m, err := b.call.Receive()
	if err != nil {
		return pair.News{}, err
	}
	news := pair.News{Servers: b.relayServers(m.GetIceServers())}
	for _, p := range m.GetPairs() {
		a := pair.Answer{Wanted: p.GetWanted(), Reason: p.GetGoneReason()}
		if p.GetPeer() != nil {
			if a.Peer, err = peerFromProto(p.GetPeer()); err != nil {
				// One bad record is no reason to do without the others.
				b.node.log.Warn("pair not used", "peer", p.GetPeer().GetNode().GetId(), "err", err)
				a.Reason = err.Error()
			}
		} else if a.Reason == "" {
			a.Reason = "the gateway names no peer"
		}
		news.Answers = append(news.Answers, a)
	}
	return news, nil
}

// relayServers are the TURN servers among those that a gateway names.
func (f *follower) relayServers(list []*v1.ICEServer) []pair.Server {
	var out []pair.Server
	for _, s := range list {
		urls := make([]string, 0, len(s.GetUrls()))
		for _, u := range s.GetUrls() {
			if strings.HasPrefix(u, "turn:") || strings.HasPrefix(u, "turns:") {
				urls = append(urls, u)
			}
		}
		if len(urls) > 0 {
			out = append(out, pair.Server{Relay: f.relayName(urls[0]), URLs: urls, Username: s.GetUsername(), Password: s.GetCredential()})
		}
	}
	return out
}

// HostOf is the host in the URI of a TURN server (RFC 7065).
func HostOf(uri string) string {
	_, rest, _ := strings.Cut(uri, ":")
	rest, _, _ = strings.Cut(rest, "?")
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return rest
	}
	return host
}

// relayName is the gateway at which a TURN server is, or else its host.
func (f *follower) relayName(uri string) string {
	host := HostOf(uri)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range f.gateways {
		if g.PrimaryEndpoint == host {
			return string(g.ID)
		}
		for _, at := range g.WireGuardEndpoints {
			if at.Addr().String() == host {
				return string(g.ID)
			}
		}
		if u, err := url.Parse(g.API.URL); err == nil && u.Hostname() == host {
			return string(g.ID)
		}
	}
	return host
}

// allocate gets a relay from a gateway.
func (f *follower) allocate(ctx context.Context, uri, username, password string) (pair.Relay, error) {
	cfg := client.Config{
		Server: uri, Username: username, Password: password, Logger: f.node.cfg.Logger,
		Dial: f.node.cfg.Outbound.DialContext, LookUp: f.node.cfg.Outbound.LookupNetIP,
	}
	if f.cfg.RelayTLS != nil && strings.HasPrefix(uri, "turns:") {
		cfg.TLS = f.cfg.RelayTLS(uri)
		cfg.AlternateTLS = func(host string) *tls.Config { return f.cfg.RelayTLS("turns:" + net.JoinHostPort(host, "5349")) }
	}
	a, err := client.Allocate(ctx, cfg)
	switch {
	case errors.Is(err, client.ErrCapacity):
		return nil, fmt.Errorf("%w: all of its relay ports are in use, widen --turn.relay-ports there", pair.ErrFull)
	case errors.Is(err, client.ErrQuota):
		return nil, fmt.Errorf("%w: this node holds as many as it may, some of which end within minutes", pair.ErrFull)
	case err != nil:
		return nil, err
	}
	return a, nil
}

// pairSignals reaches other nodes through the gateway.
type pairSignals struct{ *follower }

// Call implements pair.Signals.
func (s pairSignals) Call(ctx context.Context, node mesh.NodeID) (pair.Channel, error) {
	gate, err := s.pairGateway()
	if err != nil {
		return nil, err
	}
	return pairChannel{node, gate.SignalPaths(ctx)}, nil
}

// pairChannel is a channel to a node.
type pairChannel struct {
	node mesh.NodeID
	call peer.Call[v1.WebRTCSignal, v1.WebRTCSignal]
}

// Send implements pair.Channel.
func (c pairChannel) Send(s mesh.PathSignal) error {
	return c.call.Send(&v1.WebRTCSignal{NodeId: string(c.node), Path: mesh.PathSignalToProto(s)})
}

// Receive implements pair.Channel.
func (c pairChannel) Receive() (mesh.PathSignal, error) {
	for {
		m, err := c.call.Receive()
		switch {
		case err != nil:
			return mesh.PathSignal{}, err
		case m.GetPath() != nil:
			return mesh.PathSignalFromProto(m.GetPath())
		case m.GetDescription() != "" || m.GetCandidate() != "":
			return mesh.PathSignal{}, errors.New("the other node answers without a path")
		}
		// The gateway says a word of its own first.
	}
}
