// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/conn"
)

// stunHeaderOf makes the header of a STUN message, and as many bytes as it says.
func stunHeaderOf(kind uint16, length int) []byte {
	b := make([]byte, stunHeader+length)
	binary.BigEndian.PutUint16(b, kind)
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	binary.BigEndian.PutUint32(b[4:], stunMagic)
	return b
}

// FuzzContentOf checks that a datagram is one of three things and no other.
func FuzzContentOf(f *testing.F) {
	for kind := uint32(0); kind < 6; kind++ {
		f.Add(message(kind, 32))
	}
	f.Add(message(4, 31))
	f.Add(stunHeaderOf(0x0001, 0))
	f.Add(stunHeaderOf(0x0100, 0)) // begins like an initiation
	f.Add(stunHeaderOf(0x0101, 64))
	f.Add(append(stunHeaderOf(0x0400, 0), make([]byte, 12)...))
	f.Add(stunHeaderOf(0x4000, 12))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		wireguard := len(b) >= 32 && b[0] >= 1 && b[0] <= 4 && b[1]|b[2]|b[3] == 0
		stun := len(b) >= 20 && b[0]>>6 == 0 && string(b[4:8]) == "\x21\x12\xa4\x42" &&
			len(b) == 20+int(b[2])<<8+int(b[3]) && b[3]&3 == 0
		if wireguard && stun {
			t.Fatalf("%x is both", b[:32])
		}
		want := contentGarbage
		if wireguard {
			want = contentWireGuard
		} else if stun {
			want = contentSTUN
		}
		if got := contentOf(b); got != want {
			t.Errorf("contentOf(%x) = %d, want %d", b[:min(len(b), 32)], got, want)
		}
	})
}

// stdUDP is a native bind whose endpoints are those of the library, and whose
// receive function returns the same batch again and again.
type stdUDP struct {
	fakeUDP
	packets [][]byte
	from    []netip.AddrPort
	eps     []conn.Endpoint
}

func (u *stdUDP) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return &conn.StdNetEndpoint{AddrPort: a}, err
}

func (u *stdUDP) Send([][]byte, conn.Endpoint) error { return nil }

func (u *stdUDP) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	for _, a := range u.from {
		u.eps = append(u.eps, &conn.StdNetEndpoint{AddrPort: a})
	}
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for i, p := range u.packets {
			packets[i], sizes[i] = p, len(p)
		}
		return copy(eps, u.eps), nil
	}}, 1, nil
}

// nativeBind is a bind that receives these packets from these addresses.
func nativeBind(tb testing.TB, stun func(Socket, netip.AddrPort, []byte), packets [][]byte, from []netip.AddrPort) (*bind, conn.ReceiveFunc) {
	tb.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		tb.Fatal(err)
	}
	b := newBind(&stdUDP{packets: packets, from: from}, sizesOf(false), newFramePool(minFrame), stun, m)
	fns, _, err := b.Open(0)
	if err != nil {
		tb.Fatal(err)
	}
	return b, fns[0]
}

// host returns one of many addresses.
func host(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(1000+i))
}

