// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
)

// stunServer is where the hosts of a world learn how NATs show them.
var stunServer = netip.MustParseAddrPort("203.0.113.250:3478")

// driven is what Agent and Probe have in common.
type driven interface {
	Packet(time.Time, path.Socket, netip.AddrPort, []byte) bool
	Sent(time.Time)
	Heard(time.Time, path.Route)
	Tick(time.Time) time.Time
	Outgoing() []path.Packet
	Selected() (path.Route, bool)
	Accepted(time.Time) []path.Route
	State() path.State
	SetLocal(time.Time, path.Socket, []path.Candidate) error
	Restart(time.Time)
	Doubt(time.Time, string)
}

// host is a machine with one native socket, a few relays, and an agent or probe
// that it drives as a node would.
type host struct {
	t      testing.TB
	w      *world
	name   string
	realms []*realm // of addrs
	addrs  []netip.AddrPort
	relays []relay
	paths  driven
	agent  *path.Agent // paths, unless it is a probe
	local  path.Credentials
	timer  int
	peer   *host
	heir   bool // gets answers to another one that was here before

	requests []time.Time // when checks were sent
	tap      func(p path.Packet)
	streams  bool
	arrived  []time.Time // data of the other host
}

type relay struct {
	*allocation
	transport path.Transport
	name      string
}

// attach gives the host an address in a realm.
func (h *host) attach(r *realm, addr string) {
	a := netip.MustParseAddr(addr)
	h.realms, h.addrs = append(h.realms, r), append(h.addrs, netip.AddrPortFrom(a, 51820))
	r.hosts[a] = h
}

// detach takes all addresses, as when a host leaves its network.
func (h *host) detach() {
	for i, r := range h.realms {
		delete(r.hosts, h.addrs[i].Addr())
	}
	h.realms, h.addrs = nil, nil
}

func (h *host) allocate(s *server, t path.Transport, name string) {
	n := path.Socket(len(h.relays) + 1)
	h.relays = append(h.relays, relay{s.allocate(func(src netip.AddrPort, b []byte) { h.take(n, src, b) }), t, name})
}

// candidates are what the host knows of its sockets.
func (h *host) candidates(n path.Socket) []path.Candidate {
	if n != path.Native {
		r := h.relays[n-1]
		return []path.Candidate{{Kind: path.Relayed, Addr: r.addr(), Transport: r.transport, Relay: r.name}}
	}
	var list []path.Candidate
	for i, a := range h.addrs {
		list = append(list, path.Candidate{Kind: path.Host, Addr: a})
		if mapped, ok := reflexive(h.realms[i], a); ok && mapped != a {
			list = append(list, path.Candidate{Kind: path.ServerReflexive, Addr: mapped})
		}
	}
	return list
}

// reflexive asks the NATs above a realm what a STUN server would see.
func reflexive(r *realm, src netip.AddrPort) (netip.AddrPort, bool) {
	for ; r.up != nil; r = r.up.outer {
		if r.up.closed {
			return src, false
		}
		src = r.up.translate(src, stunServer)
	}
	return src, src.Addr().Is4()
}

// offer tells the agent of its sockets.
func (h *host) offer() {
	h.t.Helper()
	for n := range path.Socket(len(h.relays) + 1) {
		if err := h.paths.SetLocal(h.w.now, n, h.candidates(n)); err != nil {
			h.t.Fatal(err)
		}
	}
	h.pump()
}

// signal tells the other host where this one is, as candidates that trickle.
func (h *host) signal(session uint64) {
	local := h.local
	h.w.after(3*h.w.delay, func() {
		if err := h.peer.agent.SetRemote(h.w.now, local, session); err != nil {
			h.t.Error(err)
		}
		h.peer.pump()
	})
	for n := range path.Socket(len(h.relays) + 1) {
		for _, c := range h.candidates(n) {
			h.w.after(4*h.w.delay, func() {
				if err := h.peer.agent.AddRemote(h.w.now, c); err != nil {
					h.t.Error(err)
				}
				h.peer.pump()
			})
		}
	}
}

// pump does what a node does after each call.
func (h *host) pump() {
	next := h.paths.Tick(h.w.now)
	for _, p := range h.paths.Outgoing() {
		m, err := path.ParseMessage(p.Bytes)
		if err != nil {
			h.t.Fatalf("%s sends %x: %v", h.name, p.Bytes, err)
		}
		if m.Type == path.BindingRequest {
			h.requests = append(h.requests, h.w.now)
		}
		if h.tap != nil {
			h.tap(p)
		}
		h.send(p.Route, p.Bytes)
	}
	h.timer++
	timer := h.timer
	h.w.at(next, func() {
		if h.timer == timer {
			h.pump()
		}
	})
}

func (h *host) send(r path.Route, b []byte) {
	if r.Socket != path.Native {
		h.relays[r.Socket-1].send(r.To, b)
		return
	}
	for i, a := range h.addrs {
		if a.Addr().Is4() == r.To.Addr().Is4() {
			h.realms[i].send(a, r.To, b)
			return
		}
	}
}

func (h *host) receive(src, _ netip.AddrPort, b []byte) { h.take(path.Native, src, b) }

func (h *host) take(n path.Socket, src netip.AddrPort, b []byte) {
	if !path.IsMessage(b) {
		h.arrived = append(h.arrived, h.w.now)
		h.paths.Heard(h.w.now, path.Route{Socket: n, To: src})
	} else if !h.paths.Packet(h.w.now, n, src, b) && !h.heir {
		h.t.Errorf("%s refuses a message of its peer from %v", h.name, src)
	}
	h.pump()
}

// stream sends data all the time, at a steady rate.
func (h *host) stream() {
	h.streams = true
	var send func()
	send = func() {
		if !h.streams {
			return
		}
		if r, ok := h.paths.Selected(); ok {
			h.send(r, []byte("data"))
			h.paths.Sent(h.w.now)
			h.pump()
		}
		h.w.after(50*time.Millisecond, send)
	}
	send()
}

// stall is the longest time without data since a moment.
func (h *host) stall(since time.Time) time.Duration {
	longest, last := time.Duration(0), since
	for _, at := range append(slices.Clone(h.arrived), h.w.now) {
		if at.After(since) {
			longest, last = max(longest, at.Sub(last)), at
		}
	}
	return longest
}

func newHost(t testing.TB, w *world, name, peer string) *host {
	t.Helper()
	h := &host{t: t, w: w, name: name, local: path.NewCredentials()}
	a, err := path.New(path.Config{Self: mesh.NodeID(name), Peer: mesh.NodeID(peer), Local: h.local})
	if err != nil {
		t.Fatal(err)
	}
	h.agent, h.paths = a, a
	return h
}

// meet lets two hosts that have their addresses exchange them.
func meet(a, b *host) {
	a.peer, b.peer = b, a
	a.offer()
	b.offer()
	a.signal(1)
	b.signal(1)
}

func standing(hosts ...*host) func() bool {
	return func() bool {
		return !slices.ContainsFunc(hosts, func(h *host) bool { return !h.paths.State().Standing })
	}
}

func direct(hosts ...*host) func() bool {
	return func() bool {
		return !slices.ContainsFunc(hosts, func(h *host) bool { return !h.paths.State().Direct })
	}
}

func relayed(hosts ...*host) func() bool {
	return func() bool {
		return !slices.ContainsFunc(hosts, func(h *host) bool { s := h.paths.State(); return !s.Standing || s.Direct })
	}
}
