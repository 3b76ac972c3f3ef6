// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
)

// CheckSpan refuses r if it leads to more than a route may, or if a node that
// offers it or forwards for it would stand for more than one may, by all routes
// of s together. A route of its name in s counts no more. The error wraps
// mesh.ErrInvalid.
func CheckSpan(s *mesh.Snapshot, r mesh.Route) error {
	for _, p := range r.Destinations {
		if err := mesh.CheckWidth(p); err != nil {
			return err
		}
	}
	g := indexGroups(s.Groups)
	networks := map[string][]netip.Prefix{}
	for name := range bearers(g, r) {
		networks[name] = append(networks[name], r.Destinations...)
	}
	for _, other := range s.Routes {
		if other.Name == r.Name {
			continue
		}
		for name := range bearers(g, other) {
			if _, ok := networks[name]; ok {
				networks[name] = append(networks[name], other.Destinations...)
			}
		}
	}
	for name, list := range networks {
		if err := mesh.CheckSpan(list); err != nil {
			return fmt.Errorf("node %q: %w", name, err)
		}
	}
	return nil
}

// bearers yields who offers a route, and who forwards for it.
func bearers(g *groups, r mesh.Route) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if !yield(r.Node) {
			return
		}
		for name := range forwarderNames(g, r) {
			if name != r.Node && !yield(name) {
				return
			}
		}
	}
}
