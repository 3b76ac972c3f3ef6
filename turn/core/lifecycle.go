// SPDX-License-Identifier: Apache-2.0

package core

import (
	"math"
	"net/netip"
	"time"
)

// refresh handles a Refresh request (RFC 8656 section 8.2). With
// REQUESTED-ADDRESS-FAMILY it is about one relay of two.
func (c *Core) refresh(r *request) {
	a := c.owned(r)
	if a == nil {
		return
	}
	m := &r.msg
	if m.has&hasFamily != 0 && a.relayFor(m.family) == nil {
		c.fail(r, codePeerFamily)
		return
	}
	lifetime := time.Duration(0)
	if m.has&hasLifetime == 0 || m.lifetime != 0 {
		lifetime = c.lifetime(r)
	}
	if lifetime > 0 {
		c.bound(a, r)
	}
	for i, v := range a.relays {
		switch {
		case v == nil, m.has&hasFamily != 0 && m.family != v.family:
		case lifetime == 0:
			a.relays[i], a.ended[i] = nil, v.addr
			c.closeRelay(v, r.out)
			c.giveRelay(a.user)
		default:
			v.deadline = r.now + int64(lifetime)
			c.wake(&a.timer, v.deadline)
		}
	}
	if a.relays[0] == nil && a.relays[1] == nil {
		c.end(a, r.out)
	} else {
		c.tell(a, r.out)
	}
	w := c.success(r)
	w.uint32(attrLifetime, uint32(lifetime/time.Second))
	if v, ok := c.elsewhere(&r.flow); ok && lifetime > 0 {
		w.alternate(v)
	}
	c.reply(r, w)
}

// RelayFailed tells that a relay of an OpenRelay action could not be opened, or
// that one that was open is broken and closed.
func (c *Core) RelayFailed(now time.Time, id RelayID, out *Output) {
	r := c.relay(id)
	if r == nil || r.alloc == nil {
		c.reservationFailed(r)
		return
	}
	a, family, wasOpen := r.alloc, r.family, r.open
	a.relays[slot(family)], a.ended[slot(family)] = nil, r.addr
	c.forgetRelay(r)
	c.giveRelay(a.user)
	o := a.opening
	switch {
	case o != nil:
		o.refused[slot(family)] = codeCapacity
		if o.second != nil {
			c.forgetRelay(o.second)
			c.giveRelay(a.user)
			o.second = nil
		}
		if !wasOpen {
			c.settle(a, c.at(now), out)
		}
	case a.relays[0] == nil && a.relays[1] == nil:
		c.end(a, out)
	default:
		c.tell(a, out)
	}
}

// reservationFailed ends the reservation of a relay that is broken.
func (c *Core) reservationFailed(r *relay) {
	for _, v := range c.reservations {
		if v.relay == r {
			delete(c.reservations, v.token)
			c.stop(&v.timer)
			c.forgetRelay(r)
			c.giveRelay(v.user)
			return
		}
	}
}

// StreamClosed tells that a client's stream has ended, and so has its
// allocation. Of a stream that was spliced ConnectionClosed tells.
func (c *Core) StreamClosed(flow Flow, out *Output) {
	if a := c.flows[flow.key()]; a != nil {
		c.end(a, out)
	}
}

// end removes an allocation and gives back all that it holds.
func (c *Core) end(a *allocation, out *Output) {
	delete(c.flows, a.flow.key())
	c.stop(&a.timer)
	if a.opening == nil && c.cfg.Ended != nil {
		c.cfg.Ended(a.last())
	}
	for i, r := range a.relays {
		if r != nil {
			a.relays[i] = nil
			c.closeRelay(r, out)
			c.giveRelay(a.user)
		}
	}
	if o := a.opening; o != nil {
		if o.second != nil {
			c.closeRelay(o.second, out)
			c.giveRelay(a.user)
		}
		a.opening = nil
	} else {
		c.stats.Ended++
	}
	for _, v := range a.connections {
		c.disconnect(v, out)
	}
	c.give(a.user, Permissions, len(a.permissions))
	c.give(a.user, Channels, len(a.channels))
	if a.channels = nil; a.told {
		c.owes(a)
		c.tell(a, out)
	}
}

// due ends what has ended of an allocation.
func (a *allocation) due(c *Core, now int64, out *Output) {
	if a.opening != nil {
		if a.opening.deadline > now {
			c.wake(&a.timer, a.opening.deadline)
		} else {
			c.end(a, out) // the driver owes an answer; the client has given up
		}
		return
	}
	if !c.trim(a, now, out) {
		return
	}
	if c.sweep(a, now) {
		c.tell(a, out)
	}
	c.wake(&a.timer, a.next())
}

// trim closes the relays of a that have ended, and ends a with the last of
// them. It reports whether a goes on.
func (c *Core) trim(a *allocation, now int64, out *Output) bool {
	for i, r := range a.relays {
		if r != nil && r.deadline <= now {
			a.relays[i], a.ended[i] = nil, r.addr
			c.closeRelay(r, out)
			c.giveRelay(a.user)
		}
	}
	if a.relays[0] == nil && a.relays[1] == nil {
		c.end(a, out)
		return false
	}
	return true
}

