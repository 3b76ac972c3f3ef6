// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// storeRules are the rows of meshgate.v1.Store, which has the whole state. To
// read it takes GET on every resource, or, of a member over the mesh, the grant
// of a vote: with STORAGE_PROVIDER, which takes the same, it would hold a copy.
// To write it, around all checks of the other services, takes everything.
func storeRules() map[string]rule {
	read := rule{access: identified, seated: true, blind: true, needs: func(api.Caller, any) ([]mesh.Action, error) {
		return []mesh.Action{{Resource: v1.RuleResource_RESOURCE_ALL, Verb: v1.RuleVerb_VERB_GET}}, nil
	}}
	return map[string]rule{
		meshgatev1connect.StoreGetProcedure:   read,
		meshgatev1connect.StoreListProcedure:  read,
		meshgatev1connect.StoreWatchProcedure: read,
		meshgatev1connect.StoreSyncProcedure:  read,
		meshgatev1connect.StoreApplyProcedure: {access: identified, writes: true, fresh: always, needs: everything, blind: true},
	}
}
