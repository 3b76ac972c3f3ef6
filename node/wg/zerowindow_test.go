// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// handmade is a TCP peer of a netstack that says what a test wants it to say.
type handmade struct {
	t          *testing.T
	stack      *netstack
	own, other string
	next       uint32 // the sequence number of our next byte
	expect     uint32 // the one of the other side's next byte
	conn       net.Conn
	fromStack  chan []byte
}

// meet connects a handmade peer, whose window is as given, to a new stack.
func meet(t *testing.T, v6 bool, receiveBuffer int, window uint16, tune ...tcpip.SettableTransportProtocolOption) *handmade {
	t.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNetstack("test", 1420, sizesOf(false), new(filter), newFramePool(minFrame), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	size := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: receiveBuffer, Max: receiveBuffer}
	for _, o := range append(tune, &size) {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatal(err)
		}
	}
	h := &handmade{t: t, stack: n, own: "10.99.0.2", other: "10.99.0.1", next: 1 << 31, fromStack: make(chan []byte, 1000)}
	if v6 {
		h.own, h.other = "fd99::2", "fd99::1"
	}
	if err := n.setAddresses([]netip.Addr{netip.MustParseAddr(h.other)}); err != nil {
		t.Fatal(err)
	}
	l, err := n.listen(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(h.other), 443))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go h.collect()
	h.send(h.next, 0x02, window, nil)
	h.next++
	h.expect = binary.BigEndian.Uint32(h.await("a SYN-ACK", func(s []byte, _ int) bool { return s[tcpFlags] == 0x12 })[tcpSequence:]) + 1
	h.send(h.next, tcpFlagAck, window, nil)
	if h.conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.conn.Close() })
	return h
}

// collect takes what the stack sends, until it closes.
func (h *handmade) collect() {
	bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
	for {
		if _, err := h.stack.read(bufs, sizes, 0); err != nil {
			return
		}
		h.fromStack <- append([]byte(nil), bufs[0][:sizes[0]]...)
	}
}

// send makes the stack receive a segment.
func (h *handmade) send(seq uint32, flags byte, window uint16, payload []byte) {
	s := tcpSegment(flags)
	if flags&0x02 != 0 { // a SYN says that we know selective acknowledgements
		s = append(s, 1, 1, 4, 2)
		s[12] += 1 << 4
	}
	s = append(s, payload...)
	binary.BigEndian.PutUint32(s[tcpSequence:], seq)
	if flags&tcpFlagAck != 0 {
		binary.BigEndian.PutUint32(s[tcpAck:], h.expect)
	}
	binary.BigEndian.PutUint16(s[tcpWindow:], window)
	p := carrying(h.own, h.other, protocolTCP, s)
	ip := len(p) - len(s)
	if ip == ipv4HeaderLen {
		binary.BigEndian.PutUint16(p[ipv4Checksum:], 0)
		binary.BigEndian.PutUint16(p[ipv4Checksum:], ^checksum.Checksum(p[:ip], 0))
	}
	binary.BigEndian.PutUint16(p[ip+tcpChecksum:], ^checksum.Checksum(p[ip:], pseudoSum(p, ip)))
	var r run
	h.stack.deliver(&r, p)
	h.stack.flush(&r)
}

// await returns the next segment of the stack that is the one, given its payload's length.
func (h *handmade) await(what string, isIt func(segment []byte, payload int) bool) []byte {
	h.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case p := <-h.fromStack:
			if !tcpValid(p) {
				h.t.Fatalf("the stack sent a packet that is not valid: %x", p)
			}
			if segment, payload, ok := wholeTCP(p); ok && isIt(segment, payload) {
				return segment
			}
		case <-deadline:
			h.t.Fatalf("the stack did not send %s", what)
		}
	}
}

// acknowledges tells whether a segment is an acknowledgement of all that was
// sent, and nothing else.
func (h *handmade) acknowledges(segment []byte, payload int) bool {
	return payload == 0 && segment[tcpFlags] == tcpFlagAck && binary.BigEndian.Uint32(segment[tcpAck:]) == h.next
}

// TestZeroWindow_OurAcknowledgementIsAcceptable shows that a peer that has
// shut its window after we sent still hears us.
func TestZeroWindow_OurAcknowledgementIsAcceptable(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6=%t", v6), func(t *testing.T) {
			h := meet(t, v6, 1<<16, 1000)
			if _, err := h.conn.Write(make([]byte, 500)); err != nil {
				t.Fatal(err)
			}
			h.await("data", func(_ []byte, payload int) bool { return payload == 500 })
			h.send(h.next, tcpFlagAck, 0, nil) // shut, and the 500 bytes were not taken
			h.send(h.next, tcpFlagAck, 0, []byte{1})
			h.next++
			ack := h.await("an acknowledgement", h.acknowledges)
			if got := binary.BigEndian.Uint32(ack[tcpSequence:]); got != h.expect {
				t.Errorf("the acknowledgement is %d bytes beyond what a shut window takes", got-h.expect)
			}
			h.expect += 500
			h.send(h.next, tcpFlagAck, 1000, []byte{2}) // open again, and they were taken
			h.next++
			ack = h.await("an acknowledgement", h.acknowledges)
			if got := binary.BigEndian.Uint32(ack[tcpSequence:]); got != h.expect {
				t.Errorf("after the window opened an acknowledgement is %d bytes off", int32(got-h.expect))
			}
			if n := h.stack.link.shut.heard.count.Load(); n != 0 {
				t.Errorf("%d connections are remembered to be shut", n)
			}
		})
	}
}

