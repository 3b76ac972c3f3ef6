// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A node that starts again keeps no credentials of relays. Where no UDP gets
// through it asks the public address for some, long before it gives the mesh up.
func TestSubscribe_SeeksRelaysWhenNoSessionComes(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*follower, *slowGateway)
		made   int           // which handshake makes a session; 0: none
		down   time.Duration // for how long the public address answers nothing
		asks   int
		found  bool
	}{
		"UDP is blocked":             {asks: 1, found: true},
		"the public address is late": {down: 5 * time.Second, asks: 3, found: true},
		"a session comes":            {made: 1},
		"it takes no part in pairs":  {change: func(f *follower, _ *slowGateway) { f.cfg.Paths = false }},
		"it has servers":             {change: func(f *follower, g *slowGateway) { f.joined.RelayServers = g.answer.RelayServers }, found: true},
		"another gateway took it":    {change: func(f *follower, _ *slowGateway) { f.joined.GatewayId = "other" }},
		"the gateway has none":       {change: func(_ *follower, g *slowGateway) { g.answer.RelayServers = nil }, asks: 1},
		"it has no public address":   {change: func(f *follower, _ *slowGateway) { f.gateways = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &slowGateway{fakeGateway: newFakeGateway(t), asked: make(chan time.Time, 1)}
				gate := proto.CloneOf(g.answer.Peers[0].Node)
				gate.ApiUrl = "https://192.0.2.1"
				g.answer.Gateways = []*v1.MeshNode{gate}
				f, asks := subscriber(t, g)
				asks.made = tt.made
				f.cfg.Paths = true
				f.cfg.Other = func(string, *mesh.Node) (Gateway, error) { return g, nil }
				// What the node has read from its directory names no servers.
				f.joined = proto.CloneOf(f.joined)
				g.answer.RelayServers = []*v1.ICEServer{{Urls: []string{"turn:192.0.2.1"}, Credential: "fresh"}}
				if tt.change != nil {
					tt.change(f, g)
				}
				if tt.down > 0 {
					g.script(errors.New("no route"), false)
					time.AfterFunc(tt.down, func() { g.script(nil, false) })
				}
				close(f.node.ready)
				f.node.inForce.set(f.latest)
				ctx, cancel := context.WithTimeout(t.Context(), subscribeGrace-time.Second)
				defer cancel()
				if alive, err := f.subscribe(ctx); alive || err == nil {
					t.Errorf("alive %v, %v", alive, err)
				}
				if got := g.adopted(); got != tt.asks {
					t.Errorf("the public address was asked %d times, want %d", got, tt.asks)
				}
				if found := len(f.joined.GetRelayServers()) > 0; found != tt.found {
					t.Errorf("relay servers: %v, want some: %v", f.joined.GetRelayServers(), tt.found)
				}
			})
		})
	}
}
