// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/turn/v3"
)

// driver is the least that makes a server of a core: plain sockets, one
// goroutine that owns the core, one reader for each socket.
type driver struct {
	testing.TB
	core    *Core
	out     Output
	events  chan func()
	done    chan struct{}
	readers sync.WaitGroup
	udp     *net.UDPConn
	tcp     net.Listener
	relays  map[RelayID]*net.UDPConn
	streams map[uint64]net.Conn
}

// startDriver serves on loopback until the test ends.
func startDriver(t testing.TB) *driver {
	t.Helper()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := tcp.Addr().(*net.TCPAddr).AddrPort()
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(time.Now(), Config{
		Realm: "meshgate", Listeners: []Listener{{Addr: at}, {Addr: at, Stream: true}},
		Offers: Offers{IPv4: true}, Authenticator: people{"alice": {"wonder"}},
		Permit: func(string, Peer) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{
		TB: t, core: c, events: make(chan func()), done: make(chan struct{}), udp: udp, tcp: tcp,
		relays: map[RelayID]*net.UDPConn{}, streams: map[uint64]net.Conn{},
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); d.run() }()
	d.readers.Go(func() {
		d.read(udp, 0, func(from netip.AddrPort, b []byte, off int) {
			c.FromClient(time.Now(), Flow{Client: from}, b[off:], &d.out)
		})
	})
	d.readers.Go(d.accept)
	t.Cleanup(func() { close(d.done); <-stopped; d.readers.Wait() })
	return d
}

// run owns the core and, when it ends, closes every socket.
func (d *driver) run() {
	for {
		var timer <-chan time.Time
		if next, ok := d.core.Next(); ok {
			timer = time.After(time.Until(next))
		}
		select {
		case f := <-d.events:
			f()
		case now := <-timer:
			d.core.Expire(now, &d.out)
		case <-d.done:
			d.udp.Close()
			d.tcp.Close()
			for _, r := range d.relays {
				r.Close()
			}
			for _, s := range d.streams {
				s.Close()
			}
			return
		}
		d.execute()
	}
}

// do hands an event over; false says that the driver has ended.
func (d *driver) do(f func()) bool {
	select {
	case d.events <- f:
		return true
	case <-d.done:
		return false
	}
}

func (d *driver) execute() {
	for i := 0; i < len(d.out.Actions); i++ { // answers to OpenRelay append more
		switch a := d.out.Actions[i]; a.Kind {
		case SendClient:
			if s := d.streams[a.Flow.Conn]; s != nil {
				s.Write(a.Data)
			} else {
				d.udp.WriteToUDPAddrPort(a.Data, a.Flow.Client)
			}
		case SendPeer:
			if r := d.relays[a.Relay]; r != nil { // not closed within the same batch
				r.WriteToUDPAddrPort(a.Data, a.Peer)
			}
		case OpenRelay:
			d.open(a)
		case CloseRelay:
			d.relays[a.Relay].Close()
			delete(d.relays, a.Relay)
		default:
			d.Errorf("action %+v", a)
		}
	}
	d.out.Reset()
}

// open opens a relay, and with second the port behind it.
func (d *driver) open(a Action) {
	for range 100 {
		r, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			break
		}
		at := r.LocalAddr().(*net.UDPAddr).AddrPort()
		if a.Even && at.Port()%2 != 0 {
			r.Close()
			continue
		}
		if a.Second != 0 {
			next, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(at.Port()) + 1})
			if err != nil {
				r.Close()
				continue
			}
			d.relay(a.Second, next)
		}
		d.relay(a.Relay, r)
		d.core.RelayOpened(time.Now(), a.Relay, at, &d.out)
		return
	}
	d.core.RelayFailed(time.Now(), a.Relay, &d.out)
}

func (d *driver) relay(id RelayID, r *net.UDPConn) {
	d.relays[id] = r
	d.readers.Go(func() {
		d.read(r, Headroom, func(from netip.AddrPort, b []byte, off int) { d.core.FromPeer(time.Now(), id, from, b, off, &d.out) })
	})
}

