// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A gateway's word on who its callers are counts because of a grant, not
// because of what the node says of itself, and no longer than the grant does.
func TestBelieves_WhoMayVote(t *testing.T) {
	votes := mesh.Role{Name: "voters", Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
	}}}
	granted := mesh.RoleBinding{Name: "voters", Role: "voters", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "gw-2"}}}
	gateway := &mesh.Node{ID: "gw-2", Features: []mesh.Feature{{Kind: v1.Feature_ICE_NEGOTIATION, Port: 8443}}}
	for _, tt := range []struct {
		name string
		node *mesh.Node
		snap *mesh.Snapshot
		want bool
	}{
		{"with the grant", gateway, &mesh.Snapshot{Roles: []mesh.Role{votes}, Bindings: []mesh.RoleBinding{granted}}, true},
		{"without it", gateway, &mesh.Snapshot{Roles: []mesh.Role{votes}}, false},
		{"with it, but no gateway", &mesh.Node{ID: "gw-2"}, &mesh.Snapshot{Roles: []mesh.Role{votes}, Bindings: []mesh.RoleBinding{granted}}, false},
		{"nobody", nil, &mesh.Snapshot{}, false},
		{"before the mesh was entered", gateway, nil, false},
	} {
		g := &Gateway{cfg: Config{Node: newFakeNode(tt.snap)}}
		if got := g.believes(tt.node); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
