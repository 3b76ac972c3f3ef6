// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// maxItems bounds each list of a request. Nodes have a handful of each.
	maxItems = 256
	// maxMultiaddr bounds one multiaddr, in bytes.
	maxMultiaddr = 1024
)

// record holds the fields that JoinRequest and UpdateRequest have in common.
type record interface {
	GetId() string
	GetPublicKey() string
	GetPrimaryEndpoint() string
	GetWireguardEndpoints() []string
	GetZoneAwarenessId() string
	GetRoutes() []string
	GetFeatures() []*v1.FeaturePort
	GetMultiaddrs() []string
	GetServices() []*v1.Service
}

// parseRecord checks the common fields.
func parseRecord(r record) (*mesh.Node, []netip.Prefix, error) {
	for field, n := range map[string]int{
		"wireguard_endpoints": len(r.GetWireguardEndpoints()),
		"routes":              len(r.GetRoutes()),
		"features":            len(r.GetFeatures()),
		"multiaddrs":          len(r.GetMultiaddrs()),
		"services":            len(r.GetServices()),
	} {
		if n > maxItems {
			return nil, nil, fmt.Errorf("%w: %s has %d entries, at most %d are taken", mesh.ErrInvalid, field, n, maxItems)
		}
	}
	for i, a := range r.GetMultiaddrs() {
		if len(a) > maxMultiaddr {
			return nil, nil, fmt.Errorf("%w: multiaddrs: [%d] is longer than %d bytes", mesh.ErrInvalid, i, maxMultiaddr)
		}
	}
	n, err := mesh.NodeFromProto(&v1.MeshNode{
		Id:                 r.GetId(),
		PublicKey:          r.GetPublicKey(),
		PrimaryEndpoint:    r.GetPrimaryEndpoint(),
		WireguardEndpoints: r.GetWireguardEndpoints(),
		ZoneAwarenessId:    r.GetZoneAwarenessId(),
		Features:           r.GetFeatures(),
		Multiaddrs:         r.GetMultiaddrs(),
		Services:           r.GetServices(),
	})
	if err != nil {
		return nil, nil, err
	}
	routes, err := mesh.ParseRoutes(r.GetRoutes())
	if err != nil {
		return nil, nil, fmt.Errorf("routes: %w", err)
	}
	return n, routes, nil
}

// joinRequest reads a JoinRequest. A join needs a key.
func joinRequest(p *v1.JoinRequest) (mesh.JoinRequest, error) {
	n, routes, err := parseRecord(p)
	if err != nil {
		return mesh.JoinRequest{}, err
	}
	if n.PublicKey.IsZero() {
		return mesh.JoinRequest{}, fmt.Errorf("%w: public_key is empty", mesh.ErrInvalid)
	}
	if len(p.GetDirectPeers()) > maxItems {
		return mesh.JoinRequest{}, fmt.Errorf("%w: direct_peers has %d entries, at most %d are taken", mesh.ErrInvalid, len(p.GetDirectPeers()), maxItems)
	}
	proof, err := mesh.JoinProofFromProto(p)
	if err != nil {
		return mesh.JoinRequest{}, fmt.Errorf("proof: %w", err)
	}
	n.Paths, n.Exit = p.GetPaths(), p.GetExit()
	r := mesh.JoinRequest{Node: *n, AssignIPv4: p.GetAssignIpv4(), Routes: routes, Proof: proof}
	if text := p.GetMemberOf(); text != "" {
		if r.MemberOf, err = netip.ParsePrefix(text); err != nil {
			return mesh.JoinRequest{}, fmt.Errorf("%w: member_of %q is no network", mesh.ErrInvalid, text)
		}
	}
	for name, proto := range p.GetDirectPeers() {
		id, err := mesh.ParseNodeID(name)
		if err != nil {
			return mesh.JoinRequest{}, fmt.Errorf("direct_peers: %w", err)
		}
		if id == n.ID {
			return mesh.JoinRequest{}, fmt.Errorf("%w: direct_peers names the node itself", mesh.ErrInvalid)
		}
		if _, ok := v1.ConnectProtocol_name[int32(proto)]; !ok {
			return mesh.JoinRequest{}, fmt.Errorf("%w: direct_peers: unknown protocol %d for %q", mesh.ErrInvalid, proto, id)
		}
		if r.DirectPeers == nil {
			r.DirectPeers = make(map[mesh.NodeID]v1.ConnectProtocol, len(p.GetDirectPeers()))
		}
		r.DirectPeers[id] = proto
	}
	return r, nil
}

// updateRequest reads an UpdateRequest.
func updateRequest(p *v1.UpdateRequest) (mesh.UpdateRequest, error) {
	n, routes, err := parseRecord(p)
	if err != nil {
		return mesh.UpdateRequest{}, err
	}
	return mesh.UpdateRequest{
		ID:                 n.ID,
		PublicKey:          n.PublicKey,
		PrimaryEndpoint:    n.PrimaryEndpoint,
		WireGuardEndpoints: n.WireGuardEndpoints,
		Zone:               n.Zone,
		Routes:             routes,
		Features:           n.Features,
		Services:           n.Services,
		Multiaddrs:         n.Multiaddrs,
	}, nil
}
