// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// checkNames refuses tests of a live mesh about names that it does not know: one
// that is mistyped may do nothing, so that an expectation to deny would hold for
// ever. A policy in a file need not name the nodes and users of its mesh.
func checkNames(s *mesh.Snapshot, tests []expectation) error {
	users := namedUsers(s)
	for _, e := range tests {
		field, who := "from", e.from
		if e.as != "" {
			field, who = "as", e.as
		}
		if !users[who] && !e.stranger && !isAddr(who) && s.Node(mesh.NodeID(who)) == nil {
			return fmt.Errorf("line %d: %s: this mesh has no node %q, and no group, role binding or network ACL names it; "+
				"for a user who is named nowhere write %s%s", e.line, field, who, userPrefix, who)
		}
		if e.as == "" && !isAddr(e.host) && s.Node(mesh.NodeID(e.host)) == nil {
			return fmt.Errorf("line %d: to: this mesh has no node %q; meshgate get nodes lists them", e.line, e.host)
		}
	}
	return nil
}

// namedUsers are the nodes and users that a policy names.
func namedUsers(s *mesh.Snapshot) map[string]bool {
	named := make(map[string]bool)
	subjects := func(list []mesh.Subject) {
		for _, x := range list {
			if x.Type != v1.SubjectType_SUBJECT_GROUP {
				named[x.Name] = true
			}
		}
	}
	for _, g := range s.Groups {
		subjects(g.Subjects)
	}
	for _, b := range s.Bindings {
		subjects(b.Subjects)
	}
	for _, a := range s.ACLs {
		for _, list := range [][]string{a.SourceNodes, a.DestinationNodes} {
			for _, name := range list {
				named[name] = true
			}
		}
	}
	delete(named, mesh.Everyone)
	return named
}

func isAddr(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}
