// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
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

// CheckGroupSpan refuses g if a node that it makes a member, by way of other
// groups too, would stand for more than one may, by the routes of s that such
// groups offer and by its own. Nodes that stand for no more than before pass. The
// error wraps mesh.ErrInvalid.
func CheckGroupSpan(s *mesh.Snapshot, g mesh.Group) error {
	if !offering(s, g.Name) {
		return nil
	}
	after := with(s.Groups, g, func(old mesh.Group) bool { return old.Name == g.Name })
	before, now := borne(s.Routes, indexGroups(s.Groups)), borne(s.Routes, indexGroups(after))
	checked := map[string]bool{} // members of a group mostly bear the same
	for _, name := range slices.Sorted(maps.Keys(now)) {
		routes := now[name]
		key := fmt.Sprint(routes)
		if len(routes) <= len(before[name]) || checked[key] {
			continue
		}
		checked[key] = true
		var networks []netip.Prefix
		for _, i := range routes {
			networks = append(networks, s.Routes[i].Destinations...)
		}
		if err := mesh.CheckSpan(networks); err != nil {
			return fmt.Errorf("node %q: %w", name, err)
		}
	}
	return nil
}

// offering reports whether the named group, or one that holds it, offers a route.
// Who holds it does not depend on whom it holds. It indexes nothing, since most
// groups that are put offer none.
func offering(s *mesh.Snapshot, name string) bool {
	seen := map[string]bool{}
	var holds func(group string) bool
	holds = func(group string) bool {
		if group == name || seen[group] {
			return group == name
		}
		seen[group] = true
		i := slices.IndexFunc(s.Groups, func(g mesh.Group) bool { return g.Name == group })
		return i >= 0 && slices.ContainsFunc(s.Groups[i].Subjects, func(x mesh.Subject) bool {
			return x.Type == v1.SubjectType_SUBJECT_GROUP && holds(x.Name)
		})
	}
	return slices.ContainsFunc(s.Routes, func(r mesh.Route) bool {
		group, ok := mesh.ParseGroupRef(r.Node)
		return ok && holds(group)
	})
}

// borne returns the indices of the routes that each name stands for.
func borne(routes []mesh.Route, g *groups) map[string][]int {
	all := map[string][]int{}
	for i, r := range routes {
		for name := range bearers(g, r) {
			all[name] = append(all[name], i)
		}
	}
	return all
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
