// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// equal compares snapshots and their parts by value.
var equal = cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Transformer("nodes", func(n mesh.Nodes) map[mesh.NodeID]*mesh.Node { return maps.Collect(n.All()) }),
	cmp.Transformer("edges", func(e mesh.Edges) []mesh.Edge { return slices.Collect(e.All()) })}

// start runs a registry over s until the test ends.
func start(t testing.TB, s store.Store) *registry.Registry {
	t.Helper()
	return startLogged(t, s, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func startLogged(t testing.TB, s store.Store, logger *slog.Logger) *registry.Registry {
	t.Helper()
	r := registry.New(s, logger)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("run: %v", err)
		}
	})
	<-r.Ready()
	return r
}

func key(t testing.TB) mesh.PublicKey {
	t.Helper()
	k, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func self(t testing.TB) mesh.Node { return mesh.Node{ID: "gw", PublicKey: key(t)} }

func bootstrap(t testing.TB, r *registry.Registry, b registry.Bootstrap) *mesh.Snapshot {
	t.Helper()
	if b.Self.ID == "" {
		b.Self = self(t)
	}
	if err := r.Bootstrap(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return r.Snapshot()
}

// write applies raw operations and returns the snapshot that has them.
func write(t testing.TB, s store.Store, r *registry.Registry, ops ...store.Op) *mesh.Snapshot {
	t.Helper()
	version, err := s.Apply(t.Context(), store.Batch{Ops: ops})
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := r.Wait(t.Context(), version-1)
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func remove(key string) store.Op { return store.Op{Key: key, Delete: true} }

func TestSnapshot_OfAnEmptyStore(t *testing.T) {
	r := start(t, storetest.New())
	if diff := cmp.Diff(&mesh.Snapshot{}, r.Snapshot(), equal); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}

// TestFollow_EveryKind writes objects as v1 nodes write them.
func TestFollow_EveryKind(t *testing.T) {
	const (
		publicKey = "CAUSIAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"
		node      = `{"id":"a", "publicKey":"` + publicKey + `", "primaryEndpoint":"192.0.2.1", "wireguardEndpoints":["192.0.2.1:51820"],
			"zoneAwarenessId":"z", "privateIpv4":"invalid Prefix", "privateIpv6":"fd9f:86d0:8188:ff73:2ac4:40f5:1a35:0/112",
			"features":[{"feature":"NODES","port":8443}], "joinedAt":"2026-01-02T03:04:05Z", "ofALaterVersion":{"x":1}}`
	)
	parsed, err := mesh.ParsePublicKey(publicKey)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		ops  []store.Op
		want func(s *mesh.Snapshot)
	}{
		{"networks", []store.Op{
			put("/registry/meshstate/ipv4prefix", "172.16.0.0/12"),
			put("/registry/meshstate/ipv6prefix", "fd9f:86d0:8188::/32"),
			put("/registry/meshstate/meshdomain", "webmesh.internal."),
		}, func(s *mesh.Snapshot) {
			s.IPv4, s.IPv6 = netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("fd9f:86d0:8188::/32")
			s.Domain = "webmesh.internal."
		}},
		{"rbac", []store.Op{put("/registry/rbac-disabled", "true")}, func(s *mesh.Snapshot) { s.RBACDisabled = true }},
		{"node", []store.Op{put("/registry/nodes/a", node)}, func(s *mesh.Snapshot) {
			s.Nodes = mesh.NodesOf(&mesh.Node{
				ID: "a", PublicKey: parsed, PrimaryEndpoint: "192.0.2.1", Zone: "z",
				WireGuardEndpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")},
				IPv6:               netip.MustParsePrefix("fd9f:86d0:8188:ff73:2ac4:40f5:1a35:0/112"),
				Features:           []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}},
				JoinedAt:           time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			})
		}},
		{"edge of both keys", []store.Op{
			put("/registry/edges/a/b", `{"source":"a","target":"b","weight":1}`),
			put("/registry/edges/b/a", `{"source":"b","target":"a","weight":1}`),
		}, func(s *mesh.Snapshot) { s.Edges = mesh.EdgesOf(mesh.Edge{Source: "a", Target: "b", Weight: 1}) }},
		{"edge of one key", []store.Op{
			put("/registry/edges/b/a", `{"source":"b","target":"a","weight":2,"attributes":{"EDGE_ATTRIBUTE_ICE":"true"}}`),
		}, func(s *mesh.Snapshot) {
			s.Edges = mesh.EdgesOf(mesh.Edge{Source: "a", Target: "b", Weight: 2, Attributes: map[string]string{"EDGE_ATTRIBUTE_ICE": "true"}})
		}},
		{"edges that differ, in order", []store.Op{
			put("/registry/edges/b/a", `{"source":"b","target":"a","weight":9}`),
			put("/registry/edges/a/b", `{"source":"a","target":"b","weight":1}`),
			put("/registry/edges/a-/b", `{"source":"a-","target":"b"}`),
			put("/registry/edges/a/c", `{"source":"a","target":"c"}`),
		}, func(s *mesh.Snapshot) {
			s.Edges = mesh.EdgesOf(mesh.Edge{Source: "a", Target: "b", Weight: 1}, mesh.Edge{Source: "a", Target: "c"}, mesh.Edge{Source: "a-", Target: "b"})
		}},
		{"route", []store.Op{
			put("/registry/routes/b-auto", `{"name":"b-auto","node":"b","destinationCidrs":["10.1.0.0/16"]}`),
			put("/registry/routes/a", `{"name":"a","node":"group:g","destinationCidrs":["10.2.0.0/16"],"nextHopNode":"b"}`),
		}, func(s *mesh.Snapshot) {
			s.Routes = []mesh.Route{
				{Name: "a", Node: "group:g", Destinations: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, NextHop: "b"},
				{Name: "b-auto", Node: "b", Destinations: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
			}
		}},
		{"acls by priority", []store.Op{
			put("/registry/network-acls/x", `{"name":"x","priority":-5,"action":"ACTION_ACCEPT","sourceNodes":["*"]}`),
			put("/registry/network-acls/y", `{"name":"y","priority":7}`),
		}, func(s *mesh.Snapshot) {
			s.ACLs = []mesh.ACL{{Name: "y", Priority: 7}, {Name: "x", Priority: -5, Accept: true, SourceNodes: []string{"*"}}}
		}},
		{"roles, bindings, groups", []store.Op{
			put("/registry/roles/r", `{"name":"r","rules":[{"resources":["RESOURCE_VOTES"],"verbs":["VERB_PUT"]}]}`),
			put("/registry/rolebindings/b", `{"name":"b","role":"r","subjects":[{"name":"g","type":"SUBJECT_GROUP"}]}`),
			put("/registry/groups/g", `{"name":"g","subjects":[{"name":"n","type":"SUBJECT_NODE"}]}`),
		}, func(s *mesh.Snapshot) {
			s.Roles = []mesh.Role{{Name: "r", Rules: []mesh.Rule{{
				Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
			}}}}
			s.Bindings = []mesh.RoleBinding{{Name: "b", Role: "r", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_GROUP, Name: "g"}}}}
			s.Groups = []mesh.Group{{Name: "g", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "n"}}}}
		}},
		{"keys of others", []store.Op{put("/registry/later/x", "?"), put("/registry/x", "?"), put("/other", "?")}, func(*mesh.Snapshot) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := storetest.New()
			r := start(t, m)
			got := write(t, m, r, tt.ops...)
			want := &mesh.Snapshot{Version: got.Version}
			tt.want(want)
			if diff := cmp.Diff(want, got, equal); diff != "" {
				t.Errorf("after the writes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, start(t, m).Snapshot(), equal); diff != "" {
				t.Errorf("a registry that starts now differs (-follows +starts):\n%s", diff)
			}
			var removals []store.Op
			for _, op := range tt.ops {
				removals = append(removals, remove(op.Key))
			}
			got = write(t, m, r, removals...)
			if diff := cmp.Diff(&mesh.Snapshot{Version: got.Version}, got, equal); diff != "" {
				t.Errorf("after the removals (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFollow_ValuesThatMakeNoSense(t *testing.T) {
	var logs bytes.Buffer
	var mu sync.Mutex
	logger := slog.New(slog.NewTextHandler(lockedWriter{&mu, &logs}, nil))
	m := storetest.New()
	good := put("/registry/groups/good", `{"name":"good"}`)
	bad := []store.Op{
		put("/registry/nodes/a", `{"id":"b"}`),
		put("/registry/nodes/b", `{"id":"b","publicKey":"AAAA"}`),
		put("/registry/nodes/c", "\xff\x00"),
		put("/registry/edges/a", `{"source":"a","target":"b"}`),
		put("/registry/edges/a/c", `{"source":"a","target":"b"}`),
		put("/registry/edges/a/a", `{"source":"a","target":"a"}`),
		put("/registry/groups/g", ``),
		put("/registry/groups/", `{}`),
		put("/registry/roles/r", `{"name":"r","rules":[{}]}`),
		put("/registry/routes/r", `{"name":"r","node":"n","destinationCidrs":["x"]}`),
		put("/registry/network-acls/x", `[]`),
		put("/registry/rolebindings/x", `null`),
		put("/registry/meshstate/ipv4prefix", "fd00::/32"),
		put("/registry/meshstate/ipv6prefix", "x"),
	}
	version, err := m.Apply(t.Context(), store.Batch{Ops: append(bad, good)})
	if err != nil {
		t.Fatal(err)
	}
	r := startLogged(t, m, logger) // some are there at the start
	want := &mesh.Snapshot{Version: version, Groups: []mesh.Group{{Name: "good"}}}
	if diff := cmp.Diff(want, r.Snapshot(), equal); diff != "" {
		t.Errorf("at the start (-want +got):\n%s", diff)
	}
	for range 3 { // and come again
		got := write(t, m, r, bad...)
		want.Version = got.Version
		if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Errorf("after a change (-want +got):\n%s", diff)
		}
	}
	mu.Lock()
	for _, op := range bad {
		if n := strings.Count(logs.String(), "key="+op.Key+" "); n != 1 {
			t.Errorf("%s is logged %d times, want once", op.Key, n)
		}
	}
	mu.Unlock()
	got := write(t, m, r, put("/registry/groups/g", `{"name":"g"}`))
	want.Version, want.Groups = got.Version, []mesh.Group{{Name: "g"}, {Name: "good"}}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("after the value makes sense (-want +got):\n%s", diff)
	}
	got = write(t, m, r, put("/registry/groups/g", `?`))
	want.Version, want.Groups = got.Version, []mesh.Group{{Name: "good"}}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("after it makes none again (-want +got):\n%s", diff)
	}
}

