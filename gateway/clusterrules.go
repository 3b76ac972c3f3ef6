// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// clusterRules are the rows of meshgate.v1.Cluster: a vote, or a copy, is given
// by PUT and taken by DELETE on its resource, without a name, as in a join. A
// backup has all that there is; one that is taken early has no more than who may
// take it could have had when the gateway ended.
func clusterRules() map[string]rule {
	const votes, observers = v1.RuleResource_RESOURCE_VOTES, v1.RuleResource_RESOURCE_OBSERVERS
	change := func(needs ...mesh.Action) rule {
		return rule{access: identified, writes: true, fresh: always, blind: true,
			needs: func(api.Caller, any) ([]mesh.Action, error) { return needs, nil }}
	}
	give := change(put(votes, ""))
	take := mesh.Action{Resource: votes, Verb: v1.RuleVerb_VERB_DELETE}
	return map[string]rule{
		meshgatev1connect.ClusterStatusProcedure:             {access: identified, needs: readMesh, blind: true, early: true},
		meshgatev1connect.ClusterPromoteProcedure:            give,
		meshgatev1connect.ClusterTransferLeadershipProcedure: give,
		meshgatev1connect.ClusterDemoteProcedure:             change(take),
		meshgatev1connect.ClusterRemoveProcedure:             change(take, mesh.Action{Resource: observers, Verb: v1.RuleVerb_VERB_DELETE}),
		meshgatev1connect.ClusterBackupProcedure:             {access: identified, needs: everything, blind: true, fresh: unlessStale, early: true},
	}
}
