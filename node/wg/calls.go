// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Limits of calls.
const (
	// maxCalls bounds the calls that are watched at a time: half a megabyte of
	// them. Others are left to the library, which tries again after 5 s.
	maxCalls = 1024
	// callTime is how long a call is remembered that nobody answers: until the
	// library has made the next one.
	callTime = device.RekeyTimeout + time.Second
	// answeredTime is how long one is remembered that was answered: until the library
	// is done with the answer. Calls of the peer wait for that.
	answeredTime = 250 * time.Millisecond
	// lateRepeat is when a call is repeated that the library makes after one that
	// nobody answered, once: the peer is likely not there.
	lateRepeat = 2 * time.Second
	// tickLeast is how long one look at all calls is good for.
	tickLeast = 10 * time.Millisecond
)

// repeatAfter are the pauses before a call is sent again: as many times at most
// in 5 s for each peer.
var repeatAfter = [...]time.Duration{150 * time.Millisecond, 450 * time.Millisecond, 1350 * time.Millisecond}

// callState says what has become of a call.
type callState uint8

const (
	// callOpen: nobody has answered.
	callOpen callState = iota
	// callAnswered: the library has the answer.
	callAnswered
	// callVoid: the library has answered the peer, and takes no answer to this.
	callVoid
	// callGone: nobody has answered, and the library makes another call.
	callGone
)

// call is an initiation of ours that is on its way.
type call struct {
	place   place
	to      conn.Endpoint
	message [device.MessageInitiationSize]byte
	state   callState
	// made is when the message left first, and sent when it did last. until is when
	// it is forgotten.
	made, sent, until time.Time
	// again is when it leaves next; zero for never. copies is how often it, and
	// calls before it, were sent again since a time.
	again  time.Time
	copies int
	since  time.Time
	// late is set when the call before was not answered.
	late bool

	// held is what came from the peer and waits for what becomes of this call, until
	// a time: see cross.go.
	held      *knock
	heldUntil time.Time
	// second is set when a call of the peer crossed this one and counts. met is when
	// the library got one that crossed.
	second bool
	met    time.Time
	// renew is when the library is to make another call in place of this one, which is
	// void or came too soon for who asked for one; zero for never.
	renew time.Time
}

// place is where a peer is heard, and calls to it go.
type place struct {
	addr netip.AddrPort
	own  conn.Endpoint // a path or an attached connection
}

// placeOf returns the place of an endpoint.
func placeOf(ep conn.Endpoint) place {
	switch ep.(type) {
	case *path, *attachment:
		return place{own: ep}
	}
	return place{addr: unmapped(addressOf(ep))}
}

// calls are our initiations that are on their way. The library makes one, and
// waits 5 s for the answer. Until then, a call that gets lost is sent again as it
// is, a few times: a peer takes it once. Calls that cross are told apart.
//
// Nobody checks here who has sent a message, but that it knows our public key; what
// the library does with it stays right whatever that was.
type calls struct {
	bind *bind
	// own knows what is sealed with our public key; nil before there is one, when
	// nothing can be for us.
	own atomic.Pointer[device.CookieChecker]
	// renew makes the library call the peer anew that this call was for.
	renew func(initiation []byte)
	// watched is how many there are, and answers to others. While there are none
	// answers that come in are of no interest.
	watched atomic.Int32

	mu    sync.Mutex // guards the fields below
	at    map[place]*call
	index map[uint32]*call  // by what an answer names
	given map[uint32]*given // our own answers, by what they name
	// seen are the last calls of peers that the library got, which turn round at
	// seenNext.
	seen     []seen
	seenNext int
	timer    *time.Timer
	due      time.Time // when timer fires; zero when it does not
	shut     bool
	running  sync.WaitGroup // looks that have begun; none begins once shut is set
}

// init makes the calls of a bind ready.
func (c *calls) init(b *bind) {
	c.bind = b
	c.at, c.index, c.given = make(map[place]*call), make(map[uint32]*call), make(map[uint32]*given)
	c.renew = func([]byte) {}
}

// close ends all calls, and waits until nobody works on them.
func (c *calls) close() {
	c.mu.Lock()
	c.shut = true
	clear(c.at)
	clear(c.index)
	clear(c.given)
	c.count()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.running.Wait()
}

// sent notes what the library sends, just before it goes out.
func (c *calls) sent(packets [][]byte, to conn.Endpoint) {
	for _, p := range packets {
		switch {
		case !isHandshake(p):
		case p[0] == device.MessageInitiationType:
			c.began(p, to)
		case p[0] == device.MessageResponseType:
			c.gave(p, to)
		}
	}
}

// began notes that a call goes out.
func (c *calls) began(message []byte, to conn.Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, index := time.Now(), senderOf(message)
	if is := c.index[index]; is != nil {
		is.sent = now // a path had kept it
		return
	}
	is := &call{place: placeOf(to), to: to, made: now, sent: now, since: now, until: now.Add(callTime)}
	copy(is.message[:], message)
	if was := c.at[is.place]; was != nil {
		c.forget(was)
		is.follow(was)
		if now.Sub(was.made) < renewSoon {
			is.renew = now.Add(renewSoon) // the peer takes only the one before
		}
	}
	if c.shut || len(c.at) >= maxCalls {
		return
	}
	is.plan(now)
	c.at[is.place], c.index[index] = is, is
	c.count()
	c.arm(is.next())
}

