// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Requests are read more strictly than stored values: what a person could have
// meant otherwise is refused, not guessed.

// objectName checks the name of an object in a request.
func objectName(name string) error {
	if err := mesh.ValidName(name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	return nil
}

// collapseSubjects reduces a list that names everyone to that, as v1 does.
func collapseSubjects(list []mesh.Subject) []mesh.Subject {
	everyone := mesh.Subject{Type: v1.SubjectType_SUBJECT_ALL, Name: mesh.Everyone}
	if slices.Contains(list, everyone) {
		return []mesh.Subject{everyone}
	}
	return list
}

func parseACL(p *v1.NetworkACL) (mesh.ACL, error) {
	if _, ok := v1.ACLAction_name[int32(p.GetAction())]; !ok {
		return mesh.ACL{}, fmt.Errorf("%w: action: unknown value %d; want ACTION_ACCEPT or ACTION_DENY", mesh.ErrInvalid, p.GetAction())
	}
	a, err := mesh.ACLFromProto(p)
	if err != nil {
		return mesh.ACL{}, err
	}
	if err := unmasked("source_cidrs", p.GetSourceCidrs()); err != nil {
		return mesh.ACL{}, err
	}
	return a, unmasked("destination_cidrs", p.GetDestinationCidrs())
}

func parseRoute(p *v1.Route) (mesh.Route, error) {
	r, err := mesh.RouteFromProto(p)
	if err != nil {
		return mesh.Route{}, err
	}
	return r, unmasked("destination_cidrs", p.GetDestinationCidrs())
}

// unmasked refuses networks with bits set behind their length, which may be
// meant as the network or as the address.
func unmasked(field string, cidrs []string) error {
	for i, s := range cidrs {
		if p, err := netip.ParsePrefix(s); err == nil && p != p.Masked() {
			return fmt.Errorf("%w: %s: [%d]: %s has bits set behind its length; write %v for the network or %v for the address",
				mesh.ErrInvalid, field, i, s, p.Masked(), netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		}
	}
	return nil
}

func parseEdge(p *v1.MeshEdge) (mesh.Edge, error) {
	for name, value := range p.GetAttributes() {
		if kind, ok := v1.EdgeAttribute_value[name]; !ok || kind == 0 {
			return mesh.Edge{}, fmt.Errorf("%w: attributes: %q is no edge attribute; there are EDGE_ATTRIBUTE_NATIVE, EDGE_ATTRIBUTE_ICE and EDGE_ATTRIBUTE_LIBP2P", mesh.ErrInvalid, name)
		}
		if value != "true" && value != "false" {
			return mesh.Edge{}, fmt.Errorf(`%w: attributes: %s is %q; want "true" or "false"`, mesh.ErrInvalid, name, value)
		}
	}
	return mesh.EdgeFromProto(p)
}

// edgeEnds reads the two ends of an edge and nothing else of it.
func edgeEnds(p *v1.MeshEdge) (mesh.Edge, error) {
	return mesh.EdgeFromProto(&v1.MeshEdge{Source: p.GetSource(), Target: p.GetTarget()})
}
