// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func update(t testing.TB, r *registry.Registry, change func(tx *registry.Tx) error) *mesh.Snapshot {
	t.Helper()
	s, err := r.Update(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestUpdate_WritesAndRemovesEveryKind(t *testing.T) {
	m := storetest.New()
	r := start(t, m)
	node := &mesh.Node{ID: "a", PublicKey: key(t), Zone: "z", IPv4: netip.MustParsePrefix("10.0.0.1/32")}
	edge := mesh.Edge{Source: "a", Target: "b", Weight: 3, Attributes: map[string]string{"EDGE_ATTRIBUTE_ICE": "true"}}
	subjects := []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "u"}}
	want := &mesh.Snapshot{
		Nodes:  mesh.NodesOf(node),
		Edges:  mesh.EdgesOf(edge),
		Routes: []mesh.Route{{Name: "r", Node: "a", Destinations: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}},
		ACLs:   []mesh.ACL{{Name: "acl", Accept: true, SourceNodes: []string{"a"}}},
		Roles: []mesh.Role{{Name: "role", Rules: []mesh.Rule{{
			Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_GET},
		}}}},
		Bindings: []mesh.RoleBinding{{Name: "binding", Role: "role", Subjects: subjects}},
		Groups:   []mesh.Group{{Name: "group", Subjects: subjects}},
	}
	puts := func(tx *registry.Tx) error {
		reversed := edge
		reversed.Source, reversed.Target = edge.Target, edge.Source
		return errors.Join(
			tx.PutNode(node), tx.PutEdge(reversed), tx.PutRoute(want.Routes[0]), tx.PutACL(want.ACLs[0]),
			tx.PutRole(want.Roles[0]), tx.PutRoleBinding(want.Bindings[0]), tx.PutGroup(want.Groups[0]),
		)
	}
	got := update(t, r, puts)
	want.Version, want.Revision = got.Version, got.Version
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
	if again := update(t, r, puts); again != got {
		t.Errorf("writing the same again made version %d", again.Version)
	}
	removes := func(tx *registry.Tx) error {
		tx.DeleteNode("a") // takes the edge with it
		tx.DeleteRoute("r")
		tx.DeleteACL("acl")
		tx.DeleteRole("role")
		tx.DeleteRoleBinding("binding")
		tx.DeleteGroup("group")
		tx.DeleteEdge("b", "a")
		return nil
	}
	got = update(t, r, removes)
	if diff := cmp.Diff(&mesh.Snapshot{Version: got.Version, Revision: got.Version}, got, equal); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if again := update(t, r, removes); again != got {
		t.Errorf("removing again made version %d", again.Version)
	}
	entries, _, err := m.List(t.Context(), "")
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the store: %v, %v, want the revision only", entries, err)
	}
}

func TestUpdate_RemovesWhatCannotBeRead(t *testing.T) {
	m := storetest.New()
	r := start(t, m)
	write(t, m, r, put("/registry/nodes/a", "?"), put("/registry/edges/b/a", "?"), put("/registry/edges/b/c", "?"), put("/registry/routes/r", "?"))
	update(t, r, func(tx *registry.Tx) error {
		if !tx.Unreadable("a") || tx.Unreadable("b") {
			t.Error("the record of a is unreadable, that of b is not there")
		}
		tx.DeleteNode("a")
		tx.DeleteRoute("r")
		return nil
	})
	var left []string
	entries, _, _ := m.List(t.Context(), "")
	for _, e := range entries {
		left = append(left, e.Key)
	}
	if want := []string{"/registry/edges/b/c", "/registry/meshgate/revision"}; !slices.Equal(left, want) {
		t.Errorf("left: %q, want %q", left, want)
	}
}

