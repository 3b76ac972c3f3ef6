// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

const (
	controlID        = 0
	controlLabel     = "meshgate-control"
	wireGuardLabel   = "wireguard-proxy"
	openWait         = 10 * time.Second       // for the opening message of a channel to be whole
	goodbyeWait      = 250 * time.Millisecond // for a goodbye to arrive
	maxControlBuffer = 64 << 10               // answers that may wait for a client that does not read
)

// serveInBand serves a peer connection whose client opens channels as it
// likes, each with its destination in the label.
func (x *session) serveInBand() error {
	ch, err := x.peer.Negotiated(rtc.ChannelConfig{ID: controlID, Label: controlLabel, Protocol: bridge.Protocol})
	if err != nil {
		return err
	}
	control := &controlChannel{ch: ch, over: make(chan struct{})}
	x.children.Go(control.serve)
	x.children.Go(func() { x.acceptChannels(control) })
	return x.superviseInBand(control)
}

// superviseInBand ends the peer connection when it is idle, has been renewed,
// or is no longer wanted by one of its sides.
func (x *session) superviseInBand(control *controlChannel) error {
	limits := x.svc.cfg.Timeouts
	timer := time.NewTimer(limits.SessionIdle)
	defer timer.Stop()
	renew := x.peer.Renew()
	var last time.Time // when a renewed peer connection has to end; zero before
	for {
		select {
		case <-x.quiet:
			if !last.IsZero() && x.channels.Load() == 0 {
				return control.goodbye("renewed")
			}
			timer.Reset(limits.SessionIdle)
		case <-timer.C:
			switch none := x.channels.Load() == 0; {
			case last.IsZero() && none:
				return control.goodbye("idle")
			case !last.IsZero() && (none || !time.Now().Before(last)):
				return control.goodbye("renewed")
			case !last.IsZero():
				timer.Reset(time.Until(last))
			}
		case <-renew:
			renew, last = nil, time.Now().Add(limits.Renewed)
			x.svc.metrics.renewals.Inc()
			control.send(bridge.Control{Type: bridge.TypeRenew})
			if x.channels.Load() > 0 {
				timer.Reset(limits.Renewed)
			} else {
				timer.Reset(goodbyeWait) // the client may be about to open one
			}
		case <-x.svc.ctx.Done():
			return control.goodbye("the node is shutting down")
		case <-control.over:
			return io.EOF
		case <-x.peer.Closing():
			return x.over()
		}
	}
}

// acceptChannels serves the channels that the client opens.
func (x *session) acceptChannels(control *controlChannel) {
	for {
		in, err := x.peer.Accept(x.ctx)
		if err != nil {
			return
		}
		switch {
		case in.ID() == controlID: // used by the client before we had made it ours
		case x.channels.Load() >= int64(2*x.svc.cfg.Limits.Channels):
			in.Reset() // too many even to be told so
			x.refuse()
		default:
			x.spawn(func() { x.serveIncoming(in, control) })
		}
	}
}

// serveIncoming reads what a stream wants to be and serves it to its end.
func (x *session) serveIncoming(in *rtc.Incoming, control *controlChannel) {
	ch, err := in.Open(openWait)
	if err != nil {
		x.svc.metrics.opened("other", resultInvalid)
		in.Reset()
		x.refuse()
		return
	}
	if ch.Label() == wireGuardLabel {
		x.serveWireGuardChannel(ch)
		return
	}
	d, err := parseLabel(ch.Label(), ch.Protocol())
	if err != nil {
		x.svc.metrics.opened("other", resultInvalid)
	} else if err = x.enter(); err != nil {
		x.svc.metrics.opened(d.Protocol, resultLimit)
	} else {
		defer x.memory.leave()
	}
	switch {
	case err != nil:
		x.reject(ch, d, control, refusal(err))
		x.refuse()
	case d.Protocol == "udp":
		x.serveDatagrams(ch, d, control)
	default:
		x.serveStream(ch, d)
	}
}

// reject tells the client why its channel is not served, and closes it.
func (x *session) reject(ch *rtc.Channel, d Destination, control *controlChannel, why *bridge.Error) {
	if d.Protocol == "udp" {
		id := ch.ID()
		control.send(bridge.Control{Type: bridge.TypeError, Channel: &id, Code: why.Code, Message: why.Message})
		discard(ch)
		return
	}
	stream := x.newStream(ch)
	stream.Reject(why.Code, why.Message)
	<-stream.Done()
}

