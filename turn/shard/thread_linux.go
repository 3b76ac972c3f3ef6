// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// Shares of a turn. A relay that is flooded has its share and no more, and what
// the listeners get is in proportion to what the relays got, so that neither
// starves the other: what clients send comes back as the answers of peers.
const (
	share       = 64   // datagrams of a socket, merged ones counted as one
	mergedShare = 8    // of a socket whose datagrams come merged
	turnShare   = 1024 // of all sockets, segments counted one by one
	callShare   = 64   // calls of Do
	errorShare  = 16   // errors of a relay
)

// lane is what a thread knows of a port.
type lane struct {
	ready  bool // in a list of the thread
	errors bool // may have errors waiting
	merged bool // the last datagrams came merged

	failures   int // to receive, in a row
	overflowed uint32

	// The groups of the batch at hand, in the sender.
	batch                  uint32
	oldest, newest, latest int32
	whole                  bool
}

// thread is the engine of Linux: an OS thread that owns the books.
type thread struct {
	*books
	epoll, bell int
	id          atomic.Int64
	events      [256]unix.EpollEvent
	ready       fifo // relays that may have datagrams
	rx          *receiver
	tx          *sender
	out         core.Output
	running     []call // taken from the calls
	next        int    // of running
	busy        bool   // the last turn found much to do
	messages    int    // received, merged datagrams counted as one
	woke        time.Time
	lent        time.Time
	timer       *time.Timer
	streaming   bool // by what the last turns were apart
	napped      bool // before this turn
	yield       int  // what naps are good for; negative: how many turns there are none
}

// bellTag is the bell among the events; other negative tags are listeners.
const bellTag = -1

// start runs the books on a thread, or on goroutines.
func (s *Shard) start(b *books) error {
	for _, l := range b.cfg.Listeners {
		l.owned.Store(true)
	}
	can := probe()
	if b.cfg.Portable || !can.batch {
		return s.startPortable(b)
	}
	t := &thread{books: b, epoll: -1, bell: -1, tx: newSender(&b.stats, can.cut)}
	t.tx.lost = b.unsent
	s.engine = t
	if err := t.init(can); err != nil {
		b.close()
		t.end()
		return err
	}
	if b.log.Debug("turn shard runs on a thread of its own"); !can.cut || !can.merge {
		b.log.Info("the kernel neither cuts nor merges UDP packets; turn works, but slower", "cuts", can.cut, "merges", can.merge)
	}
	go t.run()
	return nil
}

func (t *thread) init(can abilities) (err error) {
	if t.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if t.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if err := t.watch(t.bell, bellTag, 0); err != nil {
		return err
	}
	if t.rx, err = newReceiver(can.merge); err != nil {
		return err
	}
	return t.open(t)
}

func (t *thread) watch(fd int, tag, generation int32) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET&(1<<32-1), Fd: tag, Pad: generation}
	if err := unix.EpollCtl(t.epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("epoll add: %w", err)
	}
	return nil
}

// adopt implements transmitter.
func (t *thread) adopt(p *port) error {
	p.socket.owned.Store(true)
	t.rx.prepare(p)
	if p.relay != 0 {
		return t.watch(p.socket.fd, int32(uint32(p.relay)), int32(p.relay>>32))
	}
	return t.watch(p.socket.fd, bellTag-1-int32(p.listener), 0)
}

// abandon implements transmitter.
func (t *thread) abandon(p *port) {
	if p.lane.batch == t.tx.number {
		t.tx.flush()
	}
}

// wake implements engine.
func (t *thread) wake() {
	one := uint64(1)
	_, _ = unix.Write(t.bell, (*[8]byte)(unsafe.Pointer(&one))[:]) // full means awake
}

// here implements engine.
func (t *thread) here() bool { return int64(unix.Gettid()) == t.id.Load() }

// run is the thread. It ends with the goroutine: nothing else shall run on it.
func (t *thread) run() {
	runtime.LockOSThread()
	t.timer = time.NewTimer(0)
	<-t.timer.C
	t.id.Store(int64(unix.Gettid()))
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(napSlack), 0, 0, 0)
	for t.await() {
	}
	t.close()
	t.end()
	t.shard.ended(t.stats)
}

// end gives back what is left beside the sockets.
func (t *thread) end() {
	for _, fd := range []int{t.epoll, t.bell} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if t.rx != nil {
		t.rx.close()
	}
}

