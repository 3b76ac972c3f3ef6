// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
)

// TestBootstrap_WritesWhatV1NodesWrite compares keys and values.
func TestBootstrap_WritesWhatV1NodesWrite(t *testing.T) {
	m := storetest.New()
	r := start(t, m)
	me := self(t)
	s := bootstrap(t, r, registry.Bootstrap{
		Self: me, IPv6: netip.MustParsePrefix("fd9f:86d0:8188::/32"), AcceptByDefault: true, DisableRBAC: true,
	})
	entries, version, err := m.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	for _, e := range entries {
		if e.Version != version {
			t.Errorf("%s was written at version %d, want all in one batch at %d", e.Key, e.Version, version)
		}
		got[e.Key] = string(e.Value)
		if strings.HasPrefix(string(e.Value), "{") {
			got[e.Key] = object(t, m, e.Key)
		}
	}
	delete(got["/registry/nodes/gw"].(map[string]any), "joinedAt")
	ipv6 := mesh.NodeIPv6(s.IPv6, me.PublicKey.WireGuard()).String()
	want := map[string]any{
		"/registry/meshstate/ipv4prefix":          "172.16.0.0/12",
		"/registry/meshstate/ipv6prefix":          "fd9f:86d0:8188::/32",
		"/registry/meshstate/meshdomain":          "webmesh.internal.",
		"/registry/rbac-disabled":                 "true",
		"/registry/roles/mesh-admin":              parse(t, `{"name":"mesh-admin","rules":[{"resources":["RESOURCE_ALL"],"verbs":["VERB_ALL"]}]}`),
		"/registry/roles/voters":                  parse(t, `{"name":"voters","rules":[{"resources":["RESOURCE_VOTES"],"verbs":["VERB_PUT"]}]}`),
		"/registry/groups/voters":                 parse(t, `{"name":"voters","subjects":[{"name":"admin","type":"SUBJECT_NODE"},{"name":"gw","type":"SUBJECT_NODE"}]}`),
		"/registry/rolebindings/mesh-admin":       parse(t, `{"name":"mesh-admin","role":"mesh-admin","subjects":[{"name":"admin","type":"SUBJECT_NODE"},{"name":"admin","type":"SUBJECT_USER"}]}`),
		"/registry/rolebindings/bootstrap-voters": parse(t, `{"name":"bootstrap-voters","role":"voters","subjects":[{"name":"voters","type":"SUBJECT_GROUP"}]}`),
		"/registry/network-acls/bootstrap-nodes":  parse(t, `{"name":"bootstrap-nodes","priority":2147483647,"action":"ACTION_ACCEPT","sourceNodes":["group:voters"],"destinationNodes":["group:voters"]}`),
		"/registry/network-acls/default-accept":   parse(t, `{"name":"default-accept","priority":-2147483648,"action":"ACTION_ACCEPT","sourceNodes":["*"],"destinationNodes":["*"],"sourceCidrs":["*"],"destinationCidrs":["*"]}`),
		"/registry/nodes/gw":                      parse(t, `{"id":"gw","publicKey":"`+me.PublicKey.Encode()+`","privateIpv4":"172.16.0.1/32","privateIpv6":"`+ipv6+`"}`),
		"/registry/meshgate/revision":             "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
}

func parse(t testing.TB, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestBootstrap_Defaults(t *testing.T) {
	s := bootstrap(t, start(t, storetest.New()), registry.Bootstrap{Domain: "example.com", Admin: "gw", IPv4: netip.MustParsePrefix("10.9.8.7/24")})
	if s.Domain != "example.com." || s.RBACDisabled || s.IPv4 != netip.MustParsePrefix("10.9.8.0/24") {
		t.Errorf("got domain %q, RBAC disabled %v, IPv4 %v", s.Domain, s.RBACDisabled, s.IPv4)
	}
	if p := s.IPv6; p.Bits() != 32 || p.Addr().As16()[0] != 0xfd {
		t.Errorf("got IPv6 network %v", p)
	}
	if len(s.ACLs) != 2 || s.ACLs[1].Name != registry.ACLGateways || len(s.Groups[0].Subjects) != 1 {
		t.Errorf("got ACLs %v and groups %v, want only those of the voters, and the admin once", s.ACLs, s.Groups)
	}
	n := s.Node("gw")
	if n.IPv4.String() != "10.9.8.1/32" || !n.IPv6.IsValid() || n.JoinedAt.IsZero() {
		t.Errorf("got first node %+v", n)
	}
	other := bootstrap(t, start(t, storetest.New()), registry.Bootstrap{})
	if other.IPv6 == s.IPv6 {
		t.Error("two meshes got the same IPv6 network")
	}
}

func TestBootstrap_AgainChangesNothing(t *testing.T) {
	m := storetest.New()
	me := self(t)
	want := bootstrap(t, start(t, m), registry.Bootstrap{Self: me})
	r := start(t, m)
	got := bootstrap(t, r, registry.Bootstrap{Self: me, Domain: "other.", AcceptByDefault: true, DisableRBAC: true})
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("snapshot changed (-before +after):\n%s", diff)
	}
	err := r.Bootstrap(t.Context(), registry.Bootstrap{Self: mesh.Node{ID: "other", PublicKey: key(t)}})
	if !errors.Is(err, mesh.ErrPrecondition) {
		t.Errorf("another node's bootstrap: got %v, want ErrPrecondition", err)
	}
}

func TestBootstrap_Refuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*registry.Bootstrap)
		want   string
	}{
		{"no key", func(b *registry.Bootstrap) { b.Self.PublicKey = mesh.PublicKey{} }, "public_key"},
		{"bad id", func(b *registry.Bootstrap) { b.Self.ID = "a/b" }, "id"},
		{"bad admin", func(b *registry.Bootstrap) { b.Admin = "*" }, "admin"},
		{"IPv6 for IPv4", func(b *registry.Bootstrap) { b.IPv4 = netip.MustParsePrefix("fd00::/32") }, "ipv4"},
		{"tiny IPv4", func(b *registry.Bootstrap) { b.IPv4 = netip.MustParsePrefix("10.0.0.0/31") }, "ipv4"},
		{"IPv4 for IPv6", func(b *registry.Bootstrap) { b.IPv6 = netip.MustParsePrefix("10.0.0.0/8") }, "ipv6"},
		{"tiny IPv6", func(b *registry.Bootstrap) { b.IPv6 = netip.MustParsePrefix("fd00::/64") }, "ipv6"},
		{"bad endpoint", func(b *registry.Bootstrap) { b.Self.PrimaryEndpoint = "no host" }, "primary_endpoint"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := storetest.New()
			b := registry.Bootstrap{Self: self(t)}
			tt.change(&b)
			err := start(t, m).Bootstrap(t.Context(), b)
			if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want ErrInvalid that names %s", err, tt.want)
			}
			if entries, _, _ := m.List(t.Context(), ""); len(entries) > 0 {
				t.Errorf("%d keys were written", len(entries))
			}
		})
	}
}

