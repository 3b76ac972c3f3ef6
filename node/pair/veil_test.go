// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// route is how packets get from one node to another.
type route string

const (
	carriedBy route = "by way of the gateway"
	bareOver  route = "over the pair"
	veilOver  route = "veiled over the pair"
)

// sends is how a node sends to the address of another one.
func (n *testNode) sends(to *testNode) route {
	p, _ := n.pairs.View().Apply(n.plan).Peers.Get(to.id)
	switch {
	case p.Veils && slices.Contains(p.Veiled, to.record.IPv4):
		return veilOver
	case slices.Contains(p.AllowedIPs, to.record.IPv4):
		return bareOver
	}
	return carriedBy
}

// takes is by what routes a node takes the packets of another one.
func (n *testNode) takes(from *testNode) (list []route) {
	p, _ := n.pairs.View().Apply(n.plan).Peers.Get(from.id)
	if slices.Contains(p.Veiled, from.record.IPv4) {
		list = append(list, veilOver)
	}
	if slices.Contains(p.AllowedIPs, from.record.IPv4) {
		return append(list, bareOver)
	}
	return append(list, carriedBy)
}

// underway is for how long packets are on their way at most.
const underway = 100 * time.Millisecond

// traffic sees to it that whatever two nodes send each other is taken when it comes.
type traffic struct {
	t      *testing.T
	mu     sync.Mutex // guards the fields below
	nodes  [2]*testNode
	routes [2][]route     // that each node has taken, one after the other
	until  [2][]time.Time // when it took another one
	lost   int
}

// watch looks at two nodes with each new plan of one of them.
func (l *lab) watch(a, b *testNode) *traffic {
	w := &traffic{t: l.t, nodes: [2]*testNode{a, b}}
	l.mu.Lock()
	l.published = w.look
	l.mu.Unlock()
	w.look()
	return w
}

func (w *traffic) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for i, from := range w.nodes {
		to := w.nodes[1-i]
		sends, n := from.sends(to), len(w.routes[i])
		if n == 0 || w.routes[i][n-1] != sends {
			if n > 0 {
				w.until[i][n-1] = now
			}
			w.routes[i], w.until[i] = append(w.routes[i], sends), append(w.until[i], time.Time{})
		}
		takes := to.takes(from)
		for k, r := range w.routes[i] {
			if end := w.until[i][k]; !slices.Contains(takes, r) && (end.IsZero() || now.Sub(end) < underway) {
				w.lost++
			}
		}
	}
}

// loses is how often packets were lost, and by what routes those of both nodes went.
func (w *traffic) loses() (n int, there, back []route) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost, slices.Clone(w.routes[0]), slices.Clone(w.routes[1])
}

// From the gateway to the pair, and back when the pair breaks, both ends take what the
// other one sends, whichever of the two is the first.
func TestPairs_LoseNothingWhenTheyTakeOver(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		w := l.watch(a, b)
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		l.mu.Lock()
		l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return true }
		l.mu.Unlock()
		l.until(time.Minute, "the gateway carries the packets", func() bool { l.talk(a, b); return !standing(a, b) })
		l.until(time.Minute, "at both ends", func() bool {
			l.talk(a, b)
			return a.sends(b) == carriedBy && b.sends(a) == carriedBy
		})
		l.mu.Lock()
		l.blocked = func(netip.AddrPort, netip.AddrPort) bool { return false }
		l.mu.Unlock()
		l.until(time.Minute, "the pair is back", func() bool { return standing(a, b) })
		want := []route{carriedBy, veilOver, carriedBy, veilOver}
		if n, there, back := w.loses(); n != 0 || !slices.Equal(there, want) || !slices.Equal(back, want) {
			t.Errorf("packets were lost %d times; they went %q and %q", n, there, back)
		}
	})
}

