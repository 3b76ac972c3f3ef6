// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// gone is when the nodes of a test fell silent.
var gone = time.Unix(1_700_000_000, 0).UTC()

// purge notes that a node is silent and purges it.
func (f fixture) purge(id mesh.NodeID) error {
	return errors.Join(f.Note(f.t.Context(), map[mesh.NodeID]time.Time{id: gone}, nil), f.Purge(f.t.Context(), id, gone, 0))
}

// A purge takes a node away and leaves its id to its key; Leave frees it.
func TestPurge(t *testing.T) {
	f := newFixture(t)
	a := request(t, "a")
	a.Routes = prefixes("10.1.0.0/16")
	f.join(a)
	for _, id := range []mesh.NodeID{"a", "a", "never"} {
		if err := f.purge(id); err != nil {
			t.Fatal(err)
		}
	}
	if s := f.registry.Snapshot(); s.Nodes.Len() != 1 || s.Edges.Len() != 0 || len(s.Routes) != 0 {
		t.Errorf("left of the node: %d nodes, %d edges, %v", s.Nodes.Len(), s.Edges.Len(), s.Routes)
	}
	other := request(t, "a")
	_, err := f.Join(t.Context(), other)
	f.wantRefused(err, mesh.ErrExists, "public_key: the id is bound")
	_, err = newReplica(t, f.store, "gw").Join(t.Context(), other)
	f.wantRefused(err, mesh.ErrExists, "public_key: the id is bound")
	f.join(a)
	for _, forget := range []func() error{
		func() error { return f.Leave(t.Context(), "a") },
		func() error { return errors.Join(f.purge("a"), f.Leave(t.Context(), "a")) },
	} {
		if err := forget(); err != nil {
			t.Fatal(err)
		}
		f.join(request(t, "a"))
	}
	f.wantRefused(f.purge("gw"), mesh.ErrPrecondition, "gw")
}

// Addresses of purged nodes are handed out again.
func TestPurge_ReleasesTheLease(t *testing.T) {
	f := newFixtureOf(t, registry.Bootstrap{IPv4: netip.MustParsePrefix("10.0.0.0/30")}) // two addresses, of which gw has one
	lease := f.join(request(t, "a")).Node("a").IPv4
	_, err := f.Join(t.Context(), request(t, "b"))
	f.wantRefused(err, mesh.ErrExhausted, "assign_ipv4")
	if err := f.purge("a"); err != nil {
		t.Fatal(err)
	}
	if got := f.join(request(t, "b")).Node("b").IPv4; got != lease {
		t.Errorf("b has %v; %v was free", got, lease)
	}
}

