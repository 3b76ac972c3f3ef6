// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"maps"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// nameSet is a set of node ids and user names.
type nameSet struct {
	everyone bool
	names    map[string]struct{}
}

// has reports whether the set holds name. Only a set of everyone holds the
// empty name, which is somebody unknown.
func (s nameSet) has(name string) bool {
	if s.everyone {
		return true
	}
	_, ok := s.names[name]
	return ok
}

// add puts name, or everyone for "*", into the set.
func (s *nameSet) add(name string) {
	switch {
	case name == mesh.Everyone:
		s.everyone = true
	case name != "":
		if s.names == nil {
			s.names = make(map[string]struct{})
		}
		s.names[name] = struct{}{}
	}
}

// empty reports whether nobody is in the set.
func (s nameSet) empty() bool { return !s.everyone && len(s.names) == 0 }

// list returns the names in order, or "*" alone for everyone.
func (s nameSet) list() []string {
	if s.everyone {
		return []string{mesh.Everyone}
	}
	return slices.Sorted(maps.Keys(s.names))
}

// groups are the groups of a snapshot by name.
type groups map[string][]mesh.Subject

// indexGroups indexes list.
func indexGroups(list []mesh.Group) groups {
	g := make(groups, len(list))
	for _, group := range list {
		g[group.Name] = group.Subjects
	}
	return g
}

// subjects returns everybody whom list names, directly or through groups.
func (g groups) subjects(list []mesh.Subject) nameSet {
	var set nameSet
	g.collect(&set, list, make(map[string]bool))
	return set
}

// nodes returns everybody whom a list of nodes in an ACL names: ids, "*" and
// "group:NAME". The empty list is everyone; a list of empty or missing groups
// is nobody.
func (g groups) nodes(refs []string) nameSet {
	set := nameSet{everyone: len(refs) == 0}
	seen := make(map[string]bool)
	for _, ref := range refs {
		if name, ok := mesh.ParseGroupRef(ref); ok {
			g.collectGroup(&set, name, seen)
		} else {
			set.add(ref)
		}
	}
	return set
}

// collect adds list to set. Groups in seen were added before: groups may hold
// one another.
func (g groups) collect(set *nameSet, list []mesh.Subject, seen map[string]bool) {
	for _, subject := range list {
		switch subject.Type {
		case v1.SubjectType_SUBJECT_NODE, v1.SubjectType_SUBJECT_USER, v1.SubjectType_SUBJECT_ALL:
			set.add(subject.Name)
		case v1.SubjectType_SUBJECT_GROUP:
			g.collectGroup(set, subject.Name, seen)
		}
	}
}

// collectGroup adds the members of the named group to set, once.
func (g groups) collectGroup(set *nameSet, name string, seen map[string]bool) {
	if seen[name] {
		return
	}
	seen[name] = true
	g.collect(set, g[name], seen)
}

// Forwarders returns the nodes that forward to r's destinations, in order: its
// next hop if it has one, else its node, or the members of its group by name.
// Nodes that s does not hold are left out, and a group of everyone names no
// node in particular.
func Forwarders(s *mesh.Snapshot, r mesh.Route) []mesh.NodeID {
	var ids []mesh.NodeID
	for name := range forwarderNames(s, r) {
		if _, ok := s.Nodes[mesh.NodeID(name)]; ok {
			ids = append(ids, mesh.NodeID(name))
		}
	}
	slices.Sort(ids)
	return ids
}

// forwarderNames yields the names of a route's forwarders, each once.
func forwarderNames(s *mesh.Snapshot, r mesh.Route) iter.Seq[string] {
	if r.NextHop != "" {
		return slices.Values([]string{string(r.NextHop)})
	}
	if _, isGroup := mesh.ParseGroupRef(r.Node); isGroup {
		return maps.Keys(indexGroups(s.Groups).nodes([]string{r.Node}).names)
	}
	return slices.Values([]string{r.Node})
}
