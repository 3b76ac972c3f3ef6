// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// inLab runs a test in virtual time.
func inLab(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.end()
		test(t, l)
	})
}

// two are nodes behind a gateway, of which the first one has sent a packet to
// the other.
func (l *lab) two() (a, b *testNode) {
	l.withGateway(9)
	a, b = l.start("ada", 1), l.start("bob", 2)
	synctest.Wait() // they have their plans
	a.pairs.Seek(b.record.IPv4.Addr())
	return a, b
}

// standing reports whether two nodes send each other's packets over their pair.
func standing(a, b *testNode) bool {
	there, _ := a.has(b.id)
	back, _ := b.has(a.id)
	return len(there) > 0 && len(back) > 0
}

func TestPairs_StandDirectly(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		took := l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		if took > 300*time.Millisecond {
			t.Errorf("the pair stood after %s", took)
		}
		for _, s := range []Status{a.status("bob"), b.status("ada")} {
			if !s.Stands || !s.Path.Direct {
				t.Errorf("%+v", s)
			}
		}
	})
}

// Both nodes send at the same moment, and call each other.
func TestPairs_BothAtOnce(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		b.pairs.Seek(a.record.IPv4.Addr())
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
	})
}

// direct is true for datagrams that no relay carries.
func direct(from, to netip.AddrPort) bool {
	relay := netip.MustParseAddr("10.0.9.9")
	return from.Addr() != relay && to.Addr() != relay
}

// A pair begins on a relay where nothing else goes, and leaves it when it can.
func TestPairs_MoveFromRelayToDirect(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.blocked = direct
		a, b := l.two()
		l.until(3*time.Second, "the pair stands over a relay", func() bool { return standing(a, b) })
		if s := a.status("bob"); s.Path.Direct || s.Path.Relay != "gate" || s.Path.Why == "" {
			t.Errorf("%+v", s)
		}
		l.mu.Lock()
		l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return false }
		l.mu.Unlock()
		l.until(30*time.Second, "the pair is direct", func() bool { return a.status("bob").Path.Direct && b.status("ada").Path.Direct })
		if !standing(a, b) {
			t.Error("the pair broke when it moved")
		}
	})
}

// A pair with no way at all is carried by the gateway, and comes back.
func TestPairs_BreakAndComeBack(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		l.mu.Lock()
		l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return true }
		l.mu.Unlock()
		l.until(time.Minute, "the gateway carries the packets", func() bool {
			l.talk(a, b)
			there, _ := a.has("bob")
			back, _ := b.has("ada")
			return len(there) == 0 && len(back) == 0
		})
		l.mu.Lock()
		l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return false }
		l.mu.Unlock()
		l.until(time.Minute, "the pair is back", func() bool { return standing(a, b) })
	})
}

// Pairs need no gateway once they stand.
func TestPairs_OutliveTheGateway(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		l.cut()
		for range 40 {
			l.talk(a, b)
			<-time.After(5 * time.Second)
			synctest.Wait()
			if !standing(a, b) {
				t.Fatal("the pair broke")
			}
		}
	})
}

// A node that started anew is a pair again, whoever sends first.
func TestPairs_OtherNodeStartsAnew(t *testing.T) {
	for _, who := range []string{"the new one sends", "the old one sends"} {
		t.Run(who, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				a, b := l.two()
				l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
				b.stop()
				b = l.run(b.record, b.addr)
				synctest.Wait()
				if who == "the new one sends" {
					b.pairs.Seek(a.record.IPv4.Addr())
				}
				l.until(time.Minute, "the pair stands again", func() bool {
					a.pairs.Seek(b.record.IPv4.Addr())
					a.mu.Lock()
					if w := a.ways[b.record.PublicKey.WireGuard()]; w != nil {
						w.activity.Sent = time.Now() // into the void
					}
					a.mu.Unlock()
					return standing(a, b)
				})
			})
		})
	}
}

// Rights that are taken away end the pair at once, and those that are given make
// it.
func TestPairs_FollowTheDirectory(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		why := "no network ACL grants it"
		l.refused = func(mesh.NodeID, mesh.NodeID) string { return why }
		a, b := l.two()
		<-time.After(5 * time.Second)
		synctest.Wait()
		if _, ok := a.has("bob"); ok {
			t.Fatal("a pair that the directory refuses")
		}
		set := func(text string) { l.mu.Lock(); why = text; l.mu.Unlock(); l.changed() }
		set("")
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		set("not any more")
		l.until(200*time.Millisecond, "the pair is gone", func() bool {
			_, there := a.has("bob")
			_, back := b.has("ada")
			return !there && !back
		})
	})
}

// Pairs that nobody uses end on both sides.
func TestPairs_EndWhenIdle(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		for range 3 {
			<-time.After(idleAfter / 2)
			l.talk(a, b)
		}
		synctest.Wait()
		if !standing(a, b) {
			t.Fatal("a pair in use ended")
		}
		<-time.After(idleAfter + 2*time.Second)
		synctest.Wait()
		_, there := a.has("bob")
		_, back := b.has("ada")
		if there || back || len(a.pairs.wanted)+len(b.pairs.wanted) != 0 {
			t.Errorf("an idle pair is there: %v, %v; wanted %d, %d", there, back, len(a.pairs.wanted), len(b.pairs.wanted))
		}
	})
}

