// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// peerAt returns the i-th of many peers, each at an address of its own.
func peerAt(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 1000)
}

func (b *bench) mustWrite(to netip.AddrPort, n int, want route) {
	b.Helper()
	if got, err := b.write(to, n); err != nil || got != want {
		b.Fatalf("%d packets to %s: route %d, want %d, %v", n, to, got, want, err)
	}
}

func TestCore_FromQueueToChannel(t *testing.T) {
	b := standingBench(t, nil)
	b.mustWrite(testPeer, 1, queued)
	if len(b.server.data) != 1 {
		t.Fatalf("%d packets left when the permission stood", len(b.server.data))
	}
	b.mustWrite(testPeer, channelAfter-2, indicated)
	if n := b.server.count(methodChannelBind); n != 0 {
		t.Fatalf("%d channels after %d packets", n, channelAfter-1)
	}
	b.mustWrite(testPeer, 1, indicated)
	b.mustWrite(testPeer, 100, channeled)
	if b.server.channels[minChannel] != testPeer || b.server.count(methodCreatePermission) != 1 {
		t.Errorf("channels %v, requests %x", b.server.channels, b.server.seen)
	}
	frame := []byte{0x40, 0, 0, 3, 'a', 'b', 'c'}
	if from, data, ok := b.receive(frame, b.clock); !ok || from != testPeer || string(data) != "abc" {
		t.Errorf("channel data is %q from %s", data, from)
	}
}

func TestCore_QueueIsBounded(t *testing.T) {
	b := standingBench(t, nil)
	b.lose = always
	b.mustWrite(testPeer, maxQueued+3, queued)
	if n := len(b.peers[testPeer].queue); n != maxQueued || b.dropped != 3 {
		t.Errorf("%d wait, %d dropped", n, b.dropped)
	}
	b.lose = never
	b.run(time.Second)
	if len(b.server.data) != maxQueued {
		t.Errorf("%d packets left", len(b.server.data))
	}
}

func TestCore_PacketsOfStrangers(t *testing.T) {
	b := standingBench(t, nil)
	b.mustWrite(testPeer, 2*channelAfter, channeled)
	indicate := func(from netip.AddrPort) []byte {
		id := newTxID()
		return newMessage(dataIndication, id).add(attrXORPeerAddress, xorValue(from, id)).add(attrData, []byte("data"))
	}
	tests := map[string]struct {
		packet []byte
		ok     bool
	}{
		"known peer":           {indicate(testPeer), true},
		"another port of it":   {indicate(netip.AddrPortFrom(testPeer.Addr(), 9)), true},
		"unknown peer":         {indicate(peerAt(9)), false},
		"no peer":              {newMessage(dataIndication, newTxID()).add(attrData, []byte("data")), false},
		"no data":              {newMessage(dataIndication, newTxID()).addPeer(testPeer), false},
		"short address":        {newMessage(dataIndication, newTxID()).add(attrXORPeerAddress, nil).add(attrData, []byte("x")), false},
		"bound channel":        {[]byte{0x40, 0, 0, 1, 'x'}, true},
		"padded":               {[]byte{0x40, 0, 0, 1, 'x', 0, 0, 0}, true},
		"free channel":         {[]byte{0x40, 1, 0, 1, 'x'}, false},
		"channel out of range": {[]byte{0x4F, 0xFF, 0, 1, 'x'}, false},
		"reserved channel":     {[]byte{0x50, 0, 0, 1, 'x'}, false},
		"longer than it is":    {[]byte{0x40, 0, 0, 9, 'x'}, false},
		"shorter than it is":   {[]byte{0x40, 0, 0, 1, 'x', 0, 0, 0, 0}, false},
		"head alone":           {[]byte{0x40, 0, 0}, false},
		"attribute beyond":     {append(newMessage(dataIndication, newTxID()), 0), false},
		"dtls":                 {[]byte{22, 254, 253, 0}, false},
		"nothing":              {nil, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			before := b.malformed
			if _, _, ok := b.receive(tc.packet, b.clock); ok != tc.ok || (b.malformed != before) == tc.ok {
				t.Errorf("data is %t, want %t; %d counted", ok, tc.ok, b.malformed-before)
			}
		})
	}
}

func TestCore_RenewsWhatIsInUse(t *testing.T) {
	for name, tc := range map[string]struct {
		packets int
		method  uint16
	}{
		"permission": {2, methodCreatePermission},
		"channel":    {2 * channelAfter, methodChannelBind},
	} {
		t.Run(name, func(t *testing.T) {
			b := standingBench(t, nil)
			b.write(testPeer, tc.packets)
			first := b.server.count(tc.method)
			b.run(13 * time.Minute) // idle after 10 minutes: renewed at 4 and 8
			if n := b.server.count(tc.method) - first; n != 2 {
				t.Errorf("renewed %d times", n)
			}
			if n := b.server.count(methodCreatePermission) + b.server.count(methodChannelBind); n != first+2+min(tc.packets/channelAfter, 1) {
				t.Errorf("%d requests for one peer", n)
			}
			b.run(time.Hour)
			if len(b.peers) != 0 || len(b.permissions) != 0 || b.channels[0] != nil {
				t.Errorf("%d peers and %d permissions are left after an hour", len(b.peers), len(b.permissions))
			}
		})
	}
}