func (d *driver) read(conn *net.UDPConn, head int, handle func(netip.AddrPort, []byte, int)) {
	for {
		b := make([]byte, head+1<<16)
		n, from, err := conn.ReadFromUDPAddrPort(b[head:])
		if err != nil || !d.do(func() { handle(from, b[:head+n], head) }) {
			return
		}
	}
}

func (d *driver) accept() {
	for number := uint64(1); ; number++ {
		conn, err := d.tcp.Accept()
		if err != nil {
			return
		}
		flow := Flow{Client: conn.RemoteAddr().(*net.TCPAddr).AddrPort(), Conn: number, Listener: 1}
		if !d.do(func() { d.streams[number] = conn }) {
			conn.Close()
			return
		}
		d.readers.Go(func() {
			d.frames(conn, flow)
			d.do(func() { conn.Close(); delete(d.streams, number); d.core.StreamClosed(flow, &d.out) })
		})
	}
}

// frames cuts a stream.
func (d *driver) frames(conn net.Conn, flow Flow) {
	var held []byte
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		held = append(held, buf[:n]...)
		for {
			size, bad := Frame(held)
			if bad != nil {
				return
			}
			if size == 0 || size > len(held) {
				break
			}
			frame := bytes.Clone(held[:size])
			held = held[size:]
			if !d.do(func() { d.core.FromClient(time.Now(), flow, frame, &d.out) }) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// TestServer_ServesAnotherClient relays between a client of another
// implementation and a peer, over UDP and TCP, with datagrams of all sizes.
func TestServer_ServesAnotherClient(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			d := startDriver(t)
			conn := dial(t, network, d.tcp.Addr().String())
			client, err := turn.NewClient(&turn.ClientConfig{
				TURNServerAddr: d.tcp.Addr().String(), Conn: conn, Username: "alice", Password: "wonder", Realm: "meshgate",
			})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := client.Listen(); err != nil {
				t.Fatal(err)
			}
			relayed, err := client.Allocate()
			if err != nil {
				t.Fatal(err)
			}
			defer relayed.Close()
			peer, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			for _, size := range []int{5, 6, 7, 8, 1200, 1400} {
				echo(t, relayed, peer, bytes.Repeat([]byte{byte(size)}, size))
			}
			// The client binds a channel behind our back: until it has, data goes in indications.
			for deadline := time.Now().Add(10 * time.Second); ; {
				echo(t, relayed, peer, []byte("hello"))
				if channels := d.channels(); channels == 1 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the client has bound no channel")
				}
			}
			echo(t, relayed, peer, bytes.Repeat([]byte{7}, 1400))
		})
	}
}

func (d *driver) channels() int {
	n := make(chan int)
	d.do(func() {
		sum := 0
		for i := range d.core.Allocations() {
			sum += i.Channels
		}
		go func() { n <- sum }()
	})
	return <-n
}

// dial returns the client's end.
func dial(t *testing.T, network, to string) net.PacketConn {
	t.Helper()
	if network == "tcp" {
		conn, err := net.Dial("tcp4", to)
		if err != nil {
			t.Fatal(err)
		}
		return turn.NewSTUNConn(conn)
	}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// echo sends a datagram to the peer and back.
func echo(t *testing.T, relayed, peer net.PacketConn, payload []byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for _, way := range []struct{ from, to net.PacketConn }{{relayed, peer}, {peer, relayed}} {
		if _, err := way.from.WriteTo(payload, way.to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		way.to.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, from, err := way.to.ReadFrom(buf)
		if err != nil || from.String() != way.from.LocalAddr().String() || !bytes.Equal(buf[:n], payload) {
			t.Fatalf("got %d bytes of %v, %v; want %d of %v", n, from, err, len(payload), way.from.LocalAddr())
		}
	}
}
