// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// served renders what a path past the core may serve for a client, and how
// often the driver was told to look since the last call.
func (c *client) served() string {
	told := 0
	for _, a := range c.actions {
		if a.Kind == ChannelsChanged && a.Flow == c.flow {
			told++
		}
	}
	c.actions = nil
	var all []string
	for b := range c.core.Bindings(c.now, c.flow) {
		all = append(all, fmt.Sprintf("%x=%v until %v/%v", b.Channel, b.Peer, b.ToPeer.Sub(c.now), b.FromPeer.Sub(c.now)))
	}
	slices.Sort(all)
	return fmt.Sprintf("told %d: %s", told, strings.Join(all, ", "))
}

// TestOffload_FollowsWhatChanges checks after each step what a faster path
// serves, and that it was told.
func TestOffload_FollowsWhatChanges(t *testing.T) {
	c := newWorld(t, func(cfg *Config) { cfg.Offload = true }).client(udp4, 1)
	const host = "198.51.100.77"
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"an allocation", func() { c.allocate(udp(), additional(IPv6)) }, "told 0: "},
		{"a permission", func() { c.must(methodCreatePermission, peerAt(peer4)) }, "told 0: "},
		{"a channel", func() { c.must(methodChannelBind, channel(0x4000), peerAt(peer4)) }, "told 1: 4000=" + peer4 + " until 10m0s/5m0s"},
		{"of another family", func() { c.must(methodChannelBind, channel(0x4001), peerAt(peer6)) },
			"told 1: 4000=" + peer4 + " until 10m0s/5m0s, 4001=" + peer6 + " until 10m0s/5m0s"},
		{"time", func() { c.pass(4 * time.Minute) }, "told 0: 4000=" + peer4 + " until 6m0s/1m0s, 4001=" + peer6 + " until 6m0s/1m0s"},
		{"a permission again", func() { c.must(methodCreatePermission, peerAt(host+":1")) },
			"told 1: 4000=" + peer4 + " until 6m0s/5m0s, 4001=" + peer6 + " until 6m0s/1m0s"},
		{"a refresh", func() { c.must(methodRefresh, lifetime(3600)) },
			"told 1: 4000=" + peer4 + " until 6m0s/5m0s, 4001=" + peer6 + " until 6m0s/1m0s"},
		{"a policy", func() { c.forbid(host + "/32"); c.core.PolicyChanged(&c.out); c.drive() }, "told 1: 4001=" + peer6 + " until 6m0s/1m0s"},
		{"another policy", func() { c.forbidden = nil; c.core.PolicyChanged(&c.out); c.drive() },
			"told 1: 4000=" + peer4 + " until 6m0s/5m0s, 4001=" + peer6 + " until 6m0s/1m0s"},
		{"no IPv6", func() { c.must(methodRefresh, lifetime(0), family(IPv6)) }, "told 1: 4000=" + peer4 + " until 6m0s/5m0s"},
		{"the end of channels", func() { c.pass(6 * time.Minute) }, "told 1: "},
		{"a channel again", func() { c.must(methodChannelBind, channel(0x4000), peerAt(peer4)) }, "told 1: 4000=" + peer4 + " until 10m0s/5m0s"},
		{"the end", func() { c.must(methodRefresh, lifetime(0)) }, "told 1: "},
	} {
		step.do()
		if got := c.served(); got != step.want {
			t.Errorf("after %s: got  %s\nwant %s", step.name, got, step.want)
		}
	}
	c.idle()
}

func TestOffload_IsCredited(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.bound()
	c.emit(channelData(0x4000, "hello"))
	c.core.Credit(c.now, c.flow, Usage{SentPackets: 1, SentBytes: 2, ReceivedPackets: 3, ReceivedBytes: 4})
	c.core.Credit(c.now, c.client(udp4, 2).flow, Usage{SentPackets: 1})
	for i := range c.core.Allocations() {
		if want := (Usage{SentPackets: 2, SentBytes: 7, ReceivedPackets: 3, ReceivedBytes: 4}); i.Usage != want {
			t.Errorf("%+v, want %+v", i.Usage, want)
		}
	}
}

// TestOffload_SharesTheRate: a path beside the core keeps the rate by itself, and
// what it relays is missing to the core.
func TestOffload_SharesTheRate(t *testing.T) {
	c := newWorld(t).client(udp4, 1).as("slow", "x")
	c.bound()
	passed := 0
	for range 20 {
		c.pass(time.Second)
		c.core.Credit(c.now, c.flow, Usage{SentBytes: 300, ReceivedBytes: 300})
		for range 20 {
			if c.emit(channelData(0x4000, strings.Repeat("x", 50))) != "none" {
				passed += 50
			}
		}
	}
	if passed < 7500 || passed > 9000 {
		t.Errorf("%d bytes passed in 20 seconds at 1000 bytes a second of which others took 600", passed)
	}
	c.core.Credit(c.now, c.flow, Usage{SentBytes: 5000})
	c.pass(4 * time.Second)
	if got := c.emit(channelData(0x4000, "x")); got != "none" {
		t.Errorf("before the debt was paid: %s", got)
	}
	c.pass(2 * time.Second)
	if got := c.emit(channelData(0x4000, "x")); got == "none" {
		t.Error("nothing passes after it")
	}
}

// TestOffload_LeavesItsDebt: who ends an allocation and begins another does not get
// what it has used already, on either path.
func TestOffload_LeavesItsDebt(t *testing.T) {
	shared := newRate(start, 100_000)
	c := newWorld(t, func(cfg *Config) {
		cfg.Rate, cfg.Offload = func(string, int64) *Rate { return shared }, true
	}).client(udp4, 1)
	for n := range 3 {
		c.bound()
		if room, want := shared.Room(c.now), time.Second-time.Duration(n)*time.Second/2; room != want || shared.Idle(c.now) != (n == 0) {
			t.Errorf("allocation %d begins with %v, want %v", n, room, want)
		}
		c.must(methodRefresh, lifetime(0))
		c.core.Credit(c.now, c.flow, Usage{SentBytes: 20_000, ReceivedBytes: 30_000})
		c.core.Credit(c.now, c.flow, Usage{SentBytes: 1 << 30}) // of nobody
	}
	c.pass(1400 * time.Millisecond)
	if shared.Idle(c.now) || len(c.core.owed) != 0 {
		t.Errorf("idle %t, and %d allocations are remembered", shared.Idle(c.now), len(c.core.owed))
	}
	if c.pass(100 * time.Millisecond); !shared.Idle(c.now) || shared.Room(c.now) != time.Second {
		t.Errorf("idle %t, with room of %v", shared.Idle(c.now), shared.Room(c.now))
	}
}
