// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// place is a kind of network that a host may be in.
type place struct {
	name string
	// nats are those above the host, the nearest first; nil for a public address.
	nats [][2]behaviour
	v4   bool
	v6   bool // behind a firewall that lets answers in
	// blocked lets no UDP out.
	blocked bool
	relay   path.Transport
}

// places are all kinds: every mapping with every filtering, and what stands
// around them in the world.
func places() []place {
	list := []place{{name: "open", v4: true, relay: path.UDP}}
	for _, m := range []behaviour{independent, byAddress, byPort} {
		for _, f := range []behaviour{independent, byAddress, byPort} {
			list = append(list, place{name: fmt.Sprintf("nat%v%v", m, f), nats: [][2]behaviour{{m, f}}, v4: true, relay: path.UDP})
		}
	}
	cone, symmetric := [2]behaviour{independent, byPort}, [2]behaviour{byPort, byPort}
	return append(list,
		place{name: "cgnat", nats: [][2]behaviour{cone, cone}, v4: true, relay: path.UDP},
		place{name: "cgnat-symmetric", nats: [][2]behaviour{cone, symmetric}, v4: true, relay: path.UDP},
		place{name: "symmetric-cgnat", nats: [][2]behaviour{symmetric, cone}, v4: true, relay: path.UDP},
		place{name: "udp-blocked", nats: [][2]behaviour{cone}, v4: true, blocked: true, relay: path.TCP},
		place{name: "only-443", nats: [][2]behaviour{cone}, v4: true, blocked: true, relay: path.TLS},
		place{name: "ipv6-only", v6: true, relay: path.UDP},
		place{name: "dual-stack", nats: [][2]behaviour{cone}, v4: true, v6: true, relay: path.UDP},
	)
}

// settle puts a host into a place. The number n tells networks apart.
func (p place) settle(h *host, n int, s *server) (outermost *nat) {
	r := h.w.internet
	for i, b := range slices.Backward(p.nats) {
		ext := fmt.Sprintf("198.51.100.%d", n)
		if i < len(p.nats)-1 {
			ext = fmt.Sprintf("100.64.%d.2", n)
		}
		t := newNAT(r, ext, b[0], b[1])
		t.closed = p.blocked
		if outermost == nil {
			outermost = t
		}
		r = t.inner
	}
	if p.v4 {
		addr := fmt.Sprintf("192.168.%d.10", n)
		if len(p.nats) == 0 {
			addr = fmt.Sprintf("198.51.100.%d", n)
		}
		h.attach(r, addr)
	}
	if p.v6 {
		addr := fmt.Sprintf("2001:db8:%d::10", n)
		f := newNAT(h.w.internet, addr, independent, byPort)
		f.plain = true
		h.attach(f.inner, addr)
	}
	h.allocate(s, p.relay, "gw-1")
	return outermost
}

// worst is how all NATs of a place together map and filter.
func (p place) worst() (mapping, filter behaviour) {
	for _, b := range p.nats {
		mapping, filter = max(mapping, b[0]), max(filter, b[1])
	}
	return mapping, filter
}

// theory says whether two places have a direct way, from RFC 4787 alone. A packet
// for the reflexive address of a NAT gets in when the filter lets it; whoever it
// reaches learns where it came from, and answers.
func theory(a, b place) bool {
	if a.blocked || b.blocked {
		return false
	}
	if a.v6 && b.v6 {
		return true
	}
	if !a.v4 || !b.v4 {
		return false
	}
	mapA, filterA := a.worst()
	mapB, filterB := b.worst()
	switch {
	case mapA == independent && mapB == independent:
		return true // both know where the other's packets come from
	case mapA == independent:
		return filterA != byPort // B's come from a port that A cannot foresee
	case mapB == independent:
		return filterB != byPort
	case mapA == byPort && mapB == byPort:
		return false // with each address that is learned the port changes
	}
	// Neither knows the other's port: one has to let in strangers, and the other
	// what answers from another port.
	return filterA == independent && filterB != byPort || filterB == independent && filterA != byPort
}

func TestAgent_FindsTheBestWayBetweenAllPlaces(t *testing.T) {
	for _, pa := range places() {
		for _, pb := range places() {
			t.Run(pa.name+"/"+pb.name, func(t *testing.T) {
				w := newWorld(1)
				s := newServer(w, "203.0.113.1")
				a, b := newHost(t, w, "alice", "bob"), newHost(t, w, "bob", "alice")
				pa.settle(a, 1, s)
				pb.settle(b, 2, s)
				start := w.now
				meet(a, b)
				if !w.run(time.Second, standing(a, b)) {
					t.Fatalf("no way after a second: %+v, %+v", a.paths.State(), b.paths.State())
				}
				t.Logf("a way after %v", w.now.Sub(start))
				if want := theory(pa, pb); want != w.run(10*time.Second, direct(a, b)) {
					t.Fatalf("direct is %v, want %v: %+v, %+v", !want, want, a.paths.State(), b.paths.State())
				}
				if s := a.paths.State(); s.Direct != (s.Why == "") {
					t.Fatalf("direct: %v, why not: %q", s.Direct, s.Why)
				}
				checkMutual(t, a, b)
			})
		}
	}
}

// checkMutual checks that each takes what the other sends.
func checkMutual(t testing.TB, a, b *host) {
	t.Helper()
	for _, h := range []*host{a, b} {
		if !h.streams {
			h.stream()
		}
	}
	a.w.run(2*time.Second, nil) // until what is on its way has come
	a.arrived, b.arrived = nil, nil
	a.w.run(time.Second, nil)
	if len(a.arrived) < 18 || len(b.arrived) < 18 {
		t.Errorf("%d and %d packets arrived, of 20 each", len(a.arrived), len(b.arrived))
	}
}

// Two NATs that take a new port for each address and let in everyone show each
// other a new address with each check. The quicker that goes, the less is left
// for relays.
func TestAgent_IsNotLedOnByNewAddresses(t *testing.T) {
	p := newPair(t, "natPE", "natPE")
	p.w.delay = time.Millisecond
	meet(p.a, p.b)
	p.await(t, time.Second, standing(p.a, p.b))
	before := len(p.a.requests)
	p.w.run(10*time.Minute, nil)
	if n := len(p.a.requests) - before; n > 700 {
		t.Errorf("%d checks in ten minutes", n)
	}
}