// Traffic that starts again late in the life of a permission renews it in time.
func TestCore_PermissionNeverLapsesUnderTraffic(t *testing.T) {
	for _, n := range []int{1, 2 * channelAfter} {
		b := standingBench(t, nil)
		b.write(testPeer, n+1)
		for range 300 {
			b.run(59 * time.Second)
			if r, err := b.write(testPeer, 1); err != nil || r == queued {
				t.Fatalf("after %s: %d, %v", b.clock.Sub(b.start), r, err)
			}
		}
	}
}

func TestCore_ForgetsTheOldestPeer(t *testing.T) {
	b := standingBench(t, nil)
	for i := range maxPeers + 8 {
		b.mustWrite(peerAt(i), 2, indicated)
		b.clock = b.clock.Add(time.Second)
	}
	if len(b.peers) != maxPeers || len(b.permissions) != maxPeers {
		t.Errorf("%d peers, %d permissions", len(b.peers), len(b.permissions))
	}
	if b.peers[peerAt(7)] != nil || b.peers[peerAt(8)] == nil {
		t.Error("it was not the oldest ones that were forgotten")
	}
}

// Numbers stay with their peers for as long as the server has them.
func TestCore_ChannelsRunOut(t *testing.T) {
	b := standingBench(t, nil)
	for i := range maxChannels {
		b.mustWrite(peerAt(i), 2*channelAfter, channeled)
	}
	b.mustWrite(peerAt(100), 10*channelAfter, indicated)
	for i := range 2 * maxPeers {
		b.mustWrite(peerAt(200+i), 2, indicated)
	}
	for i := range maxChannels {
		b.mustWrite(peerAt(i), 1, channeled)
	}
	b.run(9 * time.Minute)
	for i := range maxChannels {
		if b.channels[i] == nil {
			t.Errorf("channel %d is free while the server may have it", i)
		}
	}
	b.run(25 * time.Minute)
	b.mustWrite(peerAt(300), 2*channelAfter, channeled)
	if b.server.channels[minChannel] != peerAt(300) {
		t.Error("the first channel does not come back")
	}
}

func TestCore_RefusedChannelFallsBack(t *testing.T) {
	b := standingBench(t, nil)
	b.server.refuse[methodChannelBind] = 508
	b.mustWrite(testPeer, 10*channelAfter, indicated)
	delete(b.server.refuse, methodChannelBind)
	b.mustWrite(testPeer, 1, indicated) // not asked for at once again
	b.clock = b.clock.Add(channelRetry)
	b.run(time.Second)
	b.write(testPeer, 2)
	b.mustWrite(testPeer, 1, channeled)
}

// A policy by port refuses one peer of an address and not the other.
func TestCore_DenialIsByPort(t *testing.T) {
	b := standingBench(t, nil)
	denied := netip.AddrPortFrom(testPeer.Addr(), 22)
	b.server.forbid[denied] = 403
	b.mustWrite(denied, 1, queued)
	if _, err := b.write(denied, 1); !errors.Is(err, ErrForbidden) {
		t.Errorf("second packet: %v", err)
	}
	if err := b.allow(denied, b.clock); !errors.Is(err, ErrForbidden) {
		t.Errorf("permit: %v", err)
	}
	asked := b.server.count(methodCreatePermission)
	b.write(denied, 100)
	if n := b.server.count(methodCreatePermission); n != asked {
		t.Errorf("asked %d times more", n-asked)
	}
	b.mustWrite(testPeer, 1, queued)
	b.mustWrite(testPeer, 1, indicated)
	// The permission that stands now is for the address, whatever was refused before.
	if err := b.allow(denied, b.clock); err != nil {
		t.Errorf("permit, with a permission for the address: %v", err)
	}
}

// What waits behind a request for another port of the address is asked for in turn.
func TestCore_QueueBehindADenial(t *testing.T) {
	b := standingBench(t, nil)
	denied := netip.AddrPortFrom(testPeer.Addr(), 22)
	b.server.forbid[denied] = 403
	b.lose = always
	b.mustWrite(denied, 1, queued)
	b.mustWrite(testPeer, 1, queued)
	b.lose = never
	b.run(time.Second)
	if len(b.server.data) != 1 || b.server.data[0] != testPeer || b.dropped != 1 {
		t.Errorf("left for %v, %d dropped", b.server.data, b.dropped)
	}
}

func TestCore_DeniedPeerIsAskedForAgainLater(t *testing.T) {
	b := standingBench(t, nil)
	b.server.forbid[testPeer] = 403
	b.write(testPeer, 2)
	delete(b.server.forbid, testPeer)
	b.run(denialLife)
	b.mustWrite(testPeer, 1, queued)
	b.mustWrite(testPeer, 1, indicated)
}
