// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// conn is the connection of a client. The goroutine that reads from it owns it,
// and ends it; others say that it should end by end or abort. While an event of
// its own is with the shard (consume), that thread owns the fields of event.
type conn struct {
	server *Server
	net    net.Conn
	plain  bool // net is a plain socket: closing it does not block
	flow   core.Flow
	place  place
	queue  queue
	source *source

	done   chan struct{} // closed by end
	once   sync.Once
	handed chan *peer // from Splice: from here the peer is to have what comes

	// Of the reader.
	home    *Streams  // the shard's; another only before the client has an allocation
	entered bool      // home has been given frames
	in      *chunk    // what was read and not consumed; nil: nothing
	known   bool      // the client has had an allocation
	holds   bool      // it had one when the shard was asked last
	spoke   bool      // something was read
	since   time.Time // when the shard was asked last and it had one, or it connected
	partial time.Time // when the first bytes of the frame at hand came; zero: there are none
	armed   time.Time // the read deadline, never later than what the client has

	event struct {
		consumed chan struct{}
		done     func(now time.Time, c *core.Core, out *core.Output) // onShard, made once
		frames   *chunk                                              // nil: only ask whether it holds
		whole    int                                                 // of the unread bytes of frames: complete ones
		used     int
		refused  int // credentials, since it connected
		enter    bool
		holds    bool
		splices  bool
	}
}

// Why a reader ends.
var (
	errTooLarge = errors.New("a large frame of a client without an allocation")
	errSilent   = errors.New("no whole frame in time")
	errEnded    = errors.New("ended by the server")
	errSpliced  = errors.New("spliced")
	errGuessing = errors.New("too many refused credentials")
)

func (s *Server) newConn(n net.Conn, flow core.Flow) *conn {
	c := &conn{
		server: s, net: n, flow: flow, source: newSource(n, &s.buffers), home: s.homeOf(flow.Client.Addr()),
		done: make(chan struct{}), handed: make(chan *peer, 1), since: time.Now(),
	}
	c.plain = c.source.raw != nil
	c.place.owner = c
	c.queue = queue{
		conn: n, limit: s.cfg.Limits.QueuedBytes, total: &s.queued, room: s.cfg.Limits.room(), plain: c.plain,
		buffers: &s.buffers, failed: func() { c.abort(Stuck) },
	}
	// The reader is running while the queue is open, so that Close waits for the writer.
	c.queue.writer = func() { s.running.Go(c.queue.write) }
	c.event.consumed, c.event.done = make(chan struct{}, 1), c.consume
	return c
}

// run reads until the connection ends.
func (c *conn) run() {
	s := c.server
	err := c.serve()
	p := c.takeOver(err)
	clean := errors.Is(err, io.EOF)
	if p != nil {
		c.settle(true)
		clean = p.copy(c)
	} else {
		c.leave(clean)
	}
	s.buffers.put(c.in)
	c.in = nil
	c.shut()
	c.queue.close()
	if clean {
		_ = c.net.Close()
	} else {
		c.closeHard()
	}
	if p := c.takeOver(nil); p != nil { // spliced while it ended
		p.abandon()
	}
	s.places.leave(&c.place)
	s.untrack(c)
}

// takeOver returns the peer that the connection was spliced to, if it was. After
// errSpliced it waits for that.
func (c *conn) takeOver(err error) *peer {
	if errors.Is(err, errSpliced) {
		select {
		case p := <-c.handed:
			return p
		case <-c.done:
		}
	}
	select {
	case p := <-c.handed:
		return p
	default:
		return nil
	}
}

// serve reads frames and hands them to the shard until something ends that. It
// returns errSpliced when the rest is a peer's.
func (c *conn) serve() error {
	for {
		whole, next, err := c.cut()
		switch {
		case whole > 0:
			if err := c.await(); err != nil {
				return err
			}
			if err := c.deliver(whole, next); err != nil {
				return err
			}
			continue
		case err != nil, next > maxStrange && !c.holds:
			// Unless it is a peer's, or an allocation is there that nobody told of.
			if asked := c.ask(); asked != nil {
				return asked
			}
			if err != nil {
				c.abort(Garbage)
				return err
			}
			if !c.holds {
				c.abort(Oversize)
				return errTooLarge
			}
		}
		if err := c.read(next); err != nil {
			return err
		}
	}
}

// strangeFrames is how many frames of a client without an allocation go to the
// shard at a time. One that works asks, and waits for the answer.
const strangeFrames = 16

