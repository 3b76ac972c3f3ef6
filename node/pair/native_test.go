// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

// natives are the addresses of the candidates of one kind of the WireGuard port.
func (s *still) natives(k path.Kind) (list []string) {
	for _, c := range s.native.list {
		if c.Kind == k {
			list = append(list, c.Addr.String())
		}
	}
	return list
}

// host gives the host addresses, which are looked at at once.
func (s *still) host(addrs ...string) {
	s.addrs = nil
	for _, a := range addrs {
		s.addrs = append(s.addrs, netip.MustParseAddr(a))
	}
	s.native.look(time.Now())
}

// Only addresses at which others may be answered are candidates, each once.
func TestNatives_AreAddressesOfUse(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.follow(s.gate("gate", 9))
		s.host("10.0.0.3", "::ffff:10.0.0.2", "10.0.0.3", "127.0.0.1", "172.16.0.2", "2001:db8::1", "224.0.0.1")
		want := []string{"10.0.0.2:51820", "10.0.0.3:51820", "[2001:db8::1]:51820"}
		if got := s.natives(path.Host); !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
		s.addrs, s.addrsErr = nil, mesh.ErrUnavailable
		if s.native.look(time.Now()); len(s.native.list) != len(want) {
			t.Error("addresses that could not be read are gone")
		}
		s.addrsErr = nil
		s.port = 0
		if s.host("10.0.0.3"); len(s.native.list) != 0 {
			t.Errorf("without a port: %v", s.native.list)
		}
	})
}

// A host that is in another network begins anew: what stood may not stand any more,
// and what servers said is of no use.
func TestNatives_MoveToAnotherNetwork(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate := s.gate("gate", 9)
		s.follow(gate)
		l, f := s.link(sought, s.peer("ada", 1))
		s.native.tend(time.Now())
		said := netip.MustParseAddrPort("198.51.100.1:7")
		s.native.mapped[netip.MustParseAddrPort(gate.Endpoint)] = said
		s.native.renew(time.Now())
		if got := s.natives(path.ServerReflexive); !slices.Equal(got, []string{said.String()}) {
			t.Fatalf("servers said %v", got)
		}
		began := time.Now()
		for _, c := range []struct {
			what         string
			change       func()
			anew, doomed bool
		}{
			{"nothing", func() { s.host("10.0.0.2") }, false, false},
			{"one more address", func() { s.host("10.0.0.2", "10.0.0.3") }, true, false},
			{"another port", func() { s.port++; s.native.look(time.Now()) }, true, false},
			{"an address less", func() { s.host("10.0.0.3") }, true, true},
		} {
			s.pass(time.Second)
			s.native.mapped[netip.MustParseAddrPort(gate.Endpoint)] = said
			s.native.asked, f.restarts, l.due = time.Now(), 0, began
			s.relays.doubted, s.relays.moved = began, began
			c.change()
			if (f.restarts == 1) != c.anew || (l.due == time.Now()) != c.anew || (s.relays.doubted == time.Now()) != c.anew {
				t.Errorf("%s: the link begins anew %d times; due %s, doubted %s", c.what, f.restarts, l.due, s.relays.doubted)
			}
			if (s.relays.moved == time.Now()) != c.doomed {
				t.Errorf("%s: relays have moved at %s", c.what, s.relays.moved)
			}
			if (len(s.natives(path.ServerReflexive)) == 0) != c.anew || s.native.asked.IsZero() != c.anew {
				t.Errorf("%s: candidates %v; asked at %s", c.what, s.native.list, s.native.asked)
			}
			s.native.mapped[netip.MustParseAddrPort(gate.Endpoint)] = said
			s.native.renew(time.Now())
		}
	})
}

