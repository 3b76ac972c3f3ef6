// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/device"
)

// A call just after another one is lost: a peer takes none in the 20 ms after one,
// and if the time stamp is that of the one before it takes no copy of it either. The
// library has given up the call before, with the answer that is on its way, and
// waits 5 s. So a call that is asked for waits until the peer would take it.

// renewSoon is when another call can be made: a peer takes one after 20 ms at the
// earliest, and time stamps of calls differ after 17.
const renewSoon = device.HandshakeInitationRate + 5*time.Millisecond

// patience is how long a call is as good as a new one, which would void the answer
// that is on its way.
const patience = 250 * time.Millisecond

// another asks for a call to a peer in place of the one that is on its way to it, if
// any. At is the path that the peer has, or nil. It reports whether the caller may make
// it now: an answer to the call before does not get to the library any more, which
// would mix up the two. Else there is a call that serves as well, or renew makes
// another one as soon as the peer takes it, unless there is a session before.
func (c *calls) another(key mesh.WireGuardKey, at *path) bool {
	var of device.CookieChecker
	of.Init(device.NoisePublicKey(key))
	c.mu.Lock()
	defer c.mu.Unlock()
	var (
		now  = time.Now()
		on   []*call // their way to the peer
		last *call   // that the peer has to be done with first
	)
	for _, is := range c.at {
		if !of.CheckMAC1(is.message[:]) {
			continue
		}
		on = append(on, is)
		if is.free(at).After(now) && (last == nil || is.free(at).After(last.free(at))) {
			last = is
		}
	}
	switch {
	case last == nil:
		for _, is := range on {
			if is.state == callOpen {
				is.giveUp(now)
			}
		}
		return true
	case last.serves(at):
	case last.renew.IsZero() || last.renew.After(last.free(at)):
		last.renew = last.free(at)
		c.arm(last.next())
	}
	return false
}

// serves reports whether a session comes of this call to a peer at a path, or nil, as
// far as one can tell.
func (is *call) serves(at *path) bool {
	went, _ := is.place.own.(*path)
	return is.state == callOpen && (went == at || is.held.is(device.MessageResponseType))
}

// free is when another call may be made to a peer at a path, or nil, as far as this
// one counts: the peer takes it, and the library is done with what has come meanwhile.
func (is *call) free(at *path) time.Time {
	switch {
	case is.held.is(device.MessageResponseType):
		return is.heldUntil.Add(renewSoon)
	case is.serves(at):
		return is.made.Add(patience)
	case is.state == callAnswered:
		return later(is.made, is.until.Add(-answeredTime)).Add(renewSoon)
	}
	return is.made.Add(renewSoon)
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// giveUp ends a call in whose place the library makes another one at once. A call of
// the peer that waits behind it waits behind that one.
func (is *call) giveUp(now time.Time) {
	as, held := callAnswered, is.held
	if is.state == callOpen {
		as = callGone
	}
	is.settle(as, now.Add(answeredTime))
	if held.is(device.MessageInitiationType) {
		is.held = held
	}
}

// callAnew makes the library call the peer anew that an initiation was for.
func (d *Device) callAnew(initiation []byte) {
	if key, ok := d.roster.addressee(initiation); ok {
		d.metrics.renewed.Inc()
		d.call(key)
	}
}

// call makes the library forget its session with a peer, and call it.
func (d *Device) call(key mesh.WireGuardKey) {
	c := d.roster.find(key)
	fresh := c != nil && !c.resident() // it has no session, and may be called already
	if fresh {
		d.fetch([]*contact{c})
	}
	peer := d.wg.LookupPeer(device.NoisePublicKey(key))
	if peer == nil || d.closed.Load() {
		return
	}
	if !fresh {
		peer.ExpireCurrentKeypairs()
	}
	_ = peer.SendHandshakeInitiation(false) // it is logged, and tried again by the timers
}

// addressee returns the configured peer that an initiation of ours is for: the one
// by whose key it is sealed. That costs a hash for each peer.
func (r *roster) addressee(initiation []byte) (mesh.WireGuardKey, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for key := range r.contacts {
		var of device.CookieChecker
		of.Init(device.NoisePublicKey(key))
		if of.CheckMAC1(initiation) {
			return key, true
		}
	}
	return mesh.WireGuardKey{}, false
}
