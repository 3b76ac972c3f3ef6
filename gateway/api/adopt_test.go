// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// lagging is a gateway whose state is behind what Sync gets it.
type lagging struct {
	*fake
	latest *mesh.Snapshot
	err    error
}

func (l *lagging) Sync(context.Context) (*mesh.Snapshot, error) {
	l.syncs++
	return l.latest, l.err
}

// A subscriber that comes from another gateway gets nothing older than it has.
func TestSubscribePeers_CatchesUpWithTheSubscriber(t *testing.T) {
	f := testFake(t)
	f.snap.Revision = 5
	latest := *f.snap
	latest.Revision = 9
	latest.Nodes = latest.Nodes.With(&mesh.Node{ID: "late"})
	for name, tt := range map[string]struct {
		id    mesh.NodeID
		after uint64
		sync  error
		want  uint64 // 0: unavailable
		syncs int
	}{
		"of a v1 node":        {"phone", 0, nil, 5, 0},
		"as new":              {"phone", 5, nil, 5, 0},
		"newer":               {"phone", 7, nil, 9, 1},
		"just joined":         {"late", 0, nil, 9, 1},
		"of a restored mesh":  {"phone", 12, nil, 0, 1},
		"without a leader":    {"phone", 7, mesh.ErrUnavailable, 0, 1},
		"as new, no leader":   {"phone", 5, mesh.ErrUnavailable, 5, 0},
		"a stranger, to both": {"nobody", 0, nil, 9, 1},
	} {
		l := &lagging{fake: f, latest: &latest, err: tt.sync}
		f.syncs = 0
		s, err := (&membershipService{state: l}).caughtUp(t.Context(), tt.id, tt.after)
		if tt.want == 0 && !errors.Is(err, mesh.ErrUnavailable) || tt.want != 0 && (err != nil || s.Revision != tt.want) || f.syncs != tt.syncs {
			t.Errorf("%s: %v after %d looks at the leader, %v", name, s, f.syncs, err)
		}
	}
}

func TestEnrolment_AdoptAnswersAsAJoin(t *testing.T) {
	f := testFake(t)
	f.snap.Revision = 8
	e := &enrolmentService{state: f, membership: &membershipService{state: f, members: f}}
	res, err := e.Adopt(t.Context(), connect.NewRequest(&meshgatev1.AdoptRequest{Id: "phone"}))
	if err != nil {
		t.Fatal(err)
	}
	if a := res.Msg; f.adopted != "phone" || a.GetAddressIpv4() != "10.9.0.2/32" || a.GetGatewayId() != "gw" || a.GetRevision() != 8 || len(a.GetPeers()) != 1 || !a.GetTime().IsValid() {
		t.Errorf("adopted %q: %v", f.adopted, a)
	}
	for _, id := range []string{"", "../x", "leader", strings.Repeat("x", 254)} {
		if _, err := e.Adopt(t.Context(), connect.NewRequest(&meshgatev1.AdoptRequest{Id: id})); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	f.err = mesh.ErrNotFound
	if _, err := e.Adopt(t.Context(), connect.NewRequest(&meshgatev1.AdoptRequest{Id: "phone"})); !errors.Is(err, mesh.ErrNotFound) {
		t.Errorf("a stranger: %v", err)
	}
	f.self = "phone"
	if _, err := e.Adopt(t.Context(), connect.NewRequest(&meshgatev1.AdoptRequest{Id: "phone"})); !errors.Is(err, mesh.ErrUnsupported) {
		t.Errorf("a node without state: %v", err)
	}
}

// Members are told of nodes that may be gateways, not of all that say they are.
func TestDirectory_GatewaysAreThoseThatMayBe(t *testing.T) {
	f := testFake(t)
	s := *f.snap
	gate := func(id mesh.NodeID) {
		n := *s.Node("gw")
		n.ID, n.PublicKey, n.IPv4 = id, testKey(t), netip.Prefix{}
		s.Nodes = s.Nodes.With(&n)
	}
	gate("gw2")
	gate("removed")
	s.Roles = []mesh.Role{{Name: "voters", Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
	}}}}
	s.Bindings = []mesh.RoleBinding{{Name: "voters", Role: "voters", Subjects: []mesh.Subject{
		{Type: v1.SubjectType_SUBJECT_NODE, Name: "gw"}, {Type: v1.SubjectType_SUBJECT_NODE, Name: "gw2"},
	}}}
	var d directory
	names := func(s *mesh.Snapshot, but mesh.NodeID) map[string]bool {
		all := map[string]bool{}
		for _, n := range d.gatewaysBut(s, but) {
			all[n.GetId()] = true
		}
		return all
	}
	if got := names(&s, "phone"); len(got) != 2 || !got["gw"] || !got["gw2"] {
		t.Errorf("gateways: %v", got)
	}
	if got := names(&s, "gw"); len(got) != 1 || !got["gw2"] {
		t.Errorf("gateways besides gw: %v", got)
	}
	next := s
	next.Bindings = []mesh.RoleBinding{{Name: "voters", Role: "voters", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "gw2"}}}}
	if got := names(&next, "phone"); len(got) != 1 || !got["gw2"] {
		t.Errorf("after gw was removed: %v", got)
	}
}
