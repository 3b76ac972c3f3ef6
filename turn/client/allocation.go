// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxPacket is the largest packet that an allocation carries, in bytes.
	MaxPacket = packetSize - sendHead - 3

	// packetSize holds a packet with all of TURN around it: more than an Ethernet
	// frame, less than a jumbo frame.
	packetSize = 2048
	// maxWaiting is how many received packets wait for ReadBatch.
	maxWaiting = 256
	// maxBurst is how many packets go to the link at once.
	maxBurst = 64
	// closeTimeout bounds how long Close waits for the server.
	closeTimeout = time.Second
)

// Allocation is an allocation on a TURN server. It is safe for concurrent use.
type Allocation struct {
	server   server
	link     link
	log      *slog.Logger
	relayed  netip.AddrPort // set by open
	mapped   netip.AddrPort
	wake     chan struct{} // the deadlines of core have changed
	stands   chan struct{} // closed when the allocation does, or has ended
	draining chan struct{} // closed when the server drains
	done     chan struct{} // closed when it has ended
	running  sync.WaitGroup
	oversize atomic.Uint64

	mu   sync.Mutex // guards the fields below
	core *core
	now  func() time.Time
	// flushing is set while a goroutine sends what the core has for the server.
	flushing bool

	inbox inbox
}

// Stats are the packets that an allocation has lost since it stands, by reason.
type Stats struct {
	// Unpermitted waited for a permission and found no room, or was refused.
	Unpermitted uint64
	// SendQueue found no room on the way to the server: TCP is slower than the writer.
	SendQueue uint64
	// ReceiveQueue found no room on the way to ReadBatch: the reader is slow.
	ReceiveQueue uint64
	// ReadBuffer was larger than the buffer that ReadBatch had for it.
	ReadBuffer uint64
	// Oversize came from the server and is larger than MaxPacket.
	Oversize uint64
	// Malformed came from the server and is nothing that an allocation gets, or
	// from a peer that it does not know.
	Malformed uint64
}

func newAllocation(cfg Config, s server, conn net.Conn) *Allocation {
	a := &Allocation{
		server: s, log: cfg.Logger,
		wake: make(chan struct{}, 1), stands: make(chan struct{}), done: make(chan struct{}), draining: make(chan struct{}),
		core: newCore(cfg, s.transport != UDP), now: time.Now,
		inbox: inbox{ready: make(chan struct{}, 1)},
	}
	if s.transport == UDP {
		a.link = newDatagrams(conn)
	} else {
		a.link = newStream(conn)
	}
	return a
}

// open starts what runs and asks for the allocation. After an error nothing is left:
// one that the server gives when ctx has ended goes back to it, for which open waits as
// long as Close does.
func (a *Allocation) open(ctx context.Context) error {
	a.running.Go(a.drive)
	a.running.Go(func() { a.link.receive(a) })
	a.running.Go(func() { a.fail(a.link.run()) })
	a.do(a.core.open)
	select {
	case <-a.stands:
	case <-ctx.Done():
		err := impatience(ctx)
		a.do(func(now time.Time) { a.core.abandon(err, now) })
		a.awaitEnd(err)
	}
	a.mu.Lock()
	a.relayed, a.mapped = a.core.relayed, a.core.mapped
	a.mu.Unlock()
	select {
	case <-a.done:
		a.running.Wait()
		return a.core.err // nobody else is left
	default:
		return nil
	}
}

// impatience is the error for a ctx that has ended before the server answered.
func impatience(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return fmt.Errorf("%w in the time given: %w", ErrTimeout, ctx.Err())
}

// do lets f work on the core, and then does what the core wants done: sends its
// messages, wakes the driver, tells who waits.
func (a *Allocation) do(f func(now time.Time)) {
	a.mu.Lock()
	f(a.now())
	mine := a.takeLocked()
	a.mu.Unlock()
	a.flush(mine)
}

