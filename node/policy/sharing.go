// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

// Sharing returns which networks r may have though another route has them, too;
// own says of a route that it is what its node offers itself, and not what an
// admin has put. An admin's route may have what nodes that forward for it offer,
// and a node may offer what an admin's route gives to it: exactly that network,
// nothing within it or around it. What it returns looks at s, and is not safe for
// concurrent use.
func Sharing(s *mesh.Snapshot, r *mesh.Route, own func(*mesh.Route) bool) func(other *mesh.Route, p netip.Prefix) bool {
	if own(r) {
		given := sync.OnceValue(func() map[netip.Prefix]bool { return givenTo(s, mesh.NodeID(r.Node), own) })
		return func(other *mesh.Route, p netip.Prefix) bool { return has(other, p) && given()[p.Masked()] }
	}
	forwarders := sync.OnceValue(func() []mesh.NodeID { return Forwarders(s, *r) })
	return func(other *mesh.Route, p netip.Prefix) bool {
		return own(other) && has(other, p) && slices.Contains(forwarders(), mesh.NodeID(other.Node))
	}
}

// has reports whether a route has exactly network p.
func has(r *mesh.Route, p netip.Prefix) bool {
	return slices.ContainsFunc(r.Destinations, func(q netip.Prefix) bool { return q.Masked() == p.Masked() })
}

// givenTo returns the networks to which a node forwards by routes that an admin
// has put.
func givenTo(s *mesh.Snapshot, id mesh.NodeID, own func(*mesh.Route) bool) map[netip.Prefix]bool {
	given := make(map[netip.Prefix]bool)
	for r, name := range RouteForwarders(s) {
		if name != id || own(r) {
			continue
		}
		for _, p := range r.Destinations {
			given[p.Masked()] = true
		}
	}
	return given
}