// next is when the first of what a holds ends.
func (a *allocation) next() int64 {
	next := int64(math.MaxInt64)
	for _, r := range a.relays {
		if r != nil {
			next = min(next, r.deadline)
		}
	}
	for _, p := range a.channels {
		next = min(next, p.deadline)
	}
	for _, p := range a.permissions {
		if p.channels == 0 {
			next = min(next, p.deadline)
		}
	}
	return next
}

// sweep forgets channels and permissions of a that have ended, and tells whether
// there was a channel among them.
func (c *Core) sweep(a *allocation, now int64) bool {
	channels, permissions := len(a.channels), len(a.permissions)
	for number, p := range a.channels {
		if p.deadline <= now {
			delete(a.channels, number)
			delete(a.peers, keyOfSocket(p.addr))
			p.permission.channels--
		}
	}
	for key, p := range a.permissions {
		if p.deadline <= now && p.channels == 0 {
			delete(a.permissions, key)
		}
	}
	if len(a.permissions) < permissions {
		for key, p := range a.peers {
			if p.channel == 0 && p.permission.deadline <= now && a.permissions[key.addr] != p.permission {
				delete(a.peers, key)
				a.verdicts--
			}
		}
	}
	c.give(a.user, Channels, channels-len(a.channels))
	c.give(a.user, Permissions, permissions-len(a.permissions))
	return len(a.channels) < channels
}

// Alternate is another server for clients of this one (RFC 8489 section 10).
type Alternate struct {
	// Addr is where it listens, by the transport that Stream and Secure say, as
	// those of Listener: who speaks TLS finds nothing where TCP is served.
	Addr           netip.AddrPort
	Stream, Secure bool
	// Domain is the name in its certificate; "" leaves ALTERNATE-DOMAIN out.
	Domain string
}

// drain is what Drain was told.
type drain struct {
	on         bool
	alternates []Alternate
}

// fitting are the alternates for a client of a flow, which came in at a listener.
func (d *drain) fitting(f *Flow, here Listener) (fit []Alternate) {
	for _, v := range d.alternates {
		if v.Stream == here.Stream && v.Secure == here.Secure && v.Addr.Addr().Is4() == f.Client.Addr().Is4() {
			fit = append(fit, v)
		}
	}
	return fit
}

// Drain makes the core refuse new allocations: with 300 and one of the
// alternates of the client's family and transport, else with 508. Those it has
// go on until their clients end them. With Config.Hint each client for whom there is
// an alternate now gets a hint, once, to ask whether all is well: success of Refresh
// names the alternate, too, so that a client which knows that can get an allocation
// there while it has this one, and lose nothing. Others take no notice of either.
// Drain(false, nil, out) takes it back.
func (c *Core) Drain(on bool, alternates []Alternate, out *Output) {
	before := c.drain
	c.drain = drain{on: on, alternates: alternates}
	if !c.cfg.Hint {
		return
	}
	for _, a := range c.flows {
		here := c.cfg.Listeners[a.flow.Listener]
		if a.opening == nil && len(c.drain.fitting(&a.flow, here)) > 0 && len(before.fitting(&a.flow, here)) == 0 {
			c.sendHint(a.flow, out)
		}
	}
}

// elsewhere draws one of the alternates for a client of a flow; false if there is none.
func (c *Core) elsewhere(f *Flow) (v Alternate, ok bool) {
	fit := c.drain.fitting(f, c.cfg.Listeners[f.Listener])
	if len(fit) == 0 {
		return v, false
	}
	return fit[c.indicate.Uint64()%uint64(len(fit))], true
}

// redirect answers an authenticated request with 300.
func (c *Core) redirect(r *request) {
	v, ok := c.elsewhere(&r.flow)
	if !ok {
		c.fail(r, codeCapacity)
		return
	}
	w := c.failure(r, codeTryAlternate)
	w.alternate(v)
	c.reply(r, w)
}

// PolicyChanged tells that Permit may answer differently from now on. Packets
// ask anew; connections to peers that are no longer permitted are closed.
func (c *Core) PolicyChanged(out *Output) {
	c.policy++
	if c.policy == 0 {
		c.policy = 1 // 0 is for peers that were never judged
	}
	if c.cfg.Offload {
		for _, a := range c.flows {
			c.tell(a, out)
		}
	}
	for _, v := range c.connections {
		if !c.permits(v.alloc, v.peer, true) {
			c.refuse(v, out)
		}
	}
}

// PolicyChangedFor tells, as PolicyChanged does, that Permit may answer differently
// about the peers of one user. Others are left alone, and cost next to nothing.
func (c *Core) PolicyChangedFor(user string, out *Output) {
	for _, a := range c.flows {
		if a.user != user {
			continue
		}
		for _, p := range a.peers {
			p.policy = 0
		}
		c.tell(a, out)
	}
	for _, v := range c.connections {
		if v.alloc.user == user && !c.permits(v.alloc, v.peer, true) {
			c.refuse(v, out)
		}
	}
}

// Evict ends all allocations and reservations that match says true of, such as
// those of a user whose credential was revoked. It is not told to the clients.
func (c *Core) Evict(match func(Info) bool, out *Output) {
	for _, a := range c.flows {
		if match(a.info()) {
			c.end(a, out)
		}
	}
	for _, v := range c.reservations {
		if match(Info{User: v.user, Relayed: [2]netip.AddrPort{v.relay.addr}}) {
			c.stop(&v.timer)
			v.due(c, 0, out)
		}
	}
}
