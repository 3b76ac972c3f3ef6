// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// errNoChannel says that all channels of a peer connection are in use.
var errNoChannel = errors.New("all channels of the peer connection are in use")

// addr is an address as it was asked for; the node resolved it.
type addr struct{ network, address string }

func (a addr) Network() string { return a.network }
func (a addr) String() string  { return a.address }

// DialContext opens a connection through the node to an address as the node
// sees it: an IP address, a node id, or localhost for the node itself. The
// network is "tcp" or "udp". A refusal by the node is an *Error.
//
// A tcp connection is a *bridge.Stream, which has CloseWrite. On a udp one,
// each Read and Write is one datagram; Read drops datagrams when nobody reads.
func (c *Conn) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
		network = "tcp"
	case "udp", "udp4", "udp6":
		network = "udp"
	default:
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("port %q is no number", port)}
	}
	target := addr{network, net.JoinHostPort(host, port)}
	var conn net.Conn
	if network == "udp" {
		conn, err = c.dialUDP(ctx, target)
	} else {
		conn, err = c.dialTCP(ctx, target)
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: target, Err: err}
	}
	return conn, nil
}

func (c *Conn) dialTCP(ctx context.Context, target addr) (net.Conn, error) {
	ch, release, err := c.open(target, rtc.ChannelConfig{}, nil)
	if err != nil {
		return nil, err
	}
	s := bridge.NewStream(context.WithoutCancel(ctx), ch, bridge.StreamConfig{Local: addr{"tcp", "meshgate"}, Remote: target})
	c.tasks.Go(func() {
		<-s.Done()
		release()
	})
	if err := s.Opened(ctx); err != nil {
		_ = s.Close()
		return nil, c.reason(err)
	}
	return s, nil
}

// open opens a channel with a free id. What the control channel says about it
// goes to answer, unless that is nil. release gives the id back; it is called
// when the channel has ended.
func (c *Conn) open(target addr, cfg rtc.ChannelConfig, answer chan *Error) (ch *rtc.Channel, release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, net.ErrClosed
	}
	// Ids are taken in turn and not the lowest first: so a stream has long
	// been reset when its number comes again.
	for range 1 << 15 {
		id := uint16(c.next)
		if c.next += 2; c.next >= 65535 {
			c.next = int(c.peer.FirstID())
		}
		if _, taken := c.used[id]; taken {
			continue
		}
		cfg.ID, cfg.Label, cfg.Protocol = id, target.network+":"+target.address, bridge.Protocol
		if ch, err = c.peer.Open(cfg); err != nil {
			return nil, nil, err
		}
		c.used[id] = struct{}{}
		if answer != nil {
			c.udp[id] = answer
		}
		return ch, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.used, id)
			delete(c.udp, id)
		}, nil
	}
	return nil, nil, errNoChannel
}

// reason is err, or what is behind it if the peer connection has ended.
func (c *Conn) reason(err error) error {
	var refused *Error
	if errors.As(err, &refused) {
		return err
	}
	if why := c.Err(); why != nil {
		return why
	}
	return err
}

func (c *Conn) dialUDP(ctx context.Context, target addr) (net.Conn, error) {
	answer := make(chan *Error, 1)
	ch, release, err := c.open(target, rtc.ChannelConfig{Unordered: true, Unreliable: true}, answer)
	if err != nil {
		return nil, err
	}
	u := &datagramConn{
		ch: ch, remote: target, in: make(chan []byte, datagramQueue), done: make(chan struct{}),
		max: c.peer.MaxMessage(),
	}
	answered := make(chan struct{}) // closed once nobody waits for the answer
	defer close(answered)
	c.tasks.Go(func() {
		u.receive()
		<-answered
		release()
	})
	select {
	case refused := <-answer:
		return u.opened(refused)
	case <-ctx.Done():
		_ = u.Close()
		return nil, ctx.Err()
	case <-u.done:
	}
	// The reason is on its way on the control channel, which is another stream.
	late := time.NewTimer(answerGrace)
	defer late.Stop()
	select {
	case refused := <-answer:
		return u.opened(refused)
	case <-ctx.Done():
		err = ctx.Err()
	case <-late.C:
		err = c.reason(net.ErrClosed)
	}
	_ = u.Close()
	return nil, err
}