// TestZeroWindow_NewsOfThePeerAreTaken shows that a peer whose last bytes we
// refused can still tell us that its own window has opened.
func TestZeroWindow_NewsOfThePeerAreTaken(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6=%t", v6), func(t *testing.T) {
			h := meet(t, v6, 1<<13, 0)
			for shut := false; !shut; {
				payload := make([]byte, 512)
				h.send(h.next, tcpFlagAck, 0, payload)
				h.next += uint32(len(payload))
				ack := h.await("an acknowledgement", h.acknowledges)
				shut = binary.BigEndian.Uint16(ack[tcpWindow:]) == 0
			}
			want := []byte("what waited for a window")
			if _, err := h.conn.Write(want); err != nil {
				t.Fatal(err)
			}
			const refused = 64
			h.send(h.next+refused, tcpFlagAck, 1000, nil)
			h.await("what it wrote", func(_ []byte, payload int) bool { return payload == len(want) })
			// And the refused bytes are taken once there is room for them.
			if _, err := io.CopyN(io.Discard, h.conn, 4096); err != nil {
				t.Fatal(err)
			}
			h.expect += uint32(len(want))
			h.send(h.next, tcpFlagAck, 1000, make([]byte, refused))
			h.next += refused
			h.await("an acknowledgement", h.acknowledges)
			if n := h.stack.link.shut.said.count.Load(); n != 0 {
				t.Errorf("%d connections are remembered to be shut", n)
			}
		})
	}
}

// TestZeroWindow_MovesBackOnly shows that what probes whether the other side is
// there stays a probe: a sequence number before the expected one is answered.
func TestZeroWindow_MovesBackOnly(t *testing.T) {
	const next = 1 << 31
	flow := func() tcpFlow { return tcpFlow{} }
	shut := tcpSegment(tcpFlagAck)
	binary.BigEndian.PutUint32(shut[tcpAck:], next)
	var s shutWindows
	s.note(shut, flow)
	for _, c := range []struct {
		what      string
		flags     byte
		seq, want uint32
	}{
		{"a probe", tcpFlagAck, next - 1, next - 1},
		{"an acknowledgement that is acceptable", tcpFlagAck, next, next},
		{"one that is not", tcpFlagAck, next + 64, next},
		{"a reset", tcpFlagAck | 0x04, next + 64, next + 64},
	} {
		ack := tcpSegment(c.flags)
		binary.BigEndian.PutUint32(ack[tcpSequence:], c.seq)
		before := checksum.Checksum(ack, 0)
		s.move(ack, flow)
		if got := binary.BigEndian.Uint32(ack[tcpSequence:]); got != c.want || checksum.Checksum(ack, 0) != before {
			t.Errorf("%s: the sequence number is %d off, and its checksum right: %v", c.what, int32(got-c.want), checksum.Checksum(ack, 0) == before)
		}
	}
}

// TestZeroWindow_Forgets shows what ends the memory of a shut window, and that
// it is bounded.
func TestZeroWindow_Forgets(t *testing.T) {
	flow := func(port uint16) func() tcpFlow {
		return func() tcpFlow { return tcpFlow{local: netip.AddrPortFrom(netip.IPv6Unspecified(), port)} }
	}
	segment := func(flags byte, window uint16) []byte {
		s := tcpSegment(flags)
		binary.BigEndian.PutUint16(s[tcpWindow:], window)
		return s
	}
	var s shutWindows
	for _, end := range [][]byte{segment(tcpFlagAck, 1), segment(0x04, 0), segment(0x02, 0), segment(0x11, 0)} {
		s.note(segment(tcpFlagAck, 0), flow(1))
		if s.count.Load() != 1 {
			t.Fatal("a shut window was not noted")
		}
		s.note(end, flow(2))
		if s.count.Load() != 1 {
			t.Error("another connection made it forget")
		}
		if s.note(end, flow(1)); s.count.Load() != 0 || len(s.flows) != 0 {
			t.Errorf("a shut window is remembered after flags %#x", end[tcpFlags])
		}
	}
	for port := range uint16(2 * maxZeroWindows) {
		s.note(segment(tcpFlagAck, 0), flow(port))
	}
	if len(s.flows) != maxZeroWindows {
		t.Errorf("%d connections are remembered, want %d", len(s.flows), maxZeroWindows)
	}
}

// FuzzZeroWindow shows that no packet harms, and that those of others stay as
// they are.
func FuzzZeroWindow(f *testing.F) {
	ack := tcpSegment(tcpFlagAck)
	f.Add(carrying("10.99.0.2", "10.99.0.1", protocolTCP, ack))
	f.Add(carrying("fd99::2", "fd99::1", protocolTCP, ack))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, p []byte) {
		var z zeroWindows
		z.inbound(p)
		before := append([]byte(nil), p...)
		z.inbound(p)
		if string(before) != string(p) {
			t.Errorf("a packet was changed although we said nothing: %x, was %x", p, before)
		}
	})
}
