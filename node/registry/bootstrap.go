// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Bootstrap says what a new mesh looks like.
type Bootstrap struct {
	// Self is the first node. Its ID and key are required; its addresses and
	// JoinedAt are chosen here.
	Self mesh.Node
	// Admin is who may do everything, as a node and as a user; empty is
	// DefaultAdmin.
	Admin string
	// Domain is the mesh's DNS domain; empty is DefaultDomain. A trailing dot
	// is added where it is missing.
	Domain string
	// IPv4 is the mesh's IPv4 network; the zero prefix is 172.16.0.0/12.
	IPv4 netip.Prefix
	// IPv6 is the mesh's IPv6 network as mesh.IPv6Prefix makes it; the zero
	// prefix is a random one.
	IPv6 netip.Prefix
	// AcceptByDefault adds an ACL that accepts what no other denies.
	AcceptByDefault bool
	// DisableRBAC lets everybody do everything.
	DisableRBAC bool
}

// Bootstrap makes the mesh: the objects that v1 nodes make, in one batch. A
// registry that holds a mesh is left alone, provided that Self is a node of it.
func (r *Registry) Bootstrap(ctx context.Context, b Bootstrap) error {
	if err := b.complete(); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	made := false
	s, err := r.Update(ctx, func(tx *Tx) error {
		made = false
		for _, key := range []string{keyIPv6, keyIPv4, prefixNodes + string(b.Self.ID)} {
			if tx.view.unreadable[key] {
				return fmt.Errorf("bootstrap: %w: there is a mesh, but its %s makes no sense; restore a backup", mesh.ErrPrecondition, key)
			}
		}
		if !tx.Snapshot().IPv6.IsValid() {
			made = true
			return b.write(tx)
		}
		if tx.Snapshot().Node(b.Self.ID) == nil {
			return fmt.Errorf("bootstrap: %w: the mesh was made by another node than %q; start with that node's id", mesh.ErrPrecondition, b.Self.ID)
		}
		return nil
	})
	if err == nil && made {
		r.logger.Info("made a new mesh", "node", string(b.Self.ID), "ipv6", s.IPv6.String(), "ipv4", s.IPv4.String(), "admin", b.Admin)
	}
	return err
}

// AddGateway makes a member, which keeps the state of the mesh, one of those that
// the ACLs of Bootstrap call gateways. Adding it again changes nothing.
func (r *Registry) AddGateway(ctx context.Context, id mesh.NodeID) error {
	_, err := r.Update(ctx, func(tx *Tx) error {
		if tx.Snapshot().Node(id) == nil {
			return fmt.Errorf("%w: no node %q in the mesh; it has to join first", mesh.ErrNotFound, id)
		}
		g, _ := tx.group(GroupVoters)
		self := gatewaySubject(id)
		if slices.Contains(g.Subjects, self) {
			return nil
		}
		return tx.PutGroup(mesh.Group{Name: GroupVoters, Subjects: append(slices.Clone(g.Subjects), self)})
	})
	return err
}

// RemoveGateway is the reverse of AddGateway; the last gateway stays.
func (r *Registry) RemoveGateway(ctx context.Context, id mesh.NodeID) error {
	_, err := r.Update(ctx, func(tx *Tx) error { return tx.RemoveGateway(id, "") })
	return err
}

// RemoveGateway is the reverse of AddGateway. Where id is the only one, other takes
// its place, and where there is no other either, id stays: the group of the
// gateways is never empty.
func (tx *Tx) RemoveGateway(id, other mesh.NodeID) error {
	g, _ := tx.group(GroupVoters)
	rest := slices.DeleteFunc(slices.Clone(g.Subjects), func(s mesh.Subject) bool { return s == gatewaySubject(id) })
	if len(rest) == len(g.Subjects) {
		return nil
	}
	if len(rest) == 0 {
		if other == "" || other == id {
			return nil
		}
		rest = []mesh.Subject{gatewaySubject(other)}
	}
	return tx.PutGroup(mesh.Group{Name: GroupVoters, Subjects: rest})
}

func gatewaySubject(id mesh.NodeID) mesh.Subject {
	return mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: string(id)}
}

// IsGateway reports whether AddGateway made the node a gateway of s: that ACLs take
// it for one, whether it serves (mesh.Node.HoldsState) or not.
func IsGateway(s *mesh.Snapshot, id mesh.NodeID) bool {
	return slices.ContainsFunc(s.Groups, func(g mesh.Group) bool {
		return g.Name == GroupVoters && slices.Contains(g.Subjects, gatewaySubject(id))
	})
}

// Admin is who may do everything in the mesh of s, as Bootstrap made it;
// DefaultAdmin when that is not to be seen.
func Admin(s *mesh.Snapshot) string {
	for _, b := range s.Bindings {
		if b.Name != BindingAdmin {
			continue
		}
		for _, subject := range b.Subjects {
			if subject.Type == v1.SubjectType_SUBJECT_USER {
				return subject.Name
			}
		}
	}
	return DefaultAdmin
}

