// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// wire is one end of a line on which each datagram takes the same time, as a
// native bind. It belongs in a bubble of synctest.
type wire struct {
	at, other netip.AddrPort
	takes     time.Duration
	out       chan parcel
	in        chan []byte

	mu     sync.Mutex // guards the fields below
	closed chan struct{}
	left   []parcel                  // handshake messages that left
	lose   func(message []byte) bool // nil loses none
}

// parcel is a datagram, and when it comes or left.
type parcel struct {
	at   time.Time
	data []byte
}

// newWire makes a line.
func newWire(t *testing.T, takes time.Duration) (a, b *wire) {
	t.Helper()
	at := [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")}
	a, b = &wire{at: at[0], other: at[1], takes: takes}, &wire{at: at[1], other: at[0], takes: takes}
	for _, w := range []*wire{a, b} {
		w.out, w.in = make(chan parcel, 1000), make(chan []byte, 1000)
	}
	for _, ends := range [][2]*wire{{a, b}, {b, a}} {
		go func() {
			for p := range ends[0].out {
				<-time.After(time.Until(p.at))
				ends[1].in <- p.data
			}
		}()
		t.Cleanup(func() { close(ends[0].out) })
	}
	return a, b
}

// Open implements conn.Bind.
func (w *wire) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := make(chan struct{})
	w.closed = done
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-done:
			return 0, net.ErrClosed
		case b := <-w.in:
			sizes[0], eps[0] = copy(packets[0], b), &conn.StdNetEndpoint{AddrPort: w.other}
			return 1, nil
		}
	}}, w.at.Port(), nil
}

// Close implements conn.Bind.
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed != nil {
		close(w.closed)
		w.closed = nil
	}
	return nil
}

// Send implements conn.Bind.
func (w *wire) Send(packets [][]byte, _ conn.Endpoint) error {
	for _, p := range packets {
		now, data := time.Now(), append([]byte(nil), p...)
		w.mu.Lock()
		if isHandshake(p) {
			w.left = append(w.left, parcel{now, data})
		}
		lost := w.lose != nil && w.lose(data)
		w.mu.Unlock()
		if !lost {
			w.out <- parcel{now.Add(w.takes), data}
		}
	}
	return nil
}

// losing makes the line lose what lose says of what leaves here; nil loses nothing.
func (w *wire) losing(lose func(message []byte) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose = lose
}

// sent returns the handshake messages of a kind that left.
func (w *wire) sent(kind byte) (all []parcel) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.left {
		if p.data[0] == kind {
			all = append(all, p)
		}
	}
	return all
}

// ParseEndpoint implements conn.Bind.
func (*wire) ParseEndpoint(s string) (conn.Endpoint, error) {
	at, err := netip.ParseAddrPort(s)
	return &conn.StdNetEndpoint{AddrPort: at}, err
}

// SetMark implements conn.Bind.
func (*wire) SetMark(uint32) error { return nil }

// BatchSize implements conn.Bind.
func (*wire) BatchSize() int { return 1 }

// handBind is a bind whose library is the test.
type handBind struct {
	*bind
	line *wire
	// got is what the library gets.
	got chan parcel
	// renewed is when calls were to be made anew.
	renewed chan time.Time
}

// byHand makes a bind at the end of a line.
func byHand(t *testing.T, w *wire) *handBind {
	t.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &handBind{
		bind: newBind(w, sizesOf(false), newFramePool(minFrame), nil, m), line: w,
		got: make(chan parcel, 100), renewed: make(chan time.Time, 100),
	}
	b.calls.use(mesh.WireGuardKey{})
	b.calls.renew = func([]byte) { b.renewed <- time.Now() }
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	for _, receive := range fns {
		reading.Go(func() {
			packets, sizes, eps := [][]byte{make([]byte, minFrame)}, make([]int, 1), make([]conn.Endpoint, 1)
			for {
				n, err := receive(packets, sizes, eps)
				if err != nil {
					return
				}
				if n > 0 && sizes[0] > 0 {
					b.got <- parcel{time.Now(), append([]byte(nil), packets[0][:sizes[0]]...)}
				}
			}
		})
	}
	t.Cleanup(func() {
		b.shutdown()
		_ = b.Close()
		reading.Wait()
	})
	return b
}

// say sends a message to the other end.
func (b *handBind) say(t *testing.T, message []byte) {
	t.Helper()
	if err := b.Send([][]byte{message}, &conn.StdNetEndpoint{AddrPort: b.line.other}); err != nil {
		t.Fatal(err)
	}
}

// sealed is a message with the MAC1 of the key that all ends of lines have.
func sealed(message []byte) []byte {
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey{})
	macs.AddMacs(message)
	return message
}

// initiationOf is an initiation with these numbers and a MAC, and nothing else in it.
func initiationOf(sender uint32, ephemeral byte) []byte {
	b := make([]byte, device.MessageInitiationSize)
	b[0] = device.MessageInitiationType
	binary.LittleEndian.PutUint32(b[4:], sender)
	b[initiationEphemeral] = ephemeral
	return sealed(b)
}

// responseTo answers an initiation.
func responseTo(initiation []byte) []byte {
	b := make([]byte, device.MessageResponseSize)
	b[0] = device.MessageResponseType
	copy(b[8:12], initiation[4:8])
	return sealed(b)
}

// cookieFor asks the sender of an initiation for a cookie.
func cookieFor(initiation []byte) []byte {
	b := make([]byte, device.MessageCookieReplySize)
	b[0] = device.MessageCookieReplyType
	copy(b[4:8], initiation[4:8])
	return b
}
