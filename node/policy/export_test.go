// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/meshgate/meshgate/node/mesh"

// FilterSlots lets tests ask more than a filter remembers.
const FilterSlots = filterPages * pageSlots

// Changed is s after c, which was checked.
func Changed(s *mesh.Snapshot, c Change) *mesh.Snapshot {
	after := *s
	if c.apply != nil {
		c.apply(&after)
	}
	return &after
}

const (
	// FlowTimeout and FlowRegion lets tests wait longer and ask for more than is remembered.
	FlowTimeout = flowTimeout
	FlowRegion  = flowRegion
)

// Concerning returns the ACLs that can match traffic from or to node id, in
// order, expanded. To ask for many nodes, Expand once.
func Concerning(s *mesh.Snapshot, id mesh.NodeID) []mesh.ACL {
	var concerning []mesh.ACL
	for _, e := range Expand(s) {
		if e.Concerns(id) {
			concerning = append(concerning, e.ACL)
		}
	}
	return concerning
}

// SwitchRBAC proposes to switch RBAC on or off, which no procedure does.
func SwitchRBAC(on bool) Change {
	state := map[bool]string{true: "on", false: "off"}[on]
	return Change{kind: "RBAC", name: state, apply: func(s *mesh.Snapshot) { s.RBACDisabled = !on }}
}

// Pages counts the pages of f.
func Pages(f *Filter) int {
	n := 0
	for i := range f.pages {
		if f.pages[i].Load() != nil {
			n++
		}
	}
	return n
}

// Remembered counts the conversations in f.
func Remembered(f *Flows) int {
	n := 0
	for i := range f.regions {
		r := f.regions[i].Load()
		for j := range flowRegion {
			if r != nil && r[j].Load() != nil {
				n++
			}
		}
	}
	return n
}
