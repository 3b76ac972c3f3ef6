// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sort"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
)

// ChangeAll makes the changes of b happen, all in one batch of the store or none.
// An object that a change wants as it is is neither checked nor written. Its
// errors are those of Change and name the change by its index; one that wraps
// mesh.ErrConflict says what of b.Expected is not so, and then nobody has looked
// at the changes.
//
// Who is locked out is decided once, by what all changes together make of the
// mesh: nobody ever sees what is in between.
func (o *Objects) ChangeAll(ctx context.Context, b mesh.Batch) (mesh.Outcome, error) {
	if err := checkBatch(b); err != nil {
		return mesh.Outcome{}, err
	}
	var effects []mesh.Effect
	decided := false
	s, err := o.registry.Update(ctx, func(tx *registry.Tx) error {
		s := tx.Snapshot()
		decided = false
		var err error
		if effects, err = o.decide(ctx, s, b); err != nil || b.DryRun {
			return err
		}
		err = writeAll(tx, b.Changes)
		decided = err == nil
		return err
	})
	if decided && errors.Is(err, mesh.ErrInvalid) {
		err = fmt.Errorf("changes: together: %w", err) // the store finds them too large
	}
	if err != nil {
		return mesh.Outcome{}, err
	}
	for i, c := range b.Changes {
		if effects[i] != mesh.Unchanged && !b.DryRun {
			o.log.Info("object changed", "change", c.String())
		}
	}
	return mesh.Outcome{Version: s.Version, Effects: effects}, nil
}

// decide says what b would do to a mesh as s, or why it must not.
func (o *Objects) decide(ctx context.Context, s *mesh.Snapshot, b mesh.Batch) ([]mesh.Effect, error) {
	if err := permitted(b.Permit, s, nil); err != nil {
		return nil, err
	}
	if err := checkExpected(s, b.Expected); err != nil {
		return nil, err
	}
	effects, after, err := foresee(ctx, s, b.Changes, o.replicas())
	if err != nil {
		return nil, err
	}
	if err := permitted(b.Permit, s, after); err != nil {
		return nil, fmt.Errorf("changes: together: %w", err)
	}
	return effects, nil
}

// checkBatch refuses what makes no sense in any state.
func checkBatch(b mesh.Batch) error {
	if len(b.Changes) == 0 {
		return fmt.Errorf("%w: changes: there is none; name one or more", mesh.ErrInvalid)
	}
	for field, list := range map[string][]mesh.Change{"changes": b.Changes, "expected": b.Expected} {
		if err := atMost(mesh.MaxChanges, field, len(list)); err != nil {
			return err
		}
		for i, c := range list {
			if err := one(c); err != nil {
				return fmt.Errorf("%s: [%d]: %w", field, i, err)
			}
		}
	}
	seen := make(map[string]int, len(b.Changes))
	for i, c := range b.Changes {
		name := objectOf(c)
		if j, ok := seen[name]; ok {
			return fmt.Errorf("%w: changes: [%d]: %s: the same object is at [%d]; name each once", mesh.ErrInvalid, i, c, j)
		}
		seen[name] = i
	}
	return nil
}

// checkExpected refuses a state in which one of list would be a change.
func checkExpected(s *mesh.Snapshot, list []mesh.Change) error {
	d := newDraft(s)
	for i, c := range list {
		var is string
		switch d.effect(c) {
		case mesh.Created:
			is = "it is not there"
		case mesh.Replaced:
			is = "somebody has changed it"
		case mesh.Removed:
			is = "it is there"
		default:
			continue
		}
		want := c
		want.Delete = false
		return fmt.Errorf("%w: expected: [%d]: %s; read it again", mesh.ErrConflict, i, state(want, is))
	}
	return nil
}

// state says of the object of c what is the matter with it.
func state(c mesh.Change, is string) string {
	const verb = len("put ")
	return c.String()[verb:] + ": " + is
}

// foresee says what changes would do to a mesh as s, one after another, each upon
// those before it, and what they make of it; s stays as it is. The error is that of the first that is
// refused, and names it. It stops when ctx ends, since others wait meanwhile.
func foresee(ctx context.Context, s *mesh.Snapshot, changes []mesh.Change, replicas []netip.Addr) ([]mesh.Effect, *mesh.Snapshot, error) {
	d := newDraft(s)
	effects := make([]mesh.Effect, len(changes))
	for i, c := range changes {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if effects[i] = d.effect(c); effects[i] == mesh.Unchanged {
			continue
		}
		err := checkAlone(&d.Snapshot, c)
		if err == nil && c.Route != nil && !c.Delete {
			err = checkOutside(&d.Snapshot, c.Route, replicas)
		}
		if err != nil {
			return nil, nil, refused(i, c, err)
		}
		d.apply(c)
	}
	if err := policy.CheckLockOut(s, &d.Snapshot); err != nil {
		return nil, nil, whoLocksOut(s, changes)
	}
	return effects, &d.Snapshot, nil
}

// whoLocksOut is the error of changes that together lock somebody out: it names
// one that does so where those before it do not.
func whoLocksOut(s *mesh.Snapshot, changes []mesh.Change) error {
	after := func(n int) error {
		d := newDraft(s)
		for _, c := range changes[:n] {
			d.apply(c)
		}
		return policy.CheckLockOut(s, &d.Snapshot)
	}
	// None lock nobody out, and all do: there is such a change in between, and halving
	// finds one of them also where there are more.
	i := sort.Search(len(changes)-1, func(i int) bool { return after(i+1) != nil })
	return refused(i, changes[i], after(i+1))
}

func refused(i int, c mesh.Change, err error) error {
	return fmt.Errorf("changes: [%d]: %s: %w", i, c, err)
}

// writeAll writes changes, which were checked.
func writeAll(tx *registry.Tx, changes []mesh.Change) error {
	for i, c := range changes {
		if err := write(tx, c); err != nil {
			return refused(i, c, err)
		}
	}
	return nil
}

// objectOf names the object of c among all kinds.
func objectOf(c mesh.Change) string {
	c.Delete = false
	if e := c.Edge; e != nil {
		c.Edge = &mesh.Edge{Source: min(e.Source, e.Target), Target: max(e.Source, e.Target)}
	}
	return c.String()
}
