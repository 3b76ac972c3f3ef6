// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// burst sends datagrams from a socket in one go, as the shard does: equal sizes
// leave as one packet.
type burst struct {
	*sender
	port  *port
	stats Stats
}

func newBurst(t testing.TB, at netip.Addr) *burst {
	t.Helper()
	s, err := Listen(netip.AddrPortFrom(at, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.queues(sharedQueue)
	b := &burst{port: &port{socket: s}}
	b.sender = newSender(&b.stats, true)
	return b
}

// sizes are bursts: what the kernel cuts, what it does not, and both mixed.
func bursts() map[string][]int {
	all := map[string][]int{
		"one": {100}, "equal": repeat(100, 8), "64 equal": repeat(1200, 54), "65 small": repeat(5, 65), "200 small": repeat(9, 200),
		"last is shorter": append(repeat(200, 7), 50), "last is longer": append(repeat(200, 7), 300), "rising": {1, 2, 3, 4, 5, 6},
		"falling": {6, 5, 4, 3, 2, 1}, "empty ones": {0, 100, 0, 100, 100, 0, 0}, "large": {60000, 60000, 100, 100, 60000},
		"two sizes": {100, 100, 300, 300, 100, 100, 300, 300},
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 5 {
		sizes := make([]int, 100)
		for n := range sizes {
			sizes[n] = []int{40, 40, 40, 41, 1200, 1200, 7000}[r.IntN(7)]
		}
		all[fmt.Sprint("random ", i)] = sizes
	}
	return all
}

func repeat(size, n int) []int {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}

// payload is datagram number n of a burst.
func payload(n, size int) []byte {
	b := bytes.Repeat([]byte{byte(n)}, size)
	if size > 1 {
		b[1] = byte(n >> 8)
	}
	return b
}

// Whatever is sent arrives, in its order, at each of several addresses.
func TestSender_KeepsDatagramsAndTheirOrder(t *testing.T) {
	for _, at := range []netip.Addr{loopback4, loopback6} {
		for name, sizes := range bursts() {
			t.Run(fmt.Sprint(at, " ", name), func(t *testing.T) {
				b := newBurst(t, at)
				conns := make([]*net.UDPConn, 3)
				addrs := make([]netip.AddrPort, len(conns))
				for i := range conns {
					conns[i], addrs[i] = socket(t, at)
				}
				for n, size := range sizes { // the last gets every second, the others take turns
					b.add(b.port, addrs[min(n%4, 2)], false, payload(n, size))
				}
				b.flush()
				for n, size := range sizes {
					expect(t, conns[min(n%4, 2)], payload(n, size))
				}
				if b.stats.Sent != uint64(len(sizes)) || b.stats.Unsent != 0 {
					t.Errorf("counted %+v", b.stats)
				}
			})
		}
	}
	for _, n := range []int{2, maxSegments, 5 * maxSegments} {
		b := newBurst(t, loopback4)
		_, to := socket(t, loopback4)
		for i := range n {
			b.add(b.port, to, false, payload(i, 9))
		}
		if b.flush(); b.stats.Segmented != uint64(n) || b.stats.Sends != 1 {
			t.Errorf("%d equal datagrams left in %d calls, %d as segments", n, b.stats.Sends, b.stats.Segmented)
		}
	}
}

// More datagrams and more addresses than a batch holds are several batches.
func TestSender_IsBounded(t *testing.T) {
	b := newBurst(t, loopback4)
	conn, to := socket(t, loopback4)
	for n := range 2*maxGroups + 10 { // addresses where nobody listens, each with one that does
		b.add(b.port, netip.AddrPortFrom(loopback4, uint16(1+n)), false, []byte("x"))
		b.add(b.port, to, false, payload(n, 2))
	}
	b.flush()
	for n := range 2*maxGroups + 10 {
		expect(t, conn, payload(n, 2))
	}
	if cap(b.packets) != maxPackets || cap(b.groups) != maxGroups {
		t.Errorf("room for %d packets and %d groups", cap(b.packets), cap(b.groups))
	}
}

// What cannot be sent is dropped and counted: other families, the port 0, networks
// that are not there.
func TestSender_DropsWhatCannotLeave(t *testing.T) {
	b := newBurst(t, loopback4)
	conn, to := socket(t, loopback4)
	for _, bad := range []string{"[::1]:9", "127.0.0.1:0", "255.255.255.255:9", "0.0.0.0:0"} {
		b.add(b.port, netip.MustParseAddrPort(bad), false, []byte("lost"))
	}
	b.add(b.port, netip.AddrPort{}, false, []byte("lost"))
	b.add(b.port, to, false, []byte("kept"))
	b.flush()
	expect(t, conn, []byte("kept"))
	if b.stats.Sent != 1 || b.stats.Unsent != 5 {
		t.Errorf("counted %+v", b.stats)
	}
}

// A path on which packets cannot be cut gets them one by one, and the sender
// remembers it.
func TestSender_SendsOneByOneWhereItMust(t *testing.T) {
	b := newBurst(t, loopback4)
	// A socket without checksums is refused by the kernel as a narrow path is.
	if err := unix.SetsockoptInt(b.port.socket.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	conn, to := socket(t, loopback4)
	for range 2 {
		for n := range 8 {
			b.add(b.port, to, false, payload(n, 100))
		}
		b.flush()
		for n := range 8 {
			expect(t, conn, payload(n, 100))
		}
	}
	if got := b.stats; got.Sent != 16 || got.Segmented != 0 || got.Unsent != 0 || got.Sends != 2+8+1 {
		t.Errorf("counted %+v", got)
	}
}

// Bursts that come merged are taken apart, and pass as they are, both ways.
func TestThread_TakesMergedDatagramsApart(t *testing.T) {
	for family, at := range families() {
		w := newWorld(t)
		c, peer := newBurst(t, at[0]), newBurst(t, at[1])
		// The client's requests go through another socket: a name for its address.
		control := &client{TB: t, UDPConn: netConn(t, c.port.socket), server: w.udp[at[0]], user: "ann"}
		far := netConn(t, peer.port.socket)
		relay := control.allocateFor(at[1])
		control.bind(0x4000, peer.port.socket.Addr())
		for name, sizes := range bursts() {
			t.Run(family+" "+name, func(t *testing.T) {
				for n, size := range sizes {
					c.add(c.port, control.server, false, channelData(0x4000, payload(n, size)))
				}
				c.flush()
				for n, size := range sizes {
					if from := expect(t, far, payload(n, size)); from != relay {
						t.Fatalf("from %v, want %v", from, relay)
					}
				}
				for n, size := range sizes {
					peer.add(peer.port, relay, false, payload(n, size))
				}
				peer.flush()
				for n, size := range sizes {
					if got := control.packet(); !bytes.Equal(got, channelData(0x4000, payload(n, size))) {
						t.Fatalf("datagram %d: the client got %d bytes, want %d", n, len(got), size+4)
					}
				}
			})
		}
		got := w.Stats()
		if got.Merged == 0 || got.Segmented == 0 || got.Overflowed+got.Unsent+got.Truncated != 0 {
			t.Errorf("%s: counted %+v", family, got)
		}
	}
}

// netConn is a socket of package net with the same socket behind it.
func netConn(t testing.TB, s *Socket) *net.UDPConn {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&Socket{addr: s.addr, fd: fd}).conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
