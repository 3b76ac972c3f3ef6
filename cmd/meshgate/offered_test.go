// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A route leads to a node that has to offer it, too.
func TestUnoffered_NamesWhatANodeHasYetToOffer(t *testing.T) {
	s := &mesh.Snapshot{Groups: []mesh.Group{{Name: "routers", Subjects: []mesh.Subject{
		{Type: v1.SubjectType_SUBJECT_NODE, Name: "a"}, {Type: v1.SubjectType_SUBJECT_NODE, Name: "b"}, {Type: v1.SubjectType_SUBJECT_NODE, Name: "gone"},
	}}}}
	for id, features := range map[mesh.NodeID][]v1.Feature{
		"a": {v1.Feature_NODES}, "b": {v1.Feature_NODES}, "gw": {v1.Feature_NODES, v1.Feature_MEMBERSHIP}, "stock": nil,
	} {
		o := &mesh.Node{ID: id}
		for _, f := range features {
			o.Features = append(o.Features, mesh.Feature{Kind: f, Port: 8443})
		}
		s.Nodes = s.Nodes.With(o)
	}
	route := func(name, node string, hop mesh.NodeID, networks ...string) {
		r := mesh.Route{Name: name, Node: node, NextHop: hop}
		for _, n := range networks {
			r.Destinations = append(r.Destinations, netip.MustParsePrefix(n))
		}
		s.Routes = append(s.Routes, r)
	}
	route("a-auto", "a", "", "192.168.0.0/16")
	route("office", "group:routers", "", "192.168.7.0/24")
	route("lab", "a", "", "10.1.0.0/16", "192.168.8.0/24", "10.2.0.0/16")
	route("site", "a", "b", "10.3.0.0/16")
	route("by a gateway", "gw", "", "10.4.0.0/16")
	route("by a stock peer", "stock", "", "10.5.0.0/16")
	route("by nobody yet", "gone", "", "10.6.0.0/16")
	all := func(string) bool { return true }
	want := []string{
		"route lab: node a does not forward to 10.1.0.0/16,10.2.0.0/16 yet; start it with --routes 10.1.0.0/16,10.2.0.0/16",
		"route office: node b does not forward to 192.168.7.0/24 yet; start it with --routes 192.168.7.0/24",
		"route site: node b does not forward to 10.3.0.0/16 yet; start it with --routes 10.3.0.0/16",
	}
	if diff := cmp.Diff(want, unoffered(s, all)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[2:], unoffered(s, func(route string) bool { return route == "site" })); diff != "" {
		t.Errorf("of one (-want +got):\n%s", diff)
	}
}
