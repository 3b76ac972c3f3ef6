// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// TestStorageQuery_ShowsWhatTheRoleNames reads and watches a prefix of several
// parts of the registry: what lies between them takes a role that reads everything.
func TestStorageQuery_ShowsWhatTheRoleNames(t *testing.T) {
	s, n := serveState(t)
	rule := mesh.Rule{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ROLES, v1.RuleResource_RESOURCE_ROLE_BINDINGS, v1.RuleResource_RESOURCE_ROUTES},
		Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_GET},
	}
	const secret, role = "/registry/rz", "/registry/roles/of-nobody" // no part of the registry has the first
	for _, tt := range []struct {
		rule  mesh.Rule
		shows bool
	}{
		{rule, false},
		{allow(v1.RuleResource_RESOURCE_ALL, v1.RuleVerb_VERB_GET), true},
	} {
		n.grant(t, "nobody", tt.rule)
		n.write(t, secret, "secret")
		c := s.queries(t, "nobody")
		for _, command := range []v1.QueryRequest_QueryCommand{v1.QueryRequest_LIST, v1.QueryRequest_ITER} {
			answers, err := query(t, c, command, "/registry/r")
			var keys []string
			for _, a := range answers {
				keys = append(append(keys, a.GetKey()), a.GetValue()...)
			}
			if err != nil || !slices.Contains(keys, role) || slices.Contains(keys, secret) != tt.shows {
				t.Errorf("%v: %v shows %q, %v, want %q among it: %t", tt.rule, command, keys, err, secret, tt.shows)
			}
		}
		stream, err := c.Subscribe(testContext(t), connect.NewRequest(&v1.SubscribeRequest{Prefix: "/registry/r"}))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		stream.ResponseHeader()
		n.write(t, secret, "changed")
		n.grant(t, "viewer", tt.rule)
		if !stream.Receive() || (stream.Msg().GetKey() == secret) != tt.shows {
			t.Errorf("%v: the first change is %v, %v, want that of %q: %t", tt.rule, stream.Msg(), stream.Err(), secret, tt.shows)
		}
		n.grant(t, "viewer")
	}
}
