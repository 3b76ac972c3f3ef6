// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func groupOf(name string, subjects ...mesh.Subject) mesh.Change {
	return mesh.Change{Group: &mesh.Group{Name: name, Subjects: subjects}}
}

func gone(c mesh.Change) mesh.Change {
	c.Delete = true
	return c
}

// Every kind, made and removed, in one version of the state each.
func TestChangeAll_IsOneChange(t *testing.T) {
	w := newWorld(t)
	before := w.registry.Snapshot()
	for _, step := range []struct {
		changes []mesh.Change
		want    mesh.Effect
		writes  bool
	}{
		{good(), mesh.Created, true},
		{good(), mesh.Unchanged, false},
		{removals(), mesh.Removed, true},
		{removals(), mesh.Unchanged, false},
	} {
		was := w.registry.Snapshot()
		got, err := w.ChangeAll(t.Context(), mesh.Batch{Changes: step.changes})
		if err != nil {
			t.Fatal(err)
		}
		now := w.registry.Snapshot()
		if len(step.changes) == len(good()) && slices.ContainsFunc(got.Effects, func(e mesh.Effect) bool { return e != step.want }) {
			t.Errorf("effects %v, want %v of each", got.Effects, step.want)
		}
		if len(got.Effects) != len(step.changes) || got.Version != now.Version {
			t.Errorf("%d effects at version %d, want %d at %d", len(got.Effects), got.Version, len(step.changes), now.Version)
		}
		if n := now.Version - was.Version; step.writes && n != 1 || !step.writes && n > 1 {
			t.Errorf("%d changes took %d versions", len(step.changes), n)
		}
	}
	if after := w.registry.Snapshot(); count(after) != count(before) {
		t.Errorf("%d objects became %d", count(before), count(after))
	}
}

// To check one object many times would hold up others for as long.
func TestChangeAll_NamesEachObjectOnce(t *testing.T) {
	w := newWorld(t)
	before := w.registry.Snapshot().Version
	for name, changes := range map[string][]mesh.Change{
		"put":     {groupOf("staff", user("bob")), groupOf("new", user("x")), groupOf("staff", user("alice"))},
		"removed": {groupOf("staff", user("bob")), groupOf("new", user("x")), gone(groupOf("staff"))},
		"edge":    {{Edge: &mesh.Edge{Source: "b", Target: "a", Weight: 2}}, groupOf("new", user("x")), {Edge: &mesh.Edge{Source: "a", Target: "b"}, Delete: true}},
	} {
		_, err := w.ChangeAll(t.Context(), mesh.Batch{Changes: changes})
		if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), "changes: [2]: ") || !strings.Contains(err.Error(), "the same object is at [0]; name each once") {
			t.Errorf("%s: %v", name, err)
		}
	}
	same := []mesh.Change{groupOf("x", user("x")), {Role: &mesh.Role{Name: "x", Rules: reader().Rules}}}
	if _, err := w.ChangeAll(t.Context(), mesh.Batch{Changes: same}); err != nil {
		t.Errorf("one name of two kinds: %v", err)
	}
	if after := w.registry.Snapshot().Version; after != before+1 {
		t.Errorf("version %d became %d", before, after)
	}
}