// A pair that one of the two holds is there without packets, and goes like others
// when it is held no more.
func TestPairs_Held(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		a.pairs.Hold("bob")
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		// The other one, which knows nothing of it, ends it now and then.
		<-time.After(idleAfter + 10*time.Second)
		l.until(10*time.Second, "the pair stands again", func() bool { return standing(a, b) })
		a.pairs.Hold("")
		l.talk(a, b)
		<-time.After(idleAfter + 2*time.Second)
		synctest.Wait()
		if _, there := a.has("bob"); there || len(a.pairs.wanted) != 0 {
			t.Errorf("a pair that nobody holds is there: %v; wanted %d", there, len(a.pairs.wanted))
		}
	})
}

// A gateway whose WireGuard port is out of reach is reached by way of a relay, and
// directly again when that goes.
func TestPairs_GatewayBehindRelay(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		at := l.withGateway(9)
		l.blocked = func(from, to netip.AddrPort) bool { return direct(from, to) }
		a := l.start("ada", 1)
		took := l.until(10*time.Second, "the gateway is reached over a relay", func() bool {
			s := a.status("gate")
			return s.Path.Standing && !s.Path.Direct
		})
		if took > 4*time.Second {
			t.Errorf("only after %s", took)
		}
		a.mu.Lock()
		way := a.ways[l.gateway.Node.PublicKey.WireGuard()]
		route := way.route
		a.mu.Unlock()
		if route.Socket == 0 || route.To != at {
			t.Errorf("packets go to %v", route)
		}
		if allowed, _ := a.has("gate"); len(allowed) == 0 {
			t.Error("the gateway lost what is behind it")
		}
		l.mu.Lock()
		l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return false }
		l.mu.Unlock()
		l.until(30*time.Second, "the gateway is reached directly", func() bool { return a.status("gate").Path.Direct })
	})
}

// Who calls and is no pair is told so, and holds nothing.
func TestPairs_CallersThatNobodyKnows(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		nothing := make(chan mesh.PathSignal)
		ended := make(chan error, 3*maxCallers)
		for range 3 * maxCallers {
			go func() { ended <- b.pairs.Answer(t.Context(), "mallory", end{t.Context(), nothing, nothing}) }()
		}
		<-time.After(time.Second)
		synctest.Wait()
		if len(b.pairs.callers) != 0 || !standing(a, b) {
			t.Errorf("%d callers wait", len(b.pairs.callers))
		}
	})
}

// A network that moves from one node to another is behind one of the two at a
// time: the device takes no plan in which it is behind both.
func TestPairs_NetworkMovesBetweenNodes(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		c := l.start("cid", 3)
		office := netip.MustParsePrefix("192.168.7.0/24")
		give := func(to *testNode) {
			l.mu.Lock()
			l.routes = map[mesh.NodeID]netip.Prefix{to.id: office}
			l.mu.Unlock()
			l.changed()
		}
		give(b)
		synctest.Wait()
		a.pairs.Seek(c.record.IPv4.Addr())
		l.until(2*time.Second, "both pairs stand", func() bool { return standing(a, b) && standing(a, c) })
		behind := func() (list []mesh.NodeID) {
			for p := range a.pairs.View().Apply(a.plan).Peers.All() {
				if sent, _ := a.has(p.Node.ID); slices.Contains(sent, office) {
					list = append(list, p.Node.ID)
				}
			}
			return list
		}
		for _, to := range []*testNode{b, c, b, c} {
			give(to)
			l.until(time.Second, "the network is behind "+string(to.id)+" alone", func() bool {
				list := behind()
				if len(list) > 1 {
					t.Fatalf("the network is behind %v", list)
				}
				return len(list) == 1 && list[0] == to.id
			})
		}
	})
}

// What is asked and unasked before the directory is told of it cancels out, and
// what is refused is forgotten.
func TestPairs_SweepOfAddresses(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, _ := l.two()
		l.mu.Lock()
		l.held = make(chan struct{})
		l.mu.Unlock()
		for i := range 4 * maxWanted {
			a.pairs.Seek(netip.AddrFrom4([4]byte{172, 17, byte(i >> 8), byte(i)}))
			synctest.Wait()
		}
		add, _ := a.pairs.asking.take()
		if len(a.pairs.wanted) > maxWanted || len(add) > maxWanted {
			t.Errorf("%d are wanted, %d are asked for at once", len(a.pairs.wanted), len(add))
		}
		close(l.held)
		<-time.After(2 * idleAfter)
		synctest.Wait()
		if len(a.pairs.wanted) != 0 {
			t.Errorf("%d are wanted still", len(a.pairs.wanted))
		}
	})
}
