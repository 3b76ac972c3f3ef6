// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// crowd are peers of a large mesh.
func crowd(n int) []wg.Peer {
	peers := make([]wg.Peer, n)
	for i := range peers {
		peers[i] = wg.Peer{Key: mesh.WireGuardKey{1, byte(i), byte(i >> 8)}, AllowedIPs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)}), 32),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 6: byte(i >> 8), 7: byte(i)}), 112),
		}}
	}
	return peers
}

// used is how much memory is in use.
func used() int {
	runtime.GC()
	runtime.GC() // what the first one only finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// perPeer returns what each of some peers costs a device, in bytes.
func perPeer(tb testing.TB, n, resident int) int {
	tb.Helper()
	node, peers := wgtest.New(tb, 1, wg.Options{Resident: resident}), crowd(n)
	// What all peers share: queues, nobody, the doorman.
	node.SetPeers(peers[:1]...)
	before := used()
	node.SetPeers(peers...)
	cost := (used() - before) / n
	runtime.KeepAlive(peers)
	return cost
}

// An idle peer costs a fraction of one that is ready.
func TestLazy_IdlePeersAreSmall(t *testing.T) {
	idle, ready := perPeer(t, 10_000, -1), perPeer(t, 1000, 1000)
	t.Logf("an idle peer takes %d bytes, one that is ready %d", idle, ready)
	if idle <= 0 || idle*8 > ready || !raceEnabled && idle > 4096 {
		t.Errorf("an idle peer takes %d bytes, one that is ready %d", idle, ready)
	}
}

// A peer that leaves the library gives back what it took there.
func TestLazy_EvictionGivesMemoryBack(t *testing.T) {
	const count = 500
	hub, reg := lazyHub(t)
	peers := crowd(count)
	for i := range peers {
		peers[i].Endpoint = "127.0.0.1:9"
	}
	hub.SetPeers(peers...)
	before := used()
	for i := range peers {
		hub.Handshake(peers[i].Key)
	}
	if got := metric(t, reg, "meshgate_wg_active_peers", ""); got != count {
		t.Fatalf("%v peers active, want %d", got, count)
	}
	most := used() - before
	eventually(t, "all peers to leave", func() bool {
		evict(hub)
		return metric(t, reg, "meshgate_wg_active_peers", "") == 0
	})
	eventually(t, "memory to be free", func() bool { return used()-before < most/4 })
}
