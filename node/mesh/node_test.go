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
		feature                                       v1.Feature
		holdsState, keepsLog, followsNone, negotiates bool
	}{
		{none, false, false, false, false},
		{v1.Feature_MEMBERSHIP, true, false, true, true},
		{v1.Feature_STORAGE_PROVIDER, false, true, true, false},
		{v1.Feature_ICE_NEGOTIATION, false, false, false, true},
		{v1.Feature_STORAGE_QUERIER, false, false, false, false},
		{v1.Feature_TURN_SERVER, false, false, false, false},
	} {
		n := &mesh.Node{Features: []mesh.Feature{{Kind: v1.Feature_NODES}, {Kind: tt.feature}}}
		if n.HoldsState() != tt.holdsState || n.KeepsLog() != tt.keepsLog || n.FollowsNone() != tt.followsNone || n.Negotiates() != tt.negotiates {
			t.Errorf("a node with %s holds state: %v, keeps the log: %v, follows none: %v, negotiates: %v",
				tt.feature, n.HoldsState(), n.KeepsLog(), n.FollowsNone(), n.Negotiates())
		}
	}
	var absent *mesh.Node
	if absent.HoldsState() || absent.KeepsLog() || absent.FollowsNone() || absent.Negotiates() {
		t.Error("a node that is not there is something")
	}
}
