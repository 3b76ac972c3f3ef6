// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// pair is two hosts behind port-restricted NATs, with a relay each on the same
// server.
type pair struct {
	w          *world
	s          *server
	a, b       *host
	natA, natB *nat
}

func newPair(t testing.TB, names ...string) *pair {
	t.Helper()
	p := &pair{w: newWorld(1)}
	p.s = newServer(p.w, "203.0.113.1")
	p.a, p.b = newHost(t, p.w, "alice", "bob"), newHost(t, p.w, "bob", "alice")
	if len(names) == 0 {
		names = []string{"natEP", "natEP"}
	}
	p.natA = placed(t, names[0]).settle(p.a, 1, p.s)
	p.natB = placed(t, names[1]).settle(p.b, 2, p.s)
	return p
}

func placed(t testing.TB, name string) place {
	t.Helper()
	i := slices.IndexFunc(places(), func(p place) bool { return p.name == name })
	if i < 0 {
		t.Fatalf("there is no place %q", name)
	}
	return places()[i]
}

func (p *pair) await(t testing.TB, d time.Duration, done func() bool) {
	t.Helper()
	if !p.w.run(d, done) {
		t.Fatalf("not within %v: %+v, %+v", d, p.a.paths.State(), p.b.paths.State())
	}
}

// streams lets both send.
func (p *pair) streams() {
	p.a.stream()
	p.b.stream()
}

// stalled fails the test if data stood still for longer than most.
func (p *pair) stalled(t testing.TB, since time.Time, most time.Duration) {
	t.Helper()
	for _, h := range []*host{p.a, p.b} {
		if got := h.stall(since); got > most {
			t.Errorf("%s had nothing for %v, more than %v", h.name, got, most)
		} else {
			t.Logf("%s had nothing for %v", h.name, got)
		}
	}
}

func TestAgent_MovesFromRelayToDirectWithoutLoss(t *testing.T) {
	p := newPair(t, "natEP", "natPP")
	meet(p.a, p.b)
	p.await(t, time.Second, relayed(p.a, p.b))
	p.streams()
	start := p.w.now
	p.w.run(20*time.Second, nil)
	p.natB.mapping = independent // its owner got a better one
	p.natB.forget()
	p.await(t, 2*time.Minute, direct(p.a, p.b))
	p.w.run(time.Second, nil)
	p.stalled(t, start, 100*time.Millisecond)
	if got := len(p.a.arrived); time.Duration(got+3)*50*time.Millisecond < p.w.now.Sub(start) {
		t.Errorf("%d packets arrived in %v, one each 50 ms", got, p.w.now.Sub(start))
	}
}

func TestAgent_LeavesADeadWay(t *testing.T) {
	for name, streams := range map[string]func(*pair){
		"both send":       (*pair).streams,
		"one sends":       func(p *pair) { p.a.stream() },
		"the other sends": func(p *pair) { p.b.stream() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			meet(p.a, p.b)
			p.await(t, 2*time.Second, direct(p.a, p.b))
			streams(p)
			p.w.run(10*time.Second, nil)
			cut := p.w.now
			p.natA.closed = true
			p.natA.forget()
			was := p.a.paths.State().Route.To
			p.await(t, 5*time.Second, relayed(p.a, p.b))
			t.Logf("relayed after %v", p.w.now.Sub(cut))
			if s := p.a.paths.State(); s.LastDirect != was || s.DirectEnded.Before(cut) || strings.Contains(s.Why, "NAT") {
				t.Errorf("it was direct to %v from %v on: %+v", was, cut, s)
			}
			p.w.run(5*time.Second, nil)
			for _, h := range []*host{p.a, p.b} {
				if h.peer.streams && h.stall(cut) > 4500*time.Millisecond {
					t.Errorf("%s had nothing for %v", h.name, h.stall(cut))
				}
			}
		})
	}
}

// All ways of a host but the relays die when its uplink does: the next one is not
// to be another dead one.
func TestAgent_LeavesAllDeadWaysAtOnce(t *testing.T) {
	p := newPair(t, "dual-stack", "dual-stack")
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.streams()
	for range 20 {
		p.w.run(10*time.Second, nil)
		cut := p.w.now
		for _, r := range p.a.realms {
			r.up.closed = true
			r.up.forget()
		}
		p.w.run(4*time.Second, nil)
		p.stalled(t, cut, 2700*time.Millisecond)
		for _, r := range p.a.realms {
			r.up.closed = false
		}
		p.await(t, 6*time.Minute, direct(p.a, p.b))
		p.w.run(11*time.Second, nil) // so that the other way stands as well
	}
}