// An end that cannot take veiled packets keeps nobody at the gateway: the pair takes
// over as fast, with bare ones. So it is with the exit that a node uses.
func TestPairs_TakeOverBare(t *testing.T) {
	t.Run("networks", func(t *testing.T) {
		inLab(t, func(t *testing.T, l *lab) {
			l.routes = map[mesh.NodeID]netip.Prefix{"bob": netip.MustParsePrefix("203.0.113.0/24")}
			a, b := l.two()
			took := l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
			// Bob takes veiled packets of ada, who takes none of his.
			if took > 300*time.Millisecond || a.sends(b) == carriedBy || b.sends(a) != bareOver {
				t.Errorf("after %s packets go %s and %s", took, a.sends(b), b.sends(a))
			}
			for _, ends := range [][2]*testNode{{a, b}, {b, a}} {
				if takes := ends[1].takes(ends[0]); !slices.Contains(takes, ends[0].sends(ends[1])) || !slices.Contains(takes, bareOver) {
					t.Errorf("%s sends %s, and that %s is taken alone", ends[0].id, ends[0].sends(ends[1]), takes)
				}
			}
		})
	})
	t.Run("exit", func(t *testing.T) {
		inLab(t, func(t *testing.T, l *lab) {
			a, b := l.two()
			l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
			bare := func() bool {
				return slices.Contains(a.takes(b), bareOver) && slices.Contains(b.takes(a), bareOver) && b.sends(a) == bareOver
			}
			for _, exit := range []mesh.NodeID{"bob", "", "bob"} {
				a.pairs.Hold(exit)
				l.until(100*time.Millisecond, "both ends know", func() bool { return bare() == (exit != "") })
				synctest.Wait()
				if !standing(a, b) {
					t.Error("the pair broke")
				}
			}
		})
	})
}

// Nothing goes veiled where the mesh routes addresses that veiled packets have.
func TestPairs_NoVeilsInTheirOwnNetwork(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(sought, s.peer("ada", 1))
		l.stands, l.peerVeils = true, true
		look := func() mesh.Peer { s.declare(time.Now()); s.publish(); return s.View().Peers()[0] }
		if p := look(); !p.Veils || len(p.Veiled) != 1 || len(p.AllowedIPs) != 0 {
			t.Errorf("%+v", p)
		}
		other := s.peer("cid", 3)
		other.AllowedIPs = append(other.AllowedIPs, netip.MustParsePrefix("7d00::1/128"))
		c, _ := s.link(sought, other)
		if p := look(); p.Veils || len(p.Veiled) != 0 || len(p.AllowedIPs) != 1 {
			t.Errorf("beside a node: %+v", p)
		}
		s.drop(c, "it leaves")
		if p := look(); !p.Veils {
			t.Errorf("after that: %+v", p)
		}
		gate := s.gate("gate", 9)
		gate.AllowedIPs = append(gate.AllowedIPs, netip.MustParsePrefix("a000::/16"))
		s.follow(gate)
		if p := look(); p.Veils || len(p.Veiled) != 0 || len(p.AllowedIPs) != 1 {
			t.Errorf("%+v", p)
		}
	})
}

// A peer of the plan has what another one carries veiled alone, and the rest as it is.
func TestView_ApplyVeils(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		peer := s.peer("ada", 1)
		own := netip.MustParsePrefix("192.168.9.0/24")
		peer.AllowedIPs = append(peer.AllowedIPs, own)
		plan := mesh.Plan{Peers: mesh.PeersOf(peer, s.gate("gate", 9))}
		l, _ := s.link(edge, peer)
		l.stands, l.peerVeils = true, true
		s.declare(time.Now())
		s.publish()
		p, _ := s.View().Apply(plan).Peers.Get("ada")
		if !p.Veils || !slices.Equal(p.Veiled, peer.AllowedIPs) || !slices.Equal(p.AllowedIPs, []netip.Prefix{own}) {
			t.Errorf("%+v", p)
		}
		l.peerVeils = false
		s.publish()
		p, _ = s.View().Apply(plan).Peers.Get("ada")
		if p.Veils || !slices.Equal(p.Veiled, peer.AllowedIPs) || !slices.Equal(p.AllowedIPs, peer.AllowedIPs) {
			t.Errorf("bare: %+v", p)
		}
	})
}
