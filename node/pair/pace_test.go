// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// looks returns how often the node looked at the packets to another one in the
// time that f takes.
func (n *testNode) looks(of *testNode, f func()) int {
	n.lab.t.Helper()
	count := func() int {
		n.mu.Lock()
		defer n.mu.Unlock()
		w := n.ways[of.record.PublicKey.WireGuard()]
		if w == nil {
			n.lab.t.Fatalf("%s has no path to %s", n.id, of.id)
		}
		return w.looks
	}
	before := count()
	f()
	return count() - before
}

// A pair that carries nothing costs little.
func TestPairs_RestWhenIdle(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		wait := func() { <-time.After(time.Minute); synctest.Wait() }
		wait() // what the beginning takes is over
		if n := a.looks(b, wait); n > 90 {
			t.Errorf("an idle pair was looked at %d times in a minute, want about one a second", n)
		}
		busy := a.looks(b, func() {
			for range 600 {
				l.talk(a, b)
				<-time.After(100 * time.Millisecond)
			}
			synctest.Wait()
		})
		if busy < 200 {
			t.Errorf("a pair in use was looked at %d times in a minute, want about four a second", busy)
		}
	})
}

// A way that died while nothing went over it is noticed within 5 s of the first
// packet.
func TestPairs_NoticeAWayThatDiedIdle(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		for offset := range 20 {
			// The way is checked each 15 s: die at any time in between.
			<-time.After(30*time.Second + time.Duration(offset)*750*time.Millisecond)
			synctest.Wait()
			if !a.status("bob").Path.Standing {
				t.Fatal("the pair lost its way")
			}
			l.block(true)
			key := b.record.PublicKey.WireGuard()
			l.until(5*time.Second, "it is noticed", func() bool {
				a.mu.Lock()
				if w := a.ways[key]; w != nil {
					w.activity.Sent = time.Now()
				}
				a.mu.Unlock()
				return !a.status("bob").Path.Standing
			})
			l.block(false)
			l.until(time.Minute, "the pair stands again", func() bool { l.talk(a, b); return standing(a, b) })
		}
	})
}

// block loses all datagrams, or none.
func (l *lab) block(all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return all }
}
