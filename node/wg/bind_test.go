// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// fakeUDP is a native bind that remembers what was sent; fail makes it refuse
// what is sent to endpoints for which it returns true.
type fakeUDP struct {
	conn.Bind
	fail func(conn.Endpoint) error
	sent []conn.Endpoint
}

func (f *fakeUDP) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) { return nil, port, nil }
func (f *fakeUDP) Close() error                                         { return nil }
func (f *fakeUDP) BatchSize() int                                       { return 7 }
func (f *fakeUDP) ParseEndpoint(string) (conn.Endpoint, error)          { return &fakeEndpoint{}, nil }
func (f *fakeUDP) Send(_ [][]byte, ep conn.Endpoint) error {
	f.sent = append(f.sent, ep)
	if f.fail != nil {
		return f.fail(ep)
	}
	return nil
}

// fakeEndpoint is an endpoint of fakeUDP.
type fakeEndpoint struct {
	conn.Endpoint
	src netip.Addr
}

func (e *fakeEndpoint) SrcIP() netip.Addr   { return e.src }
func (e *fakeEndpoint) DstToString() string { return "192.0.2.2:51820" }

// chanConn is a packet connection over channels.
type chanConn struct {
	in, out chan []byte
	done    chan struct{}
	once    sync.Once
}

func newChanConn() *chanConn {
	return &chanConn{in: make(chan []byte), out: make(chan []byte), done: make(chan struct{})}
}

func (c *chanConn) ReadPacket(buf []byte) (int, error) {
	select {
	case b := <-c.in:
		if len(b) > len(buf) {
			return 0, io.ErrShortBuffer
		}
		return copy(buf, b), nil
	case <-c.done:
		return 0, io.EOF
	}
}

func (c *chanConn) WritePacket(buf []byte) error {
	select {
	case c.out <- append([]byte(nil), buf...):
		return nil
	case <-c.done:
		return net.ErrClosed
	}
}

func (c *chanConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// message makes a WireGuard message of n bytes.
func message(kind uint32, n int) []byte {
	b := make([]byte, n)
	binary.LittleEndian.PutUint32(b, kind)
	return b
}

// testBind makes an open bind, its receive function for attached connections
// and its metrics.
func testBind(tb testing.TB, udp conn.Bind) (*bind, conn.ReceiveFunc, *metrics) {
	tb.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		tb.Fatal(err)
	}
	b := newBind(udp, sizesOf(false), newFramePool(minFrame), nil, m)
	fns, _, err := b.Open(0)
	if err != nil {
		tb.Fatal(err)
	}
	return b, fns[len(fns)-1], m
}

// batch is the memory for one call of a receive function.
type batch struct {
	packets [][]byte
	sizes   []int
	eps     []conn.Endpoint
}

func newBatch(n int) *batch {
	b := &batch{packets: make([][]byte, n), sizes: make([]int, n), eps: make([]conn.Endpoint, n)}
	for i := range b.packets {
		b.packets[i] = make([]byte, device.MaxMessageSize)
	}
	return b
}

func TestBind_LetsInOnlyWireGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, receive, m := testBind(t, &fakeUDP{})
		c := newChanConn()
		if _, err := b.attach(c); err != nil {
			t.Fatal(err)
		}
		for _, bad := range [][]byte{
			{}, {4}, message(4, 31), message(0, 64), message(5, 64), message(4<<8, 64), message(4|1<<24, 64),
			[]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), make([]byte, minFrame), make([]byte, 60000),
		} {
			c.in <- bad
		}
		good := [][]byte{message(1, 148), message(2, 92), message(3, 64), message(4, 32), message(4, minFrame-1)}
		for _, p := range good {
			c.in <- p
		}
		synctest.Wait()
		got := newBatch(128)
		n, err := receive(got.packets, got.sizes, got.eps)
		if err != nil || n != len(good) {
			t.Fatalf("received %d, %v, want %d", n, err, len(good))
		}
		for i, p := range good {
			if string(got.packets[i][:got.sizes[i]]) != string(p) {
				t.Errorf("datagram %d differs", i)
			}
		}
		if got, want := counter(t, m, reasonAttachGarbage), 8.0; got != want {
			t.Errorf("%v garbage datagrams counted, want %v", got, want)
		}
		if got, want := counter(t, m, reasonAttachOversize), 2.0; got != want {
			t.Errorf("%v oversize datagrams counted, want %v", got, want)
		}
		b.shutdown()
	})
}