// Who was heard after all stays, whoever has decided to purge it.
func TestPurge_SparesWhoIsNotSilentLongEnough(t *testing.T) {
	a, b := twoGateways(t)
	r := request(t, "nas")
	a.join(r)
	silent := func(since time.Time) {
		t.Helper()
		if err := a.Note(t.Context(), map[mesh.NodeID]time.Time{"nas": since, "nobody": since}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for name, back := range map[string]func() error{
		"never missed":    func() error { return nil },
		"not for so long": func() error { silent(gone.Add(time.Second)); return nil },
		"heard":           func() error { silent(gone); return a.Note(t.Context(), nil, []mesh.NodeID{"nas"}) },
		"joined again":    func() error { silent(gone); _, err := a.Join(t.Context(), r); return err },
		"adopted":         func() error { silent(gone); b.adopt("nas"); return nil },
	} {
		if err := a.Note(t.Context(), nil, []mesh.NodeID{"nas"}); err != nil {
			t.Fatal(err)
		}
		if err := back(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.registry.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := a.Purge(t.Context(), "nas", gone, 0); err != nil || a.registry.Snapshot().Node("nas") == nil {
			t.Fatalf("%s: %v, and it is gone", name, err)
		}
	}
	if err := a.Note(t.Context(), nil, []mesh.NodeID{"nas"}); err != nil { // the cases come in any order
		t.Fatal(err)
	}
	silent(gone)
	silent(gone.Add(time.Hour))
	if got := a.registry.Snapshot().Silent; len(got) != 1 || !got["nas"].Equal(gone) {
		t.Errorf("silent: %v", got)
	}
	if err := a.Purge(t.Context(), "nas", gone, 0); err != nil || a.registry.Snapshot().Node("nas") != nil || len(a.registry.Snapshot().Silent) != 0 {
		t.Errorf("silent for long: %v, still there: %v", err, a.registry.Snapshot().Silent)
	}
}

// What was watched of a silence counts from when it was noted, or, where an older
// version noted it, from when that was first looked at; it ends with the silence.
func TestPurge_CountsWhatWasWatched(t *testing.T) {
	f := newFixture(t)
	f.join(request(t, "new"))
	f.join(request(t, "old"))
	unheard := func(want map[mesh.NodeID]time.Duration) {
		t.Helper()
		for id, d := range want {
			if got := f.registry.Snapshot().Unheard(id); got != d {
				t.Errorf("%s was not heard for %s, want %s", id, got, d)
			}
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(f.Watch(t.Context(), 5*time.Hour+time.Millisecond))
	do(f.Note(t.Context(), map[mesh.NodeID]time.Time{"new": gone}, nil))
	version, err := f.store.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "/registry/meshgate/silent/old", Value: []byte(gone.Format(time.RFC3339))}}})
	do(err)
	_, err = f.registry.Wait(t.Context(), version-1)
	do(err)
	unheard(map[mesh.NodeID]time.Duration{"new": 0, "old": 0})
	do(f.Watch(t.Context(), time.Hour))
	unheard(map[mesh.NodeID]time.Duration{"new": time.Hour, "old": 0})
	do(f.Watch(t.Context(), time.Hour))
	unheard(map[mesh.NodeID]time.Duration{"new": 2 * time.Hour, "old": time.Hour})
	do(f.Purge(t.Context(), "old", gone, 2*time.Hour))
	do(f.Note(t.Context(), nil, []mesh.NodeID{"new"}))
	do(f.Note(t.Context(), map[mesh.NodeID]time.Time{"new": gone}, nil))
	unheard(map[mesh.NodeID]time.Duration{"new": 0})
	do(f.Watch(t.Context(), time.Hour))
	if f.registry.Snapshot().Node("old") == nil {
		t.Error("old is gone, which was not watched for two hours")
	}
	do(f.Purge(t.Context(), "old", gone, 2*time.Hour))
	if f.registry.Snapshot().Node("old") != nil || len(f.registry.Snapshot().Missed) != 1 {
		t.Errorf("old is there after two hours, or something is left: %v", f.registry.Snapshot().Missed)
	}
}

// A token that bears a node's name takes it out of the mesh, and gives nobody
// its id.
func TestLeaveBound_KeepsTheID(t *testing.T) {
	f := newFixture(t)
	a := request(t, "a")
	f.join(a)
	for range 2 {
		if err := f.LeaveBound(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	if f.registry.Snapshot().Node("a") != nil {
		t.Error("the node is still there")
	}
	_, err := f.Join(t.Context(), request(t, "a"))
	f.wantRefused(err, mesh.ErrExists, "public_key: the id is bound")
	f.join(a)
	if err := f.Leave(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	f.join(request(t, "a"))
}

// Whoever gets the id of a gateway that is gone for good is none: not after a
// leave or a purge, nor where the gateway was only named so far.
func TestLeave_EndsWhatAGatewayWas(t *testing.T) {
	f := newFixture(t)
	f.join(request(t, "gw2"))
	if err := f.registry.AddGateway(t.Context(), "gw2"); err != nil {
		t.Fatal(err)
	}
	name := func(ids ...string) {
		t.Helper()
		g := mesh.Group{Name: registry.GroupVoters}
		for _, id := range ids {
			g.Subjects = append(g.Subjects, mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: id})
		}
		if _, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error { return tx.PutGroup(g) }); err != nil {
			t.Fatal(err)
		}
	}
	gone := func(what string, id mesh.NodeID, err error) {
		t.Helper()
		if s := f.registry.Snapshot(); err != nil || s.Node(id) != nil || registry.IsGateway(s, id) || !registry.IsGateway(s, "gw") {
			t.Errorf("%s: %v, the gateways are %v", what, err, s.Groups)
		}
	}
	gone("leave", "gw2", f.Leave(t.Context(), "gw2"))
	f.wantRefused(f.Leave(t.Context(), "gw2"), mesh.ErrNotFound, "no node of this id")

	f.wantRefused(f.Leave(t.Context(), "admin"), mesh.ErrNotFound, "no node of this id")
	f.join(request(t, "admin"))
	if err := f.Leave(t.Context(), "admin"); err != nil || !registry.IsGateway(f.registry.Snapshot(), "admin") {
		t.Errorf("the admin's node: %v, the gateways are %v", err, f.registry.Snapshot().Groups)
	}

	name("gw", "gw3")
	f.wantRefused(f.LeaveBound(t.Context(), "gw3"), mesh.ErrNotFound, "no node of this id")
	f.join(request(t, "gw3"))
	if err := f.LeaveBound(t.Context(), "gw3"); err != nil || !registry.IsGateway(f.registry.Snapshot(), "gw3") {
		t.Errorf("left without a right to the id: %v, the gateways are %v", err, f.registry.Snapshot().Groups)
	}
	gone("freed", "gw3", f.Leave(t.Context(), "gw3"))

	name("gw", "gw4")
	gone("named only", "gw4", f.Leave(t.Context(), "gw4"))

	name("gw5")
	f.join(request(t, "gw5"))
	gone("the only one", "gw5", f.purge("gw5"))
}
