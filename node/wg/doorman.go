// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ratelimiter"
)

// Limits of the doorman.
const (
	// doorQueue is how many handshake messages may wait.
	doorQueue = 512
	// doorLoad is how many of them are a load: for loadTime from then on,
	// callers have to show that they get what is sent to their address. An
	// eighth of the queue, as in the library.
	doorLoad = doorQueue / 8
	loadTime = device.UnderLoadAfterTime
	// handRate and handBurst are how fast messages are handed to the library.
	// It comes under load itself when 128 wait, and then asks for cookies of its
	// own: a caller remembers one cookie only, so that two who ask would keep it
	// out for ever. Hence the library is never given more than half of that at
	// once, nor more in a second than the slowest machines do (four
	// Diffie-Hellmans each); and what nobody can prove, cookie replies, far less.
	handRate, handBurst     = 1000, 64
	cookieRate, cookieBurst = 64, 16
	// loadPause is how long the library is left alone when it is under load all
	// the same.
	loadPause = 50 * time.Millisecond
)

// knock is a handshake message that waits for the doorman.
type knock struct {
	from conn.Endpoint
	size int
	data [device.MessageHandshakeSize]byte
}

// doorman takes the handshake messages out of what comes in, and lets those in
// that the library should see. It exists while some peers are not in the
// library: there, who is unknown is refused before the peer has shown its key,
// and whoever is let in costs memory.
//
// All kinds of handshake messages pass it, and not only initiations: they share
// a queue in the library, whose load decides for all of them.
type doorman struct {
	bind     *bind
	metrics  *metrics
	identity atomic.Pointer[identity]
	roster   *roster
	// admit makes the library know a peer; false when it does not. busy asks
	// whether the library is under load.
	admit func(*contact) bool
	busy  func() bool

	// queue has many senders and is never closed.
	queue chan knock

	// The rest belongs to run.

	loadedUntil time.Time
	limiter     ratelimiter.Ratelimiter
	hand        *rate.Limiter
	cookies     *rate.Limiter
}

// newDoorman makes a doorman that does nothing until run.
func newDoorman(b *bind, r *roster, admit func(*contact) bool, busy func() bool) *doorman {
	return &doorman{
		bind: b, metrics: b.metrics, roster: r, admit: admit, busy: busy,
		queue:   make(chan knock, doorQueue),
		hand:    rate.NewLimiter(handRate, handBurst),
		cookies: rate.NewLimiter(cookieRate, cookieBurst),
	}
}

// isHandshake reports whether b is a whole handshake message, right or wrong.
func isHandshake(b []byte) bool {
	switch len(b) {
	case device.MessageInitiationSize:
		return binary.LittleEndian.Uint32(b) == device.MessageInitiationType
	case device.MessageResponseSize:
		return binary.LittleEndian.Uint32(b) == device.MessageResponseType
	case device.MessageCookieReplySize:
		return binary.LittleEndian.Uint32(b) == device.MessageCookieReplyType
	}
	return false
}

// sift takes the handshake messages out of a batch that came in: what is left
// of one is a size of 0, which the library ignores.
func (d *doorman) sift(packets [][]byte, sizes []int, eps []conn.Endpoint) {
	for i, size := range sizes {
		if isHandshake(packets[i][:size]) {
			d.offer(packets[i][:size], eps[i])
			sizes[i] = 0
		}
	}
}

// offer queues a handshake message, or drops it when too many wait.
func (d *doorman) offer(message []byte, from conn.Endpoint) {
	k := knock{from: from, size: len(message)}
	copy(k.data[:], message)
	select {
	case d.queue <- k:
	default:
		d.metrics.drop(reasonHandshakeQueue)
	}
}