// await waits until a client without an allocation has taken its answers: without
// a credential nobody has memory of the server's for more than strangeFrames of
// them. writeTimeout ends who takes none.
func (c *conn) await() error {
	if c.holds {
		return nil
	}
	c.queue.drain(c.done)
	if isEnded(c.done) {
		return errEnded
	}
	return nil
}

// cut finds out how many of the unread bytes are whole frames to hand over, and how
// long the frame behind them is, 0 if that is not to be seen yet. What a client without an
// allocation asks of another shard begins anew, at that shard.
func (c *conn) cut() (whole, next int, err error) {
	if c.in == nil {
		return 0, 0, nil
	}
	b := c.in.unread()
	for frames := 0; whole < len(b); frames++ {
		if frames == strangeFrames && !c.holds {
			return whole, 0, nil
		}
		if !c.known && b[whole] >= 0x40 {
			return whole, 0, core.ErrNotTURN // to a stranger "GE" of GET is no channel
		}
		next, err = core.Frame(b[whole:])
		if err != nil || next == 0 || next > len(b)-whole {
			return whole, next, err
		}
		if !c.holds {
			if k, ok := core.ShardOf(b[whole : whole+next]); ok && int(k) < len(c.server.streams) && int(k) != c.home.index {
				if whole > 0 {
					return whole, 0, nil
				}
				c.move(c.server.streams[k])
			}
		}
		whole += next
	}
	return whole, 0, nil
}

// read waits for more bytes, and makes room for a frame of next bytes.
func (c *conn) read(next int) error {
	for {
		if err := c.arm(); err != nil {
			return err
		}
		err := c.receive(next)
		if err == nil {
			if !c.spoke {
				c.spoke = true
				_ = c.net.SetWriteDeadline(time.Time{}) // that of the handshake
			}
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := c.late(); err != nil {
			return err
		}
	}
}

func (c *conn) receive(next int) (err error) {
	if c.in == nil {
		c.in, err = c.source.next(c.size())
		return err
	}
	if n := max(next, len(c.in.unread())+1); c.in.r+n > len(c.in.b) {
		c.in = c.copyOf(c.in, c.in.unread(), sizeFor(n, c.size()))
	}
	return c.source.more(c.in)
}

// size is how much the client may have read at once.
func (c *conn) size() size {
	if c.holds {
		return medium
	}
	return small
}

// copyOf returns b, unread bytes of a chunk, in a chunk of another size, and
// gives the old one back.
func (c *conn) copyOf(old *chunk, b []byte, z size) *chunk {
	v := c.server.buffers.get(z)
	v.w = copy(v.b, b)
	c.server.buffers.put(old)
	return v
}

// settle notes whether the client has an allocation.
func (c *conn) settle(holds bool) {
	now := time.Now()
	if holds || c.holds {
		c.since = now
	}
	if holds == c.holds {
		return
	}
	c.holds, c.known = holds, true
	c.server.places.settle(&c.place, holds)
	c.queue.settle(holds)
	if holds {
		boundUnsent(c.net, maxUnsent)
	} else {
		boundUnsent(c.net, strangeUnsent)
	}
	if v, ok := c.net.(interface{ Settled(bool) }); ok {
		v.Settled(holds)
	}
}

// leave takes the connection from its shard. When the client has ended it, it
// still gets the answers to what it asked.
func (c *conn) leave(answers bool) {
	if !c.entered {
		return
	}
	home, left := c.home, make(chan struct{})
	ok := home.do(func(_ time.Time, v *core.Core, out *core.Output) {
		home.closed(c, v, out)
		close(left)
	})
	if !ok || !answers {
		return
	}
	select {
	case <-left:
		c.queue.drain(c.done)
	case <-c.done:
	}
}

// end says that the connection should end. It does not block and may be called again.
func (c *conn) end() {
	c.shut()
	_ = c.net.SetDeadline(past()) // wakes the reader, which closes it
}

// abort is end, and counts why, if the connection had not ended already.
func (c *conn) abort(why Reason) {
	if c.shut() {
		c.server.stats.count(why)
	}
	_ = c.net.SetDeadline(past())
}

func (c *conn) shut() (first bool) {
	c.once.Do(func() {
		close(c.done)
		first = true
	})
	return first
}

// closeHard closes the connection without a word: over TLS a last one would wait
// for a client that does not read.
func (c *conn) closeHard() {
	n := c.net
	if v, ok := n.(interface{ NetConn() net.Conn }); ok {
		n = v.NetConn()
	}
	_ = n.Close()
}

// past is a deadline that has passed.
func past() time.Time { return time.Unix(1, 0) }
