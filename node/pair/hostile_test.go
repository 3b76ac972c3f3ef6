// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// mallory is a member of the mesh that sends what it likes to one node.
type mallory struct {
	*testNode
	ctx context.Context
	in  chan mesh.PathSignal
	out chan mesh.PathSignal
	// paid is how many bytes of signals it has sent.
	paid int
}

// newMallory makes a member whose own pairs do not run, and that calls a node.
func newMallory(l *lab, to *testNode) *mallory {
	n := l.start("mallory", 66)
	n.stop()
	ctx, cancel := context.WithCancel(l.t.Context())
	m := &mallory{testNode: n, ctx: ctx, in: make(chan mesh.PathSignal, 4), out: make(chan mesh.PathSignal, 64)}
	var answering sync.WaitGroup
	answering.Go(func() { _ = to.pairs.Answer(ctx, n.id, end{ctx, m.in, m.out}) })
	n.stop = func() { cancel(); answering.Wait() }
	return m
}

// say sends a signal.
func (m *mallory) say(s mesh.PathSignal) {
	m.paid += proto.Size(&v1.WebRTCSignal{Path: mesh.PathSignalToProto(s)})
	m.in <- s
	for len(m.out) > 0 {
		<-m.out
	}
}

// lie is a signal that names ports of one address.
func lie(session uint64, c path.Credentials, at netip.Addr, first int) mesh.PathSignal {
	s := mesh.PathSignal{Ufrag: c.Ufrag, Password: c.Password, Session: session}
	for i := range mesh.MaxPathCandidates {
		s.Candidates = append(s.Candidates, mesh.PathCandidate{
			Kind: v1.PathCandidate_KIND_SERVER_REFLEXIVE, Addr: netip.AddrPortFrom(at, uint16(1024+(first+i)%60000)),
		})
	}
	return s
}

// victimOf counts what is sent to an address that is no node's.
func (l *lab) victimOf(at netip.Addr) (packets, size func() int) {
	var n, bytes int
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tap = func(to netip.AddrPort, b []byte) {
		if to.Addr() == at {
			n++
			bytes += len(b)
		}
	}
	read := func(v *int) func() int { return func() int { l.mu.Lock(); defer l.mu.Unlock(); return *v } }
	return read(&n), read(&bytes)
}

// A member that says that it is where somebody else is has nodes send less there
// than it sends itself, whatever it changes from signal to signal.
func TestHostile_NamesTheAddressesOfAVictim(t *testing.T) {
	for _, c := range []struct {
		name string
		next func(i int, c path.Credentials) (uint64, path.Credentials, int)
	}{
		{"the same again", func(_ int, c path.Credentials) (uint64, path.Credentials, int) { return 1, c, 0 }},
		{"other ports each time", func(i int, c path.Credentials) (uint64, path.Credentials, int) { return 1, c, 16 * i }},
		{"a new session each time", func(i int, _ path.Credentials) (uint64, path.Credentials, int) {
			return uint64(i + 1), path.NewCredentials(), 16 * i
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inLab(t, func(t *testing.T, l *lab) {
				a, b := l.two()
				l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
				victim := netip.MustParseAddr("203.0.113.7")
				packets, size := l.victimOf(victim)
				m := newMallory(l, a)
				defer m.stop()
				credentials := path.NewCredentials()
				for i := range 300 {
					session, own, first := c.next(i, credentials)
					m.say(lie(session, own, victim, first))
					<-time.After(time.Second)
				}
				synctest.Wait()
				t.Logf("%d bytes of signals had %d checks of %d bytes sent", m.paid, packets(), size())
				if packets() == 0 {
					t.Error("the lie had no effect at all: the test shows nothing")
				}
				if size() >= m.paid {
					t.Errorf("%d bytes of signals had %d bytes sent to a victim", m.paid, size())
				}
				if !standing(a, b) {
					t.Error("the pair with another node broke")
				}
			})
		})
	}
}

// A member that floods a node with signals, of all kinds, takes nothing from the
// pairs with others, and what is kept for it is bounded.
func TestHostile_FloodsWithSignals(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		m := newMallory(l, a)
		defer m.stop()
		for i := range 2000 {
			at := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
			s := lie(uint64(i), path.NewCredentials(), at, i)
			switch i % 4 {
			case 0:
				s.Ufrag = ""
			case 1:
				s.Candidates[0].Addr = netip.MustParseAddrPort("127.0.0.1:22")
			case 2:
				s.Session = 1
			}
			m.say(s)
		}
		synctest.Wait()
		l.talk(a, b)
		l.mu.Lock()
		l.blocked = direct // the pair of the others still moves when it has to
		l.mu.Unlock()
		l.until(time.Minute, "the pair moves to a relay", func() bool {
			l.talk(a, b)
			return standing(a, b) && !a.status("bob").Path.Direct
		})
		if s := a.status("mallory"); s.Stands || s.Path.Ways > path.MaxSockets*(path.MaxRemote+8) {
			t.Errorf("%+v", s)
		}
	})
}