// run works until done is closed.
func (d *doorman) run(done <-chan struct{}) {
	d.limiter.Init()
	defer d.limiter.Close()
	for {
		select {
		case <-done:
			return
		case k := <-d.queue:
			reason := d.judge(&k)
			if reason == "" {
				reason = d.pass(&k, done)
			}
			if reason != "" {
				d.metrics.drop(reason)
			}
		}
	}
}

// loaded reports whether many messages wait, or did not long ago.
func (d *doorman) loaded(now time.Time) bool {
	if len(d.queue) >= doorLoad {
		d.loadedUntil = now.Add(loadTime)
	}
	return now.Before(d.loadedUntil)
}

// judge says why a message may not enter; "" lets it in. The peer that it is
// from, if that can be known, is in the library then.
func (d *doorman) judge(k *knock) dropReason {
	message := k.data[:k.size]
	if k.size == device.MessageCookieReplySize {
		if !d.cookies.Allow() {
			return reasonHandshakeRate
		}
		return "" // only the library knows what it is an answer to
	}
	id := d.identity.Load()
	if !id.checker.CheckMAC1(message) {
		return reasonHandshakeGarbage
	}
	now := time.Now()
	if d.loaded(now) {
		if !id.checker.CheckMAC2(message, k.from.DstToBytes()) {
			d.replyCookie(id, message, k.from)
			return reasonHandshakeCookie
		}
		if !d.limiter.Allow(k.from.DstIP()) {
			return reasonHandshakeRate
		}
	}
	if k.size == device.MessageInitiationSize {
		return d.judgeInitiation(id, message, now)
	}
	return ""
}

// judgeInitiation does to an initiation what the library will do, for all
// configured peers and with a memory that outlasts their stays there. Only
// after all of it the peer is let in.
func (d *doorman) judgeInitiation(id *identity, message []byte, now time.Time) dropReason {
	claimed, t, ok := id.caller(message)
	if !ok {
		return reasonHandshakeGarbage
	}
	c := d.roster.find(claimed)
	if c == nil {
		return reasonHandshakeStranger
	}
	written, ok := id.prove(claimed, t, message)
	switch {
	case !ok:
		return reasonHandshakeForged
	case !written.After(c.newest):
		return reasonHandshakeReplay
	case now.Sub(c.admitted) <= device.HandshakeInitationRate:
		return reasonHandshakeRate
	}
	c.newest, c.admitted = written, now
	c.covered.Store(true)
	if !d.admit(c) {
		return reasonHandshakeStranger // removed meanwhile
	}
	return ""
}

// replyCookie tells the sender of a message what to add to the next one. The
// answer is smaller than the message.
func (d *doorman) replyCookie(id *identity, message []byte, to conn.Endpoint) {
	sender := binary.LittleEndian.Uint32(message[4:])
	reply, err := id.checker.CreateReply(message, sender, to.DstToBytes())
	if err != nil {
		return // no randomness; the next message is another try
	}
	packet := make([]byte, device.MessageCookieReplySize)
	binary.LittleEndian.PutUint32(packet, reply.Type)
	binary.LittleEndian.PutUint32(packet[4:], reply.Receiver)
	copy(packet[8:], reply.Nonce[:])
	copy(packet[8+len(reply.Nonce):], reply.Cookie[:])
	_ = d.bind.Send([][]byte{packet}, to) // lost like any datagram
}

// pass hands a message to the library, when that has time for it.
func (d *doorman) pass(k *knock, done <-chan struct{}) dropReason {
	wait := d.hand.Reserve().Delay()
	for wait > 0 || d.busy() {
		if wait <= 0 {
			wait = loadPause
		}
		pause := time.NewTimer(wait)
		select {
		case <-done:
			pause.Stop()
			return reasonHandshakeQueue
		case <-pause.C:
			wait = 0
		}
	}
	f := d.bind.frames.copyOf(k.data[:k.size])
	select {
	case d.bind.receive <- received{frame: f, from: k.from}:
		return ""
	case <-done:
		d.bind.frames.put(f)
		return reasonHandshakeQueue
	}
}