// The addresses of the host are looked at each two seconds, and when somebody says
// that they have changed.
func TestNatives_LookAtTheHost(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.follow()
		s.native.tend(time.Now())
		s.addrs = []netip.Addr{netip.MustParseAddr("10.0.0.8")}
		if next := s.native.tend(time.Now()); next.After(time.Now().Add(lookEvery)) {
			t.Errorf("to look again after %s", time.Until(next))
		}
		s.pass(lookEvery - 1)
		if s.native.tend(time.Now()); slices.Contains(s.natives(path.Host), "10.0.0.8:51820") {
			t.Error("looked at the host too soon")
		}
		s.pass(1)
		if s.native.tend(time.Now()); !slices.Contains(s.natives(path.Host), "10.0.0.8:51820") {
			t.Error("not looked at the host in time")
		}
		s.addrs = []netip.Addr{netip.MustParseAddr("10.0.0.9")}
		s.pass(time.Second)
		s.HostChanged()
		s.wait()
		if !slices.Contains(s.natives(path.Host), "10.0.0.9:51820") || s.native.looked != time.Now() {
			t.Error("not looked at the host when it had changed")
		}
	})
}

// Gateways, and nobody else, are asked where packets come from: often until one
// answers, and then now and then.
func TestNatives_AskGateways(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate, plain := s.gate("gate", 9), s.peer("plain", 4)
		at := netip.MustParseAddrPort(gate.Endpoint)
		plain.Endpoint = "10.0.0.4:51820"
		s.follow(gate, plain)
		s.native.tend(time.Now())
		if !slices.Equal(s.stun, []netip.AddrPort{at}) {
			t.Fatalf("asked %v", s.stun)
		}
		asked := func(d time.Duration) int {
			s.stun = nil
			for end := time.Now().Add(d); time.Now().Before(end); {
				s.pass(time.Until(s.native.tend(time.Now())))
			}
			return len(s.stun)
		}
		if n := asked(10 * time.Second); n < 19 || n > 21 {
			t.Errorf("asked %d times in 10 s while nobody answers", n)
		}
		s.native.mapped[at] = netip.MustParseAddrPort("198.51.100.1:7")
		if n := asked(time.Minute); n < 2 || n > 4 {
			t.Errorf("asked %d times in a minute once one has answered", n)
		}
	})
}

// What a gateway answers is a candidate, and told to all links once; what nobody
// asked for is not.
func TestNatives_TakeAnswers(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate := s.gate("gate", 9)
		at := netip.MustParseAddrPort(gate.Endpoint)
		s.follow(gate)
		l, f := s.link(sought, s.peer("ada", 1))
		ask := func() []byte {
			out, err := s.native.lookup.Ask(time.Now(), path.Native, at)
			if err != nil {
				t.Fatal(err)
			}
			return out.Bytes
		}
		for _, c := range []struct {
			what   string
			mapped string
			asked  bool
			want   []string
			told   bool
		}{
			{"what nobody asked for", "198.51.100.1:7", false, nil, false},
			{"the first answer", "198.51.100.1:7", true, []string{"198.51.100.1:7"}, true},
			{"the same again", "198.51.100.1:7", true, []string{"198.51.100.1:7"}, false},
			{"another address", "198.51.100.1:8", true, []string{"198.51.100.1:8"}, true},
			{"the host's own", "10.0.0.2:51820", true, nil, true},
		} {
			s.pass(time.Second)
			f.local = nil
			request := ask()
			answer, ok := path.Answer(request, netip.MustParseAddrPort(c.mapped))
			if !ok {
				t.Fatal("no answer")
			}
			from := at
			if !c.asked {
				from = netip.MustParseAddrPort("203.0.113.7:7")
			}
			s.native.packet(time.Now(), datagram{wg.NativeSocket, from, answer})
			if got := s.natives(path.ServerReflexive); !slices.Equal(got, c.want) {
				t.Errorf("%s: %v", c.what, got)
			}
			if _, told := f.local[path.Native]; told != c.told || told && l.due != time.Now() {
				t.Errorf("%s: the link is told %v, due %s", c.what, told, l.due)
			}
		}
	})
}

