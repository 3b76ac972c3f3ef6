// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// claims says which link accepts a route. The device has one path for each, but
// nodes may come from where another one was: one that starts in its place, or to
// which a NAT gives its port. Whose check was answered last on a route is there.
type claims map[path.Route]*link

// claim makes routes the link's, and returns those of them that it gets. It gets
// none that another link has seen to be its own node's since this one did; to ask
// again is how it gets them later.
func (l *link) claim(now time.Time, routes []path.Route) []path.Route {
	all := l.pairs.claims
	kept := make([]path.Route, 0, len(routes))
	for _, r := range routes {
		if other := all[r]; other != nil && other != l {
			if !l.seenAt(r).After(other.seenAt(r)) {
				continue
			}
			// The device takes it away from there.
			other.accepted = dropRoute(other.accepted, r)
			other.claimed = dropRoute(other.claimed, r)
			other.due = now
			l.pairs.log.Debug("another node is where one was", "node", string(l.peer.Node.ID), "was", string(other.peer.Node.ID), "addr", r.To)
		}
		all[r] = l
		kept = append(kept, r)
	}
	for _, r := range l.claimed {
		if !slices.Contains(kept, r) {
			delete(all, r)
		}
	}
	l.claimed = kept
	return kept
}

// unclaim gives back what the link has claimed.
func (l *link) unclaim() {
	for _, r := range l.claimed {
		delete(l.pairs.claims, r)
	}
	l.claimed = nil
}

// always is later than each time at which a node is seen.
var always = time.Unix(1<<40, 0)

// seenAt is when the link's node was seen last to be where a route leads; zero for
// never. At the endpoint of a gateway nobody else is.
func (l *link) seenAt(r path.Route) time.Time {
	if home, ok := l.home(); ok && r == home {
		return always
	}
	return l.finder.Verified(r)
}

// home is where the plan says that a gateway is; false for other nodes, and where
// it gives a name.
func (l *link) home() (path.Route, bool) {
	if l.kind != gateway {
		return path.Route{}, false
	}
	at, err := netip.ParseAddrPort(l.peer.Endpoint)
	return path.Route{Socket: path.Native, To: at}, err == nil
}

// dropRoute returns a list without one of its routes.
func dropRoute(list []path.Route, gone path.Route) []path.Route {
	return slices.DeleteFunc(slices.Clone(list), func(r path.Route) bool { return r == gone })
}