// answerGrace is how long the answer may come after the end of its channel.
const answerGrace = time.Second

// opened is the connection, unless the node refused it.
func (u *datagramConn) opened(refused *Error) (net.Conn, error) {
	if refused == nil {
		return u, nil
	}
	_ = u.Close()
	return nil, refused
}

const (
	datagramQueue = 256       // datagrams that wait for a reader
	sendQueue     = 256 << 10 // bytes that wait to be sent
	maxDatagram   = 64 << 10
)

// datagramConn is a udp connection through the node.
type datagramConn struct {
	ch     *rtc.Channel
	remote addr
	max    int
	in     chan []byte
	done   chan struct{} // closed when the channel has ended
	once   sync.Once

	mu       sync.Mutex // guards the fields below
	deadline time.Time
	moved    chan struct{} // closed when deadline changes; nil if nobody waits
}

// receive takes datagrams until the channel ends. It drops what nobody reads.
func (u *datagramConn) receive() {
	defer u.end()
	buf := make([]byte, maxDatagram)
	for {
		n, text, err := u.ch.ReadMessage(buf)
		if err != nil {
			_ = u.ch.Close()
			return
		}
		if text {
			continue
		}
		select {
		case u.in <- append([]byte(nil), buf[:n]...):
		default:
		}
	}
}

func (u *datagramConn) end() { u.once.Do(func() { close(u.done) }) }

// Read implements net.Conn: one datagram; what does not fit is lost.
func (u *datagramConn) Read(p []byte) (int, error) {
	for {
		u.mu.Lock()
		at := u.deadline
		if u.moved == nil {
			u.moved = make(chan struct{})
		}
		moved := u.moved
		u.mu.Unlock()
		var passed <-chan time.Time
		if !at.IsZero() {
			left := time.Until(at)
			if left <= 0 {
				return 0, os.ErrDeadlineExceeded
			}
			passed = time.After(left)
		}
		select {
		case b := <-u.in:
			return copy(p, b), nil
		case <-passed:
			return 0, os.ErrDeadlineExceeded
		case <-moved:
		case <-u.done:
			return 0, net.ErrClosed
		}
	}
}

// Write implements net.Conn: one datagram, which is lost if the path is slow.
func (u *datagramConn) Write(p []byte) (int, error) {
	select {
	case <-u.done:
		return 0, net.ErrClosed
	default:
	}
	if len(p) > u.max {
		return 0, fmt.Errorf("datagram of %d bytes, the node takes %d", len(p), u.max)
	}
	if u.ch.Buffered() > sendQueue {
		return len(p), nil
	}
	if err := u.ch.WriteMessage(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements net.Conn.
func (u *datagramConn) Close() error {
	u.end()
	err := u.ch.Close()
	_ = u.ch.SetReadDeadline(time.Now().Add(closeTimeout))
	return err
}

// LocalAddr implements net.Conn.
func (u *datagramConn) LocalAddr() net.Addr { return addr{"udp", "meshgate"} }

// RemoteAddr implements net.Conn.
func (u *datagramConn) RemoteAddr() net.Addr { return u.remote }

// SetDeadline implements net.Conn.
func (u *datagramConn) SetDeadline(t time.Time) error { return u.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (u *datagramConn) SetReadDeadline(t time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.deadline = t
	if u.moved != nil {
		close(u.moved)
		u.moved = nil
	}
	return nil
}

// SetWriteDeadline implements net.Conn; writes never wait.
func (u *datagramConn) SetWriteDeadline(time.Time) error { return nil }
