// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"testing"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// bot may enrol nodes and nothing else; admin may do everything.
func enrolment() *mesh.Snapshot {
	return &mesh.Snapshot{
		Roles: []mesh.Role{
			{Name: "all", Rules: []mesh.Rule{{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_ALL}}}},
			{Name: "enrol", Rules: []mesh.Rule{{
				Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_EDGES}, Names: []string{"nas", "admin"}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
			}}},
		},
		Bindings: []mesh.RoleBinding{
			{Name: "admins", Role: "all", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "admin"}}},
			{Name: "bots", Role: "enrol", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "bot"}}},
		},
	}
}

// What a node may say of itself without a role is a list; all else, and what is
// new, is denied.
func TestClaims_DenyByDefault(t *testing.T) {
	for number, name := range v1.Feature_name {
		f := v1.Feature(number)
		free := f == v1.Feature_NODES || f == v1.Feature_METRICS || f == v1.Feature_LEADER_PROXY
		if got := claims([]*v1.FeaturePort{{Feature: v1.Feature_NODES}, {Feature: f}}); (len(got) == 0) != free {
			t.Errorf("%s takes %v, want nothing: %v", name, got, free)
		}
	}
}

func TestRules_NobodyBecomesWhatOthersBelieveWithoutARole(t *testing.T) {
	rules := newRules(false)
	feature := func(f v1.Feature) []*v1.FeaturePort { return []*v1.FeaturePort{{Feature: f, Port: 8443}} }
	member := api.Caller{ID: "nas", Node: &mesh.Node{ID: "nas"}}
	for _, tc := range []struct {
		name      string
		procedure string
		caller    api.Caller
		msg       any
		denied    bool
	}{
		{"a bot enrols a node", v1connect.MembershipJoinProcedure, api.Caller{ID: "bot"}, &v1.JoinRequest{Id: "nas", Features: feature(v1.Feature_NODES)}, false},
		{"a bot enrols a node named like the admin", v1connect.MembershipJoinProcedure, api.Caller{ID: "bot"}, &v1.JoinRequest{Id: "admin"}, true},
		{"the admin does so knowingly", v1connect.MembershipJoinProcedure, api.Caller{ID: "admin"}, &v1.JoinRequest{Id: "bot"}, false},
		{"a bot enrols a gateway", v1connect.MembershipJoinProcedure, api.Caller{ID: "bot"}, &v1.JoinRequest{Id: "nas", Features: feature(v1.Feature_MEMBERSHIP)}, true},
		{"the admin enrols a gateway", v1connect.MembershipJoinProcedure, api.Caller{ID: "admin"}, &v1.JoinRequest{Id: "nas", Features: feature(v1.Feature_MEMBERSHIP)}, false},
		{"a member calls itself a gateway", v1connect.MembershipUpdateProcedure, member, &v1.UpdateRequest{Id: "nas", Features: feature(v1.Feature_ICE_NEGOTIATION)}, true},
		{"a member calls itself a TURN server", v1connect.MembershipUpdateProcedure, member, &v1.UpdateRequest{Id: "nas", Features: feature(v1.Feature_TURN_SERVER)}, true},
		{"a member says that it runs", v1connect.MembershipUpdateProcedure, member, &v1.UpdateRequest{Id: "nas", Features: feature(v1.Feature_NODES)}, false},
		{"a v1 node says what all of them do", v1connect.MembershipUpdateProcedure, member, &v1.UpdateRequest{Id: "nas",
			Features: append(feature(v1.Feature_NODES), append(feature(v1.Feature_LEADER_PROXY), feature(v1.Feature_METRICS)...)...)}, false},
		{"a member calls itself nothing that is known", v1connect.MembershipUpdateProcedure, member, &v1.UpdateRequest{Id: "nas", Features: feature(99)}, true},
		{"a user is its DNS server", v1connect.MembershipUpdateProcedure, api.Caller{ID: "nas"}, &v1.UpdateRequest{Id: "nas", Features: feature(v1.Feature_MESH_DNS)}, true},
		{"a user joins as one, behind the usual", v1connect.MembershipJoinProcedure, api.Caller{ID: "nas"}, &v1.JoinRequest{Id: "nas",
			Features: append(feature(v1.Feature_NODES), feature(v1.Feature_MESH_DNS)...)}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := rules[tc.procedure].authorize(enrolment(), tc.caller, tc.msg)
			if denied := errors.Is(err, mesh.ErrDenied); denied != tc.denied || (err != nil && !denied) {
				t.Errorf("got %v, want denied: %v", err, tc.denied)
			}
		})
	}
}
