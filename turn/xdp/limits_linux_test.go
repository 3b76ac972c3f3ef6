// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"
	"github.com/vishvananda/netlink"

	"github.com/meshgate/meshgate/turn/core"
)

// TestProgram_PassesWhatDoesNotFit: a header more may be too much for a link.
func TestProgram_PassesWhatDoesNotFit(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4, peer6)
	w.bind(client6, peer4, peer6)
	const mtu = 1500
	for _, client := range clients() {
		head := map[bool]int{true: 28, false: 48}
		for _, peer := range peers()[:2] {
			id, relay := w.relay(client, peer)
			most := mtu - head[client.Addr().Is4()] - 4
			if err := w.down(nativeProgram, id, received(peer, relay, random(most))); err != nil {
				t.Errorf("%d bytes from %v to %v: %v", most, peer, client, err)
			}
			w.passes(nativeProgram, "one more", received(peer, relay, random(most+1)).marshal())
			channel := uint16(0x4000)
			if peer == peer6 {
				channel++
			}
			most = mtu - head[peer.Addr().Is4()]
			if err := w.up(nativeProgram, received(client, serverOf(client), frame(channel, random(most)))); err != nil {
				t.Errorf("%d bytes from %v to %v: %v", most, client, peer, err)
			}
			w.passes(nativeProgram, "one more", received(client, serverOf(client), frame(channel, random(most+1))).marshal())
		}
	}
	if s := w.engine.Stats(); s.Packets[Oversize] != 8 {
		t.Errorf("%+v", s)
	}
}

// TestProgram_PassesWhatHasNoWay: user space and the kernel's own stack find out
// what is to be done.
func TestProgram_PassesWhatHasNoWay(t *testing.T) {
	w := newWorld(t)
	for i, addr := range []string{"192.0.2.99:1", "203.0.113.1:1", "[2001:db8::99]:1", "[2001:db8:ffff::1]:1", "192.0.2.1:1", "[2001:db8::1]:1"} {
		peer := netip.MustParseAddrPort(addr)
		client := netip.AddrPortFrom(client4.Addr(), client4.Port()+uint16(i))
		w.bind(client, peer)
		w.passes(genericProgram, addr, received(client, server4, frame(0x4000, random(10))).marshal())
	}
	if s := w.engine.Stats(); s.Packets[Unreached] != 6 {
		t.Errorf("%+v", s)
	}
}

// TestProgram_RedirectsToWhoTakesIt: the kernel drops what a native program sends
// to a driver that cannot take it.
func TestProgram_RedirectsToWhoTakesIt(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, farPeer4, farPeer6)
	for i, program := range programs() {
		came := received(client4, server4, frame(0x4000+uint16(i), random(10)))
		index := uint32(linkOf(t, "far").Attrs().Index)
		must(t, w.engine.programs.Maps["ports"].Delete(index))
		w.passes(program, "to an interface without the program", came.marshal())
		w.native("far", false)
		if program == nativeProgram {
			w.passes(program, "to an interface of generic mode", came.marshal())
		} else if err := w.up(program, came); err != nil {
			t.Errorf("%s: to an interface of generic mode: %v", program, err)
		}
		w.native("far", true)
		if err := w.up(program, came); err != nil {
			t.Errorf("%s: %v", program, err)
		}
	}
}

