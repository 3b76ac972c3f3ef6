// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// adminRules are the rows of v1.Admin: each object takes the verb on its
// resource with its name, and a list takes GET without one. Members have no
// more rights here than their roles give them.
func adminRules() map[string]rule {
	rules := make(map[string]rule)
	for _, o := range []struct {
		resource               v1.RuleResource
		put, remove, get, list string
	}{
		{v1.RuleResource_RESOURCE_ROLES,
			v1connect.AdminPutRoleProcedure, v1connect.AdminDeleteRoleProcedure,
			v1connect.AdminGetRoleProcedure, v1connect.AdminListRolesProcedure},
		{v1.RuleResource_RESOURCE_ROLE_BINDINGS,
			v1connect.AdminPutRoleBindingProcedure, v1connect.AdminDeleteRoleBindingProcedure,
			v1connect.AdminGetRoleBindingProcedure, v1connect.AdminListRoleBindingsProcedure},
		{v1.RuleResource_RESOURCE_GROUPS,
			v1connect.AdminPutGroupProcedure, v1connect.AdminDeleteGroupProcedure,
			v1connect.AdminGetGroupProcedure, v1connect.AdminListGroupsProcedure},
		{v1.RuleResource_RESOURCE_NETWORK_ACLS,
			v1connect.AdminPutNetworkACLProcedure, v1connect.AdminDeleteNetworkACLProcedure,
			v1connect.AdminGetNetworkACLProcedure, v1connect.AdminListNetworkACLsProcedure},
		{v1.RuleResource_RESOURCE_ROUTES,
			v1connect.AdminPutRouteProcedure, v1connect.AdminDeleteRouteProcedure,
			v1connect.AdminGetRouteProcedure, v1connect.AdminListRoutesProcedure},
		{v1.RuleResource_RESOURCE_EDGES,
			v1connect.AdminPutEdgeProcedure, v1connect.AdminDeleteEdgeProcedure,
			v1connect.AdminGetEdgeProcedure, v1connect.AdminListEdgesProcedure},
	} {
		rules[o.put] = rule{access: identified, fresh: always, writes: true, needs: object(o.resource, v1.RuleVerb_VERB_PUT), written: policy.CheckGain}
		rules[o.remove] = rule{access: identified, fresh: always, writes: true, needs: object(o.resource, v1.RuleVerb_VERB_DELETE)}
		rules[o.get] = rule{access: identified, fresh: unlessStale, early: true, needs: object(o.resource, v1.RuleVerb_VERB_GET)}
		rules[o.list] = rule{access: identified, fresh: unlessStale, early: true, needs: every(o.resource), blind: true}
	}
	return rules
}

// object: verb on the object that the message names; of an edge, on both of
// its ends.
func object(resource v1.RuleResource, verb v1.RuleVerb) func(api.Caller, any) ([]mesh.Action, error) {
	named := func(name string) mesh.Action { return mesh.Action{Resource: resource, Name: name, Verb: verb} }
	if resource == v1.RuleResource_RESOURCE_EDGES {
		return of(func(_ api.Caller, m *v1.MeshEdge) ([]mesh.Action, error) {
			return []mesh.Action{named(m.GetSource()), named(m.GetTarget())}, nil
		})
	}
	return of(func(_ api.Caller, m interface{ GetName() string }) ([]mesh.Action, error) {
		return []mesh.Action{named(m.GetName())}, nil
	})
}

// every: GET on a resource, without a name.
func every(resource v1.RuleResource) func(api.Caller, any) ([]mesh.Action, error) {
	return func(api.Caller, any) ([]mesh.Action, error) {
		return []mesh.Action{{Resource: resource, Verb: v1.RuleVerb_VERB_GET}}, nil
	}
}
