// SPDX-License-Identifier: Apache-2.0

package mesh

import "fmt"

// Change puts or deletes one of the objects that people manage. It is an
// intent: node/admin checks it and turns it into one atomic change of the
// registry.
//
// Exactly one of Role, Binding, Group, ACL, Route and Edge is set. To put it,
// the object is whole and replaces the one of the same name; to delete it, only
// its name counts, of an edge its two ends.
type Change struct {
	Role    *Role
	Binding *RoleBinding
	Group   *Group
	ACL     *ACL
	Route   *Route
	Edge    *Edge
	// Delete removes the object; that it is not there is no error.
	Delete bool
}

// String names what is changed, for errors and logs: `put role "x"`.
func (c Change) String() string {
	verb := "put"
	if c.Delete {
		verb = "delete"
	}
	switch {
	case c.Role != nil:
		return fmt.Sprintf("%s role %q", verb, c.Role.Name)
	case c.Binding != nil:
		return fmt.Sprintf("%s role binding %q", verb, c.Binding.Name)
	case c.Group != nil:
		return fmt.Sprintf("%s group %q", verb, c.Group.Name)
	case c.ACL != nil:
		return fmt.Sprintf("%s network ACL %q", verb, c.ACL.Name)
	case c.Route != nil:
		return fmt.Sprintf("%s route %q", verb, c.Route.Name)
	case c.Edge != nil:
		return fmt.Sprintf("%s edge %q to %q", verb, c.Edge.Source, c.Edge.Target)
	}
	return verb + " nothing"
}

// MaxChanges bounds the changes of a Batch, and what it expects.
const MaxChanges = 4096

// Permit decides whether a change may be made of a state, before: with after nil
// before anything is told of that state, and then with what the change makes of
// it, in which lists have no order. Its error refuses the change.
type Permit func(before, after *Snapshot) error

// Batch is changes that are made together or not at all.
type Batch struct {
	// Changes are made in this order, each upon those before it.
	Changes []Change
	// Expected are changes that would change nothing: unless that is so before
	// Changes are made, none is, and the error wraps ErrConflict.
	Expected []Change
	// Permit, when it is set, is asked about each state upon which the changes are
	// about to be made.
	Permit Permit
	// DryRun checks all and changes nothing.
	DryRun bool
}

// Effect is what a change does to its object.
type Effect uint8

// The effects; the zero value is that of no change.
const (
	Unchanged Effect = iota
	Created
	Replaced
	Removed
)

// Outcome is what a Batch has changed, or would change.
type Outcome struct {
	// Version is that of a state that has the changes; of a dry run that upon
	// which they were checked.
	Version uint64
	// Effects are one for each change.
	Effects []Effect
}

// Item is a key of the replicated state with its value, or what happened to it.
type Item struct {
	Key string
	// Value is shared with other readers: nobody changes it. Empty when the
	// key was removed.
	Value []byte
	// Deleted is true when the key was removed, by somebody or by its age.
	Deleted bool
}
