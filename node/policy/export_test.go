// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/meshgate/meshgate/node/mesh"

// FilterSlots lets tests ask more than a filter remembers.
const FilterSlots = filterSlots

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

// Remembered counts the conversations in f.
func Remembered(f *Flows) int {
	n := 0
	for i := range f.slots {
		if f.slots[i].Load() != nil {
			n++
		}
	}
	return n
}
