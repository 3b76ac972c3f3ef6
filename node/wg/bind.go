// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
)

// attachedPrefix starts the text form of an endpoint that is an attached
// connection. No address looks like it.
const attachedPrefix = "attached:"

// Limits of attached connections. A connection never holds more than
// attachQueue frames in either direction.
const (
	receiveQueue = 1024
	attachQueue  = 256
)

// bind is the native UDP bind with attached packet connections and paths as
// further endpoints.
//
// The receive queues have many senders and are never closed; the receive
// function ends when the generation of its Open does.
type bind struct {
	udp     conn.Bind
	frames  *framePool
	metrics *metrics
	// stun is Options.STUN.
	stun    func(Socket, netip.AddrPort, []byte)
	receive chan received
	// relayed is what came in at packet sockets. Those wait for room, so that a
	// flood on one takes no room of attached connections.
	relayed chan received
	port    atomic.Uint32
	paths   pathSet
	// sockets are replaced, never changed; nil before the first.
	sockets atomic.Pointer[map[Socket]*packetSocket]
	// lost is set when an attached connection has ended.
	lost atomic.Bool
	// calls are watched before the doorman sees what comes.
	calls calls
	// door takes the handshake messages, unless it is nil.
	door atomic.Pointer[doorman]
	// ended is closed by shutdown.
	ended chan struct{}

	mu         sync.Mutex // guards the fields below
	generation chan struct{}
	attached   map[uint64]*attachment
	lastID     uint64
	lastSocket Socket
	shut       bool
	running    sync.WaitGroup
}

// sizes are how long the queues of a device are, and how many packets it reads at
// a time.
type sizes struct{ receive, relayed, outbound, batch int }

// sizesOf returns those of a device that is lean, or not.
func sizesOf(lean bool) sizes {
	if lean {
		// One attached connection does not fill the queue of all.
		return sizes{receive: 2 * attachQueue, relayed: relayQueue / leanShare, outbound: outboundQueue / leanShare, batch: leanBatch}
	}
	return sizes{receiveQueue, relayQueue, outboundQueue, conn.IdealBatchSize}
}

// received is a datagram that waits for the device.
type received struct {
	frame *frame
	from  conn.Endpoint
	// counted is the connection in whose count the datagram is, if any.
	counted *attachment
}

// newBind wraps udp. Frames bound the size of a datagram that does not come from
// there. Stun takes STUN messages, unless it is nil.
func newBind(udp conn.Bind, of sizes, frames *framePool, stun func(Socket, netip.AddrPort, []byte), m *metrics) *bind {
	b := &bind{
		udp: udp, frames: frames, metrics: m, stun: stun,
		receive:  make(chan received, of.receive),
		relayed:  make(chan received, of.relayed),
		ended:    make(chan struct{}),
		attached: make(map[uint64]*attachment),
	}
	b.paths.init()
	b.calls.init(b)
	return b
}

// extended returns b with the optional powers of the bind that it wraps, which
// the device and its embedders find by type assertion.
func (b *bind) extended() conn.Bind {
	switch udp := b.udp.(type) {
	case conn.PeekLookAtSocketFd:
		return struct {
			*bind
			conn.PeekLookAtSocketFd
		}{b, udp}
	case conn.BindSocketToInterface:
		return struct {
			*bind
			conn.BindSocketToInterface
		}{b, udp}
	}
	return b
}

// Open implements conn.Bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.udp.Open(port)
	if err != nil {
		return nil, 0, err
	}
	b.port.Store(uint32(actual))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.generation = make(chan struct{})
	for i, fn := range fns {
		fns[i] = b.guarded(fn)
	}
	return append(fns, b.receiveAttached(b.generation)), actual, nil
}

// guarded returns a receive function of the native bind that knows paths, and
// without what is STUN, what crosses our calls, and what the doorman takes.
func (b *bind) guarded(receive conn.ReceiveFunc) conn.ReceiveFunc {
	demux := nativeDemux{bind: b, finder: finder{socket: NativeSocket}}
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := receive(packets, sizes, eps)
		taken := demux.sift(packets, sizes[:n], eps)
		b.metrics.in[kindNative].Add(float64(n - taken))
		b.calls.sift(packets, sizes[:n], eps)
		if door := b.door.Load(); door != nil {
			door.sift(packets, sizes[:n], eps)
		}
		return n, err
	}
}