func TestUpdate_RefusesWhatCouldNotBeReadBack(t *testing.T) {
	m := storetest.New()
	r := start(t, m)
	tests := map[string]func(tx *registry.Tx) error{
		"id": func(tx *registry.Tx) error { return tx.PutNode(&mesh.Node{ID: "a/b"}) },
		"private_ipv4": func(tx *registry.Tx) error {
			return tx.PutNode(&mesh.Node{ID: "a", IPv4: netip.MustParsePrefix("10.0.0.0/8")})
		},
		"itself":            func(tx *registry.Tx) error { return tx.PutEdge(mesh.Edge{Source: "a", Target: "a"}) },
		"source":            func(tx *registry.Tx) error { return tx.PutEdge(mesh.Edge{Source: "", Target: "a"}) },
		"name":              func(tx *registry.Tx) error { return tx.PutGroup(mesh.Group{Name: "../nodes/a"}) },
		"destination_nodes": func(tx *registry.Tx) error { return tx.PutACL(mesh.ACL{Name: "a", DestinationNodes: []string{""}}) },
	}
	for want, change := range tests {
		_, err := r.Update(t.Context(), change)
		if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrInvalid that names %s", err, want)
		}
	}
	if entries, _, _ := m.List(t.Context(), ""); len(entries) > 0 {
		t.Errorf("%d keys were written", len(entries))
	}
}

func TestUpdate_ErrorOfTheChangeEndsIt(t *testing.T) {
	r := start(t, storetest.New())
	want := errors.New("no")
	calls := 0
	_, err := r.Update(t.Context(), func(tx *registry.Tx) error {
		calls++
		_ = tx.PutGroup(mesh.Group{Name: "g"})
		return want
	})
	if err != want || calls != 1 || r.Snapshot().Version != 0 {
		t.Errorf("got %v after %d calls at version %d", err, calls, r.Snapshot().Version)
	}
}

