// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// memberOf is a configured peer of a hub that has nothing but its key.
func memberOf(tb testing.TB, hub *wgtest.Node) *wg.Initiator {
	tb.Helper()
	i := wg.NewInitiator(tb, hub.Key())
	hub.SetPeers(append(hub.Config.Peers, wg.Peer{Key: i.Claims, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.99.0.77/32")}})...)
	return i
}

// answer reads the next answer of a hub of some size within a moment.
func answer(tb testing.TB, c net.Conn, moment time.Duration) []byte {
	tb.Helper()
	if err := c.SetReadDeadline(time.Now().Add(moment)); err != nil {
		tb.Fatal(err)
	}
	buf := make([]byte, 2000)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func send(tb testing.TB, c net.Conn, message []byte) {
	tb.Helper()
	if _, err := c.Write(message); err != nil {
		tb.Fatal(err)
	}
}

func TestDoorman_RefusesAReplayAfterEviction(t *testing.T) {
	hub, reg := lazyHub(t)
	member := memberOf(t, hub)
	c := dialHub(t, hub)
	start := time.Now()
	first := member.Initiation(t, start)
	send(t, c, first)
	if got := answer(t, c, patience); len(got) != device.MessageResponseSize {
		t.Fatalf("answer of %d bytes, want a response", len(got))
	}
	evict(hub)
	if hub.Active(member.Claims) {
		t.Fatal("a quiet peer stays")
	}
	thief := dialHub(t, hub)
	for _, at := range []time.Time{start, start.Add(-time.Hour)} {
		message := first
		if at != start {
			message = member.Initiation(t, at)
		}
		before := dropped(t, reg, "handshake_replay")
		send(t, thief, message)
		eventually(t, "the replay to be refused", func() bool { return dropped(t, reg, "handshake_replay") == before+1 })
	}
	if hub.Active(member.Claims) {
		t.Error("a replayed initiation made the peer active")
	}
	if got := only(t, hub).Endpoint; got != c.LocalAddr().String() {
		t.Errorf("endpoint %q, want that of the peer itself", got)
	}
	send(t, c, member.Initiation(t, start.Add(time.Second)))
	if got := answer(t, c, patience); len(got) != device.MessageResponseSize || !hub.Active(member.Claims) {
		t.Errorf("answer of %d bytes to a new initiation, want a response", len(got))
	}
}

func TestDoorman_LetsInWhoProvesAKey(t *testing.T) {
	hub, reg := lazyHub(t)
	member := memberOf(t, hub)
	stranger, forger := wg.NewInitiator(t, hub.Key()), wg.NewInitiator(t, hub.Key())
	forger.Claims = member.Claims
	wrongMAC := stranger.Initiation(t, time.Now())
	wrongMAC[120] ^= 1
	c := dialHub(t, hub)
	for _, try := range []struct {
		reason  string
		message []byte
	}{
		{"handshake_stranger", stranger.Initiation(t, time.Now())},
		{"handshake_forged", forger.Initiation(t, time.Now())},
		{"handshake_garbage", member.Garbage()},
		{"handshake_garbage", wrongMAC},
	} {
		before := dropped(t, reg, try.reason)
		send(t, c, try.message)
		eventually(t, try.reason, func() bool { return dropped(t, reg, try.reason) == before+1 })
		if hub.Active(member.Claims) {
			t.Fatalf("%s made a peer active", try.reason)
		}
	}
	// Many at once of one peer: the library would take the first one only.
	now := time.Now()
	eventually(t, "one to be dropped", func() bool {
		for range 10 {
			now = now.Add(time.Second)
			send(t, c, member.Initiation(t, now))
		}
		return dropped(t, reg, "handshake_rate") > 0
	})
	if got := answer(t, c, patience); len(got) != device.MessageResponseSize {
		t.Errorf("answer of %d bytes, want a response", len(got))
	}
	// Each kind of message in any size.
	for kind := range byte(6) {
		for _, size := range []int{1, 31, 32, 63, 64, 65, 91, 92, 93, 147, 148, 149, 1500} {
			message := make([]byte, size)
			message[0] = kind
			send(t, c, message)
		}
	}
	ping(t, leafOf(t, hub), hub)
}

// leafOf makes another node and peer of a hub.
func leafOf(tb testing.TB, hub *wgtest.Node) *wgtest.Node {
	tb.Helper()
	n := leaf(tb, 3, hub)
	hub.SetPeers(append(hub.Config.Peers, n.Peer())...)
	return n
}

// Strangers who know the hub's key keep it busy; the peer that shows that it
// gets answers comes in all the same.
func TestDoorman_UnderLoadAsksForACookie(t *testing.T) {
	hub, reg := lazyHub(t)
	member := memberOf(t, hub)
	var messages [][]byte
	for range 2 * wg.DoorLoad {
		messages = append(messages, wg.NewInitiator(t, hub.Key()).Garbage())
	}
	done := make(chan struct{})
	var flood sync.WaitGroup
	defer flood.Wait()
	defer close(done)
	enemy := dialHub(t, hub)
	flood.Go(func() {
		for {
			for _, message := range messages {
				if _, err := enemy.Write(message); err != nil {
					return
				}
			}
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	eventually(t, "load", func() bool { return dropped(t, reg, "handshake_without_cookie") > 0 })
	c, cookies := dialHub(t, hub), 0
	eventually(t, "the peer to be let in with a cookie", func() bool {
		send(t, c, member.Initiation(t, time.Now()))
		got := answer(t, c, time.Second)
		if member.Cookie(got) {
			cookies++
		}
		return len(got) == device.MessageResponseSize && cookies > 0
	})
	if !hub.Active(member.Claims) {
		t.Error("the peer is not active")
	}
}

// A connection is a way in like UDP: the doorman sees what comes that way.
func TestDoorman_WatchesAttachedConnections(t *testing.T) {
	hub, reg := lazyHub(t)
	member := memberOf(t, hub)
	x, y := wgtest.Pipe()
	if _, err := hub.Attach(x); err != nil {
		t.Fatal(err)
	}
	stranger := wg.NewInitiator(t, hub.Key())
	if err := y.WritePacket(stranger.Initiation(t, time.Now())); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stranger to be refused", func() bool { return dropped(t, reg, "handshake_stranger") == 1 })
	if err := y.WritePacket(member.Initiation(t, time.Now())); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	if n, err := y.ReadPacket(buf); err != nil || n != device.MessageResponseSize {
		t.Errorf("answer of %d bytes, %v, want a response", n, err)
	}
	if !hub.Active(member.Claims) {
		t.Error("the peer is not active")
	}
}