func TestAgent_ChecksEverythingWhenItIsElsewhere(t *testing.T) {
	for name, move := range map[string]func(*pair){
		"said so": func(p *pair) { p.a.paths.Restart(p.w.now) },
		"has other addresses": func(p *pair) {
			other := append(p.a.candidates(path.Native), path.Candidate{Addr: netip.MustParseAddrPort("10.7.7.7:51820")})
			if err := p.a.paths.SetLocal(p.w.now, path.Native, other); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, "natPP", "natPP")
			meet(p.a, p.b)
			p.await(t, time.Second, relayed(p.a, p.b))
			p.w.run(20*time.Minute, nil)
			asked := map[path.Route]int{}
			p.a.tap = func(k path.Packet) {
				if m, err := path.ParseMessage(k.Bytes); err == nil && m.Type == path.BindingRequest {
					asked[k.Route]++
				}
			}
			move(p)
			p.a.pump()
			p.w.run(time.Second, nil)
			direct := 0
			for r, n := range asked {
				if r.Socket == path.Native && r.To.Addr() != p.s.addr && n >= 4 {
					direct++
				}
			}
			if used, _ := p.a.paths.Selected(); asked[used] == 0 || direct < 2 {
				t.Errorf("in a second it checks %v", asked)
			}
		})
	}
}

func TestAgent_DoesNotTakeForgedDataForALivingWay(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.a.stream()
	p.w.run(5*time.Second, nil)
	p.natA.closed = true
	dead, _ := p.a.paths.Selected()
	var forge func()
	forge = func() {
		p.a.paths.Heard(p.w.now, dead)
		p.a.pump()
		p.w.after(10*time.Millisecond, forge)
	}
	forge()
	p.await(t, 5*time.Second, relayed(p.a))
}

func TestAgent_SurvivesRebinding(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.streams()
	for range 5 {
		p.w.run(20*time.Second, nil)
		flushed := p.w.now
		p.natA.forget()
		p.natB.forget()
		p.w.run(10*time.Second, nil)
		p.stalled(t, flushed, 4*time.Second)
	}
	p.await(t, time.Minute, direct(p.a, p.b))
}

func TestAgent_SurvivesBlackout(t *testing.T) {
	for name, place := range map[string]string{"direct": "natEP", "relayed": "natPP"} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, place, place)
			meet(p.a, p.b)
			p.await(t, 2*time.Second, standing(p.a, p.b))
			p.streams()
			p.w.run(20*time.Second, nil)
			p.w.dark = true
			p.w.run(10*time.Second, nil)
			if standing(p.a)() || standing(p.b)() {
				t.Errorf("there is a way in the dark: %+v, %+v", p.a.paths.State(), p.b.paths.State())
			}
			p.w.dark = false
			back := p.w.now
			p.await(t, 1200*time.Millisecond, standing(p.a, p.b))
			p.w.run(time.Second, nil)
			p.stalled(t, back, 1300*time.Millisecond)
		})
	}
}

func TestAgent_PrefersTheSameNetwork(t *testing.T) {
	p := newPair(t)
	p.b.detach()
	p.b.attach(p.natA.inner, "192.168.1.11")
	p.natA.hairpin = true
	meet(p.a, p.b)
	p.await(t, time.Second, direct(p.a, p.b))
	p.w.run(5*time.Second, nil)
	for _, h := range []*host{p.a, p.b} {
		if r, _ := h.paths.Selected(); r.To != h.peer.addrs[0] {
			t.Errorf("%s sends to %v, not %v", h.name, r.To, h.peer.addrs[0])
		}
	}
}

func TestAgent_BehindOneCarrierGoesByItsHairpin(t *testing.T) {
	for name, hairpin := range map[string]bool{"hairpin": true, "none": false} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			carrier := newNAT(p.w.internet, "198.51.100.9", independent, byPort)
			carrier.hairpin = hairpin
			for i, h := range []*host{p.a, p.b} {
				h.detach()
				home := newNAT(carrier.inner, []string{"100.64.0.1", "100.64.0.2"}[i], independent, byPort)
				h.attach(home.inner, []string{"192.168.5.2", "192.168.6.2"}[i])
			}
			meet(p.a, p.b)
			p.await(t, time.Second, standing(p.a, p.b))
			if got := p.w.run(10*time.Second, direct(p.a, p.b)); got != hairpin {
				t.Errorf("direct: %v", got)
			}
		})
	}
}

func TestAgent_FollowsToAnotherNetwork(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.streams()
	p.w.run(10*time.Second, nil)
	left := p.w.now
	p.a.detach()
	other := newNAT(p.w.internet, "198.51.100.33", independent, byPort)
	p.a.attach(other.inner, "10.3.3.3")
	p.w.run(300*time.Millisecond, nil) // until the host has noticed
	p.a.offer()
	p.a.signal(1)
	p.await(t, 5*time.Second, direct(p.a, p.b))
	p.w.run(2*time.Second, nil)
	p.stalled(t, left, 3*time.Second)
}

func TestAgent_ChangesRelayWhenOneIsGone(t *testing.T) {
	p := newPair(t, "natPP", "natPP")
	second := newServer(p.w, "203.0.113.2")
	p.a.allocate(second, path.UDP, "gw-2")
	p.b.allocate(second, path.UDP, "gw-2")
	meet(p.a, p.b)
	p.await(t, time.Second, relayed(p.a, p.b))
	p.streams()
	p.w.run(10*time.Second, nil)
	gone := map[string]*server{"gw-1": p.s, "gw-2": second}[p.a.paths.State().Relay]
	cut := p.w.now
	gone.down = true
	p.w.run(10*time.Second, nil)
	p.stalled(t, cut, 4500*time.Millisecond)
}

