// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/device"
)

// testLazy makes a device of which no peer is ready without need.
func testLazy(tb testing.TB, peers ...Peer) (*Device, Config) {
	tb.Helper()
	d, err := New(Options{Resident: -1})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	c := Config{PrivateKey: mesh.WireGuardPrivateKey{1}, Peers: peers}
	if err := d.Set(tb.Context(), c); err != nil {
		tb.Fatal(err)
	}
	return d, c
}

// Whoever was asked for before a Set removed it stays away, also when the same
// key is configured again.
func TestLazy_RemovedPeerDoesNotComeBack(t *testing.T) {
	peer := Peer{Key: mesh.WireGuardKey{2}, Endpoint: "127.0.0.1:9", AllowedIPs: prefixes("10.1.0.0/16")}
	d, c := testLazy(t, peer)
	asked := d.roster.find(peer.Key)
	for _, peers := range [][]Peer{nil, {peer}} {
		c.Peers = peers
		if err := d.Set(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		d.fetch([]*contact{asked})
		if d.letIn(asked) || d.wg.LookupPeer(device.NoisePublicKey(peer.Key)) != nil {
			t.Fatalf("with %d peers, one came back that was removed", len(peers))
		}
	}
	if !d.letIn(d.roster.find(peer.Key)) {
		t.Error("the peer of the same key is not let in")
	}
}

// A peer whose connection ended while it was idle goes to where it was
// configured to be, and nowhere when that is nowhere.
func TestLazy_ConnectionEndsWhileIdle(t *testing.T) {
	for _, endpoint := range []string{"", "127.0.0.1:9"} {
		peer := Peer{Key: mesh.WireGuardKey{2}, Endpoint: endpoint}
		d, _ := testLazy(t, peer)
		detach, err := d.AttachPeer(peer.Key, newChanConn())
		if err != nil {
			t.Fatal(err)
		}
		c := d.roster.find(peer.Key)
		if at := c.at(); at != stateActive {
			t.Fatalf("state %d, want active", at)
		}
		detach()
		now := time.Now()
		for range 4 { // a handshake may have been tried
			now = now.Add(quietTime)
			d.sweep(now)
		}
		want := stateIdle
		if endpoint == "" {
			want = stateLost
		}
		if at := c.at(); at != want {
			t.Fatalf("state %d, want %d", at, want)
		}
		if !d.letIn(c) || c.endpoint != endpoint {
			t.Errorf("endpoint %q, want %q", c.endpoint, endpoint)
		}
	}
}

// No more messages wait for the doorman than there is room for.
func TestDoorman_QueueIsBounded(t *testing.T) {
	b, _, m := testBind(t, &fakeUDP{})
	d := newDoorman(b, new(roster), nil, nil)
	got := newBatch(2)
	for range doorQueue + 10 {
		got.sizes[0], got.sizes[1] = copy(got.packets[0], message(1, 148)), copy(got.packets[1], message(4, 148))
		d.sift(got.packets, got.sizes, got.eps)
		if got.sizes[0] != 0 || got.sizes[1] != 148 {
			t.Fatalf("sizes %v, want the handshake message taken and the other one left", got.sizes)
		}
	}
	if dropped := counter(t, m, reasonHandshakeQueue); len(d.queue) != doorQueue || dropped != 10 {
		t.Errorf("%d messages wait and %v were dropped, want %d and 10", len(d.queue), dropped, doorQueue)
	}
}
