// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// The MTU of a userspace network follows the way to others, and stays where that is
// not known.
func TestRoom_FollowsTheWay(t *testing.T) {
	var path int
	var fails, refuses error
	var set []int
	r := &room{
		node: &Node{log: slog.New(slog.DiscardHandler)},
		pathMTU: func(to []netip.Addr) (int, error) {
			if len(to) != 1 || to[0] != netip.MustParseAddr("198.18.0.9") {
				t.Errorf("looked at %v", to)
			}
			return path, fails
		},
		set: func(mtu int) error {
			if refuses == nil {
				set = append(set, mtu)
			}
			return refuses
		},
	}
	plan := &mesh.Plan{Peers: mesh.PeersOf(mesh.Peer{Endpoint: "198.18.0.9:51820", Node: &mesh.Node{ID: "b"}})}
	for _, step := range []struct {
		name           string
		path           int
		fails, refuses error
		want           []int
	}{
		{"ordinary", 1500, nil, nil, nil},
		{"unknown", 0, nil, nil, nil},
		{"a tunnel", 1400, nil, nil, []int{1320}},
		{"again", 1400, nil, nil, []int{1320}},
		{"an error", 1280, errors.New("x"), nil, []int{1320}},
		{"not taken", 1280, nil, errors.New("x"), []int{1320}},
		{"smaller than IPv6 needs", 1280, nil, nil, []int{1320, 1280}},
		{"another system", 1500, mesh.ErrUnsupported, nil, []int{1320, 1280}},
		{"at home", 9000, nil, nil, []int{1320, 1280, 1420}},
	} {
		path, fails, refuses = step.path, step.fails, step.refuses
		r.fit(plan, true)
		if !slices.Equal(set, step.want) {
			t.Errorf("%s: set %v, want %v", step.name, set, step.want)
		}
	}
	path, fails, refuses = 1400, nil, nil
	if r.fit(plan, false); len(set) != 3 {
		t.Errorf("the same way was looked at again: %v", set)
	}
	r.node.cfg.MTU = 1400
	r.fit(plan, true)
	if len(set) != 3 {
		t.Errorf("what was configured is changed: %v", set)
	}
	var none *room
	none.fit(plan, true)
	r.fit(nil, true)
}
