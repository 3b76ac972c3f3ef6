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

// within reports whether everybody in the set is in other, too.
func (s nameSet) within(other nameSet) bool {
	if other.everyone || s.everyone {
		return other.everyone
	}
	for name := range s.names {
		if !other.has(name) {
			return false
		}
	}
	return true
}

// list returns the names in order, or "*" alone for everyone.
func (s nameSet) list() []string {
	if s.everyone {
		return []string{mesh.Everyone}
	}
	return slices.Sorted(maps.Keys(s.names))
}

// groups are the groups of a snapshot. They are indexed and expanded when they
// are first asked for, each once: many ACLs share few groups. Not for
// concurrent use.
type groups struct {
	list     []mesh.Group
	byName   map[string][]mesh.Subject
	expanded map[string]*nameSet
}

// indexGroups prepares list.
func indexGroups(list []mesh.Group) *groups { return &groups{list: list} }

// members returns the subjects of the named group.
func (g *groups) members(name string) []mesh.Subject {
	if g.byName == nil {
		g.byName = make(map[string][]mesh.Subject, len(g.list))
		for _, group := range g.list {
			g.byName[group.Name] = group.Subjects
		}
	}
	return g.byName[name]
}

// subjects returns everybody whom list names, directly or through groups.
func (g *groups) subjects(list []mesh.Subject) nameSet {
	var set nameSet
	g.collect(&set, list, make(map[string]bool))
	return set
}

// hold reports whether list names subject, directly or through groups.
func (g *groups) hold(list []mesh.Subject, subject string) bool {
	return slices.ContainsFunc(list, func(x mesh.Subject) bool {
		switch x.Type {
		case v1.SubjectType_SUBJECT_NODE, v1.SubjectType_SUBJECT_USER, v1.SubjectType_SUBJECT_ALL:
			return x.Name == subject || x.Name == mesh.Everyone
		case v1.SubjectType_SUBJECT_GROUP:
			return g.group(x.Name).has(subject)
		}
		return false
	})
}

// group returns everybody in the named group. It is shared: do not change it.
func (g *groups) group(name string) *nameSet {
	if set, ok := g.expanded[name]; ok {
		return set
	}
	set := new(nameSet)
	g.collectGroup(set, name, make(map[string]bool))
	if g.expanded == nil {
		g.expanded = make(map[string]*nameSet)
	}
	g.expanded[name] = set
	return set
}

// nodes returns everybody whom a list of nodes in an ACL names: ids, "*" and
// "group:NAME". The empty list is everyone; a list of empty or missing groups
// is nobody.
func (g *groups) nodes(refs []string) nodeSet {
	set := nodeSet{names: nameSet{everyone: len(refs) == 0}}
	for _, ref := range refs {
		if name, ok := mesh.ParseGroupRef(ref); ok {
			set.groups = append(set.groups, g.group(name))
		} else {
			set.names.add(ref)
		}
	}
	return set
}

// nodeSet is the union of names and groups.
type nodeSet struct {
	names  nameSet
	groups []*nameSet
}

// has reports whether the set holds name; see nameSet.has.
func (s *nodeSet) has(name string) bool {
	if s.names.has(name) {
		return true
	}
	for _, group := range s.groups {
		if group.has(name) {
			return true
		}
	}
	return false
}

// empty reports whether nobody is in the set.
func (s *nodeSet) empty() bool {
	return s.names.empty() && !slices.ContainsFunc(s.groups, func(g *nameSet) bool { return !g.empty() })
}

// list returns the names in order, each once, or "*" alone for everyone.
func (s *nodeSet) list() []string {
	list := s.names.list()
	for _, group := range s.groups {
		list = append(list, group.list()...)
	}
	slices.Sort(list)
	if slices.Contains(list, mesh.Everyone) {
		return []string{mesh.Everyone}
	}
	return slices.Compact(list)
}

// collect adds list to set. Groups in seen were added before: groups may hold
// one another.
func (g *groups) collect(set *nameSet, list []mesh.Subject, seen map[string]bool) {
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
func (g *groups) collectGroup(set *nameSet, name string, seen map[string]bool) {
	if seen[name] {
		return
	}
	seen[name] = true
	g.collect(set, g.members(name), seen)
}

// Forwarders returns the nodes that forward to r's destinations, in order: its
// next hop if it has one, else its node, or the members of its group by name.
// Nodes that s does not hold are left out, and a group of everyone names no
// node in particular.
func Forwarders(s *mesh.Snapshot, r mesh.Route) []mesh.NodeID {
	return forwarders(s, indexGroups(s.Groups), r)
}

// forwarders is Forwarders with the groups of s.
func forwarders(s *mesh.Snapshot, g *groups, r mesh.Route) []mesh.NodeID {
	var ids []mesh.NodeID
	for name := range forwarderNames(g, r) {
		if s.Node(mesh.NodeID(name)) != nil {
			ids = append(ids, mesh.NodeID(name))
		}
	}
	slices.Sort(ids)
	return ids
}

// forwarderNames yields the names of a route's forwarders, each once.
func forwarderNames(g *groups, r mesh.Route) iter.Seq[string] {
	if r.NextHop != "" {
		return slices.Values([]string{string(r.NextHop)})
	}
	if name, isGroup := mesh.ParseGroupRef(r.Node); isGroup {
		return maps.Keys(g.group(name).names)
	}
	return slices.Values([]string{r.Node})
}

// RouteForwarders yields each route of s with every node that forwards to its
// destinations, as Forwarders does, whether s holds the node or not. The routes
// belong to s.
func RouteForwarders(s *mesh.Snapshot) iter.Seq2[*mesh.Route, mesh.NodeID] {
	return func(yield func(*mesh.Route, mesh.NodeID) bool) {
		g := indexGroups(s.Groups)
		for i := range s.Routes {
			for name := range forwarderNames(g, s.Routes[i]) {
				if !yield(&s.Routes[i], mesh.NodeID(name)) {
					return
				}
			}
		}
	}
}