// TestProgram_LooksAgain: a next hop is good for a moment, at the interface for
// which it was looked up, and for packets that are no larger.
func TestProgram_LooksAgain(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4)
	came := received(client4, server4, frame(0x4000, random(10)))
	if err := w.up(nativeProgram, came); err != nil {
		t.Fatal(err)
	}
	side := w.sides(client4)[toPeer]
	const moment = 250 * time.Millisecond
	if left := time.Duration(side[sideFresh]) - monotonic(); left > moment {
		t.Errorf("good for %v", left)
	}
	must(t, netlink.NeighDel(&netlink.Neigh{
		LinkIndex: int(w.near), State: netlink.NUD_PERMANENT, IP: peer4.Addr().AsSlice(), HardwareAddr: mac(peer4.Addr()),
	}))
	side[sideFresh] = uint64(monotonic() + time.Hour)
	if err := w.up(nativeProgram, came); err != nil {
		t.Errorf("in time: %v", err)
	}
	w.passes(nativeProgram, "a larger one", received(client4, server4, frame(0x4000, random(11))).marshal())
	options := ebpfRun(came.marshal(), uint32(linkOf(t, "far").Attrs().Index))
	if action, err := w.engine.programs.Programs[nativeProgram].Run(&options); err != nil || action != actionPass {
		t.Errorf("at another interface: %s, %v", describe(action), err)
	}
	side[sideFresh] = 1
	w.passes(nativeProgram, "late", came.marshal())
	neighbour(t, "near", peer4.Addr())
	if err := w.up(nativeProgram, came); err != nil {
		t.Errorf("known again: %v", err)
	}
}

// TestProgram_KeepsDeadlines: each direction ends on its own, whoever sleeps.
func TestProgram_KeepsDeadlines(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4)
	id, relay := w.relay(client4, peer4)
	came, back := received(client4, server4, frame(0x4000, random(10))), received(peer4, relay, random(10))
	for _, c := range []struct{ toPeer, fromPeer time.Duration }{{time.Hour, -1}, {-1, time.Hour}, {time.Hour, time.Hour}} {
		w.engine.Changed(flowOf(client4), func(yield func(core.Binding) bool) {
			for b := range w.core.Bindings(w.now, flowOf(client4)) {
				b.ToPeer, b.FromPeer = time.Now().Add(c.toPeer), time.Now().Add(c.fromPeer)
				yield(b)
			}
		})
		if c.toPeer < 0 {
			w.passes(nativeProgram, "to a peer", came.marshal())
		} else if err := w.up(nativeProgram, came); err != nil {
			t.Errorf("%+v: to a peer: %v", c, err)
		}
		if c.fromPeer < 0 {
			w.passes(nativeProgram, "from a peer", back.marshal())
		} else if err := w.down(nativeProgram, id, back); err != nil {
			t.Errorf("%+v: from a peer: %v", c, err)
		}
	}
	if s := w.engine.Stats(); s.Packets[Expired] != 2 {
		t.Errorf("%+v", s)
	}
}

// TestProgram_LetsUserSpaceSeeSome: one packet of each direction, when it is time.
func TestProgram_LetsUserSpaceSeeSome(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4)
	id, relay := w.relay(client4, peer4)
	came, back := received(client4, server4, frame(0x4000, random(10))), received(peer4, relay, random(10))
	for _, side := range w.sides(client4) {
		side[sideTouch] = 1
	}
	w.passes(nativeProgram, "the first to a peer", came.marshal())
	w.passes(nativeProgram, "the first from a peer", back.marshal())
	for range 3 {
		if err := w.up(nativeProgram, came); err != nil {
			t.Error(err)
		}
		if err := w.down(nativeProgram, id, back); err != nil {
			t.Error(err)
		}
	}
	if s := w.engine.Stats(); s.Packets[Touched] != 2 || s.Bytes[Touched] != 20 || s.Packets[Sent] != 6 || s.Bytes[Sent] != 60 {
		t.Errorf("%+v", s)
	}
}

// TestProgram_ServesNoForbiddenPeer: what the policy takes back is gone from the
// kernel before the core's event ends.
func TestProgram_ServesNoForbiddenPeer(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4, peer6)
	_, relay := w.relay(client4, peer4)
	came, back := received(client4, server4, frame(0x4000, random(10))), received(peer4, relay, random(10))
	w.forbidden = peer4.Addr()
	w.core.PolicyChanged(&w.out)
	w.drive()
	w.passes(nativeProgram, "to a forbidden peer", came.marshal())
	w.passes(nativeProgram, "from a forbidden peer", back.marshal())
	if err := w.up(nativeProgram, received(client4, server4, frame(0x4001, random(10)))); err != nil {
		t.Errorf("another peer: %v", err)
	}
	w.forbidden = netip.Addr{}
	w.core.PolicyChanged(&w.out)
	w.drive()
	if err := w.up(nativeProgram, came); err != nil {
		t.Errorf("allowed again: %v", err)
	}
}

