// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// oneRelay is a TURN server with an allocation that never ends.
type oneRelay struct{}

func (oneRelay) Allocations() []api.Allocation {
	return []api.Allocation{{ID: "x", User: "eve", Transport: "UDP"}}
}
func (oneRelay) CloseAllocation(id string) bool { return id == "x" }
func (oneRelay) CloseUser(string) int           { return 1 }

// Who may see what is relayed, and who may end it: where somebody is, and how much
// they say, is not for all who read the mesh.
func TestTurn_Roles(t *testing.T) {
	s := serve(t, func(c *Config) { c.Relays = oneRelay{} })
	snap := testSnapshot()
	bind := func(who string, kind v1.SubjectType, rules ...mesh.Rule) {
		snap.Roles = append(snap.Roles, mesh.Role{Name: "more-" + who, Rules: rules})
		snap.Bindings = append(snap.Bindings, mesh.RoleBinding{Name: "more-" + who, Role: "more-" + who, Subjects: []mesh.Subject{{Type: kind, Name: who}}})
	}
	bind("opener", v1.SubjectType_SUBJECT_USER, allow(v1.RuleResource_RESOURCE_ALL, v1.RuleVerb_VERB_GET))
	bind("nobody", v1.SubjectType_SUBJECT_USER, allow(v1.RuleResource_RESOURCE_ALL, v1.RuleVerb_VERB_DELETE),
		allow(v1.RuleResource_RESOURCE_VOTES, v1.RuleVerb_VERB_PUT))
	bind("viewer", v1.SubjectType_SUBJECT_USER, allow(v1.RuleResource_RESOURCE_DATA_CHANNELS, v1.RuleVerb_VERB_ALL))
	bind("gw-2", v1.SubjectType_SUBJECT_NODE, allow(v1.RuleResource_RESOURCE_VOTES, v1.RuleVerb_VERB_PUT))
	s.node.set(snap)
	const from = "from " // marks a member by its mesh address
	for who, want := range map[string]struct{ list, close bool }{
		"":                 {},
		"admin":            {list: true, close: true},
		"opener":           {list: true},
		"nobody":           {close: true}, // a vote counts for who shows a WireGuard key
		"viewer":           {},
		from + "127.0.0.3": {list: true, close: true},
		from + "127.0.0.2": {},
	} {
		addr, c := s.public, httpClient(t, true, "", nil)
		if source, member := strings.CutPrefix(who, from); member {
			addr, c = s.mesh, httpClient(t, true, source, nil)
		} else {
			c = bearer(c, who)
		}
		refusal := connect.CodePermissionDenied
		if who == "" {
			refusal = connect.CodeUnauthenticated
		}
		code := func(allowed bool) connect.Code {
			if allowed {
				return codeOK
			}
			return refusal
		}
		for _, own := range []bool{false, true} {
			wantCode(t, callOnce(t, c, "http://"+addr, meshgatev1connect.TurnListAllocationsProcedure, &meshgatev1.ListAllocationsRequest{Own: own}), code(want.list), "")
			wantCode(t, callOnce(t, c, "http://"+addr, meshgatev1connect.TurnCloseAllocationsProcedure, &meshgatev1.CloseAllocationsRequest{Id: "gw-1/x", Own: own}), code(want.close), "")
			wantCode(t, callOnce(t, c, "http://"+addr, meshgatev1connect.TurnCloseAllocationsProcedure, &meshgatev1.CloseAllocationsRequest{User: "eve", Own: own}), code(want.close), "")
		}
	}
}

// A node that is no gateway relays for nobody.
func TestTurn_NodeWithoutState(t *testing.T) {
	s := serve(t, nil)
	snap := testSnapshot()
	snap.Nodes = snap.Nodes.With(&mesh.Node{ID: "gw-1", Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}})
	s.node.set(snap)
	wantCode(t, s.as(t, "admin", meshgatev1connect.TurnListAllocationsProcedure, &meshgatev1.ListAllocationsRequest{}), connect.CodeUnimplemented, "ask a gateway")
	wantCode(t, s.as(t, "admin", meshgatev1connect.TurnCloseAllocationsProcedure, &meshgatev1.CloseAllocationsRequest{User: "x"}), connect.CodeUnimplemented, "ask a gateway")
}