// await waits for something to do and does it. It is false when the shard is closed.
func (t *thread) await() bool {
	for i := range t.events[:t.look()] {
		t.mark(&t.events[i])
	}
	return t.take()
}

// mark notes what an event is about.
func (t *thread) mark(e *unix.EpollEvent) {
	var p *port
	switch {
	case e.Fd == bellTag:
		return // pending looks at the calls
	case e.Fd < 0:
		p = t.listeners[bellTag-1-e.Fd]
		p.lane.ready = true
		return
	default:
		p = t.relay(core.RelayID(uint32(e.Pad))<<32 | core.RelayID(uint32(e.Fd)))
	}
	if p == nil {
		return // closed since
	}
	p.lane.errors = p.lane.errors || e.Events&unix.EPOLLERR != 0
	if !p.lane.ready {
		p.lane.ready = true
		t.ready.push(p)
	}
}

// take does a turn's share of everything. It is false when the shard is closed.
func (t *thread) take() bool {
	now := time.Now()
	t.streaming = now.Sub(t.woke) < streamGap
	t.woke = now
	before := t.messages
	t.turn++
	t.stats.Turns++
	if !t.serveCalls(now) {
		return false
	}
	if next, ok := t.core.Next(); ok && !next.After(now) {
		t.core.Expire(now, &t.out)
	}
	t.creditAll(now)
	t.serve(now)
	t.finish(now)
	got := t.messages - before
	t.busy = got > share
	switch {
	case t.napped:
		t.rate(got)
	case t.yield < 0 && t.streaming:
		if t.yield++; t.yield == 0 {
			t.yield = newYield
		}
	}
	return true
}

// finish ends a batch: it does what the core has asked for.
func (t *thread) finish(now time.Time) {
	t.execute(now, &t.out)
	t.tx.flush()
	t.out.Reset()
	t.rx.used, t.rx.copied = 0, 0
}

// serveCalls runs some of the calls. It is false when all are done that there will be.
func (t *thread) serveCalls(now time.Time) bool {
	closed := false
	if t.next == len(t.running) {
		if !t.shard.calls.any.Load() {
			return true
		}
		t.running, closed = t.shard.calls.take(t.running)
		t.next = 0
	}
	for n := 0; t.next < len(t.running) && (n < callShare || closed); n++ {
		c := t.running[t.next]
		t.running[t.next] = call{}
		if t.next++; c.stats != nil {
			c.stats <- t.stats
			continue
		}
		c.run(now, t.core, &t.out)
		t.finish(now)
	}
	return !closed
}

// serve receives from the sockets that have something, in turns.
func (t *thread) serve(now time.Time) {
	budget, owed := turnShare, 0
	for n := t.ready.len(); n > 0 && budget > 0; n-- {
		p := t.ready.pop()
		p.lane.ready = false
		if p.closed {
			continue
		}
		got, more := t.serveRelay(now, p)
		if more && !p.closed && !p.lane.ready {
			p.lane.ready = true
			t.ready.push(p)
		}
		budget -= got
		if owed += got; owed >= share {
			budget -= t.serveListeners(now)
			owed = 0
		}
	}
	t.serveListeners(now)
}

func (t *thread) serveListeners(now time.Time) (got int) {
	for _, p := range t.listeners {
		if p == nil || !p.lane.ready {
			continue
		}
		n, more, err := t.receive(now, p)
		if p.lane.ready = more && err == nil; err != nil {
			t.log.Error("turn listener is broken; start the server anew", "addr", p.socket.addr, "err", err)
		}
		got += n
	}
	return got
}

// serveRelay receives a relay's share. It reports how many datagrams there were,
// and whether there may be more.
func (t *thread) serveRelay(now time.Time, p *port) (int, bool) {
	moreErrors := p.lane.errors && t.receiveErrors(now, p)
	p.lane.errors = moreErrors
	got, more, err := t.receive(now, p)
	if err != nil {
		t.relayBroke(now, p, err, &t.out)
		return got, false
	}
	return got, more || moreErrors
}

// maxFailures is how often in a row receiving may fail. An ICMP message makes it
// fail once.
const maxFailures = 1000

// broken reports whether a socket will never work again.
func broken(err unix.Errno) bool {
	return errors.Is(err, unix.EBADF) || errors.Is(err, unix.ENOTSOCK) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EFAULT)
}

// send implements transmitter.
func (t *thread) send(p *port, to netip.AddrPort, whole bool, data []byte) {
	t.tx.add(p, to, whole, data)
}
