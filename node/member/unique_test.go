// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// expected are the errors that a request may be refused with.
func expected(err error) bool {
	return err == nil || errors.Is(err, mesh.ErrExists) || errors.Is(err, mesh.ErrExhausted) ||
		errors.Is(err, mesh.ErrNotFound) || errors.Is(err, mesh.ErrPrecondition)
}

// Whatever joins, changes, leaves and is purged: no two nodes ever share a key,
// an address or an id, a node keeps its addresses, and an id its key.
func TestMembers_ShareNothing(t *testing.T) {
	keys := make([]mesh.PublicKey, 12)
	for i := range keys {
		keys[i] = newKey(t)
	}
	rapid.Check(t, func(rt *rapid.T) {
		f := newFixtureOf(t, registry.Bootstrap{IPv4: netip.MustParsePrefix("10.0.0.0/28")})
		before := f.registry.Snapshot()
		rt.Repeat(map[string]func(*rapid.T){
			"join": func(rt *rapid.T) {
				_, err := f.Join(t.Context(), mesh.JoinRequest{
					Node:       mesh.Node{ID: drawID(rt), PublicKey: rapid.SampledFrom(keys).Draw(rt, "key")},
					AssignIPv4: rapid.IntRange(0, 4).Draw(rt, "IPv4") > 0,
				})
				if !expected(err) {
					rt.Fatal(err)
				}
			},
			"update": func(rt *rapid.T) {
				err := f.Update(t.Context(), mesh.UpdateRequest{ID: drawID(rt), PublicKey: rapid.SampledFrom(keys).Draw(rt, "key"), Zone: "z"})
				if !expected(err) {
					rt.Fatal(err)
				}
			},
			"leave": func(rt *rapid.T) {
				if err := f.Leave(t.Context(), drawID(rt)); !expected(err) {
					rt.Fatal(err)
				}
			},
			"purge": func(rt *rapid.T) {
				if err := f.purge(drawID(rt)); !expected(err) {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				after := f.registry.Snapshot()
				checkUnique(rt, after)
				checkKept(rt, before, after)
				before = after
			},
		})
	})
}

func drawID(t *rapid.T) mesh.NodeID {
	return rapid.SampledFrom([]mesh.NodeID{"gw", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"}).Draw(t, "id")
}

func checkUnique(t *rapid.T, s *mesh.Snapshot) {
	holders := map[any]mesh.NodeID{}
	hold := func(what any, id mesh.NodeID) {
		if other, ok := holders[what]; ok {
			t.Fatalf("%q and %q share %v", other, id, what)
		}
		holders[what] = id
	}
	for id, n := range s.Nodes.All() {
		hold(n.PublicKey.WireGuard(), id)
		for _, p := range n.Prefixes() {
			hold(p.Masked(), id)
			if found, ok := s.NodeByAddr(p.Addr()); !ok || found != n || !s.Contains(p.Addr()) {
				t.Fatalf("%v of %q leads to %v", p, id, found)
			}
		}
	}
}

func checkKept(t *rapid.T, before, after *mesh.Snapshot) {
	for was, is := range after.Nodes.Changes(before.Nodes) {
		if was == nil || is == nil {
			continue
		}
		kept := fmt.Sprint(was.PublicKey, was.IPv6) == fmt.Sprint(is.PublicKey, is.IPv6) && (was.IPv4 == is.IPv4 || !was.IPv4.IsValid())
		if !kept {
			t.Fatalf("%+v became %+v", was, is)
		}
	}
}