func TestBind_LimitsHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, receive, m := testBind(t, &fakeUDP{})
		c := newChanConn()
		if _, err := b.attach(c); err != nil {
			t.Fatal(err)
		}
		// Ten seconds of a hundred a second, and how many pass in each second.
		got, passed, window := newBatch(128), 0, []int{}
		for range 10 {
			n := 0
			for range 100 {
				c.in <- message(1, 148)
				synctest.Wait()
				select {
				case r := <-b.receive:
					b.receive <- r // put back; room is certain
					k, err := receive(got.packets, got.sizes, got.eps)
					if err != nil {
						t.Fatal(err)
					}
					n += k
				default:
				}
				<-time.After(10 * time.Millisecond)
			}
			passed += n
			window = append(window, n)
			if n > 20 {
				t.Errorf("%d handshake messages passed in a second", n)
			}
		}
		if passed < 100 {
			t.Errorf("%v handshake messages passed; too few for a peer that has lost some", window)
		}
		if dropped := counter(t, m, reasonAttachHandshake); int(dropped)+passed != 1000 {
			t.Errorf("%v dropped and %d passed, want 1000 together", dropped, passed)
		}
		b.shutdown()
	})
}

func TestBind_OneConnectionCannotFillTheReceiveQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, receive, m := testBind(t, &fakeUDP{})
		greedy, modest := newChanConn(), newChanConn()
		for _, c := range []*chanConn{greedy, modest} {
			if _, err := b.attach(c); err != nil {
				t.Fatal(err)
			}
		}
		for range receiveQueue + 100 {
			greedy.in <- message(4, 32)
		}
		modest.in <- message(4, 48)
		synctest.Wait()
		if got, want := counter(t, m, reasonAttachReceive), float64(receiveQueue+100-attachQueue); got != want {
			t.Errorf("%v datagrams dropped, want %v", got, want)
		}
		got, sizes := newBatch(7), map[int]int{}
		for total := 0; total < attachQueue+1; {
			n, err := receive(got.packets, got.sizes, got.eps)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				sizes[got.sizes[i]]++
			}
			total += n
		}
		if sizes[32] != attachQueue || sizes[48] != 1 {
			t.Errorf("received %v, want %d of 32 and one of 48 bytes", sizes, attachQueue)
		}
		b.shutdown()
	})
}

func TestBind_SlowConnectionDropsAndNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, m := testBind(t, &fakeUDP{})
		c := newChanConn()
		a, err := b.attach(c)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := b.Send([][]byte{message(4, 32), message(4, 48)}, a); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for range attachQueue {
			if err := b.Send([][]byte{message(4, 64)}, a); err != nil {
				t.Fatal(err)
			}
		}
		// One is in the hands of the writer.
		if got, want := counter(t, m, reasonAttachSend), 19.0; got != want {
			t.Errorf("%v datagrams dropped, want %v", got, want)
		}
		for i := range 20 {
			if got, want := len(<-c.out), 32+16*(i%2); got != want {
				t.Fatalf("datagram %d has %d bytes, want %d", i, got, want)
			}
		}
		b.shutdown()
	})
}

func TestBind_ClosingEitherSideDetaches(t *testing.T) {
	for name, end := range map[string]func(b *bind, a *attachment, c *chanConn){
		"detach":     func(_ *bind, a *attachment, _ *chanConn) { a.detach() },
		"connection": func(_ *bind, _ *attachment, c *chanConn) { c.Close() },
		"device":     func(b *bind, _ *attachment, _ *chanConn) { b.shutdown() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, _, m := testBind(t, &fakeUDP{})
				c := newChanConn()
				a, err := b.attach(c)
				if err != nil {
					t.Fatal(err)
				}
				if ep, err := b.ParseEndpoint(a.DstToString()); err != nil || ep != conn.Endpoint(a) {
					t.Errorf("ParseEndpoint = %v, %v, want the attachment", ep, err)
				}
				end(b, a, c)
				synctest.Wait()
				select {
				case <-c.done:
				default:
					t.Error("the connection is still open")
				}
				if err := b.Send([][]byte{message(4, 32)}, a); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Send = %v, want ErrClosed", err)
				}
				if _, err := b.ParseEndpoint(a.DstToString()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("ParseEndpoint = %v, want ErrClosed", err)
				}
				if got := gauge(t, m.attached); got != 0 {
					t.Errorf("%v connections attached, want 0", got)
				}
				a.detach() // again
				b.shutdown()
				if _, err := b.attach(newChanConn()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("attach after shutdown = %v, want ErrClosed", err)
				}
			})
		})
	}
}

func TestBind_AttachmentsOutliveReopening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, receive, _ := testBind(t, &fakeUDP{})
		c := newChanConn()
		if _, err := b.attach(c); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		got := newBatch(1)
		if _, err := receive(got.packets, got.sizes, got.eps); !errors.Is(err, net.ErrClosed) {
			t.Errorf("receive after Close = %v, want ErrClosed", err)
		}
		fns, port, err := b.Open(51820)
		if err != nil || port != 51820 || b.port.Load() != 51820 {
			t.Fatalf("Open = port %d, %v", port, err)
		}
		c.in <- message(4, 32)
		if n, err := fns[0](got.packets, got.sizes, got.eps); n != 1 || err != nil {
			t.Errorf("receive = %d, %v, want 1", n, err)
		}
		b.shutdown()
	})
}

