// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// order is what a thread did, one letter each: a packet of a relay, a packet of a
// listener, a call. It belongs to the thread.
type order struct {
	on  bool
	did []byte
}

func (o *order) note(what byte) {
	if o.on {
		o.did = append(o.did, what)
	}
}

// held has the thread wait until f has returned: what f sends is all there then.
func (w *world) held(f func()) {
	w.Helper()
	ready := make(chan struct{})
	holds := make(chan struct{})
	w.Do(func(time.Time, *core.Core, *core.Output) { close(holds); <-ready })
	await(w.TB, holds, "the thread holds")
	defer close(ready) // also when f ends the test
	f()
}

// Relays, listeners and calls that all have more than enough to do take turns, each
// with its share.
func TestThread_TakesTurns(t *testing.T) {
	const relays, each, asked, calls = 40, share, 4 * share, 1000
	var o order
	w := newWorld(t, func(cfg *Config) {
		cfg.Core.Permit = func(_ string, p core.Peer) bool {
			if p.Traffic {
				o.note('r')
			}
			return true
		}
		cfg.Core.Fleeting = func(netip.AddrPort) bool { return true } // ask about each packet
		cfg.Core.Answer = func(time.Time, netip.Addr) bool { o.note('l'); return true }
	})
	peer, peerAt := socket(t, loopback4)
	var at [relays]netip.AddrPort
	for i := range at {
		c := w.client(loopback4, "ann")
		at[i] = c.allocate()
		c.bind(0x4000, peerAt)
	}
	stranger := w.client(loopback4, "bob")
	binding := stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw
	w.held(func() {
		o.on = true
		for _, to := range at {
			for range each {
				peer.WriteToUDPAddrPort([]byte("x"), to)
			}
		}
		for range asked {
			stranger.send(binding)
		}
		for range calls {
			w.Do(func(time.Time, *core.Core, *core.Output) { o.note('c') })
		}
	})
	var did string
	eventually(t, "all is done", func() bool {
		copied := make(chan string, 1)
		w.Do(func(time.Time, *core.Core, *core.Output) { copied <- string(o.did) })
		did = <-copied
		return len(did) == relays*each+asked+calls
	})
	packets := did[:max(strings.LastIndexByte(did, 'r'), strings.LastIndexByte(did, 'l'))]
	if n := longest(packets, "c"); n > 3*callShare {
		t.Errorf("%d calls in a row while packets wait", n)
	}
	if n := longest(did[:strings.LastIndexByte(did, 'c')], "rl"); n > turnShare+2*share {
		t.Errorf("%d packets in a row while calls wait", n)
	}
	listened := strings.ReplaceAll(did[:strings.LastIndexByte(did, 'l')], "c", "")
	if n := longest(listened, "r"); n > share {
		t.Errorf("%d packets of relays in a row while a listener waits", n)
	}
	if n := longest(listened, "l"); n > 2*share {
		t.Errorf("%d packets of a listener in a row while relays wait", n)
	}
}

// longest is how many of the letters come in a row at most.
func longest(s, letters string) (most int) {
	n := 0
	for _, c := range s {
		if n++; !strings.ContainsRune(letters, c) {
			n = 0
		}
		most = max(most, n)
	}
	return most
}

// Each datagram that a full queue has dropped is counted once, although the kernel
// tells the sum with each that comes.
func TestThread_CountsWhatTheKernelDropped(t *testing.T) {
	w := newWorld(t)
	c := w.client(loopback4, "ann")
	c.SetWriteBuffer(4 << 20)
	sent, junk := 0, bytes.Repeat([]byte{0xff}, 1200)
	send := func(n int) {
		for range n {
			c.send(junk)
		}
		sent += n
	}
	before := w.Stats().Received
	w.held(func() { send(20_000) })
	counted := func() bool {
		s := w.Stats()
		return s.Overflowed > 0 && s.Received-before+s.Overflowed == uint64(sent)
	}
	eventually(t, "the kernel tells with the next", func() bool { send(1); return counted() })
	for range 10 {
		send(1)
		eventually(t, "as many are received and dropped as were sent", counted)
	}
}