// takeLocked looks what the core has to send, and whether it is for the caller to
// flush it: one goroutine does, so that it leaves in order. It is cheap when there
// is nothing to do: the packets of all peers pass it.
func (a *Allocation) takeLocked() (mine bool) {
	c := a.core
	if c.turned {
		c.turned = false
		if !isClosed(a.stands) {
			close(a.stands)
		}
		if c.draining && !isClosed(a.draining) {
			close(a.draining)
		}
		if c.state == ended {
			close(a.done)
		}
	}
	if c.woken {
		c.woken = false
		select {
		case a.wake <- struct{}{}:
		default: // woken already
		}
	}
	if len(c.out) == 0 || a.flushing {
		return false
	}
	a.flushing = true
	return true
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// flush sends messages of the core, if it is for the caller. One that gets lost is
// sent again by it.
func (a *Allocation) flush(mine bool) {
	for mine {
		a.mu.Lock()
		if len(a.core.out) == 0 {
			a.core.left(a.now())
		}
		out := a.core.out
		a.core.out = nil
		mine = len(out) > 0
		a.flushing = mine
		a.mu.Unlock()
		for _, m := range out {
			a.link.control(m)
		}
	}
}

// fail ends the allocation because of err; nil is no reason.
func (a *Allocation) fail(err error) {
	if err != nil {
		a.do(func(time.Time) { a.core.end(err) })
	}
}

// drive calls the core when it is time to, until the allocation ends. It then
// closes the link, which ends the other goroutines.
func (a *Allocation) drive() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-a.done:
			a.log.Debug("allocation has ended", "err", a.Err())
			a.link.close()
			return
		case <-a.wake:
		case <-timer.C:
		}
		var next time.Duration
		a.do(func(now time.Time) { next = a.core.tick(now).Sub(now) })
		timer.Reset(next)
	}
}

// take handles packets from the server, in place. Those with data of a peer go
// to the inbox, which may keep their buffers: it leaves others in their place.
func (a *Allocation) take(packets []*packet) {
	a.mu.Lock()
	now := a.now()
	delivered := 0
	for i, p := range packets {
		from, data, ok := a.core.receive(p.bytes(), now)
		if !ok {
			continue
		}
		if len(data) > MaxPacket {
			a.oversize.Add(1)
			continue
		}
		p.from, p.data = from, data
		packets[i], packets[delivered] = packets[delivered], packets[i]
		delivered++
	}
	mine := a.takeLocked()
	a.mu.Unlock()
	a.flush(mine)
	if delivered > 0 {
		a.inbox.put(packets[:delivered])
	}
}

// refused tells the core that the host of the server says that nothing listens.
func (a *Allocation) refused() { a.do(a.core.noteRefusal) }

// Relayed is the address on the server at which peers reach this allocation.
func (a *Allocation) Relayed() netip.AddrPort { return a.relayed }

// Mapped is the address at which the server sees this client: its
// server-reflexive address when the transport is UDP. It is invalid when the
// server did not tell.
func (a *Allocation) Mapped() netip.AddrPort { return a.mapped }

// Transport is the one to the server.
func (a *Allocation) Transport() Transport { return a.server.transport }

// Done is closed when the allocation has ended, by Close or by itself; Err says why.
func (a *Allocation) Done() <-chan struct{} { return a.done }

// Draining is closed when the server says that it drains, and that there is another
// one for its clients. The allocation goes on until the server ends. Who gets another
// one meanwhile by Allocate with the same Config, which leads to that server, and closes
// this one when nothing comes here any more, loses nothing. Servers of package turn say
// so at once; of others nothing is heard.
func (a *Allocation) Draining() <-chan struct{} { return a.draining }

// Err says why the allocation has ended: net.ErrClosed after Close. It is nil as
// long as Done is open.
func (a *Allocation) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.core.err == nil {
		return nil
	}
	return fmt.Errorf("allocation on %s: %w", a.server.uri, a.core.err)
}

// Stats returns what was lost so far.
func (a *Allocation) Stats() Stats {
	waiting, small := a.inbox.lost()
	s := Stats{
		SendQueue: a.link.lost(), ReceiveQueue: waiting, ReadBuffer: small,
		Oversize: a.oversize.Load(),
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Unpermitted, s.Malformed = a.core.dropped, a.core.malformed
	return s
}

// SetCredential replaces the credential for the requests to come, as one that
// expires needs. When the server has refused the one before, it is asked at
// once whether this one is better.
func (a *Allocation) SetCredential(username, password string) {
	a.do(func(now time.Time) { a.core.setCredential(username, password, now) })
}

// Check asks the server at once whether it still has the allocation. One that it
// has no more ends; a server that does not answer shows in Silent.
func (a *Allocation) Check() { a.do(a.core.check) }

// Silent is since when packets have gone to the server and none has come back; 0
// when the last word was the server's.
func (a *Allocation) Silent() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.core.unheard.IsZero() {
		return 0
	}
	return a.now().Sub(a.core.unheard)
}

// Close gives the allocation back, waits for the server to say so for at most
// one second, and ends everything. It may be called again, and returns nil.
func (a *Allocation) Close() error {
	a.do(a.core.close)
	a.awaitEnd(net.ErrClosed)
	a.running.Wait()
	return nil
}

// awaitEnd waits for the server to say that the allocation has ended, and ends it with
// err when that takes longer than closeTimeout.
func (a *Allocation) awaitEnd(err error) {
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-a.done:
	case <-timer.C:
		a.fail(err)
	}
}
