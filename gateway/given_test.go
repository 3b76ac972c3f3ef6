// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// A node offers what an admin gave it without a role of its own, and nothing more.
func TestAuthorize_OfferingWhatRoutesGiveTakesNoRole(t *testing.T) {
	route := func(name, node string, networks ...string) mesh.Route {
		r := mesh.Route{Name: name, Node: node}
		for _, n := range networks {
			r.Destinations = append(r.Destinations, netip.MustParsePrefix(n))
		}
		return r
	}
	by := func(r mesh.Route, hop mesh.NodeID) mesh.Route { r.NextHop = hop; return r }
	routers := []mesh.Group{{Name: "routers", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "nas"}}}}
	nas := api.Caller{ID: "nas"}
	for name, tt := range map[string]struct {
		routes []mesh.Route
		caller api.Caller
		offers []string
		denied bool
	}{
		"no route":                    {nil, nas, []string{"192.168.7.0/24"}, true},
		"its own route":               {[]mesh.Route{route("office", "nas", "192.168.7.0/24")}, nas, []string{"192.168.7.0/24"}, false},
		"of its group":                {[]mesh.Route{route("office", "group:routers", "192.168.7.0/24")}, nas, []string{"192.168.7.0/24"}, false},
		"as it is written elsewhere":  {[]mesh.Route{route("office", "nas", "192.168.7.9/24")}, nas, []string{"192.168.7.1/24"}, false},
		"of another node":             {[]mesh.Route{route("office", "web", "192.168.7.0/24")}, nas, []string{"192.168.7.0/24"}, true},
		"of another group":            {[]mesh.Route{route("office", "group:web", "192.168.7.0/24")}, nas, []string{"192.168.7.0/24"}, true},
		"by another node":             {[]mesh.Route{by(route("office", "nas", "192.168.7.0/24"), "web")}, nas, []string{"192.168.7.0/24"}, true},
		"by it, for another node":     {[]mesh.Route{by(route("office", "web", "192.168.7.0/24"), "nas")}, nas, []string{"192.168.7.0/24"}, false},
		"a part":                      {[]mesh.Route{route("office", "nas", "192.168.0.0/16")}, nas, []string{"192.168.7.0/24"}, true},
		"more":                        {[]mesh.Route{route("office", "nas", "192.168.7.0/24")}, nas, []string{"192.168.7.0/24", "10.0.0.0/24"}, true},
		"from two routes":             {[]mesh.Route{route("a", "nas", "192.168.7.0/24"), route("b", "nas", "10.0.0.0/24")}, nas, []string{"192.168.7.0/24", "10.0.0.0/24"}, false},
		"what it offered itself once": {[]mesh.Route{route("nas-auto", "nas", "192.168.7.0/24")}, nas, []string{"192.168.7.0/24"}, true},
		"no network":                  {[]mesh.Route{route("office", "nas", "192.168.7.0/24")}, nas, []string{"office"}, true},
		"another node in its name":    {[]mesh.Route{route("office", "nas", "192.168.7.0/24")}, api.Caller{ID: "web"}, []string{"192.168.7.0/24"}, true},
		"an admin":                    {nil, api.Caller{ID: "admin"}, []string{"192.168.7.0/24"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := *enrolment()
			s.Routes, s.Groups = tt.routes, append(routers, s.Groups...)
			for procedure, msg := range map[string]any{
				v1connect.MembershipJoinProcedure:   &v1.JoinRequest{Id: "nas", Routes: tt.offers},
				v1connect.MembershipUpdateProcedure: &v1.UpdateRequest{Id: "nas", Routes: tt.offers},
			} {
				err := newRules(false)[procedure].authorize(&s, tt.caller, msg)
				if errors.Is(err, mesh.ErrDenied) != tt.denied || err != nil && !tt.denied {
					t.Errorf("%s: %v, want denied: %v", procedure, err, tt.denied)
				}
				if tt.denied && tt.caller.ID == "nas" && !strings.Contains(err.Error(), "meshgate put roles router --verb put --resource routes") {
					t.Errorf("%s: %v does not say what to do", procedure, err)
				}
			}
		})
	}
	s := *enrolment()
	s.Routes = []mesh.Route{route("office", "nas", "192.168.7.0/24")}
	exit := &v1.JoinRequest{Id: "nas", Routes: []string{"192.168.7.0/24"}, Exit: true}
	if err := newRules(false)[v1connect.MembershipJoinProcedure].authorize(&s, nas, exit); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("an exit, which no route gives: %v", err)
	}
	if given(nil, &v1.JoinRequest{Id: "nas", Routes: []string{"10.0.0.0/24"}}) {
		t.Error("given without a state")
	}
}
