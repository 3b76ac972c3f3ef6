// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// What a node is follows from its features, in one place.
func TestNode_IsWhatItsFeaturesSay(t *testing.T) {
	none := v1.Feature(-1)
	for _, tt := range []struct {
		feature                             v1.Feature
		holdsState, followsNone, negotiates bool
	}{
		{none, false, false, false},
		{v1.Feature_MEMBERSHIP, true, true, true},
		{v1.Feature_STORAGE_PROVIDER, false, true, false},
		{v1.Feature_ICE_NEGOTIATION, false, false, true},
		{v1.Feature_STORAGE_QUERIER, false, false, false},
		{v1.Feature_TURN_SERVER, false, false, false},
	} {
		n := &mesh.Node{Features: []mesh.Feature{{Kind: v1.Feature_NODES}, {Kind: tt.feature}}}
		if n.HoldsState() != tt.holdsState || n.FollowsNone() != tt.followsNone || n.Negotiates() != tt.negotiates {
			t.Errorf("a node with %s holds state: %v, follows none: %v, negotiates: %v",
				tt.feature, n.HoldsState(), n.FollowsNone(), n.Negotiates())
		}
	}
	var absent *mesh.Node
	if absent.HoldsState() || absent.FollowsNone() || absent.Negotiates() {
		t.Error("a node that is not there is something")
	}
}
