// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Limits of one object. They bound what every reader of the mesh gets.
const (
	maxRules        = 256
	maxNames        = 1024 // of a rule, and its resources and verbs
	maxSubjects     = 4096
	maxRefs         = 4096 // nodes and groups of an ACL, on each side
	maxCIDRs        = 1024
	maxPorts        = 1024 // and protocols, of which there are 256
	maxDestinations = 256
	// maxResourceName is the longest resource name, in bytes: names of pub/sub
	// are keys.
	maxResourceName = 4096
)

// check refuses a change that must not happen to s.
func check(s *mesh.Snapshot, c mesh.Change) error {
	if err := one(c); err != nil {
		return err
	}
	return checkWith(s, c, policy.CheckChange)
}

// checkAlone is check without what is decided for a batch as a whole.
func checkAlone(s *mesh.Snapshot, c mesh.Change) error { return checkWith(s, c, policy.CheckKept) }

// checkWith is check with how rights are looked after.
func checkWith(s *mesh.Snapshot, c mesh.Change, rights func(*mesh.Snapshot, policy.Change) error) error {
	if c.Delete {
		if err := checkRights(s, c, rights); err != nil {
			return err
		}
		return checkUnused(s, c)
	}
	if err := checkPut(s, c); err != nil {
		return err
	}
	return checkRights(s, c, rights)
}

// one refuses a change of no or of several objects.
func one(c mesh.Change) error {
	n := 0
	for _, set := range []bool{c.Role != nil, c.Binding != nil, c.Group != nil, c.ACL != nil, c.Route != nil, c.Edge != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%w: a change has one object, this one has %d", mesh.ErrInvalid, n)
	}
	return nil
}

func checkPut(s *mesh.Snapshot, c mesh.Change) error {
	if err := checkName(c); err != nil {
		return err
	}
	switch {
	case c.Role != nil:
		return checkRole(c.Role)
	case c.Binding != nil:
		return checkBinding(s, c.Binding)
	case c.Group != nil:
		return checkGroup(s, c.Group)
	case c.ACL != nil:
		return checkACL(s, c.ACL)
	case c.Route != nil:
		return checkRoute(s, c.Route)
	default:
		return checkEdge(s, c.Edge)
	}
}

