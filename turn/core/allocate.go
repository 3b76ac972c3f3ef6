// SPDX-License-Identifier: Apache-2.0

package core

import (
	"math"
	"net/netip"
	"time"
)

// opening is an Allocate request that waits for its relays.
type opening struct {
	signer   signer
	print    bool // answer with FINGERPRINT
	lifetime time.Duration
	waiting  int
	refused  [2]int // error code by family, 0: none
	second   *relay // to be reserved
	deadline int64
}

// reservation is the odd port beside an even one, kept for its user (RFC 8656 section 7.2).
type reservation struct {
	token    token
	relay    *relay
	user     string
	deadline int64
	timer    timer
}

// allocate handles an Allocate request (RFC 8656 section 7.2, RFC 6062 section 5.1).
func (c *Core) allocate(r *request) {
	if a := c.allocation(&r.flow, r.now, r.out); a != nil {
		c.allocateAgain(r, a)
		return
	}
	m := &r.msg
	if code := c.judgeAllocate(r); code != 0 {
		c.fail(r, code)
		return
	}
	if m.has&hasDontFragment != 0 && !c.cfg.Offers.DontFragment {
		c.failUnknown(r, []uint16{attrDontFragment})
		return
	}
	if m.has&hasToken != 0 {
		c.allocateReserved(r)
		return
	}
	families, code := c.families(m)
	switch {
	case code != 0:
		c.fail(r, code)
	case c.drain.on:
		c.redirect(r)
	default:
		c.open(r, families)
	}
}

// allocateAgain answers an Allocate request of a client that has an allocation:
// a repeated one alike, another one with 437.
func (c *Core) allocateAgain(r *request, a *allocation) {
	switch {
	case a.transaction != r.msg.transaction || a.user != r.account.User:
		c.fail(r, codeMismatch)
	case a.opening == nil: // else the answer is on its way
		w := c.success(r)
		c.describe(w, a, r.now)
		c.reply(r, w)
	}
}

// judgeAllocate says with which code an Allocate request is refused for what it
// asks, 0 when it is not.
func (c *Core) judgeAllocate(r *request) int {
	m := &r.msg
	const places = hasEvenPort | hasToken | hasDontFragment | hasAdditional
	switch {
	case m.has&hasTransport == 0:
		return codeBadRequest
	case m.transport == TCP && !c.cfg.Offers.TCP:
		return codeTransport
	case m.transport == TCP && (!r.stream || m.has&places != 0):
		return codeBadRequest
	case m.transport != TCP && m.transport != UDP:
		return codeTransport
	case m.has&hasToken != 0 && m.has&(hasEvenPort|hasFamily|hasAdditional) != 0:
		return codeBadRequest
	case m.has&hasAdditional != 0 && (m.has&hasFamily != 0 || m.additional != IPv6 || m.reserve):
		return codeBadRequest
	default:
		return 0
	}
}

// families are the families that an Allocate request asks relays of. It fails
// with 440 when there are none that the server has.
func (c *Core) families(m *message) ([2]bool, int) {
	want := [2]bool{m.has&hasFamily == 0 || m.family == IPv4, m.has&hasAdditional != 0 || m.has&hasFamily != 0 && m.family == IPv6}
	has := [2]bool{c.cfg.Offers.IPv4, c.cfg.Offers.IPv6}
	if !(want[0] && has[0]) && !(want[1] && has[1]) {
		return want, codeFamily
	}
	return want, 0
}

// open asks the driver for the relays of a new allocation.
func (c *Core) open(r *request, want [2]bool) {
	m := &r.msg
	a := &allocation{flow: r.flow, user: r.account.User, transport: m.transport, transaction: m.transaction}
	o := &opening{signer: r.signer, print: m.has&hasFingerprint != 0, lifetime: c.lifetime(r), deadline: r.now + int64(openPatience)}
	n := 0
	for i, has := range [2]bool{c.cfg.Offers.IPv4, c.cfg.Offers.IPv6} {
		switch {
		case want[i] && has:
			n++
		case want[i]:
			o.refused[i], want[i] = codeFamily, false
		}
	}
	if m.reserve {
		n++
	}
	if code := c.takeRelays(a.user, n); code != 0 {
		c.fail(r, code)
		return
	}
	a.opening = o
	c.begin(a, r)
	for i, f := range [2]Family{IPv4, IPv6} {
		if !want[i] {
			continue
		}
		a.relays[i] = c.newRelay(f)
		a.relays[i].alloc = a
		o.waiting++
		action := Action{Kind: OpenRelay, Relay: a.relays[i].id, Family: f, Transport: a.transport, Even: m.has&hasEvenPort != 0, User: a.user}
		if m.reserve {
			o.second = c.newRelay(f)
			action.Second = o.second.id
		}
		r.out.add(action)
	}
	c.wake(&a.timer, o.deadline)
}

// begin puts an allocation of the user of r into the tables.
func (c *Core) begin(a *allocation, r *request) {
	a.timer.owner, a.answered = a, math.MinInt64
	a.id, a.since = uint64(c.cfg.Shard)<<56|c.serial&(1<<56-1), r.wall
	c.serial++
	c.bound(a, r)
	c.flows[a.flow.key()] = a
}

// takeRelays counts n relays for a user, and says with which code they are refused.
func (c *Core) takeRelays(user string, n int) int {
	if c.relays.held+n > c.cfg.Limits.Relays {
		return c.full(Relays, BoundTotal)
	}
	if code := c.take(user, Relays, n); code != 0 {
		return code
	}
	c.relays.held += n
	return 0
}

