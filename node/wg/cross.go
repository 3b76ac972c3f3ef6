// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// The library keeps one handshake for a peer. When two peers call each other at
// once, each gives up its own call for the other one's, answers that, and gets an
// answer to what it has given up: no session, and no other call for 5 s. Of two
// calls that cross, both ends therefore choose the same one, that with the lesser
// ephemeral key. Who made it keeps the other one back until its own is answered. The
// library never has a call and an answer of one peer at once, which it would mix up.
const (
	// crossTime is for how long after our call one of the peer may have crossed it.
	// On a longer way than that, round trip, they cross all the same.
	crossTime = 250 * time.Millisecond
	// voidTime is for how long an answer to a void call may come. It says that both
	// have given up their calls.
	voidTime = 2 * time.Second
	// renewLate is when we call again whose call did not count, unless the other one
	// has called before. Who made the one that counts does so after renewSoon.
	renewLate = time.Second
)

// sift takes the handshake messages out of a batch that came in that the library
// is not to have: what is left of one is a size of 0, which it ignores.
func (c *calls) sift(packets [][]byte, sizes []int, eps []conn.Endpoint) {
	for i, size := range sizes {
		if message := packets[i][:size]; isHandshake(message) && c.heard(message, eps[i]) {
			sizes[i] = 0
		}
	}
}

// heard looks at a handshake message that came in. It reports whether the library
// is not to have it. What is not sealed with our own key changes nothing here, and is
// left to whoever refuses it next: where a message comes from proves nothing.
func (c *calls) heard(message []byte, from conn.Endpoint) (kept bool) {
	if message[0] != device.MessageInitiationType && c.watched.Load() == 0 {
		return false
	}
	if message[0] != device.MessageCookieReplyType && !c.forUs(message) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch message[0] {
	case device.MessageInitiationType:
		kept = c.met(message, from, time.Now())
		if !kept {
			c.note(message)
		}
		return kept
	case device.MessageResponseType:
		return c.answered(message, from, time.Now())
	case device.MessageCookieReplyType:
		// The peer has no time for what proves no address; only the library can.
		if is := c.index[senderOf(message)]; is != nil {
			is.again = time.Time{}
		}
	}
	return false
}

// forUs reports whether the sender of a call or an answer knows our public key. That
// costs one hash.
func (c *calls) forUs(message []byte) bool {
	own := c.own.Load()
	return own != nil && own.CheckMAC1(message)
}

// use makes the calls those of the device with this public key.
func (c *calls) use(own mesh.WireGuardKey) {
	var checker device.CookieChecker
	checker.Init(device.NoisePublicKey(own))
	c.own.Store(&checker)
}

// met decides about a call that comes from where a call of ours went. The caller
// holds mu.
func (c *calls) met(message []byte, from conn.Endpoint, now time.Time) (kept bool) {
	if c.known(message, from, now) {
		return true
	}
	is := c.at[placeOf(from)]
	if is == nil {
		return false
	}
	first := bytes.Compare(ephemeralOf(is.message[:]), ephemeralOf(message)) < 0
	switch {
	case is.state == callVoid, is.state == callGone:
		c.forget(is) // this one is newer
	case is.state == callAnswered:
		c.holdCall(is, message, from, is.until) // the library has the answer still
		return true
	case is.held.is(device.MessageResponseType):
		c.bind.metrics.drop(reasonHandshakeCrossed)
		return true
	case first && now.Sub(is.sent) < crossTime:
		c.holdCall(is, message, from, is.sent.Add(crossTime))
		return true
	default:
		is.second, is.met = !first, now
	}
	return false
}

// holdCall keeps a call back until a time, unless another one is: this is a copy then,
// or of somebody who would push the other one out. The caller holds mu.
func (c *calls) holdCall(is *call, message []byte, from conn.Endpoint, until time.Time) {
	if is.held != nil {
		c.bind.metrics.drop(reasonHandshakeCrossed)
		return
	}
	is.hold(message, from, until)
	c.arm(is.next())
}

// hold keeps a message back until a time. An answer takes the place of a call.
func (is *call) hold(message []byte, from conn.Endpoint, until time.Time) {
	is.held, is.heldUntil = &knock{from: from, size: len(message)}, until
	copy(is.held.data[:], message)
}

// is reports whether k is a message of a kind; nil is none.
func (k *knock) is(kind byte) bool { return k != nil && k.data[0] == kind }

// answered decides about an answer to a call of ours. The caller holds mu.
func (c *calls) answered(message []byte, from conn.Endpoint, now time.Time) (kept bool) {
	is := c.index[receiverOf(message)]
	switch {
	case is == nil:
	case is.state == callGone:
		c.bind.metrics.drop(reasonHandshakeCrossed)
		return true
	case is.state == callVoid && is.renew.IsZero():
		is.undone(now)
		c.arm(is.next())
	case is.state == callOpen && !is.met.IsZero() && now.Sub(is.met) < crossTime:
		// The library is about to answer the other call.
		is.hold(message, from, is.met.Add(crossTime))
		c.arm(is.next())
		return true
	case is.state == callOpen:
		if is.held != nil {
			c.bind.metrics.drop(reasonHandshakeCrossed)
		}
		is.settle(callAnswered, now.Add(answeredTime))
		c.arm(is.next())
	}
	return false
}

// takes keeps a handshake message that did not come in at the native bind, unless
// the library is to have it as it is.
func (b *bind) takes(message []byte, from conn.Endpoint) (taken bool) {
	if b.calls.heard(message, from) {
		return true
	}
	door := b.door.Load()
	if door != nil {
		door.offer(message, from)
	}
	return door != nil
}

// undone notes that both ends have given up their calls.
func (is *call) undone(now time.Time) {
	is.renew = now.Add(renewSoon)
	if is.second {
		is.renew = now.Add(renewLate)
	}
	is.until = is.renew
}

// ephemeralOf returns the key that the sender of an initiation has made for it.
func ephemeralOf(initiation []byte) []byte {
	return initiation[initiationEphemeral:initiationStatic]
}
