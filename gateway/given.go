// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// offer is a message in which a node says which networks it offers.
type offer interface {
	GetId() string
	GetRoutes() []string
}

// offering is the message as an offer of networks; false for one without, and for
// that of an exit, which no route gives to anybody.
func offering(msg any) (offer, bool) {
	switch m := msg.(type) {
	case *v1.JoinRequest:
		return m, len(m.GetRoutes()) > 0 && !m.GetExit()
	case *v1.UpdateRequest:
		return m, len(m.GetRoutes()) > 0
	}
	return nil, false
}

// offerAction is what offering networks takes.
func offerAction() mesh.Action { return put(v1.RuleResource_RESOURCE_ROUTES, "") }

// given reports whether routes of s lead by the node to exactly the networks that
// it offers. Somebody who may has put them; what the node once offered itself
// does not count.
func given(s *mesh.Snapshot, o offer) bool {
	if s == nil {
		return false
	}
	id := mesh.NodeID(o.GetId())
	has := make(map[netip.Prefix]bool)
	for r, by := range policy.RouteForwarders(s) {
		if by != id || r.Name == registry.AutoRoute(id) {
			continue
		}
		for _, network := range r.Destinations {
			has[network.Masked()] = true
		}
	}
	return !slices.ContainsFunc(o.GetRoutes(), func(text string) bool {
		network, err := netip.ParsePrefix(text)
		return err != nil || !has[network.Masked()]
	})
}

// ungiven is a refusal of an offer, with what to do.
func ungiven(err error, o offer) error {
	return fmt.Errorf("%w: a node that offers networks needs a role for that (meshgate put roles router --verb put --resource routes), "+
		"or routes that lead by %q to exactly these (meshgate put routes)", err, o.GetId())
}