// checkName refuses a name that looks like another one. An object that has one
// can be removed.
func checkName(c mesh.Change) error {
	var name string
	switch {
	case c.Role != nil:
		name = c.Role.Name
	case c.Binding != nil:
		name = c.Binding.Name
	case c.Group != nil:
		name = c.Group.Name
	case c.ACL != nil:
		name = c.ACL.Name
	case c.Route != nil:
		name = c.Route.Name
	default:
		return nil // an edge has nodes, which are there
	}
	if err := mesh.ClearName(name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	return nil
}

func checkRole(r *mesh.Role) error {
	if len(r.Rules) == 0 {
		return fmt.Errorf("%w: rules: a role needs one or more", mesh.ErrInvalid)
	}
	if err := atMost(maxRules, "rules", len(r.Rules)); err != nil {
		return err
	}
	for i, rule := range r.Rules {
		field := fmt.Sprintf("rules: [%d]: ", i)
		for _, list := range []struct {
			name string
			n    int
		}{{"resources", len(rule.Resources)}, {"verbs", len(rule.Verbs)}, {"resource_names", len(rule.Names)}} {
			if err := atMost(maxNames, field+list.name, list.n); err != nil {
				return err
			}
		}
		for j, name := range rule.Names {
			switch {
			case name == "" || len(name) > maxResourceName:
				return fmt.Errorf("%w: %sresource_names: [%d]: it is empty or longer than %d bytes", mesh.ErrInvalid, field, j, maxResourceName)
			case name == mesh.Everyone:
				return fmt.Errorf("%w: %sresource_names: [%d]: %q is no wildcard here; use RESOURCE_ALL to grant every object", mesh.ErrInvalid, field, j, name)
			}
		}
	}
	return nil
}

// checkBinding wants a role that is there. Nodes and users need not be: who is
// to join as a voter needs the role first.
func checkBinding(s *mesh.Snapshot, b *mesh.RoleBinding) error {
	if err := checkSubjects(s, b.Subjects); err != nil {
		return err
	}
	if !slices.ContainsFunc(s.Roles, func(r mesh.Role) bool { return r.Name == b.Role }) {
		return fmt.Errorf("%w: role: there is no role %q; put it first, or choose one that ListRoles shows", mesh.ErrPrecondition, b.Role)
	}
	return nil
}

// checkGroup refuses a group that would hold itself, and one that would have a
// node stand for more than one may.
func checkGroup(s *mesh.Snapshot, g *mesh.Group) error {
	seen := map[string]bool{}
	var reaches func(list []mesh.Subject) bool
	reaches = func(list []mesh.Subject) bool {
		return slices.ContainsFunc(list, func(x mesh.Subject) bool {
			if x.Type != v1.SubjectType_SUBJECT_GROUP || seen[x.Name] {
				return false
			}
			seen[x.Name] = true
			return x.Name == g.Name || reaches(group(s, x.Name).Subjects)
		})
	}
	if reaches(g.Subjects) {
		return fmt.Errorf("%w: subjects: the group %q would hold itself", mesh.ErrInvalid, g.Name)
	}
	if err := checkSubjects(s, g.Subjects); err != nil {
		return err
	}
	if err := policy.CheckGroupSpan(s, *g); err != nil {
		return fmt.Errorf("subjects: %w", err)
	}
	return nil
}

// checkSubjects wants one or more, and groups that are there.
func checkSubjects(s *mesh.Snapshot, list []mesh.Subject) error {
	if len(list) == 0 {
		return fmt.Errorf("%w: subjects: name one or more; delete the object instead of emptying it", mesh.ErrInvalid)
	}
	if err := atMost(maxSubjects, "subjects", len(list)); err != nil {
		return err
	}
	for i, x := range list {
		if x.Type == v1.SubjectType_SUBJECT_GROUP && !hasGroup(s, x.Name) {
			return fmt.Errorf("%w: subjects: [%d]: there is no group %q; put it first", mesh.ErrPrecondition, i, x.Name)
		}
	}
	return nil
}

// checkACL refuses an ACL that says nothing: with every list empty it would
// speak of all traffic, which takes a "*" to say. Groups have to be there: one
// that is mistyped has no members, and a rule that denies them denies nobody.
// Nodes and users need not be. Nobody denies with the highest priority: who may
// put one ACL could keep the gateways from each other.
func checkACL(s *mesh.Snapshot, a *mesh.ACL) error {
	if len(a.SourceNodes)+len(a.DestinationNodes)+len(a.SourceCIDRs)+len(a.DestinationCIDRs)+len(a.Protocols)+len(a.Ports) == 0 {
		return fmt.Errorf("%w: source_nodes, destination_nodes, source_cidrs, destination_cidrs, protocols and ports are all empty; "+
			`for all traffic say so with "*"`, mesh.ErrInvalid)
	}
	if !a.Accept && a.Priority == math.MaxInt32 {
		return fmt.Errorf("%w: priority: %d is for what accepts, so that nothing is asked before %q, by which gateways reach each other; %d denies to everybody else",
			mesh.ErrInvalid, a.Priority, registry.ACLBootstrapNodes, math.MaxInt32-1)
	}
	for _, list := range []struct {
		limit int
		field string
		n     int
	}{
		{maxRefs, "source_nodes", len(a.SourceNodes)},
		{maxRefs, "destination_nodes", len(a.DestinationNodes)},
		{maxCIDRs, "source_cidrs", len(a.SourceCIDRs)},
		{maxCIDRs, "destination_cidrs", len(a.DestinationCIDRs)},
		{maxPorts, "protocols", len(a.Protocols)},
		{maxPorts, "ports", len(a.Ports)},
	} {
		if err := atMost(list.limit, list.field, list.n); err != nil {
			return err
		}
	}
	return errors.Join(checkGroupRefs(s, "source_nodes", a.SourceNodes), checkGroupRefs(s, "destination_nodes", a.DestinationNodes))
}

// checkGroupRefs wants the groups that refs name.
func checkGroupRefs(s *mesh.Snapshot, field string, refs []string) error {
	for i, ref := range refs {
		if name, ok := mesh.ParseGroupRef(ref); ok && !hasGroup(s, name) {
			return fmt.Errorf("%w: %s: [%d]: there is no group %q; put it first", mesh.ErrPrecondition, field, i, name)
		}
	}
	return nil
}

// checkEdge wants two nodes of the mesh.
func checkEdge(s *mesh.Snapshot, e *mesh.Edge) error {
	if e.Weight < 0 {
		return fmt.Errorf("%w: weight: %d is below 0", mesh.ErrInvalid, e.Weight)
	}
	if err := checkNode(s, "source", e.Source); err != nil {
		return err
	}
	return checkNode(s, "target", e.Target)
}

// checkRoute refuses a route of nobody, and one that would take traffic from
// somebody else: the mesh itself, its nodes, or who offers the network already.
// One that is there as it is was checked before, and changes nothing.
func checkRoute(s *mesh.Snapshot, r *mesh.Route) error {
	if unchanged(s, r) {
		return nil
	}
	if name, ok := mesh.ParseGroupRef(r.Node); !ok {
		if err := checkNode(s, "node", mesh.NodeID(r.Node)); err != nil {
			return err
		}
	} else if !hasGroup(s, name) {
		return fmt.Errorf("%w: node: there is no group %q; put it first", mesh.ErrPrecondition, name)
	}
	if r.NextHop != "" {
		if err := checkNode(s, "next_hop_node", r.NextHop); err != nil {
			return err
		}
	}
	if err := checkAuto(s, r); err != nil {
		return err
	}
	if len(r.Destinations) == 0 {
		return fmt.Errorf("%w: destination_cidrs: name one or more networks", mesh.ErrInvalid)
	}
	if err := atMost(maxDestinations, "destination_cidrs", len(r.Destinations)); err != nil {
		return err
	}
	shares := policy.Sharing(s, r, registry.IsAuto)
	for i, p := range r.Destinations {
		if err := checkDestination(s, r, i, p, shares); err != nil {
			return err
		}
	}
	if err := policy.CheckSpan(s, *r); err != nil {
		return fmt.Errorf("destination_cidrs: %w", err)
	}
	return nil
}

// checkAuto keeps the names of the routes that nodes offer themselves for them:
// a node that joins writes the one that is its own. Names of before stay.
func checkAuto(s *mesh.Snapshot, r *mesh.Route) error {
	id, ok := registry.AutoRouteOf(r.Name)
	if !ok || r.Node == string(id) {
		return nil
	}
	if slices.ContainsFunc(s.Routes, func(old mesh.Route) bool { return old.Name == r.Name && old.Node == r.Node }) {
		return nil
	}
	return fmt.Errorf("%w: name: %q is the name of what node %q offers itself; choose one that does not end in %q",
		mesh.ErrInvalid, r.Name, id, registry.AutoSuffix)
}

// checkOutside refuses a route that holds an address on which the mesh runs.
func checkOutside(s *mesh.Snapshot, r *mesh.Route, replicas []netip.Addr) error {
	if unchanged(s, r) {
		return nil
	}
	for _, p := range r.Destinations {
		if err := s.CheckOutside(p, nil, replicas); err != nil {
			return fmt.Errorf("destination_cidrs: %w", err)
		}
	}
	return nil
}

// unchanged reports whether s has a route as it is.
func unchanged(s *mesh.Snapshot, r *mesh.Route) bool {
	return slices.ContainsFunc(s.Routes, func(old mesh.Route) bool {
		return old.Name == r.Name && old.Node == r.Node && old.NextHop == r.NextHop && slices.Equal(old.Destinations, r.Destinations)
	})
}

// checkDestination refuses p, the network at i of r, unless it is r's to have;
// shares says which of other routes are, too.
func checkDestination(s *mesh.Snapshot, r *mesh.Route, i int, p netip.Prefix, shares func(*mesh.Route, netip.Prefix) bool) error {
	switch {
	case mesh.TooWide(p):
		return fmt.Errorf("destination_cidrs: %w", mesh.CheckWidth(p))
	case slices.ContainsFunc(s.Networks(), p.Overlaps):
		return fmt.Errorf("%w: destination_cidrs: %v touches a network of the mesh itself; leave it out", mesh.ErrInvalid, p)
	}
	if err := mesh.CheckSpecial(p); err != nil {
		return fmt.Errorf("destination_cidrs: %w", err)
	}
	for _, q := range r.Destinations[:i] {
		if p.Overlaps(q) {
			return fmt.Errorf("%w: destination_cidrs: %v and %v overlap; name the wider one only", mesh.ErrInvalid, p, q)
		}
	}
	for i := range s.Routes {
		other := &s.Routes[i]
		if other.Name == r.Name || other.Node == r.Node && other.NextHop == r.NextHop {
			continue // with a next hop it is another one that forwards
		}
		j := slices.IndexFunc(other.Destinations, p.Overlaps)
		if j >= 0 && !(p == other.Destinations[j] && shares(other, p)) {
			return fmt.Errorf("%w: destination_cidrs: %v overlaps %v of route %q, which %q offers; only one can offer a network, unless a group with all that offer exactly this one does",
				mesh.ErrExists, p, other.Destinations[j], other.Name, other.Node)
		}
	}
	return nil
}

// checkUnused refuses to remove a role or a group that others name: who makes one
// of its name later would give what it grants to subjects of before, unseen, and
// an ACL that denies a group would deny nobody until then.
func checkUnused(s *mesh.Snapshot, c mesh.Change) error {
	kind, user, name := "", "", ""
	switch {
	case c.Role != nil:
		kind = "role"
		user, name = roleUser(s, c.Role.Name)
	case c.Group != nil:
		kind = "group"
		user, name = groupUser(s, c.Group.Name)
	}
	if user == "" {
		return nil
	}
	return fmt.Errorf("%w: name: the %s %q names this %s; change or delete it first", mesh.ErrPrecondition, user, name, kind)
}

// roleUser is the kind and name of an object that names a role; "" for none.
func roleUser(s *mesh.Snapshot, role string) (kind, name string) {
	for _, b := range s.Bindings {
		if b.Role == role {
			return "role binding", b.Name
		}
	}
	return "", ""
}

// groupUser is the kind and name of an object that names a group; "" for none.
func groupUser(s *mesh.Snapshot, group string) (kind, name string) {
	ref := mesh.GroupRef(group)
	for _, a := range s.ACLs {
		if slices.Contains(a.SourceNodes, ref) || slices.Contains(a.DestinationNodes, ref) {
			return "network ACL", a.Name
		}
	}
	in := mesh.Subject{Type: v1.SubjectType_SUBJECT_GROUP, Name: group}
	for _, b := range s.Bindings {
		if slices.Contains(b.Subjects, in) {
			return "role binding", b.Name
		}
	}
	for _, g := range s.Groups {
		if slices.Contains(g.Subjects, in) {
			return "group", g.Name
		}
	}
	for _, r := range s.Routes {
		if r.Node == ref {
			return "route", r.Name
		}
	}
	return "", ""
}

func checkNode(s *mesh.Snapshot, field string, id mesh.NodeID) error {
	if s.Node(id) == nil {
		return fmt.Errorf("%w: %s: there is no node %q in this mesh; v1.Mesh/ListNodes names those that are", mesh.ErrPrecondition, field, id)
	}
	return nil
}

func group(s *mesh.Snapshot, name string) mesh.Group {
	if i := slices.IndexFunc(s.Groups, func(g mesh.Group) bool { return g.Name == name }); i >= 0 {
		return s.Groups[i]
	}
	return mesh.Group{}
}

func hasGroup(s *mesh.Snapshot, name string) bool { return group(s, name).Name != "" }

func atMost(limit int, field string, n int) error {
	if n > limit {
		return fmt.Errorf("%w: %s: %d are too many, the most is %d", mesh.ErrInvalid, field, n, limit)
	}
	return nil
}