// take counts n more for a user, all or nothing, and says with which code they are
// refused. give takes them back.
func (c *Core) take(user string, what Resource, n int) int {
	if c.cfg.Quota == nil {
		return 0
	}
	switch c.cfg.Quota.Take(user, what, n) {
	case UserFull:
		return c.full(what, BoundUser)
	case TotalFull:
		return c.full(what, BoundTotal)
	default:
		return 0
	}
}

// full counts a request that has reached a bound, and returns the code for it. 486 is
// about allocations; where there is no room for a permission or a channel, RFC 8656
// sections 10.2 and 12.2 want 508, whosever bound it is.
func (c *Core) full(what Resource, whose Bound) int {
	c.stats.Full[what][whose]++
	if whose == BoundUser && (what == Relays || what == Connections) {
		return codeQuota
	}
	return codeCapacity
}

// giveRelay gives the place of a relay back.
func (c *Core) giveRelay(user string) {
	c.relays.held--
	c.give(user, Relays, 1)
}

func (c *Core) give(user string, what Resource, n int) {
	if c.cfg.Quota != nil && n > 0 {
		c.cfg.Quota.Give(user, what, n)
	}
}

// lifetime is what a request gets, in whole seconds: what it asks for, but
// neither less than the default nor more than the limit, and no more than the
// default beyond the end of its credential.
func (c *Core) lifetime(r *request) time.Duration {
	d := c.cfg.Limits.DefaultLifetime
	if r.msg.has&hasLifetime != 0 {
		d = max(d, min(time.Duration(r.msg.lifetime)*time.Second, c.cfg.Limits.MaxLifetime))
	}
	if !r.account.Expires.IsZero() {
		d = min(d, r.account.Expires.Sub(r.wall)+c.cfg.Limits.DefaultLifetime)
	}
	return max(d.Truncate(time.Second), time.Second)
}

// allocateReserved serves an Allocate request with a RESERVATION-TOKEN.
func (c *Core) allocateReserved(r *request) {
	v := c.reservations[r.msg.token]
	if v == nil || v.user != r.account.User || v.deadline <= r.now {
		c.fail(r, codeCapacity)
		return
	}
	delete(c.reservations, v.token)
	c.stop(&v.timer)
	a := &allocation{flow: r.flow, user: v.user, transport: UDP, transaction: r.msg.transaction}
	v.relay.alloc, v.relay.deadline = a, r.now+int64(c.lifetime(r))
	a.relays[slot(v.relay.family)] = v.relay
	c.begin(a, r)
	c.wake(&a.timer, v.relay.deadline)
	c.stats.Allocated++
	w := c.success(r)
	c.describe(w, a, r.now)
	c.reply(r, w)
}

// describe writes what an allocation is into a success response.
func (c *Core) describe(w builder, a *allocation, now int64) {
	var left int64
	for _, r := range a.relays {
		if r != nil && r.open {
			w.address(attrXORRelayedAddress, r.addr)
			left = max(left, r.deadline-now)
		}
	}
	w.uint32(attrLifetime, uint32((left+int64(time.Second)-1)/int64(time.Second)))
	if v := c.reservations[a.token]; v != nil && v.deadline > now {
		w.bytes(attrReservationToken, a.token[:])
	}
	w.address(attrXORMappedAddress, a.flow.Client)
	for i, code := range a.refused {
		if code != 0 {
			w.addressError(IPv4+Family(i), int(code))
		}
	}
}

// RelayOpened tells that a relay of an OpenRelay action is open at addr, the
// address that peers see; its Second is at the next port.
func (c *Core) RelayOpened(now time.Time, id RelayID, addr netip.AddrPort, out *Output) {
	r := c.relay(id)
	if r == nil || r.open || r.alloc == nil || r.alloc.opening == nil {
		return // closed meanwhile
	}
	at, a := c.at(now), r.alloc
	o := a.opening
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	c.opened(r, addr, at+int64(o.lifetime))
	if o.second != nil {
		c.opened(o.second, netip.AddrPortFrom(addr.Addr(), addr.Port()+1), at+int64(reservationLifetime))
		c.reserve(a, o.second)
		o.second = nil
	}
	c.settle(a, at, out)
}

func (c *Core) opened(r *relay, addr netip.AddrPort, deadline int64) {
	r.open, r.addr, r.deadline = true, addr, deadline
	c.relays.byAddr[keyOfSocket(addr)] = r.id
}

// reserve keeps a relay for whoever of the user of a brings the token.
func (c *Core) reserve(a *allocation, r *relay) {
	v := &reservation{relay: r, user: a.user, deadline: r.deadline}
	c.cfg.Random(v.token[:])
	v.token[0] = c.cfg.Shard
	v.timer.owner = v
	a.token = v.token
	c.reservations[v.token] = v
	c.wake(&v.timer, v.deadline)
}

// due ends a reservation that nobody took.
func (v *reservation) due(c *Core, _ int64, out *Output) {
	delete(c.reservations, v.token)
	c.closeRelay(v.relay, out)
	c.giveRelay(v.user)
}

// settle answers the Allocate request of a when no relay is missing any more.
func (c *Core) settle(a *allocation, now int64, out *Output) {
	o := a.opening
	if o.waiting--; o.waiting > 0 {
		return
	}
	code := 0
	for i, refused := range o.refused {
		code = max(code, refused)
		a.refused[i] = uint16(refused)
	}
	class := classSuccess
	if a.relays[0] == nil && a.relays[1] == nil {
		class = classError
	}
	w := out.build(methodAllocate, class, a.transaction)
	c.software(w, methodAllocate)
	if class == classError {
		c.stats.count(code)
		w.errorCode(code, reason(code))
		c.end(a, out)
	} else {
		a.opening = nil
		c.stats.Allocated++
		c.describe(w, a, now)
		c.wake(&a.timer, a.next())
	}
	c.sendClient(a.flow, w.finish(o.signer, o.print), out)
}
