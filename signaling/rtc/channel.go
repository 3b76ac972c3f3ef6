// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/sctp"
)

// ChannelConfig describes a data channel. The zero value is reliable and ordered.
type ChannelConfig struct {
	ID              uint16
	Label, Protocol string
	// Unordered lets messages overtake each other.
	Unordered bool
	// Unreliable sends each message once.
	Unreliable bool
}

func (c ChannelConfig) dcep(p *Peer, negotiated bool) *datachannel.Config {
	d := &datachannel.Config{
		ChannelType: datachannel.ChannelTypeReliable, Priority: datachannel.ChannelPriorityNormal,
		Negotiated: negotiated, Label: c.Label, Protocol: c.Protocol, LoggerFactory: p.engine.logs,
	}
	switch {
	case c.Unordered && c.Unreliable:
		d.ChannelType = datachannel.ChannelTypePartialReliableRexmitUnordered
	case c.Unordered:
		d.ChannelType = datachannel.ChannelTypeReliableUnordered
	case c.Unreliable:
		d.ChannelType = datachannel.ChannelTypePartialReliableRexmit
	}
	return d
}

// Channel is an open data channel. One goroutine may read and others write at
// the same time.
type Channel struct {
	peer  *Peer
	dc    *datachannel.DataChannel
	early []message     // read before the channel was open; only the reader uses it
	end   func()        // called when reading failed for good
	low   chan struct{} // signalled when the send queue falls to the threshold
}

func newChannel(p *Peer, dc *datachannel.DataChannel, s *sctp.Stream) *Channel {
	p.live.Add(1)
	c := &Channel{peer: p, dc: dc, low: make(chan struct{}, 1)}
	c.end = sync.OnceFunc(func() {
		p.live.Add(-1)
		p.forget(s)
	})
	dc.OnBufferedAmountLow(func() {
		select {
		case c.low <- struct{}{}:
		default:
		}
	})
	return c
}

// ID is the channel's number, the SCTP stream identifier.
func (c *Channel) ID() uint16 { return c.dc.StreamIdentifier() }

// Label and Protocol are what the opener named.
func (c *Channel) Label() string { return c.dc.Label }

// Protocol is the subprotocol that the opener named.
func (c *Channel) Protocol() string { return c.dc.Protocol }

// ReadMessage reads one message into b and says whether it is text. A message
// longer than b gives io.ErrShortBuffer and stays: read it again with a longer
// b, of at most MaxMessageSize. After the other side closed the channel it
// returns io.EOF.
func (c *Channel) ReadMessage(b []byte) (n int, text bool, err error) {
	if len(c.early) > 0 {
		m := c.early[0]
		if len(m.b) > len(b) {
			return 0, false, io.ErrShortBuffer
		}
		c.early = c.early[1:]
		return copy(b, m.b), m.text, nil
	}
	n, text, err = c.dc.ReadDataChannel(b)
	switch {
	case err == nil:
		return n, text, nil
	case errors.Is(err, io.ErrShortBuffer), errors.Is(err, os.ErrDeadlineExceeded):
	case errors.Is(err, io.EOF):
		err = io.EOF
		fallthrough
	default:
		c.end()
	}
	return 0, false, err
}

// SetReadDeadline ends a blocked ReadMessage at t.
func (c *Channel) SetReadDeadline(t time.Time) error { return c.dc.SetReadDeadline(t) }

// WriteMessage queues one message. It never blocks: callers watch Buffered.
func (c *Channel) WriteMessage(b []byte, text bool) error {
	if len(b) > c.peer.maxMessage {
		return fmt.Errorf("message of %d bytes: the other side takes %d", len(b), c.peer.maxMessage)
	}
	_, err := c.dc.WriteDataChannel(b, text)
	return err
}

// Buffered is the number of bytes written and not yet acknowledged.
func (c *Channel) Buffered() int { return int(min(c.dc.BufferedAmount(), math.MaxInt32)) }

// LowWater sets the level n, and returns the channel that is signalled each
// time Buffered falls to n from above. There is one level and one signal for
// the whole Channel, so one goroutine at a time may wait: set the level, look
// at Buffered, and wait only while it is above.
func (c *Channel) LowWater(n int) <-chan struct{} {
	c.dc.SetBufferedAmountLowThreshold(uint64(max(n, 0)))
	return c.low
}

// Close closes our direction after what is queued was sent; a proper peer then
// closes the other, which ReadMessage sees as io.EOF.
func (c *Channel) Close() error { return c.dc.Close() }