// TestUpdate_DecidesAgain has registries that all read and write one value: a
// decision on an old snapshot would lose one.
func TestUpdate_DecidesAgain(t *testing.T) {
	const registries, workers, adds = 3, 2, 4
	m := storetest.New()
	errs := make(chan error)
	for range registries {
		r := start(t, m)
		for range workers {
			go func() {
				for range adds {
					_, err := r.Update(t.Context(), func(tx *registry.Tx) error {
						weight := int32(0)
						if e, ok := tx.Edge("a", "b"); ok {
							weight = e.Weight
						}
						return tx.PutEdge(mesh.Edge{Source: "a", Target: "b", Weight: weight + 1})
					})
					if err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
	}
	for range registries * workers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	for e := range start(t, m).Snapshot().Edges.All() {
		if e.Weight != registries*workers*adds {
			t.Errorf("the sum is %d, want %d", e.Weight, registries*workers*adds)
		}
	}
}

// TestUpdate_GivesUp has somebody change the registry before each attempt.
func TestUpdate_GivesUp(t *testing.T) {
	m := storetest.New()
	r, other := start(t, m), start(t, m)
	calls := 0
	_, err := r.Update(t.Context(), func(tx *registry.Tx) error {
		calls++
		update(t, other, func(tx *registry.Tx) error {
			return tx.PutGroup(mesh.Group{Name: fmt.Sprintf("g%d", calls)})
		})
		return tx.PutGroup(mesh.Group{Name: "late"})
	})
	if !errors.Is(err, mesh.ErrUnavailable) || calls < 2 {
		t.Errorf("got %v after %d calls, want ErrUnavailable after some", err, calls)
	}
}

func TestUpdate_ErrorsOfTheStore(t *testing.T) {
	for _, tt := range []struct{ store, want error }{
		{&store.NotLeaderError{Leader: "b"}, mesh.ErrPrecondition},
		{store.ErrFull, mesh.ErrExhausted},
		{store.ErrInvalid, mesh.ErrInvalid},
		{store.ErrClosed, mesh.ErrUnavailable},
		{store.ErrUncertain, mesh.ErrUnavailable},
		{fmt.Errorf("%w: %w", context.DeadlineExceeded, store.ErrUncertain), context.DeadlineExceeded},
	} {
		r := start(t, refusing{storetest.New(), tt.store})
		_, err := r.Update(t.Context(), func(tx *registry.Tx) error { return tx.PutGroup(mesh.Group{Name: "g"}) })
		if !errors.Is(err, tt.want) || !errors.Is(err, tt.store) {
			t.Errorf("%v: got %v, want it to wrap %v, too", tt.store, err, tt.want)
		}
	}
}

// refusing is a store that applies nothing.
type refusing struct {
	*storetest.Memory
	err error
}

func (r refusing) Apply(context.Context, store.Batch) (uint64, error) { return 0, r.err }

func TestUpdate_EndsWithItsContext(t *testing.T) {
	r := registry.New(storetest.New(), nil) // does not run
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Update(ctx, func(*registry.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestLink(t *testing.T) {
	for protocol, want := range map[v1.ConnectProtocol]string{
		v1.ConnectProtocol_CONNECT_NATIVE: "EDGE_ATTRIBUTE_NATIVE",
		v1.ConnectProtocol_CONNECT_ICE:    "EDGE_ATTRIBUTE_ICE",
		v1.ConnectProtocol_CONNECT_LIBP2P: "EDGE_ATTRIBUTE_LIBP2P",
	} {
		got, err := registry.Link("b", "a", protocol)
		if err != nil || got.Source != "a" || got.Attributes[want] != "true" || got.Protocol() != protocol {
			t.Errorf("%v: got %v, %v", protocol, got, err)
		}
	}
	if _, err := registry.Link("a", "b", 77); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("unknown protocol: got %v", err)
	}
}

// TestFollow_EqualsReadingAgain changes random keys to random values: the
// snapshot that follows them equals the one of a registry that starts now.
func TestFollow_EqualsReadingAgain(t *testing.T) {
	values := map[string][]string{
		"/registry/nodes/a":              {`{"id":"a"}`, `{"id":"a","zoneAwarenessId":"z"}`, `{"id":"b"}`},
		"/registry/nodes/b":              {`{"id":"b"}`},
		"/registry/edges/a/b":            {`{"source":"a","target":"b"}`, `{"source":"b","target":"a","weight":2}`},
		"/registry/edges/b/a":            {`{"source":"b","target":"a","weight":3}`},
		"/registry/routes/a":             {`{"name":"a","node":"a","destinationCidrs":["10.0.0.0/8"]}`},
		"/registry/network-acls/a":       {`{"name":"a"}`, `{"name":"a","priority":5}`},
		"/registry/network-acls/b":       {`{"name":"b","priority":3}`},
		"/registry/groups/g":             {`{"name":"g"}`},
		"/registry/rbac-disabled":        {"true", ""},
		"/registry/meshstate/ipv4prefix": {"10.0.0.0/8"},
		"/registry/meshgate/revision":    {""},
		"/elsewhere":                     {""},
	}
	keys := rapid.SampledFrom(slices.Sorted(maps.Keys(values)))
	m := storetest.New()
	r := start(t, m)
	rapid.Check(t, func(rt *rapid.T) {
		var ops []store.Op
		for range rapid.IntRange(1, 4).Draw(rt, "operations") {
			key := keys.Draw(rt, "key")
			switch rapid.IntRange(0, 4).Draw(rt, "kind") {
			case 0:
				ops = append(ops, remove(key))
			case 1:
				ops = append(ops, put(key, "?"))
			default:
				ops = append(ops, put(key, rapid.SampledFrom(values[key]).Draw(rt, "value")))
			}
		}
		// The last key makes sure that there is a change to wait for.
		got := write(t, m, r, append(ops, put("/registry/tick", ""))...)
		ctx, cancel := context.WithCancel(t.Context())
		fresh := registry.New(m, nil)
		done := make(chan error, 1)
		go func() { done <- fresh.Run(ctx) }()
		<-fresh.Ready()
		if diff := cmp.Diff(fresh.Snapshot(), got, equal); diff != "" {
			rt.Errorf("followed snapshot differs (-read +followed):\n%s", diff)
		}
		cancel()
		if err := <-done; err != nil {
			rt.Error(err)
		}
	})
}

// TestUpdate_SeveralWritesOfOneObject makes random writes in one change, and one
// after the other: the registries are equal.
func TestUpdate_SeveralWritesOfOneObject(t *testing.T) {
	writes := map[string]func(tx *registry.Tx) error{
		"put node a":    func(tx *registry.Tx) error { return tx.PutNode(&mesh.Node{ID: "a"}) },
		"change node a": func(tx *registry.Tx) error { return tx.PutNode(&mesh.Node{ID: "a", Zone: "z"}) },
		"delete node a": func(tx *registry.Tx) error { tx.DeleteNode("a"); return nil },
		"put node b":    func(tx *registry.Tx) error { return tx.PutNode(&mesh.Node{ID: "b"}) },
		"delete node b": func(tx *registry.Tx) error { tx.DeleteNode("b"); return nil },
		"put edge":      func(tx *registry.Tx) error { return tx.PutEdge(mesh.Edge{Source: "a", Target: "b"}) },
		"delete edge":   func(tx *registry.Tx) error { tx.DeleteEdge("b", "a"); return nil },
		"put group":     func(tx *registry.Tx) error { return tx.PutGroup(mesh.Group{Name: "g"}) },
		"delete group":  func(tx *registry.Tx) error { tx.DeleteGroup("g"); return nil },
		"silent":        func(tx *registry.Tx) error { tx.SetSilent("a", time.Unix(1, 0)); return nil },
		"longer silent": func(tx *registry.Tx) error { tx.SetSilent("a", time.Unix(0, 0)); return nil },
		"heard":         func(tx *registry.Tx) error { tx.ClearSilent("a"); return nil },
		"address":       func(tx *registry.Tx) error { tx.SetLastIPv4(netip.MustParseAddr("10.0.0.1")); return nil },
		"next address":  func(tx *registry.Tx) error { tx.SetLastIPv4(netip.MustParseAddr("10.0.0.2")); return nil },
	}
	names := rapid.SampledFrom(slices.Sorted(maps.Keys(writes)))
	rapid.Check(t, func(rt *rapid.T) {
		together, apart := start(t, storetest.New()), start(t, storetest.New())
		for range rapid.IntRange(1, 3).Draw(rt, "changes") {
			list := rapid.SliceOfN(names, 1, 6).Draw(rt, "writes")
			update(t, together, func(tx *registry.Tx) error {
				for _, name := range list {
					if err := writes[name](tx); err != nil {
						return err
					}
				}
				return nil
			})
			for _, name := range list {
				update(t, apart, writes[name])
			}
		}
		want, got := *apart.Snapshot(), *together.Snapshot()
		got.Version, got.Revision = want.Version, want.Revision
		if diff := cmp.Diff(&want, &got, equal); diff != "" {
			rt.Errorf("the registries differ (-one by one +together):\n%s", diff)
		}
	})
}

// FuzzFollow has any value at any key: nothing of it may stop the registry.
func FuzzFollow(f *testing.F) {
	f.Add("nodes/a", []byte(`{"id":"a"}`))
	f.Add("edges/a/b", []byte(`{"source":"a","target":"b"}`))
	f.Add("edges//", []byte(`{}`))
	f.Add("network-acls/a", []byte(`{"name":"a","sourceCidrs":["*","1.2.3.4"]}`))
	f.Add("meshstate/ipv6prefix", []byte("fd00::/32"))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		m := storetest.New()
		r := start(t, m)
		if _, err := m.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "/registry/" + name, Value: value}}}); err != nil {
			return // no key
		}
		update(t, r, func(tx *registry.Tx) error {
			tx.DeleteNode("a")
			return tx.PutNode(&mesh.Node{ID: "a"})
		})
		if r.Snapshot().Node("a") == nil {
			t.Error("the registry is stuck")
		}
	})
}

// BenchmarkFollow changes one node of a large mesh.
func BenchmarkFollow(b *testing.B) {
	const nodes = 5000
	m := storetest.New()
	r := start(b, m)
	for i := 0; i < nodes; i += 1000 {
		update(b, r, func(tx *registry.Tx) error {
			for n := i; n < i+1000; n++ {
				id := mesh.NodeID(fmt.Sprintf("n%d", n))
				if err := errors.Join(tx.PutNode(&mesh.Node{ID: id}), tx.PutEdge(mesh.Edge{Source: "gw", Target: id})); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i := 0; b.Loop(); i++ {
		update(b, r, func(tx *registry.Tx) error { return tx.PutNode(&mesh.Node{ID: "n7", Zone: fmt.Sprint(i)}) })
	}
}
