// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// Queues of the kernel, in bytes. They are bounds: memory is taken by what waits.
// The kernel may give less (on Linux net.core.rmem_max and wmem_max) to who may
// not ask for more.
const (
	sharedQueue = 2 << 20
	relayQueue  = 512 << 10
)

// largest is one byte more than a datagram can have.
const largest = 1 << 16

// portable is the engine of all systems: a goroutine for each socket, one for
// calls and timers, and a lock around the books. Datagrams are sent without the
// lock.
type portable struct {
	shard  *Shard
	sent   atomic.Uint64
	unsent atomic.Uint64
	bell   chan struct{} // of one: whether there are calls, or a timer is due earlier
	holder atomic.Int64  // the goroutine that holds mu, 0: none

	readers sync.WaitGroup
	timers  *worker // of calls and timers

	mu    sync.Mutex // guards the fields below and all that the books hold
	books *books
	at    *worker   // that holds mu
	timer time.Time // what the goroutine of calls and timers waits for; zero: nothing
	ended bool
}

// worker is one goroutine of the engine, with what it has to send.
type worker struct {
	engine *portable
	id     int64 // of the goroutine
	out    core.Output
	sends  []datagram
	lost   []datagram // that could not be sent, until the books know
}

type datagram struct {
	port *port
	to   netip.AddrPort
	data []byte
	from local // where it leaves, if not where the system likes
	err  error // of sending it
}

func (s *Shard) startPortable(b *books) error {
	e := &portable{shard: s, bell: make(chan struct{}, 1), books: b}
	e.timers = &worker{engine: e}
	s.engine = e
	e.mu.Lock()
	err := b.open(e)
	if err != nil {
		e.ended = true
		b.close()
	}
	e.mu.Unlock()
	if err != nil {
		e.readers.Wait()
		return err
	}
	b.log.Info("turn shard runs on goroutines")
	go e.run()
	return nil
}

// wake implements engine.
func (e *portable) wake() {
	select {
	case e.bell <- struct{}{}:
	default: // it has been rung
	}
}

// here implements engine.
func (e *portable) here() bool { return e.holder.Load() == goroutine() }

// goroutine is the number of the caller's goroutine. Only who finds the queue of
// calls full asks.
func goroutine() int64 {
	var b [64]byte
	fields := bytes.Fields(b[:runtime.Stack(b[:], false)]) // goroutine 7 [running]:
	n, _ := strconv.ParseInt(string(fields[1]), 10, 64)
	return n
}

// adopt implements transmitter.
func (e *portable) adopt(p *port) error {
	p.socket.owned.Store(true)
	c, err := p.socket.conn()
	if err != nil {
		return err
	}
	p.conn = c
	size := relayQueue
	if p.relay == 0 {
		size = sharedQueue
	}
	_ = c.SetReadBuffer(size) // as much as the system gives
	_ = c.SetWriteBuffer(size)
	if p.relay == 0 && p.socket.addr.Addr().IsUnspecified() && p.askWhere() {
		p.locals = make(map[netip.AddrPort]local)
	}
	e.readers.Go(func() { e.read(p) })
	return nil
}

// abandon implements transmitter.
func (e *portable) abandon(*port) { e.at.flush() }

// send implements transmitter. Datagrams that must stay whole leave at once: the
// option is the socket's.
func (e *portable) send(p *port, to netip.AddrPort, whole bool, data []byte) {
	if !whole {
		e.at.sends = append(e.at.sends, datagram{port: p, to: to, data: data, from: p.locals[to]})
		return
	}
	p.keepWhole(true)
	one := worker{engine: e, sends: []datagram{{port: p, to: to, data: data}}}
	one.flush()
	e.at.lost = append(e.at.lost, one.lost...)
	p.keepWhole(false)
}

// flush sends what a worker has to send, and counts it.
func (w *worker) flush() {
	for _, d := range w.sends {
		if d.err = d.send(); d.err != nil {
			w.engine.unsent.Add(1)
			w.lost = append(w.lost, d)
		} else {
			w.engine.sent.Add(1)
		}
	}
	clear(w.sends)
	w.sends = w.sends[:0]
}

// send sends it from where the client came in, or from where the system likes if
// that is no address of the host any more, or one of many hosts.
func (d *datagram) send() (err error) {
	if d.from.addr.IsValid() {
		if _, _, err = d.port.conn.WriteMsgUDPAddrPort(d.data, d.port.fromHere(d.from), d.to); err == nil {
			return nil
		}
	}
	_, err = d.port.conn.WriteToUDPAddrPort(d.data, d.to)
	return err
}

// event has f tell the core something, and does what it asks for. It is false
// when the engine has ended.
func (e *portable) event(w *worker, f func(now time.Time)) bool {
	if !e.locked(w, f) {
		return false
	}
	w.flush()
	w.confess()
	w.out.Reset()
	return true
}

