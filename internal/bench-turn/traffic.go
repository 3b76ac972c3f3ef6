// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lull is how long nothing has to arrive until a transfer is over.
	lull = 20 * time.Millisecond
	// stall is how long nothing has to arrive until what is on its way is taken
	// for lost.
	stall = 20 * time.Millisecond
	// grace is how long something may take to arrive at all.
	grace = 5 * time.Second
	// spree is how many bursts are sent at most until what has come is received.
	spree = 8
	// header is the length of that of ChannelData, in bytes.
	header = 4
	// number is the length of that of the transfer, with which each payload
	// begins.
	number = 4
)

// transferOrder has clients and peers send and receive.
type transferOrder struct {
	cell
	PID int // of the server
	// Warm and Count are the times that do not count, and that do.
	Warm, Count time.Duration
	// Window is how many packets are on their way at a time, unless there is a
	// Rate, in packets per second, whatever arrives.
	Window int
	Rate   float64
	// Kernel adds the time of the server's programs in the kernel.
	Kernel bool
	// Discard has the peers count only. It needs a Rate, and goes up.
	Discard bool
}

// transferred tells of what counts of a transfer.
type transferred struct {
	// Sent is up to the end, Delivered what arrived meanwhile, and Late after.
	Sent, Delivered, Late uint64
	Took, CPU             time.Duration
}

// perSecond is the rate at which packets arrived.
func (t transferred) perSecond() float64 { return float64(t.Delivered) / t.Took.Seconds() }

// offered is the rate at which packets were sent.
func (t transferred) offered() float64 { return float64(t.Sent) / t.Took.Seconds() }

// cpu is the server's CPU time for each packet that arrived, in µs.
func (t transferred) cpu() float64 {
	return t.CPU.Seconds() * 1e6 / float64(max(t.Delivered, 1))
}

// loss is the part of the packets that never arrived.
func (t transferred) loss() float64 {
	return max(0, 1-float64(t.Delivered+t.Late)/float64(max(t.Sent, 1)))
}

// transfer is one that runs.
type transfer struct {
	order   transferOrder
	clients []*client
	peers   []peer // of all clients
	sinks   []int  // sockets of the peers of these
	sender  *sender
	begin   [number]byte // of the payload
	length  int          // of what arrives
	at      int          // where the payload begins in what arrives
	poll    int
	events  []unix.EpollEvent
	in      *receiver

	sent, arrived uint64
	base          uint32 // discarded by all peers before
	next          int    // client
	failed        error  // the last one of a socket
}

// transfer sends through the first clients of a list. Beside, unless nil, is
// called again and again meanwhile.
func (l *load) transfer(list []*client, o transferOrder, beside func(time.Time)) (r transferred, err error) {
	if o.Allocations > len(list) {
		return r, fmt.Errorf("%d clients are too few for %s", len(list), o.cell)
	}
	if o.Discard && (o.Down || o.Rate == 0) || o.Size < number {
		return r, fmt.Errorf("%s cannot be sent so", o.cell)
	}
	l.run++
	t := &transfer{order: o, clients: list[:o.Allocations], peers: l.peers, in: newReceiver(), events: make([]unix.EpollEvent, 256)}
	binary.BigEndian.PutUint32(t.begin[:], l.run)
	if o.Kernel && !l.counts {
		if _, err := countRuns(); err != nil { // until the process ends
			return r, err
		}
		l.counts = true
	}
	if err := t.prepare(); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, t.end()) }()
	if beside == nil {
		beside = func(time.Time) {}
	}
	if _, err := t.phase(o.Warm, beside); err != nil {
		return r, err
	}
	return t.phase(o.Count, beside)
}

