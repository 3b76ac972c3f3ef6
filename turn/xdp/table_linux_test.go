// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/meshgate/meshgate/turn/core"
)

// TestTable_KeepsItsBooks: a slot is cleared, used, counted once and given back.
func TestTable_KeepsItsBooks(t *testing.T) {
	w := newWorld(t)
	table := w.engine.table
	table.spareSlots.end = 3 // two slots
	until := time.Now().Add(time.Hour)
	relay := netip.AddrPortFrom(server4.Addr(), 50001)
	b := func(channel uint16, peer netip.AddrPort) core.Binding {
		return core.Binding{Channel: channel, Relayed: relay, Peer: peer, ToPeer: until, FromPeer: until}
	}
	set := func(bindings ...core.Binding) { w.engine.Changed(flowOf(client4), slices.Values(bindings)) }
	other := netip.AddrPortFrom(peer4.Addr(), 1)
	third := netip.AddrPortFrom(peer4.Addr(), 2)
	send := func(channel uint16, from netip.AddrPort, bytes int) {
		t.Helper()
		if action, _ := w.run(nativeProgram, received(client4, server4, frame(channel, random(bytes))).marshal()); action != actionTX {
			t.Errorf("to a peer: %s", describe(action))
		}
		if action, _ := w.run(nativeProgram, received(from, relay, random(bytes+1)).marshal()); action != actionTX {
			t.Errorf("to a client: %s", describe(action))
		}
	}
	counted := func(want core.Usage) {
		t.Helper()
		if u := w.engine.Counters(flowOf(client4)); u != want {
			t.Errorf("%+v, want %+v", u, want)
		}
	}
	set(b(0x4000, peer4), b(0x4001, other), b(0x4002, third))
	if s := w.engine.Stats(); s.Bindings != 2 || s.Refused != 1 {
		t.Errorf("%+v", s)
	}
	send(0x4000, peer4, 10)
	send(0x4001, other, 20)
	counted(core.Usage{SentPackets: 2, SentBytes: 30, ReceivedPackets: 2, ReceivedBytes: 32})
	counted(core.Usage{})
	send(0x4000, peer4, 10)
	set(b(0x4001, other), b(0x4005, peer4)) // the peer has moved to another channel
	send(0x4005, peer4, 100)
	w.passes(nativeProgram, "the channel that it had", received(client4, server4, frame(0x4000, random(10))).marshal())
	counted(core.Usage{SentPackets: 2, SentBytes: 110, ReceivedPackets: 2, ReceivedBytes: 112})
	set(b(0x4001, third)) // the channel has another peer
	send(0x4001, third, 1)
	w.passes(nativeProgram, "the peer that it had", received(other, relay, random(10)).marshal())
	set()
	counted(core.Usage{SentPackets: 1, SentBytes: 1, ReceivedPackets: 1, ReceivedBytes: 2})
	if len(table.flows) != 0 || table.idle != 0 || len(table.spareSlots.back) != 2 {
		t.Errorf("%d flows, %d idle, %d slots left", len(table.flows), table.idle, len(table.spareSlots.back))
	}
	// Nobody asks any more: what is remembered is bounded.
	for i := range uint16(maxIdle + 10) {
		client := netip.AddrPortFrom(client4.Addr(), 10000+i)
		one := slices.Values([]core.Binding{b(0x4000, peer4)})
		w.engine.Changed(flowOf(client), one)
		table.side(table.flows[flowOf(client)].bindings[0x4000].slot, toPeer)[sidePackets] = 1
		w.engine.Changed(flowOf(client), slices.Values([]core.Binding(nil)))
	}
	if len(table.flows) != maxIdle || table.idle != maxIdle {
		t.Errorf("%d flows, %d idle", len(table.flows), table.idle)
	}
}

// TestEngine_IsForManyShards: each has a thread that changes and asks.
func TestEngine_IsForManyShards(t *testing.T) {
	w := newWorld(t)
	relay := netip.AddrPortFrom(server4.Addr(), 50001)
	until := time.Now().Add(time.Hour)
	var shards sync.WaitGroup
	for i := range uint16(4) {
		shards.Go(func() {
			for n := range uint16(50) {
				flow := flowOf(netip.AddrPortFrom(client4.Addr(), 1000*(i+1)+n%3))
				var bindings []core.Binding
				for c := range n % 4 {
					bindings = append(bindings, core.Binding{
						Channel: 0x4000 + c, Relayed: netip.AddrPortFrom(relay.Addr(), 100*i+n), Peer: peer4, ToPeer: until, FromPeer: until, BytesPerSecond: int64(n % 2),
					})
				}
				w.engine.Changed(flow, slices.Values(bindings))
				w.engine.Counters(flow)
				w.engine.Stats()
			}
			for n := range uint16(3) {
				w.engine.Changed(flowOf(netip.AddrPortFrom(client4.Addr(), 1000*(i+1)+n)), slices.Values([]core.Binding(nil)))
			}
		})
	}
	shards.Wait()
	if s := w.engine.Stats(); s.Bindings != 0 || s.Refused != 0 || len(w.engine.table.flows) != 0 {
		t.Errorf("%+v, %d flows", s, len(w.engine.table.flows))
	}
	if keys := w.keys(); len(keys) > 0 {
		t.Errorf("the maps still have % x", keys)
	}
}