// confess tells the books what could not be sent.
func (w *worker) confess() {
	if len(w.lost) == 0 {
		return
	}
	w.engine.mu.Lock()
	for _, d := range w.lost {
		w.engine.books.unsent(d.port, d.to, d.data, d.err)
	}
	w.engine.mu.Unlock()
	clear(w.lost)
	w.lost = w.lost[:0]
}

// locked is the part of event that needs the lock.
func (e *portable) locked(w *worker, f func(now time.Time)) bool {
	e.mu.Lock()
	e.holder.Store(w.id)
	e.at = w
	defer func() { e.holder.Store(0); e.at = nil; e.mu.Unlock() }()
	if e.ended {
		return false
	}
	now := time.Now()
	e.books.turn++
	e.books.stats.Turns++
	f(now)
	e.books.execute(now, &w.out)
	next, ok := e.next(now)
	switch {
	case w == e.timers:
		if e.timer = (time.Time{}); ok {
			e.timer = next
		}
	case ok && (e.timer.IsZero() || next.Before(e.timer)):
		e.timer = next
		e.wake()
	}
	return true
}

// next is when there is something to do.
func (e *portable) next(now time.Time) (time.Time, bool) {
	next, ok := e.books.core.Next()
	if credit, some := e.books.creditAll(now); some && (!ok || credit.Before(next)) {
		return credit, true
	}
	return next, ok
}

// read receives from a socket until it is closed.
func (e *portable) read(p *port) {
	w := &worker{engine: e, id: goroutine()}
	buf := make([]byte, core.Headroom+largest+core.Tailroom)
	var where []byte // what the system tells of where a datagram came in
	if p.locals != nil {
		where = make([]byte, whereRoom)
	}
	const patience = 64 // errors in a row; an ICMP message makes one
	for failed := 0; ; {
		n, told, _, from, err := p.conn.ReadMsgUDPAddrPort(buf[core.Headroom:core.Headroom+largest], where)
		switch {
		case err == nil:
			failed = 0
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			if !e.event(w, func(now time.Time) { e.received(now, p, w, from, buf[:core.Headroom+n], where[:told]) }) {
				return
			}
		case errors.Is(err, net.ErrClosed):
			return
		case failed < patience:
			failed++
		default:
			e.event(w, func(now time.Time) { e.broke(now, p, w, err) })
			return
		}
	}
}

func (e *portable) received(now time.Time, p *port, w *worker, from netip.AddrPort, buf, where []byte) {
	e.books.stats.Receives++
	e.books.stats.Received++
	switch {
	case p.closed:
	case p.relay == 0:
		packet := buf[core.Headroom:]
		var to local
		if p.locals != nil {
			to = p.where(where)
		}
		e.books.fromListener(now, p, from, packet[:len(packet):len(packet)], to, &w.out)
	default:
		e.books.fromPeer(now, p.relay, e.books.cfg.Relays.Outside(from), buf, core.Headroom, &w.out)
	}
}

// broke gives a socket up.
func (e *portable) broke(now time.Time, p *port, w *worker, err error) {
	switch {
	case p.closed:
	case p.relay == 0:
		e.books.log.Error("turn listener is broken; start the server anew", "addr", p.socket.addr, "err", err)
	default:
		e.books.relayBroke(now, p, err, &w.out)
	}
}

// run executes calls and timers until the shard is closed.
func (e *portable) run() {
	w := e.timers
	w.id = goroutine()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var batch []call
	for closed := false; !closed; {
		select {
		case <-e.bell:
		case <-timer.C:
		}
		if e.shard.calls.any.Load() {
			batch, closed = e.shard.calls.take(batch)
			for _, c := range batch {
				e.call(w, c)
			}
		}
		e.event(w, func(now time.Time) { e.books.core.Expire(now, &w.out) })
		e.mu.Lock()
		if !e.timer.IsZero() {
			timer.Reset(time.Until(e.timer))
		}
		e.mu.Unlock()
	}
	e.end()
}

func (e *portable) call(w *worker, c call) {
	if c.stats == nil {
		e.event(w, func(now time.Time) { c.run(now, e.books.core, &w.out) })
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.stats <- e.counters()
}

// counters are all numbers: datagrams are sent without the lock.
func (e *portable) counters() Stats {
	got := e.books.stats
	got.Sent, got.Unsent = e.sent.Load(), e.unsent.Load()
	got.Sends = got.Sent
	return got
}

func (e *portable) end() {
	e.mu.Lock()
	e.ended = true
	e.books.close()
	e.mu.Unlock()
	e.readers.Wait()
	e.shard.ended(e.counters())
}
