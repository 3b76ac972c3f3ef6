// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"testing"
	"time"

	"github.com/pion/stun"
)

// TestProgram_ForgetsWhatTimeEnds: permissions, channels and allocations end in the
// kernel when they end in the core, and last longer there when they do in the core.
func TestProgram_ForgetsWhatTimeEnds(t *testing.T) {
	w := newWorld(t)
	start := w.now
	at := func(minutes int) { w.now = start.Add(time.Duration(minutes) * time.Minute) }
	channel := func() {
		w.request(client4, stun.MethodChannelBind, number(stun.AttrChannelNumber, 0x40, 0, 0, 0), peerAt(peer4))
	}
	w.bind(client4, peer4)
	_, relay := w.relay(client4, peer4)
	for _, step := range []struct {
		name             string
		minute           int
		do               func()
		toPeer, fromPeer int // minutes from the start; 0: neither is there any more
	}{
		{"a channel", 0, channel, 10, 5},
		{"a permission again", 4, func() { w.request(client4, stun.MethodCreatePermission, peerAt(peer4)) }, 10, 9},
		{"a longer lifetime", 4, func() { w.request(client4, stun.MethodRefresh, number(stun.AttrLifetime, 0, 0, 4, 176)) }, 10, 9}, // 20 minutes
		{"a channel again", 8, channel, 18, 13},
		{"the end of the channel", 18, func() {}, 0, 0},
		{"a channel anew", 20, channel, 24, 24}, // no longer than the allocation
		{"the end of the allocation", 24, func() {}, 0, 0},
	} {
		at(step.minute)
		step.do()
		w.core.Expire(w.now, &w.out)
		w.drive()
		if step.toPeer > 0 {
			for direction, minutes := range [2]int{step.toPeer, step.fromPeer} {
				ends := start.Add(time.Duration(minutes) * time.Minute)
				until := time.Duration(w.sides(client4)[direction][sideUntil]) - monotonic()
				if off := until - time.Until(ends); off.Abs() > late {
					t.Errorf("%s: direction %d ends %v after minute %d", step.name, direction, off, minutes)
				}
			}
			continue
		}
		w.passes(nativeProgram, step.name, received(client4, server4, frame(0x4000, random(10))).marshal())
		w.passes(nativeProgram, step.name, received(peer4, relay, random(10)).marshal())
		if keys := w.keys(); len(keys) > 0 {
			t.Errorf("%s: the maps hold % x", step.name, keys)
		}
	}
	if s := w.engine.Stats(); s.Bindings != 0 || s.Packets != [NumOutcomes]uint64{} {
		t.Errorf("%+v", s)
	}
}