// TestFollow_SharesWhatDidNotChange shows that a change of one node leaves all
// other decoded objects alone.
func TestFollow_SharesWhatDidNotChange(t *testing.T) {
	m := storetest.New()
	r := start(t, m)
	var ops []store.Op
	for i := range 10 {
		ops = append(ops, put(fmt.Sprintf("/registry/nodes/n%d", i), fmt.Sprintf(`{"id":"n%d"}`, i)))
	}
	ops = append(ops, put("/registry/edges/n0/n1", `{"source":"n0","target":"n1"}`), put("/registry/groups/g", `{"name":"g"}`))
	before := write(t, m, r, ops...)
	after := write(t, m, r, put("/registry/nodes/n3", `{"id":"n3","zoneAwarenessId":"z"}`))
	for id, n := range after.Nodes.All() {
		if changed := before.Node(id) != n; changed != (id == "n3") {
			t.Errorf("node %s decoded again: %v", id, changed)
		}
	}
	if &before.Groups[0] != &after.Groups[0] {
		t.Error("lists without a change were made again")
	}
	for was, is := range after.Edges.Changes(before.Edges) {
		t.Errorf("edge %v decoded again as %v", was, is)
	}
	if before.Node("n3").Zone != "" {
		t.Error("a published snapshot changed")
	}
}