// prepare makes what is sent, and looks at who receives.
func (t *transfer) prepare() (err error) {
	payload := append(t.begin[:], make([]byte, t.order.Size-number)...)
	framed := binary.BigEndian.AppendUint16(nil, channel)
	framed = append(binary.BigEndian.AppendUint16(framed, uint16(t.order.Size)), payload...)
	send := framed
	t.length = len(payload)
	if t.order.Down {
		send, t.length, t.at = payload, len(framed), header
	}
	if t.sender, err = newSender(send, t.order.Burst); err != nil {
		return err
	}
	if t.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create", err)
	}
	var listen []int
	for _, c := range t.clients {
		if fd := t.peers[c.peer].fd; !slices.Contains(t.sinks, fd) {
			t.sinks = append(t.sinks, fd)
		}
		listen = append(listen, c.fd)
	}
	if !t.order.Down {
		listen = t.sinks
	}
	for _, fd := range listen {
		if t.order.Discard {
			err = discard(fd)
		} else {
			err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(t.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// end leaves sockets as they were.
func (t *transfer) end() (err error) {
	if t.order.Discard {
		for _, fd := range t.sinks {
			err = errors.Join(err, keep(fd))
		}
	}
	return errors.Join(err, os.NewSyscallError("close", unix.Close(t.poll)))
}

// phase sends for a while, waits for what is on its way and tells what happened.
func (t *transfer) phase(length time.Duration, beside func(time.Time)) (r transferred, err error) {
	t.sent, t.arrived = 0, 0
	if t.order.Discard {
		if t.base, err = t.discarded(); err != nil {
			return r, err
		}
	}
	programs, nothing, err := t.programs()
	if err != nil {
		return r, err
	}
	r.Took, r.CPU, err = timed(t.order.PID, func() error {
		if t.order.Rate > 0 {
			t.paced(length, beside)
		} else {
			t.windowed(length, beside)
		}
		r.Sent, r.Delivered = t.sent, t.arrived
		if !t.order.Discard {
			return nil
		}
		now, err := t.discarded()
		r.Delivered = uint64(now - t.base) // also when it has wrapped
		return err
	})
	if err == nil {
		var after, idle runs
		after, idle, err = t.programs()
		r.CPU += after.since(programs).less(idle.since(nothing))
	}
	for last := time.Now(); time.Since(last) < lull; {
		if t.drain(1) > 0 {
			last = time.Now()
		}
	}
	if r.Late = t.arrived - r.Delivered; t.order.Discard {
		r.Late = 0
	}
	if err == nil && r.Delivered == 0 && length > 0 && !t.order.Discard {
		err = fmt.Errorf("of %d packets none arrived", t.sent)
		if t.failed != nil {
			err = fmt.Errorf("%w: %w", err, t.failed)
		}
	}
	return r, err
}

// programs are the runs of the server's programs in the kernel, if these count, and
// those of ours, which do nothing.
func (t *transfer) programs() (server, nothing runs, err error) {
	if !t.order.Kernel {
		return server, nothing, nil
	}
	if server, err = runsOf(t.order.PID); err == nil {
		nothing, err = runsOf(os.Getpid())
	}
	return server, nothing, err
}

// discarded is what all peers have thrown away.
func (t *transfer) discarded() (sum uint32, err error) {
	for _, fd := range t.sinks {
		n, err := discarded(fd)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// windowed keeps a number of packets on their way: another burst is sent when
// one has arrived.
func (t *transfer) windowed(length time.Duration, beside func(time.Time)) {
	var lost uint64
	begin := time.Now()
	last := begin
	for now := begin; t.goesOn(now.Sub(begin), length); now = time.Now() {
		// What arrives after it was taken for lost must not make the window wider.
		lost = min(lost, t.sent-min(t.sent, t.arrived))
		for range spree {
			if t.sent-lost-t.arrived+uint64(t.order.Burst) > uint64(t.order.Window) {
				break
			}
			t.send()
		}
		beside(now)
		if t.drain(0) > 0 {
			last = now
		} else if now.Sub(last) > stall {
			lost, last = t.sent-t.arrived, now
		}
	}
}

// paced sends at a rate, or as fast as it can.
func (t *transfer) paced(length time.Duration, beside func(time.Time)) {
	// debt is how far behind the rate it may be, in packets: a machine that was
	// elsewhere for longer does not make up for it.
	debt := max(t.order.Rate/50, float64(t.order.Burst))
	due, begin := 0.0, time.Now()
	last := begin
	for now := begin; t.goesOn(now.Sub(begin), length); now = time.Now() {
		due = min(debt, due+now.Sub(last).Seconds()*t.order.Rate)
		last = now
		for range spree {
			if due < float64(t.order.Burst) {
				break
			}
			t.send()
			due -= float64(t.order.Burst)
		}
		beside(now)
		if !t.order.Discard {
			t.drain(0)
		}
	}
}

// goesOn reports whether a phase of a length is not over after so much time: on
// a busy machine nothing may have arrived until then.
func (t *transfer) goesOn(passed, length time.Duration) bool {
	return passed < length || length > 0 && t.arrived == 0 && !t.order.Discard && passed < grace
}

// send sends a burst of the next client, or to it.
func (t *transfer) send() {
	c := t.clients[t.next]
	if t.next++; t.next == len(t.clients) {
		t.next = 0
	}
	var err error
	if t.order.Down {
		err = t.sender.send(t.peers[c.peer].fd, &c.relay)
	} else {
		err = t.sender.send(c.fd, nil)
	}
	if err != nil {
		t.failed = err
		return
	}
	t.sent += uint64(t.order.Burst)
}

// drain receives what has come and returns how much of it is of this transfer.
func (t *transfer) drain(patienceMS int) (n int) {
	ready, err := unix.EpollWait(t.poll, t.events, patienceMS)
	if err != nil {
		return 0 // interrupted
	}
	for _, e := range t.events[:ready] {
		for i := range t.in.receive(int(e.Fd)) {
			length, begin := t.in.datagram(i)
			if length == t.length && [number]byte(begin[t.at:]) == t.begin {
				n++
			}
		}
	}
	t.arrived += uint64(n)
	return n
}
