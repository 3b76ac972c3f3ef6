// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

// Two hosts are in two meshes at once, and behind NATs that leave each pair with
// relays only. Neither mesh takes the other one for a direct way.
func TestPairs_TwoMeshesOnTheSameHosts(t *testing.T) {
	first := newLabMesh(t)
	second := meshIn(t, first.lab, "other", "--mesh.ipv4-network", "10.200.0.0/16")
	second.joining = append(second.joining, "--wireguard.interface", "mesh1")
	a, b := first.node(t, "a", netlab.Symmetric), first.node(t, "b", netlab.Symmetric)
	pairs := [][2]*labNode{{a, b}, {
		&labNode{id: "xa", side: a.side, kind: a.kind, dir: t.TempDir()}, &labNode{id: "xb", side: b.side, kind: b.kind, dir: t.TempDir()},
	}}
	for i, m := range []*labMesh{first, second} {
		for _, n := range pairs[i] {
			m.enter(t, n)
		}
	}
	seen := func() (bool, string) {
		for _, p := range pairs {
			for _, way := range []string{p[0].way(p[1].id), p[1].way(p[0].id)} {
				if way != relayed {
					return false, fmt.Sprintf("%s and %s: %s, want %s", p[0].id, p[1].id, way, relayed)
				}
			}
		}
		return true, ""
	}
	pingBoth := func(within time.Duration) {
		t.Helper()
		for _, p := range pairs {
			if err := p[0].ping(p[1].addr, within); err != nil {
				t.Fatalf("%s to %s: %v", p[0].id, p[1].id, err)
			}
		}
	}
	for _, p := range pairs { // a handshake may still have to begin anew, after 5 s
		awaitSaid(t, "gateway heard", p[0], p[1])
	}
	pingBoth(pairWithin)
	eventually(t, directWithin, seen)
	for range 20 { // checks of other ways go on for seconds
		pingBoth(time.Second)
		if ok, what := seen(); !ok {
			t.Fatal(what)
		}
		<-time.After(200 * time.Millisecond)
	}
}
