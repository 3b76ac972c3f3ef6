// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

// class is a set of nodes that the network ACLs cannot tell from each other:
// they are named by the same ACLs and groups, and their addresses lie in the
// same networks of ACLs. Most nodes of a mesh are of one class, so that what is
// decided for one pair of nodes is decided for almost all.
type class int32

// classes sorts nodes into classes. It belongs to one list of ACLs and of
// groups, and is shared by the planners of all snapshots that have these.
type classes struct {
	acls   []mesh.ACL
	groups []mesh.Group
	// named is what names a node: the ACLs and groups that have its id.
	named map[string]string
	// cidrs are the networks of ACLs that tell addresses apart.
	cidrs []netip.Prefix

	mu     sync.Mutex // guards the fields below
	byKey  map[string]class
	byNode map[*mesh.Node]class
}

func newClasses(s *mesh.Snapshot) *classes {
	c := &classes{
		acls: s.ACLs, groups: s.Groups, named: map[string]string{},
		byKey: map[string]class{}, byNode: map[*mesh.Node]class{},
	}
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

// fits reports whether the classes are those of s.
func (c *classes) fits(s *mesh.Snapshot) bool {
	return sameList(c.acls, s.ACLs) && sameList(c.groups, s.Groups)
}

// sameList reports whether two lists are the same memory: published lists do
// not change.
func sameList[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// of returns the class of a node of a mesh of some size.
func (c *classes) of(n *mesh.Node, size int) class {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.byNode[n]; ok {
		return k
	}
	if len(c.byNode) > 2*size+1000 {
		clear(c.byNode) // of records that were replaced
	}
	key := c.key(n)
	k, ok := c.byKey[string(key)]
	if !ok {
		k = class(len(c.byKey))
		c.byKey[string(key)] = k
	}
	c.byNode[n] = k
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
