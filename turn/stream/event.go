// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// deliver hands whole frames, the first of the unread bytes, to the shard and
// waits until they are consumed. What is behind them, of which the first frame
// has next bytes, stays unread.
func (c *conn) deliver(whole, next int) error {
	all := c.in
	var rest *chunk
	if b := all.unread()[whole:]; len(b) > 0 {
		rest = c.copyOf(nil, b, sizeFor(max(next, len(b)), c.size()))
	}
	c.in, c.partial = rest, time.Time{}
	c.event.frames, c.event.whole = all, whole
	if err := c.consult(); err != nil {
		return err
	}
	if c.event.splices { // all is the reader's again
		c.server.buffers.put(rest)
		c.in = all
		c.in.r += c.event.used
		return errSpliced
	}
	return nil
}

// maxRefused is how many credentials a client may try that are refused. One that
// works stops at the first, and asks its user.
const maxRefused = 16

// guessed ends a connection with too many of them, and tells the log now and then.
func (s *Server) guessed(c *conn) {
	c.abort(Guessing)
	now := time.Now().UnixNano()
	if last := s.told.Load(); (last == 0 || now-last >= int64(time.Minute)) && s.told.CompareAndSwap(last, now) {
		s.log.Warn("a client tries one credential after the other; its connection ends",
			"client", c.flow.Client, "n", s.stats.ended[Guessing].Load())
	}
}

// ask finds out whether the client has an allocation now, or was spliced.
func (c *conn) ask() error {
	c.event.frames, c.event.whole = nil, 0
	if !c.entered {
		return nil
	}
	if err := c.consult(); err != nil {
		return err
	}
	if c.event.splices {
		return errSpliced
	}
	return nil
}

// consult has the shard see the event, and waits for that.
func (c *conn) consult() error {
	c.event.enter, c.event.used, c.event.splices = !c.entered, 0, false
	c.entered = true
	if !c.home.do(c.event.done) {
		return errEnded
	}
	select {
	case <-c.event.consumed:
	case <-c.done:
		return errEnded // frames are with the shard, or with a shard that has ended: the garbage collector's
	}
	if c.event.refused >= maxRefused {
		c.server.guessed(c)
		return errGuessing
	}
	if !c.event.splices {
		c.settle(c.event.holds)
	}
	return nil
}

// consume hands the frames of an event to the core, on the shard's thread.
func (c *conn) consume(now time.Time, v *core.Core, out *core.Output) {
	s, e := c.home, &c.event
	s.reclaim()
	if e.enter {
		s.conns[c.flow.Conn] = c
	}
	if s.conns[c.flow.Conn] != c { // spliced since the reader has read
		e.splices = true
		c.event.consumed <- struct{}{}
		return
	}
	refused := v.Refused()
	before := e.refused
	for e.used < e.whole && !e.splices && e.refused < maxRefused {
		b := e.frames.unread()[e.used:e.whole]
		n, _ := core.Frame(b) // cut has seen it
		mark := len(out.Actions)
		v.FromClient(now, c.flow, b[:n:n], out)
		e.used += n
		e.refused = before + int(v.Refused()-refused)
		e.splices = c.isSpliced(out.Actions[mark:])
	}
	e.holds = v.Holds(c.flow)
	if !e.splices { // else there is no data in actions that is not the core's own
		s.spent = e.frames
	}
	c.event.consumed <- struct{}{}
}

// isSpliced reports whether one of actions will splice c.
func (c *conn) isSpliced(actions []core.Action) bool {
	for i := range actions {
		if actions[i].Kind == core.Splice && actions[i].Flow.Conn == c.flow.Conn {
			return true
		}
	}
	return false
}

// move changes the shard of a client without an allocation.
func (c *conn) move(to *Streams) {
	if from := c.home; c.entered {
		from.do(func(_ time.Time, v *core.Core, out *core.Output) { from.closed(c, v, out) })
	}
	c.home, c.entered = to, false
}

// closed takes a connection from its core, on the shard's thread. One that was
// spliced is there no more.
func (s *Streams) closed(c *conn, v *core.Core, out *core.Output) {
	s.reclaim()
	if s.conns[c.flow.Conn] == c {
		delete(s.conns, c.flow.Conn)
		v.StreamClosed(c.flow, out)
	}
}

// splice has the reader hand all that comes to a peer, on the shard's thread.
func (c *conn) splice(p *peer) {
	c.handed <- p
	_ = c.net.SetReadDeadline(past()) // wakes the reader
	select {
	case <-c.done: // the reader looks for the peer behind this; one of the two finds it
		if p := c.takeOver(nil); p != nil {
			p.abandon()
		}
	default:
	}
}
