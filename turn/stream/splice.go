// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// The core is told what a connection has carried after tellBytes, with the first
// bytes after tellInterval, and with every read where the account has a rate.
const (
	tellBytes    = 256 << 10
	tellInterval = time.Second
)

// halfTimeout is how long one direction may be silent after the other has ended:
// whoever has closed all of its connection looks as if it had closed half of it.
const halfTimeout = 5 * time.Minute

// splice copies between a client and a peer. A direction ends with its sender,
// and the other one goes on; a reset, or any other error, ends both.
type splice struct {
	client *conn
	peer   *peer

	sent, received atomic.Uint64 // bytes that the core does not know of
	bounded        atomic.Bool   // the account has a rate
	half           atomic.Bool   // the sender of one direction has ended it
}

// copy is what the client's reader does from Splice on. It returns when both
// directions have ended, with the peer's connection closed and the client's open,
// and reports whether their senders have ended them.
func (p *peer) copy(c *conn) bool {
	v := &splice{client: c, peer: p}
	defer func() {
		p.end()
		p.closed(v.untold())
	}()
	c.queue.drain(c.done)              // the answer to ConnectionBind comes first
	_ = c.net.SetDeadline(time.Time{}) // end closes done before it sets one
	if !p.attachClient(c) || !v.tell() {
		return false
	}
	var down sync.WaitGroup
	down.Go(func() { v.end(v.down(), c.net) })
	v.end(v.up(), p.conn)
	down.Wait()
	return !isEnded(p.done)
}

// end ends both directions if one has failed, and else bounds how long the other
// one, which reads from other, goes on in silence.
func (v *splice) end(err error, other net.Conn) {
	if err == nil {
		_ = other.SetReadDeadline(time.Now().Add(halfTimeout))
		return
	}
	if !isEnded(v.peer.done) && !isEnded(v.client.done) {
		reset(v.client.net)
		reset(v.peer.conn)
	}
	v.peer.end() // and with it the client
}

// up copies to the peer, first what was read behind the last frame.
func (v *splice) up() error {
	c := v.client
	if in := c.in; in != nil {
		c.in = nil
		n, err := writeAll(v.peer.conn, in.unread())
		v.sent.Add(uint64(n))
		if c.server.buffers.put(in); err != nil {
			return err
		}
	}
	return v.pump(v.peer.conn, c.source, &v.sent)
}

// down copies to the client.
func (v *splice) down() error {
	return v.pump(v.client.net, newSource(v.peer.conn, &v.client.server.buffers), &v.received)
}

// pump copies one direction until its sender ends it.
func (v *splice) pump(to net.Conn, from *source, carried *atomic.Uint64) error {
	untold, told := 0, time.Now()
	for heard := told; ; heard = time.Now() {
		b, err := v.read(from, heard)
		if errors.Is(err, io.EOF) {
			if !v.half.Swap(true) && wasReset(from.conn) {
				return syscall.ECONNRESET
			}
			if isEnded(v.peer.done) { // the other direction has seen it
				return errEnded
			}
			return closeWrite(to)
		}
		if err != nil {
			return err
		}
		n, err := to.Write(b.unread())
		carried.Add(uint64(n))
		from.buffers.put(b)
		if err != nil {
			return err
		}
		untold += n
		if now := time.Now(); v.bounded.Load() || untold >= tellBytes || now.Sub(told) >= tellInterval {
			if !v.tell() {
				return errEnded
			}
			untold, told = 0, now
		}
	}
}

// read waits for bytes of a sender that was heard last at some time.
func (v *splice) read(from *source, heard time.Time) (*chunk, error) {
	for {
		if v.half.Load() {
			_ = from.conn.SetReadDeadline(heard.Add(halfTimeout))
		}
		if isEnded(v.client.done) { // end may have set a deadline before this
			return nil, errEnded
		}
		b, err := from.fill(medium)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return b, err
		}
		// Splice wakes the reader, and may do so when it copies already.
		_ = from.conn.SetReadDeadline(time.Time{})
		if isEnded(v.client.done) || v.half.Load() && time.Since(heard) >= halfTimeout {
			return nil, err
		}
	}
}

// untold returns what the core does not know of yet, and takes it as told.
func (v *splice) untold() core.Usage {
	return core.Usage{SentBytes: v.sent.Swap(0), ReceivedBytes: v.received.Swap(0)}
}

// tell has the core count what was carried, and waits as long as it says. False:
// the connection has ended.
func (v *splice) tell() bool {
	p, u := v.peer, v.untold()
	answer := make(chan time.Duration, 1)
	if !p.home.do(func(now time.Time, c *core.Core, _ *core.Output) {
		var wait time.Duration
		if p.home.peers[p.id] == p {
			var bounded bool
			wait, bounded = c.Carried(now, p.id, u)
			v.bounded.Store(bounded)
		}
		answer <- wait
	}) {
		return false
	}
	select {
	case wait := <-answer:
		return p.sleep(wait)
	case <-p.done:
		return false
	}
}

// sleep waits; false: the connection has ended meanwhile.
func (p *peer) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.done:
		return false
	}
}

// writeAll writes b, if there is any of it: to write nothing would take an error
// from who reads.
func writeAll(n net.Conn, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return n.Write(b)
}

// closeWrite ends one direction.
func closeWrite(n net.Conn) error {
	v, ok := n.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("close one direction of a %T: %w", n, errors.ErrUnsupported)
	}
	return v.CloseWrite()
}

// reset has the closing of a connection tell that something is missing.
func reset(n net.Conn) {
	for n != nil {
		if v, ok := n.(interface{ SetLinger(int) error }); ok {
			_ = v.SetLinger(0)
			return
		}
		v, ok := n.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		n = v.NetConn()
	}
}

// isEnded reports whether a channel is closed.
func isEnded(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