// Close implements conn.Bind. Attached connections outlive it.
func (b *bind) Close() error {
	b.mu.Lock()
	if b.generation != nil {
		close(b.generation)
		b.generation = nil
	}
	b.mu.Unlock()
	return b.udp.Close()
}

// receiveAttached returns the receive function for all attached connections and
// packet sockets, and for what the doorman lets in.
func (b *bind) receiveAttached(closed <-chan struct{}) conn.ReceiveFunc {
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		var r received
		select {
		case <-closed:
			return 0, net.ErrClosed
		case r = <-b.receive:
		case r = <-b.relayed:
		}
		for n := 0; ; {
			sizes[n], eps[n] = copy(packets[n], r.frame.data), r.from
			b.frames.put(r.frame)
			if r.counted != nil {
				r.counted.receiving.Add(-1)
			}
			if n++; n == len(packets) {
				return n, nil
			}
			select {
			case r = <-b.receive:
			case r = <-b.relayed:
			default:
				return n, nil
			}
		}
	}
}

// Send implements conn.Bind. It never waits for an attached connection.
func (b *bind) Send(packets [][]byte, ep conn.Endpoint) error {
	if to, ok := ep.(*path); ok {
		return to.send(packets)
	}
	b.calls.sent(packets, ep)
	if to, ok := ep.(*attachment); ok {
		return to.send(packets)
	}
	return b.sendNative(packets, ep)
}

// sendNative sends packets of WireGuard through the native bind.
func (b *bind) sendNative(packets [][]byte, ep conn.Endpoint) error {
	b.metrics.out[kindNative].Add(float64(len(packets)))
	return b.throughUDP(packets, ep)
}

// throughUDP sends through the native bind, from the address that ep says if
// this host has that.
func (b *bind) throughUDP(packets [][]byte, ep conn.Endpoint) error {
	err := b.udp.Send(packets, ep)
	if err == nil || errors.As(err, new(conn.ErrUDPGSODisabled)) {
		return err
	}
	// The address of ours that the peer used may be gone from this host. The
	// device's own remedy works with its own bind only.
	if !ep.SrcIP().IsValid() {
		return err
	}
	fresh, parseErr := b.udp.ParseEndpoint(ep.DstToString())
	if parseErr != nil {
		return errors.Join(err, parseErr)
	}
	return b.udp.Send(packets, fresh)
}

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	if ep, ours := b.own(s); ep != nil {
		return ep, nil
	} else if ours {
		return nil, fmt.Errorf("endpoint %q: %w", s, net.ErrClosed)
	}
	return b.udp.ParseEndpoint(s)
}

// own returns the attached connection or the path that an endpoint's text form
// names, nil when that is gone; ours is false when it names an address.
func (b *bind) own(s string) (ep conn.Endpoint, ours bool) {
	if strings.HasPrefix(s, pathPrefix) {
		if p := b.paths.lookup(s); p != nil {
			return p, true
		}
		return nil, true
	}
	if !strings.HasPrefix(s, attachedPrefix) {
		return nil, false
	}
	if a := b.lookup(s); a != nil {
		return a, true
	}
	return nil, true
}

// lookup returns the attached connection that an endpoint's text form names,
// or nil when it is gone.
func (b *bind) lookup(s string) *attachment {
	id, err := strconv.ParseUint(strings.TrimPrefix(s, attachedPrefix), 10, 64)
	if err != nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.attached[id]
}

// SetMark implements conn.Bind.
func (b *bind) SetMark(mark uint32) error { return b.udp.SetMark(mark) }

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return b.udp.BatchSize() }

// shutdown detaches everything for good and waits for all goroutines.
func (b *bind) shutdown() {
	b.mu.Lock()
	if !b.shut {
		close(b.ended)
	}
	b.shut = true
	open := make([]*attachment, 0, len(b.attached))
	for _, a := range b.attached {
		open = append(open, a)
	}
	b.mu.Unlock()
	for _, a := range open {
		a.close()
	}
	if sockets := b.sockets.Load(); sockets != nil {
		for _, s := range *sockets {
			b.running.Go(s.close) // each may take a moment
		}
	}
	b.paths.shut()
	b.calls.close()
	b.running.Wait()
}

// spawn runs a goroutine that ends with ended, unless that is closed.
func (b *bind) spawn(run func(ended <-chan struct{})) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.shut {
		b.running.Go(func() { run(b.ended) })
	}
}