// keys are those by which the program finds bindings, as the kernel holds them.
func (w *world) keys() (all [][]byte) {
	w.Helper()
	for _, m := range []*ebpf.Map{w.engine.table.fromClients, w.engine.table.fromPeers} {
		var key, value []byte
		entries := m.Iterate()
		for entries.Next(&key, &value) {
			all = append(all, slices.Clone(key))
		}
		must(w, entries.Err())
	}
	return all
}

// TestEngine_SharesRates: allocations that have a rate together have a meter
// together, until the last of them has ended.
func TestEngine_SharesRates(t *testing.T) {
	w := newWorld(t)
	until := time.Now().Add(time.Hour)
	rate := core.NewRate(100_000)
	one, two := client4, netip.AddrPortFrom(client4.Addr(), client4.Port()+1)
	relays := map[netip.AddrPort]netip.AddrPort{one: netip.AddrPortFrom(server4.Addr(), 50001), two: netip.AddrPortFrom(server4.Addr(), 50002)}
	set := func(client netip.AddrPort, bindings ...core.Binding) {
		for i := range bindings {
			bindings[i].Relayed, bindings[i].ToPeer, bindings[i].FromPeer = relays[client], until, until
			bindings[i].Rate, bindings[i].BytesPerSecond = rate, rate.PerSecond()
		}
		w.engine.Changed(flowOf(client), slices.Values(bindings))
	}
	send := func(client netip.AddrPort, want uint32) {
		t.Helper()
		if action, _ := w.run(nativeProgram, received(client, server4, frame(0x4000, random(1000))).marshal()); action != want {
			t.Errorf("%v: %s, want %s", client, describe(action), describe(want))
		}
	}
	// drained sends what is left of the bucket, and the next is too much.
	drained := func(most int) {
		t.Helper()
		start := time.Now()
		sent := 0
		for ; sent < 1000; sent++ {
			client := []netip.AddrPort{one, two}[sent%2]
			if action, _ := w.run(nativeProgram, received(client, server4, frame(0x4000, random(1000))).marshal()); action == actionDrop {
				break
			}
		}
		more := int(time.Since(start).Seconds()*float64(rate.PerSecond())/1000) + 1
		if sent < most-1 || sent > most+more {
			t.Errorf("%d packets passed, want %d and at most %d more", sent, most, more)
		}
	}
	set(one, core.Binding{Channel: 0x4000, Peer: peer4})
	set(two, core.Binding{Channel: 0x4000, Peer: peer4})
	drained(100)
	rate.Set(1_000_000_000)
	set(one, core.Binding{Channel: 0x4000, Peer: peer4})
	w.engine.table.meters.entry(1)[meterFull] = 0
	for range 200 {
		send(two, actionTX) // it is the meter of both that has changed
	}
	set(one)
	send(two, actionTX)
	if len(w.engine.table.rates) != 1 || len(w.engine.table.spareMeters.back) != 0 {
		t.Errorf("%d rates, %d meters left while there is a flow", len(w.engine.table.rates), len(w.engine.table.spareMeters.back))
	}
	set(two)
	w.engine.Counters(flowOf(one))
	w.engine.Counters(flowOf(two))
	if len(w.engine.table.rates) != 0 || len(w.engine.table.spareMeters.back) != 1 || len(w.engine.table.flows) != 0 {
		t.Errorf("%d rates, %d meters, %d flows left", len(w.engine.table.rates), len(w.engine.table.spareMeters.back), len(w.engine.table.flows))
	}
	// Who finds no meter is not served without one.
	w.engine.table.spareMeters.end, w.engine.table.spareMeters.back = 0, nil
	set(one, core.Binding{Channel: 0x4000, Peer: peer4})
	if s := w.engine.Stats(); s.Bindings != 0 || s.Refused != 1 {
		t.Errorf("%+v", s)
	}
}
