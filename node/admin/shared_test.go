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
		_, err := w.Change(t.Context(), mesh.Change{Route: &mesh.Route{Name: "office", Node: "group:" + group, Destinations: prefixes(network)}})
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
