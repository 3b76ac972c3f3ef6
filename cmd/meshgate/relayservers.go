// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// maxRelayGateways bounds the gateways whose TURN servers a node is told.
const maxRelayGateways = 16

// relayServers are the STUN and TURN servers of this gateway and of the others,
// with credentials for a node or a user. All take what one of them minted. For
// nobody ("") they are those of STUN.
func (p *gatewayProcess) relayServers(ctx context.Context, user string) []*v1.ICEServer {
	list := p.iceServers(ctx, user)
	if len(list) == 0 {
		return nil
	}
	own := list[len(list)-1]
	if user != "" {
		if p.tls != nil {
			own.Urls = append(own.Urls, turnsURLs(p.url())...)
		}
		own.Urls = append(own.Urls, p.relays6()...)
	}
	s := p.node.Snapshot()
	if s == nil || p.cluster == nil {
		return list
	}
	for n := range grantedGateways(s) {
		port, ok := n.FeaturePort(v1.Feature_TURN_SERVER)
		if !ok || n.ID == p.node.Self() || n.PrimaryEndpoint == "" {
			continue
		}
		at := hostPortURL(n.PrimaryEndpoint, port)
		list = append(list, &v1.ICEServer{Urls: []string{"stun:" + at}})
		if user != "" {
			list = append(list, &v1.ICEServer{
				Urls:     append([]string{"turn:" + at + "?transport=udp", "turn:" + at + "?transport=tcp"}, turnsURLs(n.API.URL)...),
				Username: own.GetUsername(), Credential: own.GetCredential(), ExpiresAt: own.GetExpiresAt(),
			})
		}
		if len(list) >= 2*maxRelayGateways {
			break
		}
	}
	return list
}

// sessionServers are this gateway's STUN and TURN for a session over DataChannels. Users
// are told of TURN over TLS, too: it gets through where nothing but HTTPS does. Nodes
// are not, which have WireGuard over it there: each server costs them a relay a session.
func (p *gatewayProcess) sessionServers(ctx context.Context, caller string) []*v1.ICEServer {
	list := p.iceServers(ctx, caller)
	s := p.node.Snapshot()
	if len(list) == 0 || caller == "" || p.tls == nil || s != nil && s.Node(mesh.NodeID(caller)) != nil {
		return list
	}
	own := list[len(list)-1]
	own.Urls = append(own.Urls, turnsURLs(p.url())...)
	return list
}

// relays6 is TURN at the IPv6 address of this gateway, for nodes that have no IPv4.
func (p *gatewayProcess) relays6() []string {
	if !p.address6.IsValid() {
		return nil
	}
	at := netip.AddrPortFrom(p.address6, p.turn.UDPAddrs()[0].Port()).String()
	urls := []string{"turn:" + at + "?transport=udp", "turn:" + at + "?transport=tcp"}
	if addr, ok := p.public.Addr().(*net.TCPAddr); ok && p.tls != nil {
		urls = append(urls, "turns:"+netip.AddrPortFrom(p.address6, uint16(addr.Port)).String()+"?transport=tcp")
	}
	return urls
}

// turnsURLs is TURN on the port of an API with TLS; none for one without.
func turnsURLs(api string) []string {
	u, err := url.Parse(api)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return []string{"turns:" + net.JoinHostPort(u.Hostname(), port) + "?transport=tcp"}
}

// grantedGateways yields the gateways of s that may be ones: not all who say so.
func grantedGateways(s *mesh.Snapshot) func(yield func(*mesh.Node) bool) {
	vote := mesh.Action{Resource: v1.RuleResource_RESOURCE_VOTES, Verb: v1.RuleVerb_VERB_PUT}
	return func(yield func(*mesh.Node) bool) {
		for n := range s.Nodes.Gateways() {
			if policy.Allowed(s, string(n.ID), vote) && !yield(n) {
				return
			}
		}
	}
}

// tunnelPorts are the WireGuard ports of the gateways, for questions that are
// asked for every packet. The zero value is ready; it is safe for concurrent use.
type tunnelPorts struct {
	last atomic.Pointer[tunnelPortList]
}

type tunnelPortList struct {
	of    *mesh.Snapshot
	ports []netip.AddrPort
}

// opens reports whether user is a node of s, which may be nil, and at the
// WireGuard port of a gateway: a node from which UDP does not get through goes
// there by way of TURN.
func (t *tunnelPorts) opens(s *mesh.Snapshot, user string, at netip.AddrPort) bool {
	if s == nil {
		return false
	}
	l := t.last.Load()
	if l == nil || l.of != s {
		l = &tunnelPortList{of: s}
		for n := range grantedGateways(s) {
			l.ports = append(l.ports, n.WireGuardEndpoints...)
		}
		t.last.Store(l)
	}
	return slices.Contains(l.ports, netip.AddrPortFrom(at.Addr().Unmap(), at.Port())) && s.Node(mesh.NodeID(user)) != nil
}

// handedOver is a listener whose connections come by another one, which has
// found out what they speak. It is safe for concurrent use.
type handedOver struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{} // closed by Close
	once  sync.Once
}

func newHandedOver(addr net.Addr) *handedOver {
	return &handedOver{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// hand gives a connection to who accepts, or closes it when nobody does any more.
func (l *handedOver) hand(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		_ = c.Close() // nothing was promised to it
	}
}

// Accept implements net.Listener.
func (l *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *handedOver) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *handedOver) Addr() net.Addr { return l.addr }
