// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// caller is a call of another node, on which it says what comes from in.
type caller struct {
	in     chan mesh.PathSignal
	hangUp context.CancelFunc
	ended  chan error
}

// callFrom has a node call.
func (s *still) callFrom(id mesh.NodeID) *caller {
	ctx, cancel := context.WithCancel(s.ctx)
	c := &caller{make(chan mesh.PathSignal, 9), cancel, make(chan error, 1)}
	s.running.Go(func() { c.ended <- s.Answer(ctx, id, stillChannel{s, ctx, c.in}) })
	s.wait()
	return c
}

// over reports whether a call has ended, and why.
func (c *caller) over() (error, bool) {
	select {
	case err := <-c.ended:
		return err, true
	default:
		return nil, false
	}
}

func says(session uint64, ports ...uint16) mesh.PathSignal {
	own := path.NewCredentials()
	m := mesh.PathSignal{Ufrag: own.Ufrag, Password: own.Password, Session: session}
	for _, port := range ports {
		m.Candidates = append(m.Candidates, mesh.PathCandidate{Kind: v1.PathCandidate_KIND_HOST, Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port)})
	}
	return m
}

// Who calls waits for what the directory says of it, for a while, and few at a time.
func TestAnswer_WaitsForTheDirectory(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.follow(s.gate("gate", 9))
		if err, ok := s.callFrom("bob").over(); !ok || !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("itself: %v", err)
		}
		s.want(time.Now(), "ada") // it was, and may have changed
		s.told()
		first, second, eve := s.callFrom("ada"), s.callFrom("ada"), s.callFrom("eve")
		if add, _ := s.told(); !slices.Equal(add, []string{"ada", "eve"}) || len(s.callers["ada"]) != 2 {
			t.Errorf("asked about %v; %d wait", add, len(s.callers["ada"]))
		}
		second.hangUp()
		s.wait()
		if _, ok := second.over(); !ok || len(s.callers["ada"]) != 1 {
			t.Errorf("one hung up, and %d wait", len(s.callers["ada"]))
		}
		first.in <- says(7, 4)
		s.wait()
		s.tell("ada", s.peer("ada", 1), "")
		l := s.links["ada"]
		if len(s.callers["ada"]) != 0 || len(l.calls) != 1 || l.session != 7 || l.due != time.Now() {
			t.Errorf("%d wait still; the link heard of session %d", len(s.callers["ada"]), l.session)
		}
		s.pass(callerPatience - time.Millisecond)
		if _, ok := eve.over(); ok {
			t.Error("ended too soon")
		}
		s.pass(time.Millisecond)
		if _, ok := eve.over(); !ok || len(s.callers) != 0 {
			t.Errorf("nobody says who eve is, and %d wait", len(s.callers))
		}
		if _, ok := first.over(); ok || len(l.calls) != 1 {
			t.Error("the call that became the link's has ended")
		}
		s.callFrom("gate")
		if len(s.callers["gate"]) != 1 || len(s.links["gate"].calls) != 0 {
			t.Error("the way to a gateway takes signals")
		}
	})
	inStill(t, func(t *testing.T, s *still) {
		for i := range maxCallers {
			if err, ok := s.callFrom(mesh.NodeID(fmt.Sprint("n", i/2))).over(); ok {
				t.Fatal(err)
			}
		}
		if err, ok := s.callFrom("late").over(); !ok || !errors.Is(err, mesh.ErrExhausted) || value(t, s.metrics.dropped[dropCaller]) != 1 || s.callers["late"] != nil {
			t.Errorf("one more: %v", err)
		}
		s.pass(callerPatience)
		if err, ok := s.callFrom("late").over(); ok || len(s.callers) != 1 {
			t.Errorf("and after a while: %v; %d wait", err, len(s.callers))
		}
	})
}

// A node of whom is known who it is gets the call at once, and is told what there is
// to say.
func TestAnswer_OfAKnownNode(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(sought, s.peer("ada", 1))
		s.pass(time.Minute)
		c := s.callFrom("ada")
		if len(s.signals()) != 0 || l.used != time.Now() || len(l.calls) != 1 {
			t.Errorf("said %v before there was anything", s.signals())
		}
		s.host("10.0.0.2")
		l.call(time.Now())
		s.wait()
		said := s.signals()
		if len(said) != 1 || len(said[0].Candidates) != 1 || said[0].Session != l.number || said[0].Ufrag != l.own.Ufrag || said[0].Password != l.own.Password {
			t.Fatalf("said %v", said)
		}
		if value(t, s.metrics.sent) != 1 {
			t.Error("it is not counted")
		}
		s.callFrom("ada") // again
		if said := s.signals(); len(said) != 2 || len(said[1].Candidates) != 1 {
			t.Errorf("said %v", said)
		}
		s.pass(time.Second)
		l.due = time.Now().Add(time.Hour)
		c.in <- says(7, 4, 5)
		s.wait()
		if l.session != 7 || l.calls[0].spoke != time.Now() || l.due != time.Now() || value(t, s.metrics.received) != 1 {
			t.Errorf("heard of session %d; due %s", l.session, l.due)
		}
		close(c.in)
		s.wait()
		if err, ok := c.over(); !ok || !errors.Is(err, mesh.ErrUnavailable) || len(l.calls) != 1 {
			t.Errorf("ended: %v; %d calls", err, len(l.calls))
		}
	})
}

