// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

// loseRelays has all relays so far carry nothing any more: their server does not
// answer, or it does and does not know them.
func (l *lab) loseRelays(known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := make(map[netip.AddrPort]bool)
	for _, r := range l.given {
		r.gone = !known
		if known {
			r.mute = time.Now()
		}
		lost[r.at] = true
	}
	blocked := l.blocked
	l.blocked = func(from, to netip.AddrPort) bool { return lost[from] || lost[to] || blocked(from, to) }
}

// relayed are two nodes whose pair stands, and has to have a relay, for a while.
func (l *lab) relayed() (a, b *testNode) {
	l.t.Helper()
	l.blocked = direct
	a, b = l.two()
	l.until(3*time.Second, "the pair stands over a relay", func() bool { return standing(a, b) })
	for range 30 {
		l.talk(a, b)
		<-time.After(500 * time.Millisecond)
	}
	return a, b
}

// Relays that are gone are replaced before the pair has been without a way for
// long, whether their server says so or nothing.
func TestPairs_ReplaceRelays(t *testing.T) {
	for _, c := range []struct {
		name   string
		silent bool
		within time.Duration
	}{{"the server is silent", true, 6 * time.Second}, {"the server has lost them", false, 4500 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				a, b := l.relayed()
				before := a.status("bob").Path.Route
				l.loseRelays(c.silent)
				took := l.until(c.within, "another relay carries the pair", func() bool {
					l.talk(a, b)
					now, back := a.status("bob").Path, b.status("ada").Path
					return now.Standing && back.Standing && now.Route != before && standing(a, b)
				})
				t.Logf("after %s", took)
			})
		})
	}
}

// over reports whether a node sends to another one from, or to, an address.
func (n *testNode) over(at netip.AddrPort, to *testNode) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.ways[to.record.PublicKey.WireGuard()]
	if w == nil {
		return false
	}
	s := n.sockets[w.route.Socket]
	return w.route.To == at || s != nil && s.addr == at
}

// A gateway that drains costs a pair no packet: other relays stand, and both nodes send
// over these alone, before the old ones are given back.
func TestPairs_LeaveAServerThatDrains(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.relayed()
		l.mu.Lock()
		old := slices.Clone(l.given)
		l.mu.Unlock()
		used := func(r *fakeRelay) bool { return a.over(r.at, b) || b.over(r.at, a) }
		if !slices.ContainsFunc(old, used) {
			t.Fatal("the pair is on no relay")
		}
		for _, r := range old {
			close(r.draining)
		}
		left := time.Duration(0)
		began := time.Now()
		l.until(leaveSpread+overlap+5*time.Second, "all of the old relays are given back", func() bool {
			l.talk(a, b)
			open := 0
			for _, r := range old {
				switch {
				case !ended(r.done):
					open++
				case used(r):
					t.Fatalf("a packet went over %s after it was given back", r.at)
				}
			}
			if left == 0 && !slices.ContainsFunc(old, used) {
				left = time.Since(began)
			}
			return open == 0
		})
		if !standing(a, b) || a.status("bob").Path.Direct {
			t.Errorf("the pair is %+v", a.status("bob"))
		}
		t.Logf("both nodes had left the relays after %s, and given them back after %s", left, time.Since(began))
		if left == 0 || left > leaveSpread+time.Second {
			t.Errorf("they had left after %s", left)
		}
	})
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// Relays that answer stay, whatever else is in doubt.
func TestPairs_KeepRelaysThatAnswer(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.relayed()
		l.mu.Lock()
		l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return true }
		l.mu.Unlock()
		<-time.After(30 * time.Second)
		a.mu.Lock()
		a.addrs = append(a.addrs, netip.MustParseAddr("10.0.7.7"))
		a.mu.Unlock()
		a.pairs.HostChanged()
		<-time.After(30 * time.Second)
		synctest.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.relays != 2 {
			t.Errorf("%d relays were asked for", l.relays)
		}
		_ = b
	})
}

// A host with another address says so at once to whom it is a pair with, and
// looks whether its relays are still there.
func TestPairs_LookAtOnce(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.relayed()
		l.loseRelays(false)
		moved := netip.MustParseAddr("10.0.7.7")
		a.mu.Lock()
		a.addrs = []netip.Addr{moved}
		a.mu.Unlock()
		a.pairs.HostChanged()
		took := l.until(time.Second, "the other one knows the address, and there is another relay", func() bool {
			heard := make(chan bool, 1)
			a.pairs.do(func(time.Time) {
				l := a.pairs.links["bob"]
				last := len(l.told) - 1
				heard <- last > 0 && l.told[0].Addr.Addr() == moved && l.told[last].Kind == path.Relayed && l.told[last].Addr != a.given(0)
			})
			return <-heard
		})
		t.Logf("after %s", took)
		_ = b
	})
}

// Relays that do not answer any more when the host has lost an address are
// replaced sooner.
func TestPairs_MoveWithRelays(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.relayed()
		l.loseRelays(true)
		a.mu.Lock()
		a.addrs = []netip.Addr{netip.MustParseAddr("10.0.7.7")}
		a.mu.Unlock()
		before := a.status("bob").Path.Route
		a.pairs.HostChanged()
		took := l.until(1500*time.Millisecond, "another relay carries the pair", func() bool {
			l.talk(a, b)
			s := a.status("bob").Path
			return s.Standing && s.Route != before
		})
		t.Logf("after %s", took)
	})
}

// given is the nth relay of all that were given.
func (n *testNode) given(i int) netip.AddrPort {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	return n.lab.given[i].at
}

// A gateway to which packets go and from which none comes is asked for a session:
// it may have started anew. One that is only kept alive is left alone.
func TestPairs_ReviveTheGateway(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.withGateway(9)
		a := l.start("ada", 1)
		key := l.gateway.Node.PublicKey.WireGuard()
		l.until(time.Second, "the gateway has a way", func() bool { return a.status("gate").Path.Standing })
		a.mu.Lock()
		before := a.shakes[key] // for its first way
		a.mu.Unlock()
		shakes := func() int { a.mu.Lock(); defer a.mu.Unlock(); return a.shakes[key] - before }
		active := func(sent, heard time.Time) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.ways[key].activity = wg.Activity{Sent: sent, Heard: heard}
		}
		began := time.Now()
		for range 10 { // one packet now and then, which nothing answers
			active(time.Now(), began)
			<-time.After(25 * time.Second)
			active(time.Now().Add(-time.Second), time.Now())
			<-time.After(time.Second)
		}
		if n := shakes(); n != 0 {
			t.Errorf("asked for %d sessions while all was well", n)
		}
		last := time.Now()
		for n := 0; time.Since(last) < 10*time.Second; n++ {
			active(time.Now(), last)
			<-time.After(100 * time.Millisecond)
			synctest.Wait()
			if passed := time.Since(last); passed < staleAfter && shakes() > 0 || passed > staleAfter+time.Second && shakes() != 1 {
				t.Fatalf("asked for %d sessions after %s", shakes(), passed)
			}
		}
	})
}