func TestBind_SortsWhatComesIn(t *testing.T) {
	mapped := netip.AddrPortFrom(netip.AddrFrom16(host(1).Addr().As16()), host(1).Port())
	packets := [][]byte{message(4, 32), stunHeaderOf(1, 4), message(1, 148), message(9, 40), message(4, 64), message(4, 48), {}}
	from := []netip.AddrPort{host(1), host(1), host(2), host(1), mapped, host(3), host(1)}
	var told []string
	b, receive := nativeBind(t, func(s Socket, from netip.AddrPort, m []byte) {
		told = append(told, fmt.Sprint(s, from, len(m)))
	}, packets, from)
	p, err := b.openPath(mesh.WireGuardKey{1}, netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	// The other socket's are none of the native one's.
	if _, err := p.accept([]Route{{NativeSocket, host(1)}, {7, host(3)}}); err != nil {
		t.Fatal(err)
	}
	got := newBatch(7)
	if n, err := receive(got.packets, got.sizes, got.eps); n != len(packets) || err != nil {
		t.Fatalf("received %d, %v", n, err)
	}
	for i, want := range []struct {
		size int
		path bool
	}{{32, true}, {0, false}, {148, false}, {40, false}, {64, true}, {48, false}, {0, false}} {
		if _, path := got.eps[i].(*path); got.sizes[i] != want.size || path != want.path {
			t.Errorf("datagram %d: size %d, of the path %t, want %v", i, got.sizes[i], path, want)
		}
	}
	if want := fmt.Sprint(NativeSocket, host(1), 24); len(told) != 1 || told[0] != want {
		t.Errorf("told of %q, want %q", told, want)
	}
	if a := p.activity(); a.Heard.IsZero() || !a.Sent.IsZero() || a.From != (Route{NativeSocket, host(1)}) {
		t.Errorf("activity %v", a)
	}
	p.end(netip.AddrPort{})
	if b.paths.table.Load() != nil {
		t.Error("something is left of the path")
	}
}

// Nobody who sends a million initiations costs the library more than twenty.
func TestPath_LimitsHandshakesOfItsPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := nativeBind(t, nil, nil, nil)
		p, err := b.openPath(mesh.WireGuardKey{1}, netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.accept([]Route{{1, host(1)}}); err != nil {
			t.Fatal(err)
		}
		s, in := &packetSocket{bind: b, id: 1, done: make(chan struct{})}, finder{socket: 1}
		passed := 0
		for range 1000 {
			f := b.frames.get(b.frames.size)
			if s.take(&in, f, copy(f.data, message(1, 148)), host(1)) {
				passed++
				b.frames.put((<-b.relayed).frame)
			}
			<-time.After(time.Millisecond)
		}
		if passed < handshakeRate || passed > handshakeRate+handshakeBurst {
			t.Errorf("%d handshake messages passed in a second", passed)
		}
	})
}

func TestSeeker_RemembersSome(t *testing.T) {
	var s seeker
	addr := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0xfd, 8: byte(i >> 8), 9: byte(i)})
	}
	for i := range 100 {
		if !s.due(addr(i), time.Duration(i)) {
			t.Errorf("destination %d is not told", i)
		}
	}
	for i := range 100 {
		if s.due(addr(i), seekEvery-1) {
			t.Errorf("destination %d is told again after less than a second", i)
		}
	}
	if !s.due(addr(7), 7+seekEvery) {
		t.Error("a destination is not told again after a second")
	}
	// One that scans does not crowd out whom it uses all the time for good.
	for i := range 100_000 {
		s.due(addr(i), 2*seekEvery)
	}
	if !s.due(addr(7), 4*seekEvery) || s.due(addr(7), 4*seekEvery) {
		t.Error("a destination that was forgotten is not told once")
	}
}

// Each destination of our own packets is told once a second, in whatever order
// they come, and those of forwarded packets never.
func TestSeeker_TellsOncePerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(map[string]int)
		r := &rules{
			own:  []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			seek: func(dst netip.Addr) { told[dst.String()]++ },
		}
		var s seeker
		const ours, theirs = "10.0.0.1", "10.0.0.9"
		for range 3 {
			for range 10 {
				var bufs [][]byte
				var sizes []int
				for _, p := range [][2]string{
					{theirs, "10.0.0.4"}, {ours, "10.0.0.2"}, {ours, "10.0.0.2"}, {theirs, "10.0.0.2"}, {ours, "10.0.0.3"}, {ours, "10.0.0.2"},
				} {
					bufs = append(bufs, ipPacket(p[0], p[1], 64))
					sizes = append(sizes, len(bufs[len(bufs)-1]))
				}
				s.observe(r, bufs, sizes, 0)
			}
			<-time.After(seekEvery)
		}
		if len(told) != 2 || told["10.0.0.2"] != 3 || told["10.0.0.3"] != 3 {
			t.Errorf("in three seconds told %v", told)
		}
	})
}

