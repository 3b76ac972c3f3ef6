// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
)

// removals are the good changes undone, what names others first.
func removals() []mesh.Change {
	list := good()
	slices.Reverse(list)
	for i := range list {
		list[i].Delete = true
	}
	return list
}

// Each change is checked upon those before it, and the snapshot is only read.
func TestPreview_ChecksEachChangeUponThoseBefore(t *testing.T) {
	w := newWorld(t)
	s := w.registry.Snapshot()
	groups, version := slices.Clone(s.Groups), s.Version
	if err := Preview(s, append(good(), removals()...)); err != nil {
		t.Error(err)
	}
	half := func(name, cidr string) mesh.Change {
		return mesh.Change{Route: &mesh.Route{Name: name, Node: "a", Destinations: prefixes(cidr)}}
	}
	for name, tt := range map[string]struct {
		changes []mesh.Change
		want    error
		text    string
	}{
		"too much together": {[]mesh.Change{half("x", "0.0.0.0/2"), half("y", "64.0.0.0/2"), half("z", "192.0.0.0/3")}, mesh.ErrInvalid, `put route "`},
		"a group in use":    {[]mesh.Change{{Group: &mesh.Group{Name: "g", Subjects: []mesh.Subject{user("x")}}}, {ACL: &mesh.ACL{Name: "n", SourceNodes: []string{"group:g"}}}, {Group: &mesh.Group{Name: "g"}, Delete: true}}, mesh.ErrPrecondition, `delete group "g": failed precondition: name: the network ACL "n" names`},
		"a role that went":  {[]mesh.Change{{Role: reader()}, {Role: reader(), Delete: true}, good()[1]}, mesh.ErrPrecondition, `put role binding "readers": `},
		"an endpoint":       {[]mesh.Change{half("x", "198.18.0.0/16")}, mesh.ErrInvalid, `at which node "gw"`},
	} {
		if err := Preview(s, tt.changes); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, tt.want, tt.text)
		}
	}
	if diff := cmp.Diff(groups, w.registry.Snapshot().Groups); diff != "" || w.registry.Snapshot().Version != version {
		t.Errorf("the mesh changed (-want +got):\n%s", diff)
	}
}