// Of too many addresses those stay that NATs give, and relays have room.
func TestNatives_AreAFew(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.follow()
		var addrs []string
		for i := range maxNative + 5 {
			addrs = append(addrs, netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String())
		}
		s.host(addrs[:maxNative]...)
		if len(s.native.list) != maxNative {
			t.Errorf("%d candidates", len(s.native.list))
		}
		for i := range 2 {
			s.native.mapped[netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), uint16(i+1))] = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(i+1))
		}
		s.addrs = nil
		for _, a := range addrs {
			s.addrs = append(s.addrs, netip.MustParseAddr(a))
		}
		s.native.host = nil // as for a host that is looked at first
		s.native.look(time.Now())
		if hosts, nats := s.natives(path.Host), s.natives(path.ServerReflexive); len(hosts) != maxNative-2 || hosts[0] != "10.0.1.0:51820" ||
			!slices.Equal(nats, []string{"198.51.100.1:1", "198.51.100.1:2"}) || s.native.list[0].Kind != path.Host {
			t.Errorf("hosts %v, NATs %v", hosts, nats)
		}
	})
}

func TestTransportOf(t *testing.T) {
	for url, want := range map[string]path.Transport{
		"turn:h:1": path.UDP, "turn:h:1?transport=udp": path.UDP, "turn:h:1?transport=tcp": path.TCP, "turns:h:1?transport=tcp": path.TLS, "turns:h": path.TLS, "stun:h:1": path.NoRelay, "stun:h:1?transport=tcp": path.NoRelay,
	} {
		if got := transportOf(url); got != want {
			t.Errorf("%s: %v", url, got)
		}
	}
}

func TestKindOf(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate, edgy := s.gate("gate", 9), s.peer("ada", 1)
		change := func(p mesh.Peer, f func(*mesh.Peer)) mesh.Peer {
			n := *p.Node
			p.Node = &n
			f(&p)
			return p
		}
		none := kind(-1)
		for name, c := range map[string]struct {
			peer mesh.Peer
			want kind
		}{
			"a gateway":                     {gate, gateway},
			"one that others cannot ask":    {change(gate, func(p *mesh.Peer) { p.Endpoint, p.Node.Paths = "", false }), none},
			"one that runs something else":  {change(gate, func(p *mesh.Peer) { p.Node.Features = p.Node.Features[1:] }), none},
			"a node by ICE":                 {edgy, edge},
			"a node with an endpoint":       {change(edgy, func(p *mesh.Peer) { p.Endpoint = "10.0.0.1:1" }), none},
			"a node that takes no part":     {change(edgy, func(p *mesh.Peer) { p.Node.Paths = false }), none},
			"a stock peer with an endpoint": {change(edgy, func(p *mesh.Peer) { p.Endpoint, p.Node.Features = "10.0.0.1:1", nil }), none},
		} {
			got, ok := kindOf(c.peer)
			if !ok {
				got = none
			}
			if got != c.want {
				t.Errorf("%s: %v", name, got)
			}
		}
	})
}

// The links of the mesh are those of the plan: what is the same stays, and what has
// changed begins anew.
func TestPairs_FollowThePlan(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate, ada := s.gate("gate", 9), s.peer("ada", 1)
		s.want(time.Now(), "ada")
		s.tell("ada", ada, "")
		asPair := s.links["ada"]
		var ended bool
		s.follow(gate, ada) // the mesh has an edge now
		asEdge, way := s.links["ada"], s.links["gate"]
		if asEdge == asPair || asEdge.kind != edge || s.tags[asPair.finder.Tag()] != nil || way == nil {
			t.Fatalf("an edge instead of a pair: %+v", asEdge)
		}
		if !s.inMesh(netip.MustParseAddr("172.16.0.1")) || !s.forbidden(netip.MustParseAddr("172.16.0.1")) || s.forbidden(netip.MustParseAddr("10.0.0.1")) {
			t.Error("the addresses of the mesh are not known")
		}
		more := ada
		more.AllowedIPs = append(slices.Clone(ada.AllowedIPs), netip.MustParsePrefix("192.168.7.0/24"))
		s.follow(gate, more)
		if s.links["ada"] != asEdge || s.links["gate"] != way || len(asEdge.peer.AllowedIPs) != len(more.AllowedIPs) {
			t.Error("the same nodes have other links, or old records")
		}
		s.callers["ada"] = []*call{newCall(func() { ended = true }, false)}
		s.follow(gate, s.peer("ada", 1)) // with another key
		if l := s.links["ada"]; l == asEdge || len(l.calls) != 1 || len(s.callers) != 0 || ended {
			t.Error("another key is the same link, or who called is not attended to")
		}
		elsewhere := gate
		elsewhere.Endpoint = "10.0.0.99:51820"
		s.follow(elsewhere)
		if s.links["gate"] == way || len(s.links) != 1 {
			t.Errorf("a gateway that moved, and no edge: %v", s.links)
		}
		s.want(time.Now(), "cid")
		s.tell("cid", s.peer("cid", 3), "")
		s.follow(gate)
		if s.links["cid"] == nil {
			t.Error("a pair ended with a plan that says nothing of it")
		}
		cid := s.peer("cid", 3)
		cid.Endpoint = "10.0.0.3:51820" // a neighbour now
		if s.follow(gate, cid); s.links["cid"] != nil {
			t.Error("a neighbour is a pair still")
		}
		nowhere := gate
		nowhere.Endpoint = "0.0.0.0:51820"
		if s.follow(nowhere, ada); s.links["gate"] != nil || s.links["ada"] == nil {
			t.Error("a gateway that is nowhere has a link, or keeps others from theirs")
		}
	})
}

