// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/path"
)

// Whatever happens to the network: when it is over, there is a way, and it is
// direct where that can be; and at no time did anyone send above the pace, or
// keep more than the bounds.
func TestAgent_EndsWithTheBestWayWhateverHappens(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kinds := places()
		pa := rapid.SampledFrom(kinds).Draw(rt, "place of a")
		pb := rapid.SampledFrom(kinds).Draw(rt, "place of b")
		w := newWorld(rapid.Uint64().Draw(rt, "seed"))
		w.delay = time.Duration(rapid.IntRange(1, 60).Draw(rt, "delay")) * time.Millisecond
		s, second := newServer(w, "203.0.113.1"), newServer(w, "203.0.113.2")
		p := &pair{w: w, s: s, a: newHost(t, w, "alice", "bob"), b: newHost(t, w, "bob", "alice")}
		p.natA, p.natB = pa.settle(p.a, 1, s), pb.settle(p.b, 2, s)
		p.a.allocate(second, path.TLS, "gw-2")
		meet(p.a, p.b)
		for range rapid.IntRange(0, 8).Draw(rt, "events") {
			p.trouble(rapid.SampledFrom(troubles()).Draw(rt, "trouble"), rt)
			w.run(time.Duration(rapid.IntRange(0, 20_000).Draw(rt, "then"))*time.Millisecond, nil)
		}
		w.lose, w.again, w.jitter, w.dark, s.down, second.down = 0, 0, 0, false, false, false
		for _, h := range []*host{p.a, p.b} {
			h.offer()
			h.signal(1) // with what STUN servers say now
		}
		if !w.run(40*time.Second, standing(p.a, p.b)) {
			rt.Fatalf("no way: %+v, %+v", p.a.paths.State(), p.b.paths.State())
		}
		if theory(pa, pb) && !w.run(6*time.Minute, direct(p.a, p.b)) {
			rt.Fatalf("not direct: %+v, %+v", p.a.paths.State(), p.b.paths.State())
		}
		checkMutual(t, p.a, p.b)
		for _, h := range []*host{p.a, p.b} {
			checkPace(rt, h)
			if n := h.paths.State().Ways; n > path.MaxSockets*(path.MaxRemote+8) {
				rt.Errorf("%d ways", n)
			}
		}
	})
}

// troubles are what may happen.
func troubles() []string {
	return []string{"loss", "calm", "dark", "light", "flush a", "flush b", "relay down", "relay up", "stream", "quiet", "restart", "sleep"}
}

func (p *pair) trouble(what string, rt *rapid.T) {
	switch what {
	case "loss":
		p.w.lose = rapid.Float64Range(0, 0.4).Draw(rt, "loss")
		p.w.again = rapid.Float64Range(0, 0.3).Draw(rt, "twice")
		p.w.jitter = time.Duration(rapid.IntRange(0, 200).Draw(rt, "jitter")) * time.Millisecond
	case "calm":
		p.w.lose, p.w.again, p.w.jitter = 0, 0, 0
	case "dark", "light":
		p.w.dark = what == "dark"
	case "flush a":
		p.natA.flush()
	case "flush b":
		p.natB.flush()
	case "relay down", "relay up":
		p.s.down = what == "relay down"
	case "stream":
		if !p.a.streams {
			p.a.stream()
		}
	case "quiet":
		p.a.streams = false
	case "restart":
		p.a.paths.Restart(p.w.now)
		p.a.pump()
	case "sleep": // no timer runs
		p.b.timer++
	}
}

// flush is forget of a NAT that may not be there.
func (n *nat) flush() {
	if n != nil {
		n.forget()
	}
}

// checkPace holds what a host asked against the pace: five at once, and one each
// 20 ms.
func checkPace(rt *rapid.T, h *host) {
	const burst, every = 5, 20 * time.Millisecond
	full := time.Time{}
	for _, at := range h.requests {
		if full.Before(at) {
			full = at
		}
		full = full.Add(every)
		if full.Sub(at) > burst*every {
			rt.Fatalf("%s asks above the pace at %v", h.name, at)
		}
	}
}
