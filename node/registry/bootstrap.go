// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"cmp"
	"context"
	"crypto/rand"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Defaults of a new mesh, as v1 nodes have them.
const (
	defaultAdmin  = "admin"
	defaultDomain = "webmesh.internal."
)

// Names of the objects of a new mesh.
const (
	roleAdmin       = "mesh-admin"
	roleVoters      = "voters"
	groupVoters     = "voters"
	bindingVoters   = "bootstrap-voters"
	aclBootstrap    = "bootstrap-nodes"
	aclAcceptAll    = "default-accept"
	everyone        = "*"
	highestPriority = math.MaxInt32
	lowestPriority  = math.MinInt32
)

// Bootstrap describes a new mesh.
type Bootstrap struct {
	// Self is the first node, with key, endpoints, features and services. Its
	// addresses are chosen here.
	Self mesh.Node
	// Admin is the identity, of a user or a node, that may do everything;
	// empty means "admin".
	Admin string
	// Domain is the DNS domain, with a trailing dot; empty means
	// "webmesh.internal.".
	Domain string
	// IPv4 is the mesh's network; invalid means 172.16.0.0/12.
	IPv4 netip.Prefix
	// AcceptByDefault adds an ACL of the lowest priority that accepts all
	// traffic. Without it only what other ACLs accept passes.
	AcceptByDefault bool
	// DisableRBAC lets every authenticated caller do everything.
	DisableRBAC bool
}

// Bootstrap writes the first state of a mesh in one change. On a registry that
// has one already it does nothing.
func (r *Registry) Bootstrap(ctx context.Context, b Bootstrap) error {
	_, err := r.Update(ctx, func(s *mesh.Snapshot, c *Change) error {
		if s.IPv6.IsValid() {
			return nil
		}
		b.write(c)
		return nil
	})
	return err
}

func (b Bootstrap) write(c *Change) {
	entropy := make([]byte, 32)
	_, _ = rand.Read(entropy) // never fails: see crypto/rand
	ipv4, ipv6 := b.IPv4, mesh.IPv6Prefix(entropy)
	if !ipv4.IsValid() {
		ipv4 = netip.MustParsePrefix("172.16.0.0/12")
	}
	admin := cmp.Or(b.Admin, defaultAdmin)
	c.text(keyIPv4, ipv4.Masked().String())
	c.text(keyIPv6, ipv6.String())
	c.text(keyDomain, cmp.Or(b.Domain, defaultDomain))
	if b.DisableRBAC {
		c.text(keyRBACOff, "true")
	}
	c.PutRole(mesh.Role{Name: roleAdmin, Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_ALL},
	}}})
	c.PutRoleBinding(mesh.RoleBinding{Name: roleAdmin, Role: roleAdmin, Subjects: []mesh.Subject{
		{Type: v1.SubjectType_SUBJECT_NODE, Name: admin}, {Type: v1.SubjectType_SUBJECT_USER, Name: admin},
	}})
	c.PutRole(mesh.Role{Name: roleVoters, Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
	}}})
	voters := []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: admin}}
	if string(b.Self.ID) != admin {
		voters = append(voters, mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: string(b.Self.ID)})
	}
	c.PutGroup(mesh.Group{Name: groupVoters, Subjects: voters})
	c.PutRoleBinding(mesh.RoleBinding{Name: bindingVoters, Role: roleVoters, Subjects: []mesh.Subject{
		{Type: v1.SubjectType_SUBJECT_GROUP, Name: groupVoters},
	}})
	among := []string{mesh.GroupRef(groupVoters)}
	c.PutACL(mesh.ACL{Name: aclBootstrap, Priority: highestPriority, Accept: true, SourceNodes: among, DestinationNodes: among})
	if b.AcceptByDefault {
		c.PutACL(mesh.ACL{
			Name: aclAcceptAll, Priority: lowestPriority, Accept: true,
			SourceNodes: []string{everyone}, DestinationNodes: []string{everyone},
		})
	}
	self := b.Self
	self.Features, self.Services = slices.Clone(self.Features), slices.Clone(self.Services)
	first := ipv4.Masked().Addr().Next()
	self.IPv4, self.IPv6 = netip.PrefixFrom(first, first.BitLen()), mesh.NodeIPv6(ipv6, self.PublicKey.WireGuard())
	self.JoinedAt = time.Now().UTC().Truncate(time.Second)
	c.PutNode(&self)
}
