// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/meshgate/meshgate/node/mesh"
)

// class is a set of nodes that the network ACLs cannot tell from each other:
// they are named by the same ACLs and groups, and their addresses lie in the
// same networks of ACLs. Most nodes of a mesh are of one class, so that what is
// decided for one pair of nodes is decided for almost all.
type class int32

// classes sorts nodes into classes by one list of ACLs and of groups.
type classes struct {
	// named is what names a node: the ACLs and groups that have its id.
	named map[string]string
	// cidrs are the networks of ACLs that tell addresses apart.
	cidrs []netip.Prefix

	byKey map[string]class
	// samples are a node of each class, which may be gone by now.
	samples []*mesh.Node
}

func newClasses(s *mesh.Snapshot) *classes {
	c := &classes{named: map[string]string{}, byKey: map[string]class{}}
	name := func(list []string, by string) {
		for _, id := range list {
			c.named[id] += by
		}
	}
	for i, acl := range s.ACLs {
		name(acl.SourceNodes, "s"+strconv.Itoa(i))
		name(acl.DestinationNodes, "d"+strconv.Itoa(i))
		for _, cidr := range slices.Concat(acl.SourceCIDRs, acl.DestinationCIDRs) {
			if cidr.Bits() > 0 {
				c.cidrs = append(c.cidrs, cidr.Masked())
			}
		}
	}
	for i, g := range s.Groups {
		for _, subject := range g.Subjects {
			c.named[subject.Name] += "g" + strconv.Itoa(i)
		}
	}
	slices.SortFunc(c.cidrs, netip.Prefix.Compare)
	c.cidrs = slices.Compact(c.cidrs)
	return c
}

// of returns the class of a node.
func (c *classes) of(n *mesh.Node) class {
	key := c.key(n)
	k, ok := c.byKey[string(key)]
	if !ok {
		k = class(len(c.samples))
		c.byKey[string(key)] = k
		c.samples = append(c.samples, n)
	}
	return k
}

// key tells classes apart.
func (c *classes) key(n *mesh.Node) []byte {
	key := append(make([]byte, 0, 64), c.named[string(n.ID)]...)
	for _, own := range []netip.Prefix{n.IPv4, n.IPv6} {
		if !own.IsValid() {
			key = append(key, '-')
			continue
		}
		key = append(key, '+')
		for i, cidr := range c.cidrs {
			if !cidr.Overlaps(own) {
				continue
			}
			key = append(strconv.AppendInt(append(key, ' '), int64(i), 10), "cw"[btoi(cidr.Bits() <= own.Bits())])
			if cidr.Contains(own.Addr()) {
				key = append(key, 'h')
			}
		}
	}
	return key
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