// withGateway is a world in which gw is a gateway and not only called one.
func withGateway(t *testing.T) world {
	t.Helper()
	w := newWorld(t)
	if _, err := w.registry.Update(t.Context(), func(tx *registry.Tx) error {
		gw := *tx.Snapshot().Node("gw")
		gw.Features = []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER, Port: 9000}}
		return tx.PutNode(&gw)
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

// Whatever is refused, nothing is written, and the message says which it was.
func TestChangeAll_RefusesAllForOne(t *testing.T) {
	full := mesh.Change{Role: &mesh.Role{Name: "root", Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_ALL},
	}}}}
	denied := errors.New("denied")
	ended, end := context.WithCancel(t.Context())
	end()
	for name, tt := range map[string]struct {
		ctx   context.Context
		batch mesh.Batch
		want  error
		text  string
	}{
		"nothing":         {batch: mesh.Batch{}, want: mesh.ErrInvalid, text: "changes: there is none"},
		"too many":        {batch: mesh.Batch{Changes: make([]mesh.Change, mesh.MaxChanges+1)}, want: mesh.ErrInvalid, text: "changes: 4097 are too many"},
		"too many before": {batch: mesh.Batch{Changes: good(), Expected: make([]mesh.Change, mesh.MaxChanges+1)}, want: mesh.ErrInvalid, text: "expected: 4097 are too many"},
		"one of nothing":  {batch: mesh.Batch{Changes: append(good(), mesh.Change{})}, want: mesh.ErrInvalid, text: "changes: [6]: invalid argument: a change has one object"},
		"the last":        {batch: mesh.Batch{Changes: append(good(), mesh.Change{Binding: &mesh.RoleBinding{Name: "b", Role: "absent", Subjects: []mesh.Subject{user("x")}}})}, want: mesh.ErrPrecondition, text: `changes: [6]: put role binding "b": failed precondition: role: there is no role "absent"`},
		"a system object": {batch: mesh.Batch{Changes: append(good(), gone(mesh.Change{Role: &mesh.Role{Name: "mesh-admin"}}))}, want: mesh.ErrPrecondition, text: `changes: [6]: delete role "mesh-admin": `},
		"in the wrong order": {batch: mesh.Batch{Changes: []mesh.Change{
			groupOf("outer", inGroup("inner")), groupOf("inner", user("x"))}}, want: mesh.ErrPrecondition, text: `changes: [0]: put group "outer": failed precondition: subjects: [0]: there is no group "inner"`},
		"what is in use": {batch: mesh.Batch{Changes: append(good(), gone(groupOf("staff")))}, want: mesh.ErrPrecondition, text: `changes: [6]: delete group "staff": failed precondition: name: the `},
		"a replica":      {batch: mesh.Batch{Changes: append(good(), mesh.Change{Route: &mesh.Route{Name: "r", Node: "a", Destinations: prefixes("10.64.0.0/10")}})}, want: mesh.ErrInvalid, text: "changes: [6]: "},
		"a gateway out of the voters": {batch: mesh.Batch{Changes: []mesh.Change{
			groupOf("x", user("x")), groupOf("voters", user("y")), groupOf("z", user("z"))}}, want: mesh.ErrPrecondition, text: `changes: [1]: put group "voters": gw would drop out`},
		"not as expected": {batch: mesh.Batch{Changes: good(), Expected: []mesh.Change{groupOf("staff", user("alice")), groupOf("staff", user("bob"))}}, want: mesh.ErrConflict, text: `expected: [1]: group "staff": somebody has changed it`},
		"not there":       {batch: mesh.Batch{Changes: good(), Expected: []mesh.Change{groupOf("absent", user("bob"))}}, want: mesh.ErrConflict, text: `expected: [0]: group "absent": it is not there`},
		"there":           {batch: mesh.Batch{Changes: good(), Expected: []mesh.Change{gone(groupOf("staff"))}}, want: mesh.ErrConflict, text: `expected: [0]: group "staff": it is there`},
		"denied":          {batch: mesh.Batch{Changes: good(), Permit: func(_, _ *mesh.Snapshot) error { return denied }}, want: denied},
		"denied before it is told of others": {batch: mesh.Batch{Changes: good(), Expected: []mesh.Change{gone(groupOf("staff"))},
			Permit: func(_, _ *mesh.Snapshot) error { return denied }}, want: denied},
		"denied for what they make": {batch: mesh.Batch{Changes: good(), Permit: func(before, after *mesh.Snapshot) error {
			if after != nil && count(after) == count(before)+len(good()) {
				return denied
			}
			return nil
		}}, want: denied},
		"too large for the store": {batch: mesh.Batch{Changes: large(t)}, want: mesh.ErrInvalid, text: "changes: together: "},
		"whoever waits no longer": {ctx: ended, batch: mesh.Batch{Changes: append(good(), full)}, want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			w := withGateway(t)
			before := w.registry.Snapshot()
			if tt.ctx == nil {
				tt.ctx = t.Context()
			}
			_, err := w.ChangeAll(tt.ctx, tt.batch)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
			if after := w.registry.Snapshot(); after.Version != before.Version || count(after) != count(before) {
				t.Errorf("version %d became %d, %d objects %d", before.Version, after.Version, count(before), count(after))
			}
		})
	}
}

