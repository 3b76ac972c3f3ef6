// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"testing"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestClusterRules_TakeWhatTheySay(t *testing.T) {
	const votes, observers = v1.RuleResource_RESOURCE_VOTES, v1.RuleResource_RESOURCE_OBSERVERS
	for _, tt := range []struct {
		procedure string
		msg       any
		want      []mesh.Action
	}{
		{meshgatev1connect.ClusterPromoteProcedure, &meshgatev1.PromoteRequest{Id: "gw2"}, []mesh.Action{put(votes, "")}},
		{meshgatev1connect.ClusterDemoteProcedure, &meshgatev1.DemoteRequest{Id: "gw2"}, []mesh.Action{{Resource: votes, Verb: v1.RuleVerb_VERB_DELETE}}},
		{meshgatev1connect.ClusterRemoveProcedure, &meshgatev1.RemoveRequest{Id: "gw2"}, []mesh.Action{
			{Resource: votes, Verb: v1.RuleVerb_VERB_DELETE}, {Resource: observers, Verb: v1.RuleVerb_VERB_DELETE}}},
		{meshgatev1connect.ClusterTransferLeadershipProcedure, &meshgatev1.TransferLeadershipRequest{Id: "gw2"}, []mesh.Action{put(votes, "")}},
		{meshgatev1connect.ClusterTransferLeadershipProcedure, &meshgatev1.TransferLeadershipRequest{}, []mesh.Action{put(votes, "")}},
		{meshgatev1connect.ClusterBackupProcedure, &meshgatev1.BackupRequest{}, []mesh.Action{everyAction()}},
		{meshgatev1connect.ClusterStatusProcedure, &meshgatev1.StatusRequest{}, []mesh.Action{{Resource: v1.RuleResource_RESOURCE_EDGES, Verb: v1.RuleVerb_VERB_GET}}},
	} {
		got, err := newRules(false)[tt.procedure].actions(api.Caller{ID: "x"}, tt.msg)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: takes %v, want %v (%v)", tt.procedure, got, tt.want, err)
		}
	}
}

// A mesh that lost its majority is got out of the gateway that is left: to
// those who say so. Whatever changes something wants a leader.
func TestClusterRules_OnlyABackupMayBeStale(t *testing.T) {
	for procedure, r := range clusterRules() {
		want := always
		switch procedure {
		case meshgatev1connect.ClusterBackupProcedure:
			want = unlessStale
		case meshgatev1connect.ClusterStatusProcedure:
			want = known
		}
		if r.fresh != want {
			t.Errorf("%s: got freshness %v, want %v", procedure, r.fresh, want)
		}
	}
}