// Who calls in the name of another node is not that node: gateways say who calls.
// But a gateway may be asked to call often: the one session that answers stays.
func TestHostile_CallsOften(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		m := newMallory(l, a)
		defer m.stop()
		l.until(time.Second, "a link to the caller", func() bool { return a.status("mallory").Node != "" })
		var refused sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		failed := 0
		for range 4 * maxCalls {
			refused.Go(func() {
				nothing := make(chan mesh.PathSignal)
				if err := a.pairs.Answer(ctx, "mallory", end{ctx, nothing, make(chan mesh.PathSignal, 64)}); ctx.Err() == nil && err != nil {
					mu.Lock()
					failed++
					mu.Unlock()
				}
			})
		}
		<-time.After(time.Second)
		synctest.Wait()
		calls := make(chan int, 1)
		a.pairs.do(func(time.Time) { calls <- len(a.pairs.links["mallory"].calls) })
		if n := <-calls; n > maxCalls {
			t.Errorf("%d calls of one node are open", n)
		}
		mu.Lock()
		if failed < 3*maxCalls-2 {
			t.Errorf("%d calls were ended", failed)
		}
		mu.Unlock()
		cancel()
		refused.Wait()
		if !standing(a, b) {
			t.Error("the pair with another node broke")
		}
	})
}

// A member that vanishes leaves nothing but a link that ends when it is idle.
func TestHostile_Vanishes(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		m := newMallory(l, a)
		m.say(lie(1, path.NewCredentials(), netip.MustParseAddr("203.0.113.7"), 0))
		l.until(time.Second, "a link to the caller", func() bool { return a.status("mallory").Node != "" })
		m.stop()
		l.mu.Lock()
		delete(l.nodes, "mallory")
		l.mu.Unlock()
		for range 6 {
			<-time.After(idleAfter / 4)
			l.talk(a, b)
		}
		synctest.Wait()
		if a.status("mallory").Node != "" || !standing(a, b) {
			t.Errorf("links: %s", fmt.Sprint(a.pairs.Status()))
		}
	})
}

// What was overheard of the checks between two nodes and is sent again, from
// elsewhere, neither moves their pair nor has anything sent there.
func TestHostile_Replays(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		var overheard [][]byte
		l.tap = func(to netip.AddrPort, b []byte) {
			if to.Addr() == netip.MustParseAddr("10.0.0.1") && len(overheard) < 500 {
				overheard = append(overheard, b)
			}
		}
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		before := a.status("bob").Path.Route
		from := netip.MustParseAddrPort("203.0.113.7:7")
		packets, _ := l.victimOf(from.Addr())
		l.mu.Lock()
		heard := overheard
		l.mu.Unlock()
		if len(heard) == 0 {
			t.Fatal("nothing was overheard")
		}
		for range 100 {
			for _, p := range heard {
				a.pairs.STUN(0, from, p)
			}
			<-time.After(10 * time.Millisecond)
		}
		synctest.Wait()
		if s := a.status("bob"); s.Path.Route != before || !s.Stands || packets() > 0 {
			t.Errorf("%d packets to who replays; %+v", packets(), s)
		}
	})
}

// A member that passes off what one node tells it to another one, and the other way
// round, gets them no way to it: their checks of each other are not its own.
func TestHostile_PassesOnWhatOthersSay(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		m := newMallory(l, a)
		in, out := make(chan mesh.PathSignal, 4), make(chan mesh.PathSignal, 64)
		var running sync.WaitGroup
		running.Go(func() { _ = b.pairs.Answer(m.ctx, m.id, end{m.ctx, in, out}) })
		for _, ends := range [][2]chan mesh.PathSignal{{m.out, in}, {out, m.in}} {
			running.Go(func() {
				for {
					select {
					case s := <-ends[0]:
						select {
						case ends[1] <- s:
						case <-m.ctx.Done():
						}
					case <-m.ctx.Done():
						return
					}
				}
			})
		}
		defer running.Wait()
		defer m.stop()
		asked := uint64(0)
		for range 200 {
			<-time.After(100 * time.Millisecond)
			l.talk(a, b)
			synctest.Wait()
			for _, n := range []*testNode{a, b} {
				var s path.State
				n.pairs.do(func(time.Time) { s = n.pairs.links["mallory"].finder.State() })
				synctest.Wait()
				if asked = max(asked, s.Counters.Asked); s.Standing || s.Counters.Served > 0 {
					t.Fatalf("%s has a way to somebody else: %+v", n.id, s)
				}
			}
		}
		if asked == 0 {
			t.Error("nothing was asked at all: the test shows nothing")
		}
		if !standing(a, b) {
			t.Error("the pair broke")
		}
	})
}
