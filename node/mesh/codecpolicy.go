// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// RouteToProto returns the message for r.
func RouteToProto(r Route) *v1.Route {
	return &v1.Route{
		Name:             r.Name,
		Node:             r.Node,
		DestinationCidrs: toStrings(r.Destinations),
		NextHopNode:      string(r.NextHop),
	}
}

// RouteFromProto reads a route. Destinations are masked.
func RouteFromProto(p *v1.Route) (Route, error) {
	r := Route{Name: p.GetName(), Node: p.GetNode()}
	if err := ValidName(r.Name); err != nil {
		return Route{}, fmt.Errorf("name: %w", err)
	}
	if group, ok := ParseGroupRef(r.Node); ok {
		if err := ValidName(group); err != nil {
			return Route{}, fmt.Errorf("node: %w", err)
		}
	} else if _, err := ParseNodeID(r.Node); err != nil {
		return Route{}, fmt.Errorf("node: %w", err)
	}
	var err error
	if r.Destinations, err = ParseRoutes(p.GetDestinationCidrs()); err != nil {
		return Route{}, fmt.Errorf("destination_cidrs: %w", err)
	}
	if p.GetNextHopNode() != "" {
		if r.NextHop, err = ParseNodeID(p.GetNextHopNode()); err != nil {
			return Route{}, fmt.Errorf("next_hop_node: %w", err)
		}
	}
	return r, nil
}

// ParseRoutes reads networks in CIDR form and masks them.
func ParseRoutes(ss []string) ([]netip.Prefix, error) {
	return parse(ss, func(s string) (netip.Prefix, error) {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return netip.Prefix{}, noNetwork(s)
		}
		return p.Masked(), nil
	})
}

// ACLToProto returns the message for a.
func ACLToProto(a ACL) *v1.NetworkACL {
	p := &v1.NetworkACL{
		Name:             a.Name,
		Priority:         a.Priority,
		Action:           v1.ACLAction_ACTION_DENY,
		SourceNodes:      slices.Clone(a.SourceNodes),
		DestinationNodes: slices.Clone(a.DestinationNodes),
		SourceCidrs:      cidrsToProto(a.SourceCIDRs),
		DestinationCidrs: cidrsToProto(a.DestinationCIDRs),
		Protocols:        protocolsToProto(a.Protocols),
		Ports:            convert(a.Ports, func(port uint16) uint32 { return uint32(port) }),
	}
	if a.Accept {
		p.Action = v1.ACLAction_ACTION_ACCEPT
	}
	return p
}

// ACLFromProto reads a network ACL. Every action but ACCEPT is a denial. A CIDR
// may be "*" or a plain address, which stands for itself alone. Ports go with
// protocols that have ports.
func ACLFromProto(p *v1.NetworkACL) (ACL, error) {
	a := ACL{
		Name:             p.GetName(),
		Priority:         p.GetPriority(),
		Accept:           p.GetAction() == v1.ACLAction_ACTION_ACCEPT,
		SourceNodes:      slices.Clone(p.GetSourceNodes()),
		DestinationNodes: slices.Clone(p.GetDestinationNodes()),
	}
	if err := ValidName(a.Name); err != nil {
		return ACL{}, fmt.Errorf("name: %w", err)
	}
	if err := validNodeRefs(a.SourceNodes); err != nil {
		return ACL{}, fmt.Errorf("source_nodes: %w", err)
	}
	if err := validNodeRefs(a.DestinationNodes); err != nil {
		return ACL{}, fmt.Errorf("destination_nodes: %w", err)
	}
	var err error
	if a.SourceCIDRs, err = cidrsFromProto(p.GetSourceCidrs()); err != nil {
		return ACL{}, fmt.Errorf("source_cidrs: %w", err)
	}
	if a.DestinationCIDRs, err = cidrsFromProto(p.GetDestinationCidrs()); err != nil {
		return ACL{}, fmt.Errorf("destination_cidrs: %w", err)
	}
	if a.Protocols, err = ParseProtocols(p.GetProtocols()); err != nil {
		return ACL{}, fmt.Errorf("protocols: %w", err)
	}
	if a.Ports, err = parsePorts(p.GetPorts()); err != nil {
		return ACL{}, fmt.Errorf("ports: %w", err)
	}
	if len(a.Ports) > 0 && len(a.Protocols) > 0 {
		if i := slices.IndexFunc(a.Protocols, func(p Protocol) bool { return !p.HasPorts() }); i >= 0 {
			return ACL{}, fmt.Errorf("ports: protocol %s has no ports; write an ACL of its own for it: %w", a.Protocols[i], ErrInvalid)
		}
	}
	return a, nil
}

// validNodeRefs checks every entry of a list of nodes.
func validNodeRefs(refs []string) error {
	for i, ref := range refs {
		if err := validNodeRef(ref); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return nil
}

// everyAddress is what "*" means in a list of CIDRs.
func everyAddress() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	}
}

// cidrsToProto writes a list that holds both families' whole space as "*".
func cidrsToProto(ps []netip.Prefix) []string {
	every := everyAddress()
	if slices.Contains(ps, every[0]) && slices.Contains(ps, every[1]) {
		return []string{Everyone}
	}
	return toStrings(ps)
}

