// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A route of a group may name exactly what its members offer themselves, before
// they do or after.
func TestChange_RouteOfAGroupWhoseMembersOfferIt(t *testing.T) {
	w := newWorld(t)
	node := func(name string) mesh.Subject { return mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: name} }
	w.must(mesh.Change{Group: &mesh.Group{Name: "routers", Subjects: []mesh.Subject{node("a"), node("b")}}})
	w.must(mesh.Change{Group: &mesh.Group{Name: "others", Subjects: []mesh.Subject{node("b")}}})
	_, err := w.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return tx.PutRoute(mesh.Route{Name: registry.AutoRoute("a"), Node: "a", Destinations: prefixes("10.5.0.0/16")})
	})
	if err != nil {
		t.Fatal(err)
	}
	put := func(group, network string) error {
		_, err := w.Change(t.Context(), mesh.Change{Route: &mesh.Route{Name: "office", Node: "group:" + group, Destinations: prefixes(network)}}, nil)
		return err
	}
	for _, tt := range [][2]string{{"others", "10.5.0.0/16"}, {"routers", "10.5.1.0/24"}, {"routers", "10.4.0.0/15"}} {
		if err := put(tt[0], tt[1]); !errors.Is(err, mesh.ErrExists) {
			t.Errorf("%v: %v, want ErrExists", tt, err)
		}
	}
	if err := put("routers", "10.5.0.0/16"); err != nil {
		t.Errorf("of a group with the node that offers it: %v", err)
	}
}

// What routers to one network offer can be put again as it is, and in part, but
// nothing else that touches it.
func TestChange_RoutesOfNodesThatShareANetwork(t *testing.T) {
	w := newWorld(t)
	node := func(name string) mesh.Subject { return mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: name} }
	w.must(mesh.Change{Group: &mesh.Group{Name: "routers", Subjects: []mesh.Subject{node("a"), node("b")}}})
	office := mesh.Route{Name: "office", Node: "group:routers", Destinations: prefixes("10.5.0.0/16", "10.6.0.0/16")}
	own := func(id mesh.NodeID, networks ...string) mesh.Route {
		return mesh.Route{Name: registry.AutoRoute(id), Node: string(id), Destinations: prefixes(networks...)}
	}
	a, b, c := own("a", "10.5.0.0/16"), own("b", "10.5.0.0/16", "10.6.0.0/16"), own("c", "10.9.0.0/16")
	put := func(r mesh.Route) error {
		_, err := w.Change(t.Context(), mesh.Change{Route: &r}, nil)
		return err
	}
	_, err := w.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return errors.Join(tx.PutNode(&mesh.Node{ID: "c", PublicKey: key(t)}), tx.PutRoute(office), tx.PutRoute(a), tx.PutRoute(b))
	})
	if err != nil {
		t.Fatal(err)
	}
	before := w.registry.Snapshot()
	var changes []mesh.Change
	for i := range before.Routes {
		if err := put(before.Routes[i]); err != nil {
			t.Errorf("as it is: %v", err)
		}
		changes = append(changes, mesh.Change{Route: &before.Routes[i]})
	}
	if err := Preview(before, changes); err != nil {
		t.Errorf("as it is, in a preview: %v", err)
	}
	if after := w.registry.Snapshot(); after.Version != before.Version {
		t.Errorf("version %d became %d", before.Version, after.Version)
	}
	for _, r := range []mesh.Route{own("a", "10.5.0.0/16", "10.6.0.0/16"), own("b", "10.5.0.0/16"), c} {
		if err := put(r); err != nil {
			t.Errorf("changed: %v", err)
		}
	}
	for _, r := range []mesh.Route{
		own("a", "10.5.1.0/24"), own("a", "10.4.0.0/15"), own("c", "10.5.0.0/16"),
		{Name: "more", Node: "c", Destinations: prefixes("10.5.0.0/16")},
	} {
		if err := put(r); !errors.Is(err, mesh.ErrExists) {
			t.Errorf("%s with %v: %v, want ErrExists", r.Name, r.Destinations, err)
		}
	}
}