// A message goes to the link that it is for, which is looked at then.
func TestPairs_PacketsFindTheirLink(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.follow()
		ada, adas := s.link(sought, s.peer("ada", 1))
		cid, cids := s.link(sought, s.peer("cid", 3))
		other, err := path.New(path.Config{Self: "ada", Peer: "bob", Local: path.NewCredentials(), Forbidden: s.forbidden})
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort("10.0.0.2:51820")
		now := time.Now()
		if err := other.SetLocal(now, path.Native, []path.Candidate{{Kind: path.Host, Addr: netip.MustParseAddrPort("10.0.0.1:51820")}}); err != nil {
			t.Fatal(err)
		}
		if err := other.SetRemote(now, path.Credentials{Ufrag: ada.own.Ufrag, Password: ada.own.Password}, 1); err != nil {
			t.Fatal(err)
		}
		if err := other.AddRemote(now, path.Candidate{Kind: path.Host, Addr: at}); err != nil {
			t.Fatal(err)
		}
		other.Tick(now)
		out := other.Outgoing()
		if len(out) == 0 {
			t.Fatal("no check")
		}
		ada.due, cid.due = now.Add(time.Hour), now.Add(time.Hour)
		s.packet(now, datagram{wg.NativeSocket, at, out[0].Bytes})
		s.packet(now, datagram{wg.NativeSocket, at, []byte("no STUN")})
		if adas.packets != 1 || cids.packets != 0 || ada.due != now || cid.due == now {
			t.Errorf("ada has %d messages, cid %d", adas.packets, cids.packets)
		}
	})
}

// What another mesh on the host carries is neither offered nor used: the two
// tunnels would run in each other.
func TestNatives_KeepOutOfOtherTunnels(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.beside = netip.MustParsePrefix("10.200.0.0/16")
		within, at := netip.MustParseAddrPort("10.200.0.9:51820"), netip.MustParseAddrPort("10.0.0.9:51820")
		gate := s.gate("gate", 9)
		gate.Node.WireGuardEndpoints = []netip.AddrPort{at, within}
		s.follow(gate)
		s.host("10.0.0.2", "10.200.0.3")
		s.native.mapped[at] = netip.MustParseAddrPort("10.200.0.3:7")
		s.native.renew(time.Now())
		if host, said := s.natives(path.Host), s.natives(path.ServerReflexive); !slices.Equal(host, []string{"10.0.0.2:51820"}) || len(said) != 0 {
			t.Errorf("offers %v and %v", host, said)
		}
		if got := s.outside(gate); !slices.Equal(got, []netip.AddrPort{at}) {
			t.Errorf("asks the gateway at %v", got)
		}
		gate.Endpoint = within.String()
		if got := s.outside(gate); !slices.Equal(got, []netip.AddrPort{within, at}) {
			t.Errorf("leaves the operator's endpoint out: %v", got)
		}
		if !s.forbidden(within.Addr()) || !s.forbidden(netip.MustParseAddr("172.16.0.3")) || s.forbidden(at.Addr()) {
			t.Error("takes candidates in a tunnel")
		}
	})
}