// cidrsFromProto reads CIDRs, plain addresses and "*".
func cidrsFromProto(ss []string) ([]netip.Prefix, error) {
	ps, err := parse(ss, func(s string) (netip.Prefix, error) {
		if s == Everyone {
			return netip.Prefix{}, nil
		}
		if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
			addr = addr.Unmap()
			return netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return netip.Prefix{}, noNetwork(s)
		}
		return p.Masked(), nil
	})
	if err == nil && slices.Contains(ss, Everyone) {
		return everyAddress(), nil
	}
	return ps, err
}

// SubjectToProto returns the message for s.
func SubjectToProto(s Subject) *v1.Subject { return &v1.Subject{Name: s.Name, Type: s.Type} }

// SubjectFromProto reads a subject: a type and a name. The name "*" is everyone;
// a group cannot be named so.
func SubjectFromProto(p *v1.Subject) (Subject, error) {
	switch p.GetType() {
	case v1.SubjectType_SUBJECT_NODE, v1.SubjectType_SUBJECT_USER,
		v1.SubjectType_SUBJECT_GROUP, v1.SubjectType_SUBJECT_ALL:
	default:
		return Subject{}, fmt.Errorf("type: unknown subject type %d: %w", p.GetType(), ErrInvalid)
	}
	if p.GetName() != Everyone || p.GetType() == v1.SubjectType_SUBJECT_GROUP {
		if err := ValidName(p.GetName()); err != nil {
			return Subject{}, fmt.Errorf("name: %w", err)
		}
	}
	return Subject{Type: p.GetType(), Name: p.GetName()}, nil
}

// GroupToProto returns the message for g.
func GroupToProto(g Group) *v1.Group {
	return &v1.Group{Name: g.Name, Subjects: convert(g.Subjects, SubjectToProto)}
}

// GroupFromProto reads a group.
func GroupFromProto(p *v1.Group) (Group, error) {
	if err := ValidName(p.GetName()); err != nil {
		return Group{}, fmt.Errorf("name: %w", err)
	}
	subjects, err := parse(p.GetSubjects(), SubjectFromProto)
	if err != nil {
		return Group{}, fmt.Errorf("subjects: %w", err)
	}
	return Group{Name: p.GetName(), Subjects: subjects}, nil
}

// RoleToProto returns the message for r.
func RoleToProto(r Role) *v1.Role {
	return &v1.Role{Name: r.Name, Rules: convert(r.Rules, func(rule Rule) *v1.Rule {
		return &v1.Rule{
			Resources:     slices.Clone(rule.Resources),
			ResourceNames: slices.Clone(rule.Names),
			Verbs:         slices.Clone(rule.Verbs),
		}
	})}
}

// RoleFromProto reads a role. Each rule needs a verb and a resource; a list
// that holds ALL becomes ALL alone.
func RoleFromProto(p *v1.Role) (Role, error) {
	if err := ValidName(p.GetName()); err != nil {
		return Role{}, fmt.Errorf("name: %w", err)
	}
	rules, err := parse(p.GetRules(), ruleFromProto)
	if err != nil {
		return Role{}, fmt.Errorf("rules: %w", err)
	}
	return Role{Name: p.GetName(), Rules: rules}, nil
}

// ruleFromProto reads a rule.
func ruleFromProto(p *v1.Rule) (Rule, error) {
	resources, err := collapse(p.GetResources(), v1.RuleResource_RESOURCE_ALL, v1.RuleResource_name)
	if err != nil {
		return Rule{}, fmt.Errorf("resources: %w", err)
	}
	verbs, err := collapse(p.GetVerbs(), v1.RuleVerb_VERB_ALL, v1.RuleVerb_name)
	if err != nil {
		return Rule{}, fmt.Errorf("verbs: %w", err)
	}
	return Rule{Resources: resources, Names: slices.Clone(p.GetResourceNames()), Verbs: verbs}, nil
}

// collapse checks that list holds known values only, at least one and none of
// them 0 ("unknown"), and reduces a list with all in it to all.
func collapse[E ~int32](list []E, all E, known map[int32]string) ([]E, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("list is empty: %w", ErrInvalid)
	}
	for _, e := range list {
		if _, ok := known[int32(e)]; !ok || e == 0 {
			return nil, fmt.Errorf("unknown value %d: %w", e, ErrInvalid)
		}
	}
	if slices.Contains(list, all) {
		return []E{all}, nil
	}
	return slices.Clone(list), nil
}

// RoleBindingToProto returns the message for b.
func RoleBindingToProto(b RoleBinding) *v1.RoleBinding {
	return &v1.RoleBinding{Name: b.Name, Role: b.Role, Subjects: convert(b.Subjects, SubjectToProto)}
}

// RoleBindingFromProto reads a role binding. Its role need not exist: a binding
// to a missing role grants nothing.
func RoleBindingFromProto(p *v1.RoleBinding) (RoleBinding, error) {
	if err := ValidName(p.GetName()); err != nil {
		return RoleBinding{}, fmt.Errorf("name: %w", err)
	}
	if err := ValidName(p.GetRole()); err != nil {
		return RoleBinding{}, fmt.Errorf("role: %w", err)
	}
	subjects, err := parse(p.GetSubjects(), SubjectFromProto)
	if err != nil {
		return RoleBinding{}, fmt.Errorf("subjects: %w", err)
	}
	return RoleBinding{Name: p.GetName(), Role: p.GetRole(), Subjects: subjects}, nil
}
