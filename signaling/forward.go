// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

const (
	forwardControl = "CHANNELS"
	forwardLabel   = "CONNECTIONS"
	// earlyWait is how long data may wait on a stream for the message that
	// opens its channel. The two travel on different streams and may arrive
	// in either order.
	earlyWait = 10 * time.Second
)

// serveForward serves a v1 client: each message of four bytes in the control
// channel opens the negotiated channel of that number, which is connected to
// the destination of the call.
func (x *session) serveForward() error {
	control, err := x.peer.Negotiated(rtc.ChannelConfig{ID: controlID, Label: forwardControl, Protocol: "tcp"})
	if err != nil {
		return err
	}
	over := make(chan error, 1)
	x.children.Go(func() { over <- x.readOpens(control) })
	x.children.Go(x.watchEarly)
	select {
	case err := <-over:
		return err
	case <-x.svc.ctx.Done():
		return ErrClosed
	case <-x.peer.Closing():
		return x.over()
	}
}

// readOpens opens a channel for each message of the control channel. A
// message of any other length ends the peer connection, as it always did.
func (x *session) readOpens(control *rtc.Channel) error {
	var buf [64]byte
	for {
		n, _, err := control.ReadMessage(buf[:])
		if errors.Is(err, io.ErrShortBuffer) {
			n, err = len(buf), nil // far too long
		}
		if err != nil {
			return fmt.Errorf("control channel: %w", err)
		}
		number := binary.BigEndian.Uint32(buf[:max(n, 4)])
		if n != 4 || uint16(number) == controlID {
			x.logger.Warn("peer connection ended: malformed open of a channel", "n", n)
			return fmt.Errorf("open of a channel with %d bytes: %w", n, mesh.ErrInvalid)
		}
		x.openForward(uint16(number))
	}
}

// openForward makes channel id, with what has arrived on it already, and
// leaves it to a goroutine. It must not block: opens follow each other.
func (x *session) openForward(id uint16) {
	ch, err := x.peer.Negotiated(rtc.ChannelConfig{ID: id, Label: forwardLabel, Protocol: x.dest.Protocol})
	switch {
	case errors.Is(err, rtc.ErrInUse):
		x.logger.Debug("channel opened twice", "n", id)
		x.refuse()
	case err != nil:
		x.logger.Debug("channel cannot be opened", "n", id, "err", err)
	case x.enter() != nil:
		x.svc.metrics.opened(x.dest.Protocol, resultLimit)
		x.refuse()
		x.spawn(func() { discard(ch) })
	default:
		x.spawn(func() {
			defer x.memory.leave()
			x.serveForwarded(ch)
		})
	}
}

// serveForwarded connects one channel. A v1 client learns of a failure by the
// end of its channel.
func (x *session) serveForwarded(ch *rtc.Channel) {
	conn, why := x.connect(x.ctx, x.dest)
	switch {
	case why != nil:
		discard(ch)
	case x.dest.Protocol == "udp":
		x.carryDatagrams(ch, conn)
	default:
		bridge.Raw(x.ctx, ch, conn, x.queue, x.svc.metrics.counter())
	}
}

// watchEarly resets streams on which data arrived and no open followed.
func (x *session) watchEarly() {
	type early struct {
		in  *rtc.Incoming
		due time.Time
	}
	var waiting []early // in the order of due
	incoming := make(chan *rtc.Incoming)
	x.children.Go(func() {
		defer close(incoming)
		for {
			in, err := x.peer.Accept(x.ctx)
			if err != nil {
				return
			}
			select {
			case incoming <- in:
			case <-x.ctx.Done():
				return
			}
		}
	})
	tick := time.NewTimer(earlyWait)
	defer tick.Stop()
	for {
		select {
		case in, ok := <-incoming:
			if !ok {
				return
			}
			if len(waiting) >= 2*x.svc.cfg.Limits.Channels {
				in.Reset() // more than could be opened: not a race, but a flood
				x.refuse()
				continue
			}
			waiting = append(waiting, early{in, time.Now().Add(earlyWait)})
			if len(waiting) == 1 {
				tick.Reset(earlyWait)
			}
		case now := <-tick.C:
			for len(waiting) > 0 && !now.Before(waiting[0].due) {
				if in := waiting[0].in; !in.Claimed() {
					in.Reset()
					x.refuse()
				}
				waiting = waiting[1:]
			}
			if len(waiting) > 0 {
				tick.Reset(time.Until(waiting[0].due))
			}
		}
	}
}
