// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"math"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// uncutting has a socket without checksums, which the kernel refuses to cut packets for,
// as it does on narrow paths.
func (b *burst) uncutting(t *testing.T) *burst {
	t.Helper()
	if err := unix.SetsockoptInt(b.port.socket.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	return b
}

// burstOf sends n datagrams of a size to an address in one go.
func (b *burst) burstOf(to netip.AddrPort, n, size int) {
	for i := range n {
		b.add(b.port, to, false, payload(i, size))
	}
	b.flush()
}

// What is more than one packet may hold leaves in several, with one call and without
// an error of the kernel.
func TestSender_FillsPackets(t *testing.T) {
	for _, test := range []struct{ n, size, packets int }{
		{maxSegments, 1000, 1}, {maxSegments + 1, 1000, 2}, {54, 1200, 1}, {55, 1200, 2}, {64, 1200, 2}, {2, maxSegmented / 2, 1}, {2, maxSegmented/2 + 1, 2},
	} {
		b := newBurst(t, loopback4)
		var lost []error
		b.lost = func(_ *port, _ netip.AddrPort, _ []byte, err error) { lost = append(lost, err) }
		conn, to := socket(t, loopback4)
		b.burstOf(to, test.n, test.size)
		for i := range test.n {
			expect(t, conn, payload(i, test.size))
		}
		if b.shuns || len(lost) > 0 || b.stats.Sends != 1 || b.stats.Sent != uint64(test.n) {
			t.Errorf("%+v: counted %+v, lost %v", test, b.stats, lost)
		}
		for i := range test.packets {
			if b.of[i].count == 0 {
				t.Errorf("%+v: %d packets", test, i)
			}
		}
		if b.of[test.packets].count != 0 {
			t.Errorf("%+v: more than %d packets", test, test.packets)
		}
	}
}

// An error that came for an earlier datagram costs none of those that follow.
func TestSender_TriesAgainAfterAnErrorOfAnEarlierOne(t *testing.T) {
	b := newBurst(t, loopback4)
	if err := unix.SetsockoptInt(b.port.socket.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1); err != nil {
		t.Fatal(err)
	}
	conn, to := socket(t, loopback4)
	gone, goneAt := socket(t, loopback4)
	gone.Close()
	for range 3 {
		b.burstOf(goneAt, 1, 10)
		b.burstOf(to, 2, 10)
		for i := range 2 {
			expect(t, conn, payload(i, 10))
		}
	}
	if b.stats.Sent != 9 || b.stats.Unsent != 0 || b.shuns {
		t.Errorf("counted %+v", b.stats)
	}
}

// Whichever way datagrams leave, those to a client of a socket of all addresses leave
// from where it came in.
func TestSender_LeavesFromWhereTheClientCameIn(t *testing.T) {
	for name, b := range map[string]*burst{
		"as one packet": newBurst(t, netip.IPv4Unspecified()), "one by one": newBurst(t, netip.IPv4Unspecified()).uncutting(t),
	} {
		for _, n := range []int{1, 8} {
			conn, to := socket(t, loopback4)
			from := netip.MustParseAddr("127.0.0.7")
			b.port.locals = map[netip.AddrPort]local{to: {addr: from}}
			b.burstOf(to, n, 100)
			for i := range n {
				if at := expect(t, conn, payload(i, 100)); at.Addr() != from {
					t.Errorf("%s, %d: from %v, want %v", name, n, at, from)
				}
			}
		}
	}
}

// Where packets cannot be cut the sender does not try for a while, with that size and larger
// ones; others, and other addresses, are cut as before.
func TestSender_ForgetsWhereItMustSendOneByOne(t *testing.T) {
	b := newBurst(t, loopback4).uncutting(t)
	_, to := socket(t, loopback4)
	calls := func(size int) uint64 {
		before := b.stats.Sends
		b.burstOf(to, 8, size)
		return b.stats.Sends - before
	}
	if got := calls(100); got != 2+8 { // twice in vain
		t.Errorf("at first %d calls", got)
	}
	for _, size := range []int{100, 200} {
		if got := calls(size); got != 1 {
			t.Errorf("then, of %d bytes, %d calls", size, got)
		}
	}
	if got := calls(99); got != 2+8 {
		t.Errorf("of less %d calls", got)
	}
	b.number += shunFor
	if got := calls(100); got != 2+8 {
		t.Errorf("after a while %d calls", got)
	}
	if b.stats.Unsent != 0 || b.stats.Segmented != 0 {
		t.Errorf("counted %+v", b.stats)
	}
}

// Nothing is sent from a port that is closed: its number may be another's by now.
func TestSender_SendsNothingFromClosedPorts(t *testing.T) {
	b := newBurst(t, loopback4)
	conn, to := socket(t, loopback4)
	b.port.closed = true
	b.burstOf(to, 1, 10)
	b.port.closed = false
	b.burstOf(to, 1, 20)
	expect(t, conn, payload(0, 20))
	if b.stats.Unsent != 1 || b.stats.Sent != 1 {
		t.Errorf("counted %+v", b.stats)
	}
}

// Batches have numbers that come again; what is left in the table of one is not taken
// for the next one's.
func TestSender_NumbersOfBatchesComeAgain(t *testing.T) {
	b := newBurst(t, loopback4)
	one, oneAt := socket(t, loopback4)
	two, twoAt := socket(t, loopback4)
	b.burstOf(oneAt, 1, 10) // by number 1
	b.number = math.MaxUint32
	b.burstOf(twoAt, 1, 10)
	if b.number != 1 {
		t.Errorf("the next batch is number %d", b.number)
	}
	b.add(b.port, oneAt, false, []byte("one"))
	b.add(b.port, twoAt, false, []byte("two"))
	b.flush()
	expect(t, one, payload(0, 10))
	expect(t, one, []byte("one"))
	expect(t, two, payload(0, 10))
	expect(t, two, []byte("two"))
}

// Datagrams that must stay whole and others to the same address are kept apart.
func TestSender_KeepsWholeOnesApart(t *testing.T) {
	b := newBurst(t, loopback4)
	conn, to := socket(t, loopback4)
	_, other := socket(t, loopback4)
	for i := range 6 {
		b.add(b.port, to, i%2 == 0, payload(i, 10)) // in a row, and with others between them
		if i > 3 {
			b.add(b.port, other, false, payload(i, 10))
		}
	}
	groups := map[bool]int{}
	for _, g := range b.groups {
		if g.to == to {
			groups[g.whole]++
		}
	}
	if groups[true] != 1 || groups[false] != 1 {
		t.Errorf("groups of whole ones and others: %v", groups)
	}
	b.flush()
	var got []byte
	for range 6 {
		data, _ := receive(t, conn)
		got = append(got, data[0])
	}
	if !bytes.Equal(got, []byte{1, 3, 5, 0, 2, 4}) {
		t.Errorf("arrived as %v", got)
	}
}

// The queue of ports is one, however it grows and wraps.
func TestFifo(t *testing.T) {
	var f fifo
	ports := make([]port, 1000)
	in, out := 0, 0
	for _, step := range []struct{ push, pop int }{{1, 1}, {60, 20}, {64, 0}, {200, 304}, {500, 1}, {10, 509}} {
		for range step.push {
			f.push(&ports[in%len(ports)])
			in++
		}
		for range step.pop {
			if got := f.pop(); got != &ports[out%len(ports)] {
				t.Fatalf("number %d is another one", out)
			}
			out++
		}
		if f.len() != in-out {
			t.Fatalf("%d are in it, want %d", f.len(), in-out)
		}
	}
	for i, p := range f.ring {
		if p != nil {
			t.Errorf("place %d keeps a port that has left", i)
		}
	}
}
