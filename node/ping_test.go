// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// A node is found by the address that every line of ping prints.
func TestLocate_ByIDAndAddress(t *testing.T) {
	n := &Node{cfg: Config{ID: "gw"}}
	if _, err := n.Locate(t.Context(), "nas"); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("before there is a state: %v", err)
	}
	nodes := mesh.NodesOf(
		&mesh.Node{ID: "nas", IPv4: netip.MustParsePrefix("172.16.0.5/32"), IPv6: netip.MustParsePrefix("fd00:1:2:3::/64")},
		&mesh.Node{ID: "172.16.0.6"}, &mesh.Node{ID: "web", IPv4: netip.MustParsePrefix("172.16.0.6/32")},
	)
	n.snapshot.Store(&mesh.Snapshot{Nodes: nodes})
	for name, want := range map[mesh.NodeID]mesh.NodeID{
		"nas": "nas", "172.16.0.5": "nas", "fd00:1:2:3::1": "nas", "172.16.0.6": "172.16.0.6", "172.16.0.7": "", "tv": "",
	} {
		o, err := n.Locate(t.Context(), name)
		if want == "" {
			if !errors.Is(err, mesh.ErrNotFound) || !strings.Contains(err.Error(), string(name)) {
				t.Errorf("%s: got %v, want ErrNotFound", name, err)
			}
			continue
		}
		if err != nil || o.ID != want {
			t.Errorf("%s: got %v, %v, want %s", name, o, err, want)
		}
	}
}