// follow takes over from an earlier call to the same place.
func (is *call) follow(was *call) {
	if is.sent.Sub(was.since) < device.RekeyTimeout {
		is.since, is.copies, is.late = was.since, was.copies, was.late
	} else {
		is.late = was.state == callOpen || was.state == callGone
	}
	if was.held.is(device.MessageInitiationType) {
		is.held, is.heldUntil = was.held, was.heldUntil
	}
}

// plan sets when the call is sent again.
func (is *call) plan(now time.Time) {
	switch {
	case is.late && is.copies == 0:
		is.again = now.Add(lateRepeat)
	case !is.late && is.copies < len(repeatAfter):
		is.again = now.Add(repeatAfter[is.copies])
	default:
		is.again = time.Time{}
	}
}

// gave notes that the library answers a call of the peer, which makes ours void.
func (c *calls) gave(message []byte, to conn.Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !c.keep(message, to, now) {
		return // the answer to the same call once more
	}
	if is := c.at[placeOf(to)]; is != nil && is.state == callOpen {
		both := is.held.is(device.MessageResponseType)
		is.settle(callVoid, now.Add(voidTime))
		if both {
			is.undone(now)
		}
		c.arm(is.next())
	}
}

// settle ends the wait for an answer.
func (is *call) settle(as callState, until time.Time) {
	is.state, is.until, is.again, is.renew, is.held = as, until, time.Time{}, time.Time{}, nil
}

// forget ends a call. The caller holds mu.
func (c *calls) forget(is *call) {
	delete(c.at, is.place)
	delete(c.index, senderOf(is.message[:]))
	c.count()
}

// count notes how many calls and answers there are. The caller holds mu.
func (c *calls) count() { c.watched.Store(int32(len(c.at) + len(c.given))) }

// next is when something is to be done about the call.
func (is *call) next() time.Time {
	next := is.until
	at := []time.Time{is.renew, is.again}
	if is.held != nil {
		at[1] = is.heldUntil // what is to come of that comes first
	}
	for _, t := range at {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	return next
}

// arm has the calls looked at at a time. The caller holds mu.
func (c *calls) arm(at time.Time) {
	if c.shut || !c.due.IsZero() && !at.Before(c.due) {
		return
	}
	c.due = at
	if c.timer == nil {
		c.timer = time.AfterFunc(time.Until(at), c.look)
	} else {
		c.timer.Reset(time.Until(at))
	}
}

// errands are what a look has found to do.
type errands struct {
	repeats, renewals []*call
	late              []*knock
	answers           []*given
}

// look does what is due.
func (c *calls) look() {
	c.mu.Lock()
	if c.shut {
		c.mu.Unlock()
		return
	}
	c.running.Add(1)
	defer c.running.Done()
	var (
		now  = time.Now()
		todo errands
		next time.Time
	)
	for _, is := range c.at {
		c.attend(is, now, &todo)
		if c.at[is.place] == is && (next.IsZero() || is.next().Before(next)) {
			next = is.next()
		}
	}
	if t := c.attendGiven(now, &todo); next.IsZero() || !t.IsZero() && t.Before(next) {
		next = t
	}
	c.count()
	c.due = time.Time{}
	if least := now.Add(tickLeast); !next.IsZero() && next.Before(least) {
		next = least
	}
	if !next.IsZero() {
		c.arm(next)
	}
	c.mu.Unlock()
	for _, k := range todo.late {
		c.bind.letIn(k)
	}
	for _, is := range todo.repeats {
		c.bind.repeat(is.message[:], is.to)
	}
	for _, is := range todo.answers {
		c.bind.repeat(is.message[:], is.to)
	}
	for _, is := range todo.renewals {
		c.renew(is.message[:])
	}
}

// attend finds out what is due for one call. The caller holds mu.
func (c *calls) attend(is *call, now time.Time, todo *errands) {
	switch {
	case !is.renew.IsZero() && !now.Before(is.renew):
		todo.renewals = append(todo.renewals, is)
		is.renew = time.Time{}
		is.giveUp(now)
	case is.held != nil && !now.Before(is.heldUntil):
		todo.late = append(todo.late, is.held)
		c.release(is, now)
	case !now.Before(is.until):
		c.forget(is)
	case is.held == nil && !is.again.IsZero() && !now.Before(is.again):
		todo.repeats = append(todo.repeats, is)
		is.sent = now
		is.copies++
		is.plan(now)
	}
}

// release notes that the library gets what was held. The caller holds mu.
func (c *calls) release(is *call, now time.Time) {
	if is.held.is(device.MessageResponseType) {
		is.settle(callAnswered, now.Add(answeredTime))
		return
	}
	c.note(is.held.data[:])
	is.held, is.met = nil, now
	if is.state == callOpen {
		is.plan(now)
	}
}

// repeat sends a message again. A path that leads nowhere has it already.
func (b *bind) repeat(message []byte, to conn.Endpoint) {
	if p, ok := to.(*path); ok && p.hop.Load() == nil {
		return
	}
	b.metrics.repeated.Inc()
	_ = b.Send([][]byte{message}, to) // lost like any datagram
}

// letIn hands a handshake message that was held to the doorman or the library.
func (b *bind) letIn(k *knock) {
	if door := b.door.Load(); door != nil {
		door.offer(k.data[:k.size], k.from)
		return
	}
	f := b.frames.copyOf(k.data[:k.size])
	select {
	case b.receive <- received{frame: f, from: k.from}:
	default:
		b.frames.put(f)
		b.metrics.drop(reasonHandshakeQueue)
	}
}

// senderOf returns by what number the sender of a handshake message is answered.
func senderOf(message []byte) uint32 { return binary.LittleEndian.Uint32(message[4:]) }
