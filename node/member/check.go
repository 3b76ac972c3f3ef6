// SPDX-License-Identifier: Apache-2.0

package member

import (
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
)

// Limits of what one node says of itself. They bound a record, which every
// peer of the node gets.
const (
	maxRoutes      = 256
	maxEndpoints   = 16
	maxServices    = 256
	maxFeatures    = 64
	maxMultiaddrs  = 64
	maxDirectPeers = 256
	maxZone        = 253
)

// checkJoin refuses what is wrong whatever the state is.
func checkJoin(r mesh.JoinRequest) error {
	if _, err := mesh.ParseNodeID(string(r.Node.ID)); err != nil {
		return fmt.Errorf("id: %w", err)
	}
	if r.Node.PublicKey.IsZero() {
		return fmt.Errorf("%w: public_key: it is missing", mesh.ErrInvalid)
	}
	if _, ok := r.DirectPeers[r.Node.ID]; ok {
		return fmt.Errorf("%w: direct_peers: the node names itself", mesh.ErrInvalid)
	}
	if len(r.DirectPeers) > maxDirectPeers {
		return tooMany("direct_peers", maxDirectPeers)
	}
	return checkNode(&r.Node, r.Routes)
}

// checkUpdate is checkJoin for an update.
func checkUpdate(r mesh.UpdateRequest) error {
	if _, err := mesh.ParseNodeID(string(r.ID)); err != nil {
		return fmt.Errorf("id: %w", err)
	}
	return checkNode(&mesh.Node{
		PrimaryEndpoint: r.PrimaryEndpoint, WireGuardEndpoints: r.WireGuardEndpoints, Zone: r.Zone,
		Features: r.Features, Services: r.Services, Multiaddrs: r.Multiaddrs,
	}, r.Routes)
}

func checkNode(n *mesh.Node, routes []netip.Prefix) error {
	switch {
	case len(routes) > maxRoutes:
		return tooMany("routes", maxRoutes)
	case len(n.WireGuardEndpoints) > maxEndpoints:
		return tooMany("wireguard_endpoints", maxEndpoints)
	case len(n.Services) > maxServices:
		return tooMany("services", maxServices)
	case len(n.Features) > maxFeatures:
		return tooMany("features", maxFeatures)
	case len(n.Multiaddrs) > maxMultiaddrs:
		return tooMany("multiaddrs", maxMultiaddrs)
	case len(n.Zone) > maxZone:
		return fmt.Errorf("%w: zone_awareness_id: it is longer than %d bytes", mesh.ErrInvalid, maxZone)
	}
	if _, err := mesh.ParsePrimaryEndpoint(n.PrimaryEndpoint); err != nil {
		return fmt.Errorf("primary_endpoint: %w", err)
	}
	for _, e := range n.WireGuardEndpoints {
		if a := e.Addr(); e.Port() == 0 || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%w: wireguard_endpoints: nobody can send to %s", mesh.ErrInvalid, e)
		}
	}
	return nil
}

func tooMany(field string, limit int) error {
	return fmt.Errorf("%w: %s: more than %d", mesh.ErrInvalid, field, limit)
}

// checkRoutes refuses networks that would take traffic from somebody else:
// those that touch the mesh's own, other nodes' routes, the default route, and
// networks that mean something else on every host.
func checkRoutes(s *mesh.Snapshot, id mesh.NodeID, routes []netip.Prefix) error {
	for i, p := range routes {
		switch {
		case !p.IsValid() || p != p.Masked():
			return fmt.Errorf("%w: routes: %s has bits set behind its length; want %s", mesh.ErrInvalid, p, p.Masked())
		case p.Bits() == 0:
			return fmt.Errorf("%w: routes: %s would carry all traffic of the mesh's nodes; exit nodes are not supported", mesh.ErrInvalid, p)
		case !s.Routable(p) || touchesMesh(s, p):
			return fmt.Errorf("%w: routes: %s touches a network of the mesh itself, or loopback, link-local or multicast addresses", mesh.ErrInvalid, p)
		}
		for _, q := range routes[:i] {
			if p.Overlaps(q) {
				return fmt.Errorf("%w: routes: %s and %s overlap", mesh.ErrInvalid, p, q)
			}
		}
		for _, r := range s.Routes {
			if r.Node == string(id) {
				continue
			}
			for _, q := range r.Destinations {
				if p.Overlaps(q) {
					return fmt.Errorf("%w: routes: %s overlaps %s, which node %q offers", mesh.ErrExists, p, q, r.Node)
				}
			}
		}
	}
	return nil
}

func touchesMesh(s *mesh.Snapshot, p netip.Prefix) bool {
	for _, own := range s.Networks() {
		if own.Overlaps(p) {
			return true
		}
	}
	return false
}
