// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestRivals(t *testing.T) {
	route := func(node, hop string, networks ...string) mesh.Route {
		r := mesh.Route{Name: node + hop, Node: node, NextHop: mesh.NodeID(hop)}
		for _, p := range networks {
			r.Destinations = append(r.Destinations, netip.MustParsePrefix(p))
		}
		return r
	}
	s := mesh.Snapshot{Groups: []mesh.Group{
		{Name: "routers", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "a"}, {Type: v1.SubjectType_SUBJECT_NODE, Name: "gone"}}},
		{Name: "all", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_ALL, Name: mesh.Everyone}}},
	}}
	for _, id := range []mesh.NodeID{"a", "b", "c", "h"} {
		s.Nodes = s.Nodes.With(&mesh.Node{ID: id})
	}
	for name, tt := range map[string]struct {
		routes []mesh.Route
		want   []mesh.NodeID
	}{
		"none":                  {nil, nil},
		"one":                   {[]mesh.Route{route("a", "", "10.0.0.0/8", "11.0.0.0/8")}, nil},
		"twice by one":          {[]mesh.Route{route("a", "", "10.0.0.0/8"), route("b", "a", "10.0.0.0/8")}, nil},
		"two":                   {[]mesh.Route{route("a", "", "10.0.0.0/8"), route("b", "", "10.0.0.9/8"), route("c", "", "12.0.0.0/8")}, []mesh.NodeID{"a", "b"}},
		"within another":        {[]mesh.Route{route("a", "", "10.0.0.0/8"), route("b", "", "10.1.0.0/16")}, nil},
		"by way of a hop":       {[]mesh.Route{route("a", "h", "10.0.0.0/8"), route("b", "", "10.0.0.0/8")}, []mesh.NodeID{"b", "h"}},
		"with one that is gone": {[]mesh.Route{route("group:routers", "", "10.0.0.0/8"), route("group:all", "", "10.0.0.0/8")}, nil},
		"three":                 {[]mesh.Route{route("a", "", "10.0.0.0/8"), route("b", "", "10.0.0.0/8"), route("c", "", "10.0.0.0/8")}, []mesh.NodeID{"a", "b", "c"}},
	} {
		s.Routes = tt.routes
		if got := slices.Sorted(maps.Keys(policy.Rivals(&s))); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
