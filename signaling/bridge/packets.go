// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/binary"
	"io"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// wireGuardMin is the length of the shortest WireGuard message, a keepalive.
	wireGuardMin = 32
	// handshakeRate is how many handshake messages per second one peer may send.
	handshakeRate = 20
	// packetQueue is how many bytes wait to be sent before packets are dropped.
	// WireGuard does its own congestion control; a long queue would only
	// confuse it.
	packetQueue = 128 << 10
)

// Packets is the packet path of a channel that carries WireGuard messages, one
// in each message. What is no WireGuard message never leaves it, so that it
// cannot be used to throw other things at the device's port.
type Packets struct {
	ch      Channel
	count   Counter
	limit   *rate.Limiter
	reading sync.Mutex // held by ReadPacket
	r       *messageReader
	once    sync.Once
	done    chan struct{}
}

// NewPackets returns the packet path of ch, which it owns from now on.
func NewPackets(ch Channel, count Counter) *Packets {
	return &Packets{
		ch: ch, count: count, r: newMessageReader(ch), done: make(chan struct{}),
		limit: rate.NewLimiter(handshakeRate, handshakeRate),
	}
}

// ReadPacket reads one WireGuard message into buf and returns its length. It
// returns an error once the channel has ended.
func (p *Packets) ReadPacket(buf []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	for {
		message, _, err := p.r.next()
		switch {
		case err != nil:
			p.end()
			return 0, err
		case !isWireGuard(message):
			p.count.drop(DropFrame)
		case message[0] != 4 && !p.limit.Allow():
			p.count.drop(DropRate)
		case len(message) > len(buf):
			p.count.drop(DropTooBig)
		default:
			p.count.up(len(message))
			return copy(buf, message), nil
		}
	}
}

// WritePacket sends one WireGuard message, or drops it if the channel is slow.
func (p *Packets) WritePacket(buf []byte) error {
	switch {
	case isClosed(p.done):
		return io.ErrClosedPipe
	case p.ch.Buffered() > packetQueue:
		p.count.drop(DropSlow)
		return nil
	}
	if err := p.ch.WriteMessage(buf, false); err != nil {
		return err
	}
	p.count.down(len(buf))
	return nil
}

// Done is closed when the channel has ended or was closed.
func (p *Packets) Done() <-chan struct{} { return p.done }

// Close closes the channel; blocked calls return at once.
func (p *Packets) Close() error {
	p.end()
	err := p.ch.Close()
	_ = p.ch.SetReadDeadline(time.Now())
	return err
}

// Finish closes the channel and waits, not long, until the other side has
// closed it too. The device no longer uses p.
func (p *Packets) Finish() {
	_ = p.Close()
	_ = p.ch.SetReadDeadline(time.Now().Add(closeWait))
	p.reading.Lock()
	defer p.reading.Unlock()
	for {
		if _, _, err := p.r.next(); err != nil {
			return
		}
	}
}

func (p *Packets) end() { p.once.Do(func() { close(p.done) }) }

// isWireGuard says whether b looks like a message of the WireGuard protocol:
// a type of 1 to 4, three zero bytes, and the least length.
func isWireGuard(b []byte) bool {
	if len(b) < wireGuardMin {
		return false
	}
	kind := binary.LittleEndian.Uint32(b)
	return kind >= 1 && kind <= 4
}
