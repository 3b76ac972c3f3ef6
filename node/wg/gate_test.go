// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// fakePlane is a plane that has packets for some destinations, in turns.
type fakePlane struct {
	plane
	to []netip.Addr
}

// packetTo is an IP packet without content.
func packetTo(dst netip.Addr) []byte {
	p := make([]byte, ipv6HeaderLen)
	if dst.Is4() {
		p = p[:ipv4HeaderLen]
		p[0] = 0x45
		copy(p[16:], dst.AsSlice())
		return p
	}
	p[0] = 0x60
	copy(p[24:], dst.AsSlice())
	return p
}

func (f *fakePlane) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], packetTo(f.to[i%len(f.to)]))
	}
	return len(bufs), nil
}

// testGate is a gate of many peers, of which those at 10.1.x.y are active, at
// 10.2.x.y idle and at 10.3.x.y lost.
func testGate(tb testing.TB, lazy bool, woken func([]*contact)) *gate {
	tb.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		tb.Fatal(err)
	}
	var routes []route
	for kind, state := range map[byte]contactState{1: stateActive, 2: stateIdle, 3: stateLost, 4: stateLeaving} {
		for i := range uint16(4000) {
			addr := [4]byte{10, kind}
			binary.BigEndian.PutUint16(addr[2:], i)
			c := &contact{key: mesh.WireGuardKey{kind, byte(i >> 8), byte(i)}}
			c.state.Store(uint32(state))
			v6 := netip.AddrFrom16([16]byte{0: 0xfd, 1: kind, 12: byte(i >> 8), 13: byte(i)})
			routes = append(routes, route{netip.PrefixFrom(netip.AddrFrom4(addr), 32), c}, route{netip.PrefixFrom(v6, 112), c})
		}
	}
	f := new(filter)
	f.current.Store(&rules{lazy: lazy, routes: newPrefixSet(routes)})
	return &gate{filter: f, metrics: m, paths: new(pathSet), wake: woken}
}

func TestGate_WaitsForIdlePeersOnce(t *testing.T) {
	var woken []*contact
	calls := 0
	g := testGate(t, true, func(idle []*contact) { calls, woken = calls+1, append(woken, idle...) })
	at := netip.MustParseAddr
	g.plane = &fakePlane{to: []netip.Addr{
		at("10.1.0.1"), at("10.2.0.1"), at("10.3.0.1"), at("192.0.2.1"), at("fd02::7:0"), at("10.2.0.1"), at("10.4.0.9"), at("fd01::7:1"),
	}}
	bufs, sizes := make([][]byte, 16), make([]int, 16)
	for i := range bufs {
		bufs[i] = make([]byte, 100)
	}
	n, err := g.Read(bufs, sizes, 16)
	if n != 16 || err != nil {
		t.Fatalf("Read = %d, %v", n, err)
	}
	want := []mesh.WireGuardKey{{2, 0, 1}, {2, 0, 7}, {4, 0, 9}}
	if calls != 1 || len(woken) != len(want) {
		t.Fatalf("%d peers woken in %d calls, want %d in one", len(woken), calls, len(want))
	}
	for i, c := range woken {
		if c.key != want[i] {
			t.Errorf("woke %v, want %v", c.key, want[i])
		}
	}
	for i, size := range sizes {
		if lost := i%8 == 2; lost != (size == 0) {
			t.Errorf("packet %d has %d bytes", i, size)
		}
	}
	if got := counter(t, g.metrics, reasonLost); got != 2 {
		t.Errorf("%v packets counted as lost, want 2", got)
	}
}

// Packets for active peers cost no memory, and no wait.
func TestGate_ActivePeersCostNoMemory(t *testing.T) {
	g := testGate(t, true, func([]*contact) { t.Error("an active peer was woken") })
	g.plane = &fakePlane{}
	bufs, sizes := [][]byte{packetTo(netip.MustParseAddr("10.1.0.1")), packetTo(netip.MustParseAddr("fd01::5:1"))}, []int{20, 40}
	if n := testing.AllocsPerRun(100, func() { g.wait(g.filter.load().routes, bufs, sizes, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkGate measures what the gate adds to a batch of packets.
func BenchmarkGate(b *testing.B) {
	for name, to := range map[string][]string{
		"one peer": {"10.1.0.1"}, "two peers": {"10.1.0.1", "10.1.0.2"}, "IPv6": {"fd01::1:0", "fd01::2:0"},
	} {
		b.Run(name, func(b *testing.B) {
			g := testGate(b, true, nil)
			bufs, sizes := make([][]byte, 128), make([]int, 128)
			for i := range bufs {
				bufs[i] = packetTo(netip.MustParseAddr(to[i%len(to)]))
				sizes[i] = len(bufs[i])
			}
			b.ReportAllocs()
			for b.Loop() {
				g.wait(g.filter.load().routes, bufs, sizes, 0)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(bufs)), "ns/packet")
		})
	}
}
