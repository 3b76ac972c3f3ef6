// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Handshake messages are the only ones that cost public key cryptography and
// answers before the sender has shown who it is. No second sees more than
// handshakeRate+handshakeBurst = 20 of one connection.
const (
	handshakeRate  = 16
	handshakeBurst = 4
)

// PacketConn carries WireGuard datagrams: one call, one datagram. ReadPacket
// and WritePacket are called from one goroutine each; Close may be called at
// any time, more than once, and makes both return.
type PacketConn interface {
	// ReadPacket reads the next datagram into buf. A datagram that is longer
	// than buf is used up and answered with io.ErrShortBuffer or cut to
	// len(buf); either way it is dropped. Any other error detaches.
	ReadPacket(buf []byte) (int, error)
	// WritePacket writes one datagram and keeps no reference to buf. It may
	// block; datagrams that pile up behind it are dropped. An error detaches.
	WritePacket(buf []byte) error
	// Close ends the connection.
	Close() error
}

// attachment is a packet connection that is an endpoint of WireGuard.
type attachment struct {
	bind *bind
	id   uint64
	conn PacketConn
	// handshakes limits the handshake messages that come in.
	handshakes *rate.Limiter
	// receiving counts this connection's frames in the receive queue.
	receiving atomic.Int32
	// sending has many senders and is never closed; done ends its reader.
	sending chan *frame
	done    chan struct{}
	once    sync.Once
	// running counts the two goroutines.
	running sync.WaitGroup
}

// attach makes pc an endpoint until it fails or detach is called.
func (b *bind) attach(pc PacketConn) (*attachment, error) {
	a := &attachment{
		bind: b, conn: pc,
		handshakes: rate.NewLimiter(handshakeRate, handshakeBurst),
		sending:    make(chan *frame, attachQueue),
		done:       make(chan struct{}),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut {
		return nil, net.ErrClosed
	}
	b.lastID++
	a.id = b.lastID
	b.attached[a.id] = a
	b.metrics.attached.Inc()
	for _, pump := range []func(){a.receiveLoop, a.sendLoop} {
		a.running.Add(1)
		b.running.Go(func() {
			defer a.running.Done()
			defer a.close()
			pump()
		})
	}
	return a, nil
}

// detach ends the attachment and waits for its goroutines.
func (a *attachment) detach() {
	a.close()
	a.running.Wait()
}

// close ends the attachment without waiting.
func (a *attachment) close() {
	a.once.Do(func() {
		a.bind.mu.Lock()
		delete(a.bind.attached, a.id)
		a.bind.mu.Unlock()
		a.bind.lost.Store(true)
		a.bind.metrics.attached.Dec()
		close(a.done)
		_ = a.conn.Close() // it is of no use any more, whatever it says
	})
}

// open reports whether the attachment has not ended.
func (a *attachment) open() bool {
	select {
	case <-a.done:
		return false
	default:
		return true
	}
}

// receiveLoop moves datagrams from the connection to the device.
func (a *attachment) receiveLoop() {
	for {
		f := a.bind.frames.get(a.bind.frames.size)
		n, err := a.conn.ReadPacket(f.data)
		if err != nil && !errors.Is(err, io.ErrShortBuffer) {
			a.bind.frames.put(f)
			return
		}
		reason := dropReason("")
		if err != nil || n == len(f.data) {
			reason = reasonAttachOversize
		} else {
			f.data = f.data[:n]
			reason = a.admit(f.data)
		}
		if reason == "" {
			a.bind.metrics.in[kindAttached].Inc()
		}
		if reason == "" && isHandshake(f.data) && a.bind.takes(f.data, a) {
			a.bind.frames.put(f)
			continue
		}
		if reason == "" && !a.enqueue(f) {
			reason = reasonAttachReceive
		}
		if reason != "" {
			a.bind.metrics.drop(reason)
			a.bind.frames.put(f)
		}
	}
}

// admit says why a datagram may not enter; "" lets it in. The device checks
// the lengths of handshake messages to the byte.
func (a *attachment) admit(b []byte) dropReason {
	if len(b) < device.MinMessageSize {
		return reasonAttachGarbage
	}
	switch binary.LittleEndian.Uint32(b) {
	case device.MessageTransportType:
		return ""
	case device.MessageInitiationType, device.MessageResponseType, device.MessageCookieReplyType:
		if !a.handshakes.Allow() {
			return reasonAttachHandshake
		}
		return ""
	}
	return reasonAttachGarbage
}

// enqueue hands f to the device, or reports false when it is too busy.
func (a *attachment) enqueue(f *frame) bool {
	if a.receiving.Add(1) <= attachQueue {
		select {
		case a.bind.receive <- received{frame: f, from: a, counted: a}:
			return true
		default:
		}
	}
	a.receiving.Add(-1)
	return false
}

// sendLoop moves datagrams from the device to the connection.
func (a *attachment) sendLoop() {
	for {
		select {
		case <-a.done:
			return
		case f := <-a.sending:
			err := a.conn.WritePacket(f.data)
			a.bind.frames.put(f)
			if err != nil {
				return
			}
		}
	}
}

// send queues datagrams for the connection and drops those without room.
func (a *attachment) send(packets [][]byte) error {
	if !a.open() {
		return net.ErrClosed
	}
	for _, p := range packets {
		f := a.bind.frames.copyOf(p)
		select {
		case a.sending <- f:
			a.bind.metrics.out[kindAttached].Inc()
		default:
			a.bind.frames.put(f)
			a.bind.metrics.drop(reasonAttachSend)
		}
	}
	return nil
}

// The rest implements conn.Endpoint. The device tells sources apart by address
// when it limits handshakes and makes cookies, so each attachment has one of
// its own, out of the range that is never routed (RFC 6666).

// ClearSrc implements conn.Endpoint.
func (a *attachment) ClearSrc() {}

// SrcToString implements conn.Endpoint.
func (a *attachment) SrcToString() string { return "" }

// DstToString implements conn.Endpoint.
func (a *attachment) DstToString() string { return attachedPrefix + strconv.FormatUint(a.id, 10) }

// DstToBytes implements conn.Endpoint.
func (a *attachment) DstToBytes() []byte {
	ip := a.DstIP().As16()
	return ip[:]
}

// DstIP implements conn.Endpoint.
func (a *attachment) DstIP() netip.Addr {
	return discardAddress(a.id)
}

// SrcIP implements conn.Endpoint.
func (a *attachment) SrcIP() netip.Addr { return netip.Addr{} }

var _ conn.Endpoint = (*attachment)(nil)

// discardAddress returns one of the addresses that are never routed.
func discardAddress(n uint64) netip.Addr {
	ip := [16]byte{0: 1}
	binary.BigEndian.PutUint64(ip[8:], n)
	return netip.AddrFrom16(ip)
}