func TestBootstrap_DoesNotWriteOverWhatItCannotRead(t *testing.T) {
	for _, key := range []string{"/registry/meshstate/ipv6prefix", "/registry/nodes/gw"} {
		m := storetest.New()
		r := start(t, m)
		write(t, m, r, put(key, "?"))
		if err := r.Bootstrap(t.Context(), registry.Bootstrap{Self: self(t)}); !errors.Is(err, mesh.ErrPrecondition) {
			t.Errorf("%s: got %v, want ErrPrecondition", key, err)
		}
	}
}

// TestBootstrap_Concurrent shows that one of many bootstraps makes the mesh.
func TestBootstrap_Concurrent(t *testing.T) {
	m := storetest.New()
	me := self(t)
	errs := make(chan error)
	const n = 8
	for range n {
		r := start(t, m)
		go func() { errs <- r.Bootstrap(t.Context(), registry.Bootstrap{Self: me}) }()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	e, err := m.Get(t.Context(), "/registry/meshgate/revision")
	if err != nil {
		t.Fatal(err)
	}
	entries, _, _ := m.List(t.Context(), "")
	for _, other := range entries {
		if other.Version != e.Version {
			t.Errorf("%s is of another bootstrap", other.Key)
		}
	}
}

var _ store.Store = (*forgetful)(nil)

// subjectsOf are the names in the group of the gateways.
func subjectsOf(t *testing.T, s *mesh.Snapshot) (names []string) {
	t.Helper()
	for _, g := range s.Groups {
		if g.Name != registry.GroupVoters {
			continue
		}
		for _, subject := range g.Subjects {
			names = append(names, subject.Name)
		}
	}
	return names
}

func TestAddGateway_MakesAMemberOne(t *testing.T) {
	r := start(t, storetest.New())
	bootstrap(t, r, registry.Bootstrap{})
	if err := r.AddGateway(t.Context(), "gw2"); !errors.Is(err, mesh.ErrNotFound) {
		t.Errorf("a stranger: %v, want ErrNotFound", err)
	}
	if _, err := r.Update(t.Context(), func(tx *registry.Tx) error {
		return tx.PutNode(&mesh.Node{ID: "gw2", PublicKey: key(t)})
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.AddGateway(t.Context(), "gw2"); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"admin", "gw", "gw2"}
	if diff := cmp.Diff(want, subjectsOf(t, r.Snapshot())); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := r.RemoveGateway(t.Context(), "gw2"); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want[:2], subjectsOf(t, r.Snapshot())); diff != "" {
		t.Errorf("gateways after the removal (-want +got):\n%s", diff)
	}
}