func TestAgent_LeavesARelayThatItsOwnerTakesAwayAtOnce(t *testing.T) {
	p := newPair(t, "natPP", "natPP")
	second := newServer(p.w, "203.0.113.2")
	p.a.allocate(second, path.TCP, "gw-2")
	meet(p.a, p.b)
	p.await(t, time.Second, relayed(p.a, p.b))
	p.w.run(5*time.Second, nil)
	if err := p.a.paths.SetLocal(p.w.now, 1, nil); err != nil {
		t.Fatal(err)
	}
	if r, ok := p.a.paths.Selected(); !ok || r.Socket == 1 {
		t.Errorf("data goes to %v, %v", r, ok)
	}
}

func TestAgent_PrefersBetterRelays(t *testing.T) {
	p := newPair(t, "natPP", "natPP")
	second := newServer(p.w, "203.0.113.2")
	p.a.relays[0].transport = path.TLS
	p.a.allocate(second, path.TCP, "gw-2")
	p.b.relays[0].transport = path.TLS
	meet(p.a, p.b)
	p.w.run(5*time.Second, nil)
	for _, h := range []*host{p.a, p.b} {
		if s := h.paths.State(); !s.Standing || s.Transport != path.TCP || s.Relay != "gw-2" {
			t.Errorf("%s goes by %v of %q", h.name, s.Transport, s.Relay)
		}
	}
}

func TestAgent_SharesOneOfEqualWays(t *testing.T) {
	// IPv4 and IPv6 are equally direct.
	p := newPair(t, "dual-stack", "dual-stack")
	p.w.jitter = 8 * time.Millisecond
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.streams()
	p.w.run(20*time.Second, nil)
	ra, _ := p.a.paths.Selected()
	rb, _ := p.b.paths.Selected()
	if ra.To.Addr().Is4() != rb.To.Addr().Is4() {
		t.Errorf("one goes to %v, the other to %v", ra.To, rb.To)
	}
	changes := 0
	for range 600 {
		p.w.run(time.Second, nil)
		now, _ := p.a.paths.Selected()
		if now != ra {
			changes++
		}
		ra = now
	}
	if changes > 1 {
		t.Errorf("the way changed %d times in ten minutes, for the jitter of 8 ms alone", changes)
	}
}

func TestAgent_LivesOnWhenIdle(t *testing.T) {
	p := newPair(t)
	meet(p.a, p.b)
	p.await(t, 2*time.Second, direct(p.a, p.b))
	p.w.run(10*time.Second, nil)
	before := len(p.a.requests)
	used, _ := p.a.paths.Selected()
	last := p.w.now
	p.a.tap = func(k path.Packet) {
		if m, err := path.ParseMessage(k.Bytes); err != nil || m.Type != path.BindingRequest || k.Route != used {
			return
		}
		if gap := p.w.now.Sub(last); gap > 16*time.Second {
			t.Errorf("nothing on the way for %v", gap)
		}
		last = p.w.now
	}
	for range 600 {
		p.w.run(time.Second, nil)
		if !direct(p.a, p.b)() {
			t.Fatalf("the way is gone: %+v", p.a.paths.State())
		}
	}
	// One in 15 s on the way in use, one in 25 s on the spare, and what the peer's
	// checks call for.
	if n := len(p.a.requests) - before; n < 40 || n > 100 {
		t.Errorf("%d checks in ten idle minutes", n)
	}
}

func TestAgent_KeepsTryingForDirectLessAndLess(t *testing.T) {
	p := newPair(t, "natEP", "natPP")
	meet(p.a, p.b)
	p.await(t, time.Second, relayed(p.a, p.b))
	p.w.run(time.Minute, nil)
	before := len(p.a.requests)
	p.w.run(time.Hour, nil)
	if n := len(p.a.requests) - before; n > 700 {
		t.Errorf("%d checks in an hour", n)
	}
	p.natB.mapping = independent
	p.natB.forget()
	p.await(t, 6*time.Minute, direct(p.a, p.b))
}

// While a relay is in use the NATs forget the native sockets, which then have
// other ports than those that were signalled.
func TestAgent_BecomesDirectThoughPortsChanged(t *testing.T) {
	for name, blocked := range map[string]func(*pair) []*nat{
		"one":  func(p *pair) []*nat { return []*nat{p.natA} },
		"both": func(p *pair) []*nat { return []*nat{p.natA, p.natB} },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			meet(p.a, p.b)
			p.await(t, 2*time.Second, direct(p.a, p.b))
			for _, n := range blocked(p) {
				n.closed = true
			}
			p.w.run(30*time.Minute, nil)
			if !relayed(p.a, p.b)() {
				t.Fatalf("not relayed: %+v, %+v", p.a.paths.State(), p.b.paths.State())
			}
			for _, n := range blocked(p) {
				n.closed = false
				n.forget()
			}
			p.await(t, 6*time.Minute, direct(p.a, p.b))
		})
	}
}