// Of too many calls of one node the oldest make room.
func TestAttach_AtMost(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.link(sought, s.peer("ada", 1))
		var all []*caller
		for range maxCalls + 1 {
			all = append(all, s.callFrom("ada"))
		}
		for i, c := range all {
			if _, over := c.over(); over != (i == 0) {
				t.Errorf("call %d: over %v", i, over)
			}
		}
	})
}

// A node that began anew knows no session of the pair; one that speaks again does.
func TestHear_OfANewSession(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(sought, s.peer("ada", 1))
		c := newCall(func() {}, false)
		began, shook := l.began, time.Now()
		signal := says(7, 4)
		for _, m := range []mesh.PathSignal{signal, signal, {Ufrag: "x", Password: "short", Session: 8}} {
			s.pass(time.Second)
			l.stands, l.shook, s.fresh = true, shook, false
			if l.hear(time.Now(), c, m); !l.stands || l.began != began || l.shook != shook || s.fresh || l.session != 7 {
				t.Errorf("session %d after 7: stands %v, began %s", m.Session, l.stands, l.began)
			}
		}
		s.pass(time.Second)
		if l.hear(time.Now(), c, says(8, 4)); l.stands || l.began != time.Now() || !l.shook.IsZero() || !s.fresh || l.session != 8 {
			t.Errorf("a new session: stands %v, began %s, shook %s", l.stands, l.began, l.shook)
		}
		if ways := l.agent.State(); len(l.agent.Outgoing()) > 0 || ways.Standing {
			t.Errorf("%+v", ways)
		}
	})
}

// A word that may have been lost with its channel is said again.
func TestHungUp_SaysTheLastWordAgain(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(sought, s.peer("ada", 1))
		for after, again := range map[time.Duration]bool{mayBeLost - 1: true, mayBeLost: false} {
			c := newCall(func() {}, true)
			other := newCall(func() {}, true)
			c.spoke, l.calls, l.told, l.due = time.Now(), []*call{other, c}, []path.Candidate{}, time.Now().Add(time.Hour)
			s.pass(after)
			s.hungUp(time.Now(), "ada", c)
			if !slices.Equal(l.calls, []*call{other}) || (l.told == nil) != again || l.due != time.Now() {
				t.Errorf("after %s: %d calls, told %v", after, len(l.calls), l.told)
			}
			l.told, l.due = []path.Candidate{}, time.Time{}
			s.hungUp(time.Now(), "ada", c) // it is none of the link's
			s.hungUp(time.Now(), "nobody", c)
			if l.told == nil || !l.due.IsZero() {
				t.Error("the end of another call counts")
			}
		}
	})
}

// A node calls while it has no way, less and less often, and when it has news.
func TestCall_WhileThereIsNoWay(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		gate, _ := s.link(gateway, s.gate("gate", 9))
		s.host("10.0.0.2")
		var pauses []time.Duration
		for range 9 {
			next := l.call(time.Now())
			pauses = append(pauses, time.Until(next))
			s.wait()
			if again := l.call(time.Now()); time.Until(again) < time.Minute || len(l.calls) != 1 {
				t.Fatalf("with %d calls: to look after %s", len(l.calls), time.Until(again))
			}
			l.calls[0].end()
			s.wait()
			if again := l.call(time.Now()); again != next {
				t.Errorf("to call after %s, want %s", time.Until(again), time.Until(next))
			}
			s.pass(time.Until(next))
		}
		for i, p := range pauses {
			if want := min(callAgainFirst<<i, callAgainMost); p != want {
				t.Errorf("pause %d is %s", i, p)
			}
		}
		if gate.call(time.Now()); len(gate.calls) != 0 {
			t.Error("a gateway is called")
		}
		f.finds(true)
		l.last = f.state
		l.told = s.candidates()
		before := len(s.calls())
		if next := l.call(time.Now()); time.Until(next) < time.Minute || len(l.calls) != 0 {
			t.Errorf("with a way and no news: to look after %s, %d calls", time.Until(next), len(l.calls))
		}
		s.host("10.0.0.2", "10.0.0.3")
		l.call(time.Now())
		s.wait()
		if got := s.calls(); len(got) != before+1 || l.failures != 0 || !slices.Equal(l.told, s.candidates()) {
			t.Errorf("with news: called %v, failures %d", got[before:], l.failures)
		}
		if said := s.signals(); len(said[len(said)-1].Candidates) != 2 {
			t.Errorf("said %v", said[len(said)-1])
		}
	})
}

