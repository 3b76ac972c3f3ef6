// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// changesPerWrite is how many changes of one call count as one against writeRate:
// together they are one entry of the log, and what is left is to check each.
const changesPerWrite = 32

// objectsRules are the rows of meshgate.v1.Objects: each change takes what the row
// of its call of v1.Admin takes, and what is expected to be takes what it takes to
// read it, since a refusal tells of it.
func objectsRules(admin map[string]rule) map[string]rule {
	return map[string]rule{
		meshgatev1connect.ObjectsChangeProcedure: {
			access: identified, fresh: always, writes: true, written: policy.CheckGain, weight: weightOfChanges,
			needs: of(func(c api.Caller, m *meshgatev1.ChangeRequest) ([]mesh.Action, error) {
				return changeActions(admin, c, m)
			}),
		},
	}
}

// changeActions: those of every call that m stands for. A request of no change, or
// of one of nothing, would take nothing.
func changeActions(admin map[string]rule, c api.Caller, m *meshgatev1.ChangeRequest) ([]mesh.Action, error) {
	if len(m.GetChanges()) == 0 {
		return nil, fmt.Errorf("%w: changes: there is none; name one or more", mesh.ErrInvalid)
	}
	var actions []mesh.Action
	add := func(field string, list []*meshgatev1.ObjectState, call func(adminCalls, *meshgatev1.ObjectState) string) error {
		if len(list) > mesh.MaxChanges {
			return fmt.Errorf("%w: %s: %d are too many, the most is %d", mesh.ErrInvalid, field, len(list), mesh.MaxChanges)
		}
		for i, p := range list {
			calls, object, ok := callsOf(p)
			if !ok {
				return fmt.Errorf("%w: %s: [%d]: object is empty; set role, role_binding, group, network_acl, route or edge", mesh.ErrInvalid, field, i)
			}
			more, err := admin[call(calls, p)].actions(c, object)
			if err != nil {
				return fmt.Errorf("%s: [%d]: %w", field, i, err)
			}
			actions = append(actions, more...)
		}
		return nil
	}
	if err := add("changes", m.GetChanges(), adminCalls.change); err != nil {
		return nil, err
	}
	get := func(calls adminCalls, _ *meshgatev1.ObjectState) string { return calls.get }
	if m.GetDryRun() { // its effects tell how objects are
		if err := add("changes", m.GetChanges(), get); err != nil {
			return nil, err
		}
	}
	err := add("expected", m.GetExpected(), get)
	return actions, err
}

// adminCalls are the calls of v1.Admin for objects of a kind.
type adminCalls struct{ put, remove, get string }

// change is the call that a state to be stands for.
func (a adminCalls) change(p *meshgatev1.ObjectState) string {
	if p.GetAbsent() {
		return a.remove
	}
	return a.put
}

// callsOf are the calls for the object of p; false when it has none.
func callsOf(p *meshgatev1.ObjectState) (calls adminCalls, object proto.Message, ok bool) {
	switch o := p.GetObject().(type) {
	case *meshgatev1.ObjectState_Role:
		return adminCalls{v1connect.AdminPutRoleProcedure, v1connect.AdminDeleteRoleProcedure, v1connect.AdminGetRoleProcedure}, o.Role, true
	case *meshgatev1.ObjectState_RoleBinding:
		return adminCalls{v1connect.AdminPutRoleBindingProcedure, v1connect.AdminDeleteRoleBindingProcedure, v1connect.AdminGetRoleBindingProcedure}, o.RoleBinding, true
	case *meshgatev1.ObjectState_Group:
		return adminCalls{v1connect.AdminPutGroupProcedure, v1connect.AdminDeleteGroupProcedure, v1connect.AdminGetGroupProcedure}, o.Group, true
	case *meshgatev1.ObjectState_NetworkAcl:
		return adminCalls{v1connect.AdminPutNetworkACLProcedure, v1connect.AdminDeleteNetworkACLProcedure, v1connect.AdminGetNetworkACLProcedure}, o.NetworkAcl, true
	case *meshgatev1.ObjectState_Route:
		return adminCalls{v1connect.AdminPutRouteProcedure, v1connect.AdminDeleteRouteProcedure, v1connect.AdminGetRouteProcedure}, o.Route, true
	case *meshgatev1.ObjectState_Edge:
		return adminCalls{v1connect.AdminPutEdgeProcedure, v1connect.AdminDeleteEdgeProcedure, v1connect.AdminGetEdgeProcedure}, o.Edge, true
	}
	return adminCalls{}, nil, false
}

// weightOfChanges is what a request counts against writeRate beside the call itself.
func weightOfChanges(msg any) int {
	m, _ := msg.(*meshgatev1.ChangeRequest)
	return min(len(m.GetChanges()), mesh.MaxChanges) / changesPerWrite
}