func (x *session) newStream(ch *rtc.Channel) *bridge.Stream {
	return bridge.NewStream(x.ctx, ch, bridge.StreamConfig{Server: true, Queue: x.queue, Memory: x.memory})
}

// serveStream connects one tcp channel.
func (x *session) serveStream(ch *rtc.Channel, d Destination) {
	stream := x.newStream(ch)
	defer func() { <-stream.Done() }()
	conn, why := x.connect(stream.Context(), d)
	if why != nil {
		stream.Reject(why.Code, why.Message)
		return
	}
	if err := stream.Accept(); err != nil {
		_ = conn.Close()
		_ = stream.Close()
		return
	}
	if err := bridge.Pump(stream, conn, x.svc.metrics.counter()); err != nil {
		x.logger.Debug("connection broke", "dest", d.String(), "err", err)
	}
}

// serveDatagrams connects one udp channel. Messages of the client may overtake
// the answer, which therefore goes through the control channel.
func (x *session) serveDatagrams(ch *rtc.Channel, d Destination, control *controlChannel) {
	conn, why := x.connect(x.ctx, d)
	if why != nil {
		x.reject(ch, d, control, why)
		return
	}
	id := ch.ID()
	control.send(bridge.Control{Type: bridge.TypeOpen, Channel: &id})
	x.carryDatagrams(ch, conn)
}

func (x *session) carryDatagrams(ch *rtc.Channel, conn net.Conn) {
	bridge.Datagrams(ch, conn, bridge.DatagramConfig{
		Idle: x.svc.cfg.Timeouts.UDPIdle, MaxMessage: x.peer.MaxMessage(), Count: x.svc.metrics.counter(),
	})
}

// parseLabel reads the destination out of a channel's label: tcp:HOST:PORT or
// udp:HOST:PORT, with IPv6 addresses in brackets. An empty host is the
// answering node, as is localhost.
func parseLabel(label, protocol string) (Destination, error) {
	if protocol != bridge.Protocol {
		return Destination{}, fmt.Errorf("channel protocol %.20q: only %q is spoken: %w", protocol, bridge.Protocol, mesh.ErrInvalid)
	}
	network, address, _ := strings.Cut(label, ":")
	if network != "tcp" && network != "udp" {
		return Destination{}, fmt.Errorf("channel label %.40q: \"tcp:HOST:PORT\" or \"udp:HOST:PORT\" is due: %w", label, mesh.ErrInvalid)
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil || len(host) > mesh.MaxNameLen {
		return Destination{Protocol: network}, fmt.Errorf("channel label %.40q: no proper HOST:PORT: %w", label, mesh.ErrInvalid)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return Destination{Protocol: network}, fmt.Errorf("port %.10q: it is a number from 1 to 65535: %w", text, mesh.ErrInvalid)
	}
	if host == "" {
		host = "localhost"
	}
	return Destination{Protocol: network, Host: host, Port: uint16(port)}, nil
}

// controlChannel is channel 0 of an in-band peer connection.
type controlChannel struct {
	ch   *rtc.Channel
	over chan struct{} // closed when the client has closed it, or broke its rules
}

// serve answers pings until the channel ends.
func (c *controlChannel) serve() {
	defer close(c.over)
	buf := make([]byte, bridge.MaxControlSize)
	for {
		n, text, err := c.ch.ReadMessage(buf)
		if err != nil {
			return
		}
		if !text {
			continue
		}
		m, err := bridge.ParseControl(buf[:n])
		if err != nil {
			return
		}
		if m.Type == bridge.TypePing {
			c.send(bridge.Control{Type: bridge.TypePong, ID: m.ID})
		}
	}
}

// send sends a message, unless the client has stopped to take any.
func (c *controlChannel) send(m bridge.Control) {
	if c.ch.Buffered() < maxControlBuffer {
		_ = c.ch.WriteMessage(m.Encode(), true) // a broken channel shows in serve
	}
}

// goodbye tells the client why its peer connection ends, and gives the message
// a moment to arrive.
func (c *controlChannel) goodbye(why string) error {
	c.send(bridge.Control{Type: bridge.TypeGoodbye, Message: why})
	timer := time.NewTimer(goodbyeWait)
	defer timer.Stop()
	for low := c.ch.LowWater(0); c.ch.Buffered() > 0; {
		select {
		case <-low:
		case <-timer.C:
			return errors.New(why)
		case <-c.over:
			return errors.New(why)
		}
	}
	return errors.New(why)
}