func TestFollow_ReadsAgainAfterLagging(t *testing.T) {
	m := storetest.New()
	s := &forgetful{Memory: m, forget: make(chan struct{}, 1)}
	r := start(t, s)
	write(t, m, r, put("/registry/groups/a", `{"name":"a"}`), put("/registry/groups/b", `{"name":"b"}`))
	s.forget <- struct{}{} // the next change is lost
	got := write(t, m, r, remove("/registry/groups/a"), put("/registry/groups/c", `{"name":"c"}`))
	if diff := cmp.Diff([]mesh.Group{{Name: "b"}, {Name: "c"}}, got.Groups, equal); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
}

// forgetful loses the change that comes after a token in forget.
type forgetful struct {
	*storetest.Memory
	forget chan struct{}
}

func (f *forgetful) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		for c, err := range f.Memory.Watch(ctx, prefix, after) {
			select {
			case <-f.forget:
				yield(store.Change{}, store.ErrCompacted)
				return
			default:
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

func TestWait(t *testing.T) {
	m := storetest.New()
	r := start(t, m)
	first := write(t, m, r, put("/registry/groups/a", `{"name":"a"}`))
	if got, err := r.Wait(t.Context(), 0); err != nil || got != first {
		t.Errorf("wait for what is there: got %v, %v", got, err)
	}
	got := make(chan *mesh.Snapshot, 1)
	go func() {
		s, err := r.Wait(t.Context(), first.Version)
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	second := write(t, m, r, put("/registry/groups/b", `{"name":"b"}`))
	if s := <-got; s.Version < second.Version {
		t.Errorf("got version %d, want %d", s.Version, second.Version)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Wait(ctx, second.Version); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	m.Close()
	if _, err := r.Wait(t.Context(), second.Version); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("after the end of the store: got %v, want ErrUnavailable", err)
	}
	for range 100 { // the choice is random
		if _, err := r.Wait(ctx, second.Version); !errors.Is(err, context.Canceled) {
			t.Fatalf("ended together with the store: got %v, want context.Canceled", err)
		}
	}
	if r.Snapshot() != second {
		t.Error("the last snapshot is gone")
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// object reads a JSON value of the store.
func object(t testing.TB, s store.Store, key string) any {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(e.Value, &v); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return v
}