// TestProgram_KeepsTheRate: the bucket of an allocation is one for all its
// channels and both directions, as that of the core is.
func TestProgram_KeepsTheRate(t *testing.T) {
	const rate = 100 // slow enough for a slow machine
	w := newWorld(t, func(w *world) { w.rate = rate })
	start := monotonic()
	w.bind(client4, peer4, peer6)
	_, relay := w.relay(client4, peer4)
	m := w.engine.table.meters.entry(1)
	burst, full := time.Duration(m[meterBurst]), time.Duration(m[meterFull])
	if least, most := start+burst-time.Second, monotonic()+burst-time.Second; full < least || full > most {
		t.Errorf("a second's worth is there before %v or after %v", least-full, most-full)
	}
	holds := func(bytes int) { m[meterFull] = uint64(monotonic() + burst - time.Duration(bytes)*time.Second/rate) }
	send := func(frame packet, want uint32) {
		t.Helper()
		if action, _ := w.run(nativeProgram, frame.marshal()); action != want {
			t.Errorf("%d bytes from %v: %s, want %s", len(frame.data), frame.from, describe(action), describe(want))
		}
	}
	holds(1000)
	send(received(client4, server4, frame(0x4000, random(600))), actionTX)
	send(received(peer4, relay, random(600)), actionDrop)
	send(received(client4, server4, frame(0x4001, random(600))), actionDrop)
	send(received(peer4, relay, random(300)), actionTX)
	m[meterFull] -= uint64(1000 * time.Second / rate) // later
	send(received(peer4, relay, random(900)), actionTX)
	send(received(peer4, relay, random(900)), actionDrop)
	// However long it waits, the bucket holds one datagram of any size.
	m[meterFull] = 0
	for range 65536 / 1024 {
		send(received(client4, server4, frame(0x4000, random(1024))), actionTX)
	}
	send(received(peer4, relay, random(1024)), actionDrop)
	if s := w.engine.Stats(); s.Packets[Limited] != 4 {
		t.Errorf("%+v", s)
	}
}

// TestProgram_FollowsTheRate: a bound that comes while channels are served holds for
// them, and one that is gone bounds nothing.
func TestProgram_FollowsTheRate(t *testing.T) {
	w := newWorld(t, func(w *world) { w.shared = core.NewRate(0) })
	w.bind(client4, peer4)
	came := received(client4, server4, frame(0x4000, random(600)))
	for _, rate := range []int64{0, 100, 0, 100, 0} {
		w.shared.Set(rate)
		w.core.PolicyChanged(&w.out)
		w.drive()
		want := uint32(actionTX)
		if rate > 0 {
			want = actionDrop // there is a second's worth
		}
		if action, _ := w.run(nativeProgram, came.marshal()); action != want {
			t.Errorf("600 bytes at %d a second: %s, want %s", rate, describe(action), describe(want))
		}
	}
	if n := len(w.engine.table.rates); n != 0 {
		t.Errorf("%d meters are still taken", n)
	}
}