// large is more than a batch of the store may have.
func large(t *testing.T) []mesh.Change {
	t.Helper()
	names := make([]string, maxNames)
	for i := range names {
		names[i] = strings.Repeat("x", maxResourceName)
	}
	role := reader()
	role.Rules = []mesh.Rule{{Resources: role.Rules[0].Resources, Verbs: role.Rules[0].Verbs, Names: names}}
	return []mesh.Change{{Role: role}}
}

// What changes make together is what counts, since nobody sees what is between.
func TestChangeAll_LooksForLockOutsAtTheEnd(t *testing.T) {
	w := withGateway(t)
	node := mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: "gw"}
	w.must(groupOf("gateways", user("somebody")))
	if _, err := w.ChangeAll(t.Context(), mesh.Batch{Changes: []mesh.Change{
		groupOf("voters", inGroup("gateways")), groupOf("gateways", node),
	}}); err != nil {
		t.Error(err)
	}
}

func TestChangeAll_DryRunChangesNothing(t *testing.T) {
	w := newWorld(t)
	before := w.registry.Snapshot()
	got, err := w.ChangeAll(t.Context(), mesh.Batch{Changes: good(), DryRun: true, Expected: []mesh.Change{groupOf("staff", user("alice")), gone(groupOf("all"))}})
	if err != nil || len(got.Effects) != len(good()) || got.Effects[0] != mesh.Created {
		t.Errorf("%v, %v", got, err)
	}
	if after := w.registry.Snapshot(); after.Version != before.Version || got.Version != before.Version {
		t.Errorf("version %d became %d, was told as %d", before.Version, after.Version, got.Version)
	}
}

// What was taken away at another gateway before the change is written counts, also
// after it was asked; what is expected, too.
func TestChangeAll_DecidesOnTheStateThatItWritesOn(t *testing.T) {
	memory := storetest.New()
	here := worldOver(t, memory)
	elsewhere := registry.New(memory, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- elsewhere.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	there, err := New(elsewhere, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var asked []uint64
	meanwhile := func(c mesh.Change) func(before, after *mesh.Snapshot) error {
		asked = nil
		return func(s, after *mesh.Snapshot) error {
			if after != nil {
				return nil
			}
			if asked = append(asked, s.Version); len(asked) > 1 {
				return nil
			}
			_, err := there.Change(t.Context(), c, nil)
			return err
		}
	}
	before := here.registry.Snapshot().Version
	if _, err := here.ChangeAll(t.Context(), mesh.Batch{Changes: good(), Permit: meanwhile(groupOf("other", user("x")))}); err != nil {
		t.Error(err)
	}
	if want := []uint64{before, before + 1}; !slices.Equal(asked, want) {
		t.Errorf("asked about the versions %v, want %v", asked, want)
	}
	_, err = here.ChangeAll(t.Context(), mesh.Batch{
		Changes: []mesh.Change{groupOf("staff", user("bob"))}, Expected: []mesh.Change{groupOf("staff", user("alice"))},
		Permit: meanwhile(groupOf("staff", user("alice"), user("carol"))),
	})
	if !errors.Is(err, mesh.ErrConflict) || len(asked) != 2 {
		t.Errorf("asked %d times: %v", len(asked), err)
	}
}

// A thousand of each kind are checked while others wait.
func BenchmarkChangeAll(b *testing.B) {
	var changes []mesh.Change
	for i := range 1000 {
		name := fmt.Sprintf("o%04d", i)
		changes = append(changes, groupOf(name, user("alice"), user("u"+name)))
	}
	for i := range 1000 {
		name := fmt.Sprintf("o%04d", i)
		changes = append(changes,
			mesh.Change{Role: &mesh.Role{Name: name, Rules: reader().Rules}},
			mesh.Change{Binding: &mesh.RoleBinding{Name: name, Role: name, Subjects: []mesh.Subject{inGroup(name)}}},
			mesh.Change{ACL: &mesh.ACL{Name: name, SourceNodes: []string{"group:" + name}}})
	}
	w := newWorld(b)
	w.must(mesh.Change{Binding: &mesh.RoleBinding{Name: "zz", Role: "mesh-admin", Subjects: []mesh.Subject{user("root")}}})
	for b.Loop() {
		if _, err := w.decide(b.Context(), w.registry.Snapshot(), mesh.Batch{Changes: changes, Permit: func(before, after *mesh.Snapshot) error {
			if after == nil {
				return nil
			}
			return policy.CheckGain(before, after, "root")
		}}); err != nil {
			b.Fatal(err)
		}
	}
}
