// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Nodes may offer one network together once an admin has given exactly that one
// to a group with them, and nobody else may.
func TestRoutes_SharedByAnAdminsRoute(t *testing.T) {
	f := newFixture(t)
	_, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error {
		group := mesh.Group{Name: "routers"}
		for _, id := range []string{"r1", "r2"} {
			group.Subjects = append(group.Subjects, mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: id})
		}
		if err := tx.PutGroup(group); err != nil {
			return err
		}
		return tx.PutRoute(mesh.Route{Name: "office", Node: "group:routers", Destinations: prefixes("10.5.0.0/16", "10.7.0.0/16")})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []mesh.NodeID{"r1", "r2"} {
		r := request(t, id)
		for _, wrong := range []string{"10.5.0.0/17", "10.4.0.0/15"} {
			r.Routes = prefixes(wrong)
			_, err := f.Join(t.Context(), r)
			f.wantRefused(err, mesh.ErrExists, `routes: `+wrong+` overlaps 10.5.0.0/16, which "group:routers" offers`)
		}
		r.Routes = prefixes("10.5.0.0/16")
		f.join(r)
		f.join(r) // again
	}
	stranger := request(t, "r3")
	stranger.Routes = prefixes("10.5.0.0/16")
	_, err = f.Join(t.Context(), stranger)
	f.wantRefused(err, mesh.ErrExists, "only one node can offer a network")
	stranger.Routes = prefixes("10.6.0.0/16")
	f.join(stranger)
	// What one has by itself is nobody else's, whoever shares other networks.
	r := request(t, "r4")
	r.Routes = prefixes("10.6.0.0/16")
	_, err = f.Join(t.Context(), r)
	f.wantRefused(err, mesh.ErrExists, `which "r3" offers`)
}