// FuzzAttachment_Admit checks the rule for frames from strangers: a message
// type of WireGuard and its shortest length.
func FuzzAttachment_Admit(f *testing.F) {
	f.Add(message(1, 148))
	f.Add(message(4, 32))
	f.Add(message(4, 31))
	f.Add(message(5, 32))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &attachment{handshakes: rate.NewLimiter(rate.Inf, 1)}
		want := len(b) >= 32 && b[0] >= 1 && b[0] <= 4 && b[1]|b[2]|b[3] == 0
		if got := a.admit(b) == ""; got != want {
			t.Errorf("admit(%x) = %t, want %t", b[:min(len(b), 32)], got, want)
		}
	})
}

func TestAttachment_HasAnAddressOfItsOwn(t *testing.T) {
	seen := make(map[string]bool)
	for id := range uint64(100) {
		a := &attachment{id: id}
		if ip := a.DstIP(); !ip.Is6() || seen[ip.String()] || string(a.DstToBytes()) != string(ip.AsSlice()) {
			t.Errorf("attachment %d has address %v", id, ip)
		}
		seen[a.DstIP().String()] = true
	}
}

// peeking and binding are native binds with optional powers.
type peeking struct {
	fakeUDP
	conn.PeekLookAtSocketFd
}

type binding struct {
	fakeUDP
	conn.BindSocketToInterface
}

func TestBind_KeepsThePowersOfTheNativeBind(t *testing.T) {
	for _, udp := range []conn.Bind{&fakeUDP{}, &peeking{}, &binding{}, conn.NewDefaultBind()} {
		b, _, _ := testBind(t, &fakeUDP{})
		b.udp = udp
		got := b.extended()
		_, wantPeek := udp.(conn.PeekLookAtSocketFd)
		_, gotPeek := got.(conn.PeekLookAtSocketFd)
		_, wantBind := udp.(conn.BindSocketToInterface)
		_, gotBind := got.(conn.BindSocketToInterface)
		if gotPeek != wantPeek || gotBind != wantBind || got.BatchSize() != udp.BatchSize() {
			t.Errorf("%T: peek %t, bind %t, batch %d", udp, gotPeek, gotBind, got.BatchSize())
		}
	}
}

func TestBind_SendsWithoutASourceThatIsGone(t *testing.T) {
	sticky := &fakeEndpoint{src: netip.MustParseAddr("192.0.2.1")}
	lost := errors.New("no such source address")
	udp := &fakeUDP{fail: func(ep conn.Endpoint) error {
		if ep.SrcIP().IsValid() {
			return lost
		}
		return nil
	}}
	b, _, _ := testBind(t, udp)
	if err := b.Send([][]byte{message(4, 32)}, sticky); err != nil || len(udp.sent) != 2 {
		t.Errorf("Send = %v after %d attempts, want success at the second", err, len(udp.sent))
	}
	udp.fail = func(conn.Endpoint) error { return lost }
	if err := b.Send([][]byte{message(4, 32)}, &fakeEndpoint{}); !errors.Is(err, lost) || len(udp.sent) != 3 {
		t.Errorf("Send = %v after %d attempts, want the error at once", err, len(udp.sent)-2)
	}
	udp.fail = func(conn.Endpoint) error { return conn.ErrUDPGSODisabled{} }
	if err := b.Send([][]byte{message(4, 32)}, sticky); !errors.As(err, new(conn.ErrUDPGSODisabled)) || len(udp.sent) != 4 {
		t.Errorf("Send = %v after %d attempts, want the device to hear of it at once", err, len(udp.sent)-3)
	}
}

func BenchmarkBind_ReceiveAttached(b *testing.B) {
	bind, receive, _ := testBind(b, &fakeUDP{})
	a := &attachment{bind: bind}
	got, p := newBatch(conn.IdealBatchSize), message(4, 1452)
	b.ReportAllocs()
	b.SetBytes(int64(len(p)))
	for i := 0; i < b.N; {
		for range attachQueue {
			f := bind.frames.copyOf(p)
			if a.admit(f.data) != "" || !a.enqueue(f) {
				b.Fatal("dropped")
			}
		}
		for left := attachQueue; left > 0; {
			n, err := receive(got.packets, got.sizes, got.eps)
			if err != nil {
				b.Fatal(err)
			}
			left -= n
		}
		i += attachQueue
	}
}

func BenchmarkBind_SendAttached(b *testing.B) {
	bind, _, _ := testBind(b, &fakeUDP{})
	a := &attachment{bind: bind, sending: make(chan *frame, attachQueue), done: make(chan struct{})}
	packets := [][]byte{message(4, 1452), message(4, 1452), message(4, 1452), message(4, 1452)}
	b.ReportAllocs()
	b.SetBytes(1452)
	for i := 0; i < b.N; i += len(packets) {
		if err := bind.Send(packets, a); err != nil {
			b.Fatal(err)
		}
		for range packets {
			bind.frames.put(<-a.sending)
		}
	}
}
