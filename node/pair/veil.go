// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

// Who carries the packets of two nodes, a gateway or their pair, changes at each end
// when that end sees reason to. No packet is lost by that where both take veiled
// ones (see package wg): then each is taken by the way on which it comes, and an
// end that sends over the pair needs to know no more of the other than that. Each
// check says so, so that it is known by the time a session stands; nothing waits
// for it.
//
// An end of another version, or with networks of which packets cannot go veiled, says
// that it does not. Then the networks of the two move from the gateway to the pair
// at both ends, as soon as each sees the session, and what is under way meanwhile
// is lost.

// veil is what a peer of the device has veiled.
type veil struct {
	networks []netip.Prefix
	on       bool // packets go to it veiled
}

// mayVeil reports whether all packets of the other node may come veiled. Those of an
// exit that this node uses come from everywhere.
func (l *link) mayVeil() bool {
	return l.agent != nil && !l.pairs.veilless && l.peer.Node.ID != l.pairs.held &&
		!slices.ContainsFunc(l.peer.AllowedIPs, func(p netip.Prefix) bool { return !wg.CanVeil(p) })
}

// agree notes what the other node takes.
func (l *link) agree() {
	if l.agent == nil {
		return
	}
	if takes := l.agent.PeerTakesVeils(); takes != l.peerVeils {
		l.peerVeils = takes
		l.pairs.fresh = true
	}
}

// bare reports whether packets go over the pair as they are at one of the two ends,
// so that the networks of the other node have to be behind it.
func (l *link) bare() bool { return l.stands && !(l.veils && l.peerVeils) }

// declare has the checks of all links say whether this node takes veiled packets,
// those that are news at once.
func (p *Pairs) declare(now time.Time) {
	p.veilless = p.veilsRouted
	for _, l := range p.links {
		p.veilless = p.veilless || slices.ContainsFunc(l.peer.AllowedIPs, wg.TouchesVeil)
	}
	for _, l := range p.links {
		if may := l.mayVeil(); may != l.veils {
			l.veils, l.due = may, now
			l.agent.TakeVeils(may)
		}
	}
}

// veil decides which veiled networks each link has: of several links with one, the
// first of those that stand, or else the first one.
func (p *Pairs) veil(links []*link) map[*link]veil {
	veils := make(map[*link]veil, len(links))
	if p.veilless {
		return veils
	}
	taken := make(map[netip.Prefix]bool)
	for _, stands := range []bool{true, false} {
		for _, l := range links {
			if l.agent == nil || l.stands != stands {
				continue
			}
			v := veil{on: l.stands && l.peerVeils}
			for _, a := range l.peer.AllowedIPs {
				if wg.CanVeil(a) && !taken[a] {
					taken[a] = true
					v.networks = append(v.networks, a)
				}
			}
			veils[l] = v
		}
	}
	return veils
}

// routesVeils reports whether a plan routes addresses that veiled packets have.
func routesVeils(plan mesh.Plan) bool {
	for p := range plan.Peers.All() {
		if slices.ContainsFunc(p.AllowedIPs, wg.TouchesVeil) {
			return true
		}
	}
	return false
}
