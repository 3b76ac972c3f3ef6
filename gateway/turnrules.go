// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// turnRules are the rows of meshgate.v1.Turn. A list tells of everybody from where
// they are relayed, and how much: it takes GET on every resource, as the whole state
// does, and to end what somebody holds takes DELETE on every one. Gateways, which ask
// each other over the mesh, have the grant of a vote, and asked their callers first.
// What is relayed is no part of the state: a list is of the moment.
func turnRules() map[string]rule {
	takes := func(verb v1.RuleVerb) func(api.Caller, any) ([]mesh.Action, error) {
		return func(api.Caller, any) ([]mesh.Action, error) {
			return []mesh.Action{{Resource: v1.RuleResource_RESOURCE_ALL, Verb: verb}}, nil
		}
	}
	return map[string]rule{
		meshgatev1connect.TurnListAllocationsProcedure:  {access: identified, seated: true, blind: true, needs: takes(v1.RuleVerb_VERB_GET)},
		meshgatev1connect.TurnCloseAllocationsProcedure: {access: identified, seated: true, blind: true, writes: true, fresh: always, needs: takes(v1.RuleVerb_VERB_DELETE)},
	}
}