// Calls of this node that have nothing to say end, and those of others are theirs.
func TestCall_Rests(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		ended := map[bool]int{}
		for _, mine := range []bool{true, false} {
			c := newCall(func() { ended[mine]++ }, mine)
			c.spoke = time.Now()
			l.calls = append(l.calls, c)
		}
		s.pass(2 * callRest)
		if l.call(time.Now()); len(ended) != 0 {
			t.Errorf("ended %v while there is no way", ended)
		}
		f.finds(true)
		l.last = f.state
		s.host("10.0.0.2") // news: it is said
		if l.call(time.Now()); len(ended) != 0 || l.calls[0].spoke != time.Now() {
			t.Errorf("ended %v with news", ended)
		}
		for _, c := range l.calls {
			if m := <-c.outbox; len(m.Candidates) != 1 {
				t.Errorf("said %v", m)
			}
		}
		s.pass(callRest)
		if l.call(time.Now()); len(ended) != 0 {
			t.Errorf("ended %v too soon", ended)
		}
		s.pass(1)
		if l.call(time.Now()); ended[true] != 1 || ended[false] != 0 {
			t.Errorf("ended %v", ended)
		}
	})
}

// A signal in the queue makes room for the next, which says all.
func TestCall_SaysTheLatest(t *testing.T) {
	c := newCall(func() {}, true)
	c.say(mesh.PathSignal{Session: 1})
	c.say(mesh.PathSignal{Session: 2})
	if m := <-c.outbox; m.Session != 2 || len(c.outbox) != 0 {
		t.Errorf("said %v", m)
	}
}

// A call that comes to nothing leaves nothing.
func TestDial_ThatFails(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.cfg.Signals = deaf{}
		l, _ := s.link(sought, s.peer("ada", 1))
		s.dial(time.Now(), l)
		s.wait()
		if len(l.calls) != 0 {
			t.Errorf("%d calls", len(l.calls))
		}
	})
}

type deaf struct{}

func (deaf) Call(context.Context, mesh.NodeID) (Channel, error) { return nil, mesh.ErrUnavailable }

// What cannot be sent ends the call, with what the other side says of it.
func TestConverse_EndsWhenItCannotSend(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		ctx, cancel := context.WithCancel(t.Context())
		ch := &broken{why: make(chan error)}
		c := newCall(cancel, true)
		c.say(mesh.PathSignal{})
		ended := make(chan error, 1)
		var running sync.WaitGroup
		running.Go(func() { ended <- s.converse(ctx, "ada", c, ch) })
		s.wait()
		ch.why <- mesh.ErrDenied
		s.wait()
		if err := <-ended; !errors.Is(err, mesh.ErrDenied) || value(t, s.metrics.sent) != 0 {
			t.Errorf("ended with %v", err)
		}
		running.Wait()
	})
}

// broken is a channel that takes nothing.
type broken struct{ why chan error }

func (b *broken) Send(mesh.PathSignal) error { return mesh.ErrUnavailable }
func (b *broken) Receive() (mesh.PathSignal, error) {
	return mesh.PathSignal{}, <-b.why
}

// Candidates are in signals what they are here, and no more than have room.
func TestSignal_CarriesCandidates(t *testing.T) {
	at := netip.MustParseAddrPort("192.0.2.1:7")
	for _, c := range []path.Candidate{
		{Kind: path.Host, Addr: at}, {Kind: path.ServerReflexive, Addr: at}, {Kind: path.Relayed, Addr: at, Transport: path.UDP, Relay: "gate"},
		{Kind: path.Relayed, Addr: at, Transport: path.TCP}, {Kind: path.Relayed, Addr: at, Transport: path.TLS},
	} {
		if got := candidateOf(signalOf(c)); got != c {
			t.Errorf("%v became %v", c, got)
		}
	}
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(sought, s.peer("ada", 1))
		l.told = make([]path.Candidate, mesh.MaxPathCandidates+3)
		if n := len(l.signal().Candidates); n != mesh.MaxPathCandidates {
			t.Errorf("%d candidates", n)
		}
	})
}