// TestProgram_LeavesClientsTheirPart: the last quarter of a bucket is for what clients
// send, but for what half of the rate brings, as that of the core is.
func TestProgram_LeavesClientsTheirPart(t *testing.T) {
	const rate = 100 // slow enough for a slow machine
	w := newWorld(t, func(w *world) { w.rate = rate })
	w.bind(client4, peer4)
	_, relay := w.relay(client4, peer4)
	m := w.engine.table.meters.entry(1)
	send := func(p packet) bool {
		action, _ := w.run(nativeProgram, p.marshal())
		return action == actionTX
	}
	passed := func(p packet) (times int) {
		for send(p) {
			times++
		}
		return times
	}
	come, back := received(client4, server4, frame(0x4000, random(1024))), received(peer4, relay, random(1024))
	m[meterFull] = uint64(monotonic()) + m[meterBurst] - uint64((1<<14+1000)*time.Second/rate)
	if !send(received(peer4, relay, random(900))) {
		t.Error("a peer does not have what is there above the last quarter")
	}
	if peers, clients := passed(back), passed(come); peers != 5 || clients != 11 {
		t.Errorf("%d from peers and %d from the client are in the last quarter, want 5 and 11", peers, clients)
	}
	later := uint64(2 * 1024 * time.Second / rate)
	m[meterFull], m[meterShare] = m[meterFull]-later, m[meterShare]-later
	if peers, clients := passed(back), passed(come); peers != 1 || clients != 1 {
		t.Errorf("%d from peers and %d from the client after two more, want 1 and 1", peers, clients)
	}
}

// TestProgram_CountsBytesWhenTheRateChanges: what has passed at a low rate is little at
// a high one, and what has passed at a high one is not more than all at a low one.
func TestProgram_CountsBytesWhenTheRateChanges(t *testing.T) {
	w := newWorld(t, func(w *world) { w.shared = core.NewRate(2000) })
	w.bind(client4, peer4)
	m := w.engine.table.meters.entry(1)
	for _, v := range []struct {
		rate    int64
		missing time.Duration // before
		want    time.Duration // after
	}{
		{10_000_000, 1 << 16 * time.Second / 2000, 1 << 16 * time.Second / 10_000_000},
		{5_000_000, time.Second / 4, time.Second / 2},
		{1000, time.Second, 1 << 16 * time.Second / 1000},
		{2000, 0, 0},
	} {
		begin := monotonic()
		m[meterFull], m[meterShare] = uint64(begin+v.missing), math.MaxUint64
		w.shared.Set(v.rate)
		w.core.PolicyChanged(&w.out)
		w.drive()
		set := monotonic()
		// Some time has passed, in which the old rate has brought twice as much at most.
		if got := time.Duration(m[meterFull]) - set; got > v.want || got < v.want-2*(set-begin)-time.Millisecond {
			t.Errorf("%d a second: %v are missing, want %v", v.rate, got, v.want)
		}
		if m[meterShare] != 0 {
			t.Errorf("%d a second: peers have no part of it", v.rate)
		}
	}
	m[meterFull], m[meterShare] = 7, 7
	w.core.PolicyChanged(&w.out)
	w.drive()
	if m[meterFull] != 7 || m[meterShare] != 7 {
		t.Error("a rate that stays changes what has passed")
	}
}

// TestProgram_KeepsTheRateOfWhoBeginsAnew: who ends an allocation and makes another one
// has no more than who goes on.
func TestProgram_KeepsTheRateOfWhoBeginsAnew(t *testing.T) {
	const rate, size = 100_000, 1000
	w := newWorld(t, func(w *world) { w.shared = core.NewRate(rate) })
	start, passed := time.Now(), 0
	for range 3 {
		w.now = time.Now()
		w.bind(client4, peer4)
		for range 2 * rate / size {
			if action, _ := w.run(nativeProgram, received(client4, server4, frame(0x4000, random(size))).marshal()); action == actionTX {
				passed += size
			}
		}
		w.now = time.Now()
		w.request(client4, stun.MethodRefresh, number(stun.AttrLifetime, 0, 0, 0, 0))
	}
	if most := rate + int(time.Since(start).Seconds()*rate); passed < rate*9/10 || passed > most {
		t.Errorf("%d bytes passed at %d a second, want no more than %d", passed, rate, most)
	}
}
