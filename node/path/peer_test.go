// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

func TestAgent_BeginsAnewWithAnotherSession(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	old, oldPeer := p.b.local, p.b
	was, _ := p.a.paths.Selected()

	fresh := newHost(t, p.w, "bob", "alice") // on the same machine
	fresh.heir = true
	fresh.attach(p.b.realms[0], "192.168.2.10")
	fresh.allocate(p.s, path.UDP, "gw-1")
	p.b = fresh
	fresh.peer, p.a.peer = p.a, fresh
	fresh.offer()
	fresh.signal(2)
	p.a.signal(1)
	p.w.run(4*p.w.delay-time.Millisecond, nil)
	if r, ok := p.a.paths.Selected(); !ok || r != was {
		t.Errorf("data goes to %v, %v instead of %v, which may work still", r, ok, was)
	}
	p.await(t, 2*time.Second, direct(p.a, p.b))

	if err := p.a.agent.SetRemote(p.w.now, old, 1); err != nil {
		t.Errorf("a late signal: %v", err)
	}
	p.w.run(20*time.Second, nil)
	if !direct(p.a, p.b)() {
		t.Errorf("a late signal of %s ended the way: %+v", oldPeer.name, p.a.paths.State())
	}
	err := p.a.agent.SetRemote(p.w.now, path.NewCredentials(), 2)
	if err == nil || !strings.Contains(err.Error(), "session") {
		t.Errorf("other credentials in the same session: %v", err)
	}
}

func TestAgent_AsksLittleOfOneThatNeverAnswers(t *testing.T) {
	p := newPair(t)
	p.a.peer, p.b.peer = p.b, p.a
	p.a.offer()
	p.b.signal(1) // and then it is gone
	p.b.detach()
	p.s.down = true
	p.w.run(time.Hour, nil)
	ways := p.a.paths.State().Ways
	if n := len(p.a.requests); n == 0 || n > 7*ways {
		t.Errorf("%d checks on %d ways", n, ways)
	}
	if s := p.a.paths.State(); s.Standing || !strings.Contains(s.Why, "not answered") {
		t.Errorf("state: %+v", s)
	}

	// A signal is a sign of life, as far as they do not come all the time.
	p.b.signal(1)
	p.w.run(time.Minute, nil)
	if n := len(p.a.requests); n <= 7*ways || n > 10*ways {
		t.Errorf("%d checks on %d ways after one more signal", n, ways)
	}
	before := len(p.a.requests)
	for range 1000 {
		p.b.signal(1)
		p.w.run(time.Second, nil)
	}
	if n := len(p.a.requests) - before; n > 3*ways*(1000/5+32) {
		t.Errorf("%d checks on %d ways after a thousand signals", n, ways)
	}
}

func TestAgent_ThePeerThatVanishesLeavesNothing(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.b.detach()
	p.s.down = true
	p.w.run(20*time.Second, nil)
	if standing(p.a)() {
		t.Errorf("the way stands after 20 s: %+v", p.a.paths.State())
	}
	silent := fmt.Sprintf("the other node does not answer any more on any of %d ways", p.a.paths.State().Ways)
	if why := p.a.paths.State().Why; why != silent {
		t.Errorf("why there is no way: %q, want %q", why, silent)
	}
	before := len(p.a.requests)
	p.w.run(time.Hour, nil)
	if n := len(p.a.requests) - before; n > 4000 {
		t.Errorf("%d checks in the hour after", n)
	}
	p.w.run(time.Minute, nil)
	if got := p.a.paths.Accepted(p.w.now); len(got) > 0 {
		t.Errorf("packets are taken from %v", got)
	}
}

func TestAgent_ListsWhatItTakesDataFrom(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.w.run(5*time.Second, nil)
	sent, _ := p.b.paths.Selected()
	list := p.a.paths.Accepted(p.w.now)
	want := path.Route{To: reflexiveOf(t, p.b)}
	if !slices.Contains(list, want) || sent.To != reflexiveOf(t, p.a) {
		t.Errorf("%v is not in %v", want, list)
	}
	for _, r := range list {
		if a := r.To.Addr(); a != p.natB.ext && a != p.s.addr {
			t.Errorf("data is taken from %v", r)
		}
	}
}

// Ways over a relay that may have forgotten them do not stand until they are
// checked, which is done at once; others stay.
func TestAgent_DoubtsWaysOverARelay(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.a.paths.Doubt(p.w.now, "")
	if s := p.a.paths.State(); !s.Direct {
		t.Errorf("the direct way is doubted: %+v", s)
	}
	p = newPair(t, "natPP", "natPP")
	meet(p.a, p.b)
	p.await(t, 2*time.Second, standing(p.a))
	relay := p.a.paths.State().Relay
	p.a.paths.Doubt(p.w.now, "another one")
	if !standing(p.a)() {
		t.Error("the way over one relay is doubted with another one")
	}
	p.a.paths.Doubt(p.w.now, relay)
	if s := p.a.paths.State(); s.Standing {
		t.Errorf("%+v stands", s)
	}
	p.await(t, 500*time.Millisecond, standing(p.a))
}

func reflexiveOf(t *testing.T, h *host) netip.AddrPort {
	t.Helper()
	a, ok := reflexive(h.realms[0], h.addrs[0])
	if !ok {
		t.Fatal("no reflexive address")
	}
	return a
}

// What a peer says of veils in its latest check counts, and not in one that is late.
func TestAgent_KnowsWhetherThePeerTakesVeils(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	var late []path.Packet
	p.b.tap = func(out path.Packet) { late = append(late, out) }
	p.b.agent.TakeVeils(true)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	if !p.a.agent.PeerTakesVeils() || p.b.agent.PeerTakesVeils() {
		t.Fatalf("the peers take veils: %v, %v", p.a.agent.PeerTakesVeils(), p.b.agent.PeerTakesVeils())
	}
	for _, on := range []bool{false, true, false} {
		p.b.agent.TakeVeils(on)
		p.b.pump()
		p.await(t, time.Second, func() bool { return p.a.agent.PeerTakesVeils() == on })
	}
	before := late[0]
	p.a.agent.Packet(p.w.now, path.Native, reflexiveOf(t, p.b), before.Bytes)
	if p.a.agent.PeerTakesVeils() {
		t.Error("a check that came twice has changed it")
	}
	p.b.agent.TakeVeils(true)
	p.b.pump()
	p.await(t, time.Second, p.a.agent.PeerTakesVeils)
	if err := p.a.agent.SetRemote(p.w.now, path.NewCredentials(), 2); err != nil || p.a.agent.PeerTakesVeils() {
		t.Errorf("another session takes veils: %v, %v", p.a.agent.PeerTakesVeils(), err)
	}
}
