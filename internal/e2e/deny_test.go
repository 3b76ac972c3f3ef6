// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/wg/stock"
)

// The gateway, and not what a member writes into its own configuration,
// decides which members reach each other through it.
func TestForwarding_FollowsTheNetworkACLs(t *testing.T) {
	for _, tt := range []struct {
		policy  string
		reached bool
	}{{"deny", false}, {"accept", true}} {
		t.Run(tt.policy, func(t *testing.T) {
			gate := start(t, "up", "--dev", "--listen", "127.0.0.1:0", "--mesh.default-network-policy", tt.policy)
			a, b := stockPeer(t, gate, "a"), stockPeer(t, gate, "b")
			l, err := b.Listen(7)
			if err != nil {
				t.Fatal(err)
			}
			go echo(l)
			// Each has a session with the gateway, so that nothing else than its
			// decision keeps packets away.
			for id, p := range map[string]*stock.Peer{"a": a, "b": b} {
				greets(t, gate, id, p)
			}
			for _, addr := range b.Addrs() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				if !tt.reached {
					ctx, cancel = context.WithTimeout(context.Background(), 2*time.Second)
				}
				conn, err := a.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), "7"))
				cancel()
				if (err == nil) != tt.reached {
					t.Errorf("a to b at %s: %v", addr, err)
				}
				if err == nil {
					_ = conn.Close()
				}
			}
			dropped := gate.metric(`meshgate_wg_dropped_packets_total{reason="denied"}`)
			if (dropped == 0) != tt.reached {
				t.Errorf("%v packets were denied", dropped)
			}
		})
	}
}

// greets lets the gateway reach a peer.
func greets(t *testing.T, gate *process, id string, p *stock.Peer) {
	t.Helper()
	l, err := p.Listen(9)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echo(l)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := session(ctx, public(t, gate), id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, err := c.DialContext(ctx, "tcp", "localhost:9")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