// BenchmarkSeeker_Observe measures what a batch to one destination costs.
func BenchmarkSeeker_Observe(b *testing.B) {
	r := &rules{own: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, seek: func(netip.Addr) {}}
	bufs, sizes := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize)
	for i := range bufs {
		bufs[i] = ipPacket("10.0.0.1", "10.0.0.2", 64)
		sizes[i] = len(bufs[i])
	}
	var s seeker
	b.ReportAllocs()
	for b.Loop() {
		s.observe(r, bufs, sizes, 0)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(bufs)), "ns/packet")
}

// BenchmarkBind_ReceiveNative measures what sorting a batch costs, without the
// native bind under it.
func BenchmarkBind_ReceiveNative(b *testing.B) {
	packets, from := make([][]byte, conn.IdealBatchSize), make([]netip.AddrPort, conn.IdealBatchSize)
	for i := range packets {
		packets[i], from[i] = message(4, 1452), host(i/64) // two senders
	}
	stun := func(Socket, netip.AddrPort, []byte) {}
	for _, c := range []struct {
		name string
		stun func(Socket, netip.AddrPort, []byte)
		path netip.AddrPort
	}{{name: "plain"}, {name: "stun", stun: stun}, {"other path", stun, host(9)}, {"path", stun, host(0)}} {
		b.Run(c.name, func(b *testing.B) {
			bind, receive := nativeBind(b, c.stun, packets, from)
			if c.path.IsValid() {
				if _, err := bind.openPath(mesh.WireGuardKey{1}, c.path); err != nil {
					b.Fatal(err)
				}
			}
			got := newBatch(len(packets))
			b.ReportAllocs()
			for range b.N {
				if _, err := receive(got.packets, got.sizes, got.eps); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(packets)), "ns/packet")
		})
	}
}

// nullSocket is a packet socket that takes everything.
type nullSocket struct{ PacketSocket }

func (nullSocket) WriteBatch([][]byte, netip.AddrPort) error { return nil }

// BenchmarkBind_Send measures what a path costs, without what is under it.
func BenchmarkBind_Send(b *testing.B) {
	packets := make([][]byte, 64)
	for i := range packets {
		packets[i] = message(4, 1452)
	}
	bind, _ := nativeBind(b, nil, nil, nil)
	bind.sockets.Store(&map[Socket]*packetSocket{1: {bind: bind, id: 1, conn: nullSocket{}}})
	p, err := bind.openPath(mesh.WireGuardKey{1}, host(1))
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		ep   conn.Endpoint
		to   Route
	}{
		{"plain", &conn.StdNetEndpoint{AddrPort: host(1)}, Route{}},
		{"path", p, Route{NativeSocket, host(1)}},
		{"relay", p, Route{1, host(1)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			p.route(c.to)
			b.ReportAllocs()
			for range b.N {
				if err := bind.Send(packets, c.ep); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPacketSocket_Receive measures a datagram's way from a packet socket
// to the library.
func BenchmarkPacketSocket_Receive(b *testing.B) {
	bind, _ := nativeBind(b, nil, nil, nil)
	p, err := bind.openPath(mesh.WireGuardKey{1}, netip.AddrPort{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := p.accept([]Route{{1, host(1)}}); err != nil {
		b.Fatal(err)
	}
	s := &batchSocket{left: b.N, data: message(4, 1452), done: make(chan struct{})}
	receive := bind.receiveAttached(bind.generation)
	b.ReportAllocs()
	b.SetBytes(int64(len(s.data)))
	if _, err := bind.addSocket(s); err != nil {
		b.Fatal(err)
	}
	got := newBatch(conn.IdealBatchSize)
	for left := b.N; left > 0; {
		n, err := receive(got.packets, got.sizes, got.eps)
		if err != nil {
			b.Fatal(err)
		}
		left -= n
	}
	b.StopTimer()
	bind.shutdown()
}

// batchSocket is a packet socket that has some datagrams ready.
type batchSocket struct {
	nullSocket
	left int
	data []byte
	done chan struct{}
}

func (s *batchSocket) ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	if s.left == 0 {
		<-s.done
		return 0, errBrokenSocket
	}
	n := min(s.left, len(bufs))
	for i := range n {
		sizes[i], from[i] = copy(bufs[i], s.data), host(1)
	}
	s.left -= n
	return n, nil
}

func (s *batchSocket) Close() error {
	close(s.done)
	return nil
}