// DefaultPolicy is what happens to traffic that no ACL of an operator is about:
// "accept" or "deny".
func DefaultPolicy(s *mesh.Snapshot) string {
	for _, a := range s.ACLs {
		if a.Name == ACLDefaultAccept {
			return "accept"
		}
	}
	return "deny"
}

// complete fills what was left out and checks the rest.
func (b *Bootstrap) complete() error {
	if b.Self.PublicKey.IsZero() {
		return fmt.Errorf("public_key: %w: the first node has none", mesh.ErrInvalid)
	}
	if b.Admin == "" {
		b.Admin = DefaultAdmin
	}
	if err := mesh.ValidName(b.Admin); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	if b.Domain == "" {
		b.Domain = DefaultDomain
	}
	b.Domain = strings.TrimSuffix(b.Domain, ".") + "."
	if !b.IPv4.IsValid() {
		b.IPv4 = netip.MustParsePrefix(defaultIPv4)
	}
	if !b.IPv4.Addr().Is4() || b.IPv4.Bits() > 30 {
		return fmt.Errorf("ipv4: %w: %v is no IPv4 network with room for two nodes", mesh.ErrInvalid, b.IPv4)
	}
	b.IPv4 = b.IPv4.Masked()
	if !b.IPv6.IsValid() {
		var entropy [32]byte
		_, _ = rand.Read(entropy[:]) // never fails
		b.IPv6 = mesh.IPv6Prefix(entropy[:])
	}
	if !b.IPv6.Addr().Is6() || b.IPv6.Addr().Is4In6() || b.IPv6.Bits() > 48 {
		return fmt.Errorf("ipv6: %w: %v is no IPv6 network of 48 bits or fewer", mesh.ErrInvalid, b.IPv6)
	}
	first := b.IPv4.Addr().Next()
	b.Self.IPv4 = netip.PrefixFrom(first, first.BitLen())
	b.Self.IPv6 = mesh.NodeIPv6(b.IPv6, b.Self.PublicKey.WireGuard())
	b.Self.JoinedAt = time.Now().UTC().Truncate(time.Second)
	return nil
}

// write writes the objects of a new mesh.
func (b *Bootstrap) write(tx *Tx) error {
	tx.setText(keyIPv6, b.IPv6.String())
	tx.setText(keyIPv4, b.IPv4.String())
	tx.setText(keyDomain, b.Domain)
	if b.DisableRBAC {
		tx.setText(keyRBACDisabled, rbacDisabledPresent)
	}
	subject := func(kind v1.SubjectType, name string) mesh.Subject { return mesh.Subject{Type: kind, Name: name} }
	admin := subject(v1.SubjectType_SUBJECT_NODE, b.Admin)
	voters := []mesh.Subject{admin}
	if string(b.Self.ID) != b.Admin {
		voters = append(voters, subject(v1.SubjectType_SUBJECT_NODE, string(b.Self.ID)))
	}
	puts := []error{
		tx.PutRole(mesh.Role{Name: RoleAdmin, Rules: []mesh.Rule{{
			Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL},
			Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_ALL},
		}}}),
		tx.PutRoleBinding(mesh.RoleBinding{
			Name: BindingAdmin, Role: RoleAdmin,
			Subjects: []mesh.Subject{admin, subject(v1.SubjectType_SUBJECT_USER, b.Admin)},
		}),
		tx.PutRole(mesh.Role{Name: RoleVoters, Rules: []mesh.Rule{{
			Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES},
			Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
		}}}),
		tx.PutGroup(mesh.Group{Name: GroupVoters, Subjects: voters}),
		tx.PutRoleBinding(mesh.RoleBinding{
			Name: BindingVoters, Role: RoleVoters,
			Subjects: []mesh.Subject{subject(v1.SubjectType_SUBJECT_GROUP, GroupVoters)},
		}),
		tx.PutACL(mesh.ACL{
			Name: ACLBootstrapNodes, Priority: maxPriority, Accept: true,
			SourceNodes: []string{mesh.GroupRef(GroupVoters)}, DestinationNodes: []string{mesh.GroupRef(GroupVoters)},
		}),
		tx.PutNode(&b.Self),
	}
	if b.AcceptByDefault {
		every := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
		puts = append(puts, tx.PutACL(mesh.ACL{
			Name: ACLDefaultAccept, Priority: minPriority, Accept: true,
			SourceNodes: []string{mesh.Everyone}, DestinationNodes: []string{mesh.Everyone},
			SourceCIDRs: every, DestinationCIDRs: every,
		}))
	}
	if !b.AcceptByDefault {
		// Members reach the gateways that let them in, or they would be in no
		// mesh at all; and the admin reaches members through the gateways.
		puts = append(puts, tx.PutACL(mesh.ACL{
			Name: ACLGateways, Priority: minPriority, Accept: true,
			SourceNodes: []string{mesh.GroupRef(GroupVoters)}, DestinationNodes: []string{mesh.Everyone},
		}))
	}
	for _, err := range puts {
		if err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	return nil
}
