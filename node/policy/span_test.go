// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// TestCheckSpan has nodes that stand for fifteen /8 already, in each way in which
// one can, and asks for one and for two more.
func TestCheckSpan(t *testing.T) {
	networks := func(from, n int) []netip.Prefix {
		var list []netip.Prefix
		for i := range n {
			list = append(list, netip.MustParsePrefix(fmt.Sprintf("%d.0.0.0/8", from+i)))
		}
		return list
	}
	subjects := []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "a"}, {Type: v1.SubjectType_SUBJECT_NODE, Name: "c"}}
	for name, tt := range map[string]struct {
		has, asks mesh.Route
		shared    bool // the same node stands for both
	}{
		"its own":                  {mesh.Route{Node: "a"}, mesh.Route{Node: "a"}, true},
		"another's":                {mesh.Route{Node: "a"}, mesh.Route{Node: "b"}, false},
		"of a group that it is in": {mesh.Route{Node: "group:g"}, mesh.Route{Node: "a"}, true},
		"and the other way":        {mesh.Route{Node: "a"}, mesh.Route{Node: "group:g"}, true},
		"of a group without it":    {mesh.Route{Node: "group:g"}, mesh.Route{Node: "b"}, false},
		"forwarded for another":    {mesh.Route{Node: "b", NextHop: "a"}, mesh.Route{Node: "a"}, true},
		"forwarded by another":     {mesh.Route{Node: "a", NextHop: "b"}, mesh.Route{Node: "a"}, true},
		"both forwarded":           {mesh.Route{Node: "b", NextHop: "a"}, mesh.Route{Node: "c", NextHop: "a"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			tt.has.Name, tt.has.Destinations = "has", networks(20, 15)
			tt.asks.Name = "asks"
			s := &mesh.Snapshot{Routes: []mesh.Route{tt.has}, Groups: []mesh.Group{{Name: "g", Subjects: subjects}}}
			tt.asks.Destinations = networks(50, 1)
			if err := policy.CheckSpan(s, tt.asks); err != nil {
				t.Errorf("one more: %v", err)
			}
			tt.asks.Destinations = networks(50, 2)
			err := policy.CheckSpan(s, tt.asks)
			if errors.Is(err, mesh.ErrInvalid) != tt.shared || err != nil && !strings.Contains(err.Error(), "too many addresses") {
				t.Errorf("two more: %v, want a refusal: %v", err, tt.shared)
			}
			tt.asks.Name = "has" // in its place
			if err := policy.CheckSpan(s, tt.asks); err != nil {
				t.Errorf("instead: %v", err)
			}
			tt.asks.Destinations = []netip.Prefix{netip.MustParsePrefix("128.0.0.0/1")}
			if err := policy.CheckSpan(s, tt.asks); !errors.Is(err, mesh.ErrInvalid) {
				t.Errorf("half of everything: %v", err)
			}
		})
	}
}

// TestCheckGroupSpan makes a node a member of sixteen groups that each offer a /8,
// and then of one more.
func TestCheckGroupSpan(t *testing.T) {
	node := func(name string) []mesh.Subject {
		return []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: name}}
	}
	held := func(name string) []mesh.Subject {
		return []mesh.Subject{{Type: v1.SubjectType_SUBJECT_GROUP, Name: name}}
	}
	s := &mesh.Snapshot{}
	for i := range 16 {
		name := fmt.Sprintf("g%d", i)
		s.Groups = append(s.Groups, mesh.Group{Name: name, Subjects: node("mallory")})
		s.Routes = append(s.Routes, mesh.Route{Name: name, Node: mesh.GroupRef(name), Destinations: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("%d.0.0.0/8", 20+i))}})
	}
	s.Groups = append(s.Groups, mesh.Group{Name: "last", Subjects: node("harmless")}, mesh.Group{Name: "inner", Subjects: node("harmless")},
		mesh.Group{Name: "outer", Subjects: held("inner")}, mesh.Group{Name: "idle", Subjects: node("harmless")})
	s.Routes = append(s.Routes,
		mesh.Route{Name: "last", Node: "group:last", Destinations: []netip.Prefix{netip.MustParsePrefix("50.0.0.0/8")}},
		mesh.Route{Name: "outer", Node: "group:outer", Destinations: []netip.Prefix{netip.MustParsePrefix("51.0.0.0/8")}},
		mesh.Route{Name: "forwarded", Node: "group:idle", NextHop: "harmless", Destinations: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}})
	for name, tt := range map[string]struct {
		g    mesh.Group
		fine bool
	}{
		"of one that offers":            {mesh.Group{Name: "last", Subjects: node("mallory")}, false},
		"of one within one that does":   {mesh.Group{Name: "inner", Subjects: node("mallory")}, false},
		"of one that holds its own":     {mesh.Group{Name: "last", Subjects: held("g3")}, false},
		"somebody else":                 {mesh.Group{Name: "last", Subjects: node("alice")}, true},
		"of one that it is in":          {mesh.Group{Name: "g3", Subjects: append(node("alice"), node("mallory")...)}, true},
		"of a new one":                  {mesh.Group{Name: "new", Subjects: node("mallory")}, true},
		"whom another one forwards for": {mesh.Group{Name: "idle", Subjects: node("mallory")}, true},
	} {
		err := policy.CheckGroupSpan(s, tt.g)
		if (err == nil) != tt.fine || err != nil && (!errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), `node "mallory": `)) {
			t.Errorf("%s: %v, want that it passes: %v", name, err, tt.fine)
		}
	}
	// Who stands for too much since before does not keep others from a change.
	s.Groups[16].Subjects = append(node("mallory"), node("x")...)
	if err := policy.CheckGroupSpan(s, mesh.Group{Name: "last", Subjects: append(node("mallory"), node("y")...)}); err != nil {
		t.Errorf("no more than before: %v", err)
	}
}
