// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"net/netip"
	"slices"
	"time"
)

// Bounds on what an allocation keeps, and how long (RFC 8656 sections 9 and 12).
const (
	maxPeers    = 32 // and permissions
	maxChannels = 16 // of them; servers give no more by default
	maxQueued   = 16 // packets to a peer while its permission is on the way

	// The numbers of our channels; RFC 8656 section 12 has more.
	minChannel uint16 = 0x4000
	maxChannel        = minChannel + maxChannels - 1

	permissionLife = 5 * time.Minute
	channelLife    = 10 * time.Minute
	channelHold    = channelLife + 5*time.Minute // a number may then name another peer
	renewAfter     = 4 * time.Minute             // of permissions and channels
	idleAfter      = 10 * time.Minute            // without a packet to a peer: nothing is renewed any more

	// channelAfter is the number of packets to a peer from which on the four
	// bytes of a channel are worth a request. Checks of paths that lead nowhere
	// send less: they shall not use up the channels.
	channelAfter = 8
	channelRetry = 5 * time.Minute // after a refusal
	denialLife   = retryInterval   // how long a refused permission is not asked for again
)

// permission is the server's leave to exchange packets with one address.
type permission struct {
	granted time.Time // zero: it does not stand
	pending bool      // it was asked for
	peers   int       // that have it; without any it is forgotten
}

func (p *permission) stands(now time.Time) bool {
	return !p.granted.IsZero() && now.Sub(p.granted) < permissionLife
}

// peer is one address and port that packets go to. Permissions are by address;
// yet servers with a policy by port refuse them for one peer and not for another.
type peer struct {
	addr       netip.AddrPort
	permission *permission
	used       time.Time // the last packet to it, or Permit
	packets    int       // sent without a channel
	queue      [][]byte  // waits for the permission, and then for what has waited
	leaving    bool      // packets that have waited are on their way: see core.leaving
	denied     error     // why the server refuses the permission; nil if it does not
	retry      time.Time // when it may be asked for again

	channel uint16    // 0: none
	bound   time.Time // zero: the channel is not in use
	held    time.Time // until when the number stays with this peer
	binding bool
	rebind  time.Time // no channel is asked for before
}

func (p *peer) hasChannel(now time.Time) bool {
	return !p.bound.IsZero() && now.Sub(p.bound) < channelLife
}

// route is how packets to a peer leave at the moment.
type route int

const (
	queued    route = iota // they wait in the queue of the peer
	indicated              // as Send indications
	channeled              // as ChannelData
)

// prepare finds out how n packets to an address leave, and asks the server for
// what they need.
func (c *core) prepare(to netip.AddrPort, n int, now time.Time) (*peer, route, error) {
	if c.state != standing {
		return nil, queued, c.closedError()
	}
	p := c.peers[to]
	if p == nil {
		var err error
		if p, err = c.addPeer(to, now); err != nil {
			return nil, queued, err
		}
	}
	p.used = now
	switch {
	case p.leaving:
		return p, queued, nil
	case p.hasChannel(now):
		if now.Sub(p.bound) >= renewAfter {
			c.askChannel(p, now)
		}
		c.wrote(now)
		return p, channeled, nil
	case !p.permission.stands(now):
		c.askPermission(p, now)
		return p, queued, c.denial(p)
	}
	if now.Sub(p.permission.granted) >= renewAfter {
		c.askPermission(p, now)
	}
	if p.packets += n; p.packets >= channelAfter {
		c.askChannel(p, now)
	}
	c.wrote(now)
	return p, indicated, nil
}

// denial is why p has no permission and will not get one soon; nil when it may.
func (c *core) denial(p *peer) error {
	if p.denied != nil {
		return p.denied
	}
	return c.rejected
}

// enqueue keeps a copy of packet until the permission of p stands, and what has
// waited for it has left.
func (c *core) enqueue(p *peer, packet []byte) {
	if len(p.queue) == maxQueued {
		c.dropped++
		return
	}
	p.queue = append(p.queue, bytes.Clone(packet))
}

// closedError is the error of an allocation that does not stand.
func (c *core) closedError() error {
	if c.err != nil {
		return c.err
	}
	return errClosing
}

// addPeer makes room for a peer and returns it.
func (c *core) addPeer(to netip.AddrPort, now time.Time) (*peer, error) {
	if len(c.peers) >= maxPeers && !c.forgetPeer() {
		return nil, ErrPeers
	}
	leave := c.permissions[to.Addr()]
	if leave == nil {
		leave = new(permission)
		c.permissions[to.Addr()] = leave
	}
	leave.peers++
	p := &peer{addr: to, permission: leave, used: now}
	c.peers[to] = p
	return p, nil
}

// forgetPeer drops the peer that was idle for longest, but none with a channel:
// the server keeps its number for it.
func (c *core) forgetPeer() bool {
	var oldest *peer
	for _, p := range c.peers {
		if p.channel == 0 && (oldest == nil || p.used.Before(oldest.used)) {
			oldest = p
		}
	}
	if oldest == nil {
		return false
	}
	c.dropPeer(oldest)
	return true
}

func (c *core) dropPeer(p *peer) {
	delete(c.peers, p.addr)
	if p.permission.peers--; p.permission.peers == 0 {
		delete(c.permissions, p.addr.Addr())
	}
	c.dropQueue(p)
}

func (c *core) dropQueue(p *peer) {
	c.dropped += uint64(len(p.queue))
	p.queue = nil
}

// allow asks for the permission of a peer that no packet goes to yet.
func (c *core) allow(to netip.AddrPort, now time.Time) error {
	if c.state != standing {
		return c.closedError()
	}
	p := c.peers[to]
	if p == nil {
		var err error
		if p, err = c.addPeer(to, now); err != nil {
			return err
		}
	}
	p.used = now
	if !p.permission.stands(now) || now.Sub(p.permission.granted) >= renewAfter {
		c.askPermission(p, now)
	}
	return c.denial(p)
}

// askPermission asks for the permission of p unless that is being done, or was
// refused just now.
func (c *core) askPermission(p *peer, now time.Time) {
	if p.permission.pending || c.rejected != nil || now.Before(p.retry) {
		return
	}
	p.permission.pending, p.denied = true, nil
	c.start(&transaction{method: methodCreatePermission, peer: p}, now)
}

// askChannel asks for the channel of p, which it gets on this occasion if one is free.
func (c *core) askChannel(p *peer, now time.Time) {
	if p.binding || c.rejected != nil || now.Before(p.rebind) {
		return
	}
	if p.channel == 0 && !c.takeChannel(p) {
		p.rebind = now.Add(channelRetry)
		return
	}
	p.binding, p.held = true, now.Add(channelHold)
	c.start(&transaction{method: methodChannelBind, peer: p}, now)
}

func (c *core) takeChannel(p *peer) bool {
	for i, taken := range c.channels {
		if taken == nil {
			c.channels[i] = p
			p.channel = minChannel + uint16(i)
			return true
		}
	}
	return false
}

// permit takes in that the permission of p stands since start at the latest,
// and sends what waited for it.
func (c *core) permit(p *peer, start, now time.Time) {
	p.permission.pending, p.permission.granted = false, start
	c.woken = true
	for _, other := range c.peers {
		if other.permission != p.permission {
			continue
		}
		other.denied, other.retry = nil, time.Time{}
		if len(other.queue) > 0 && !other.leaving {
			other.leaving = true
			c.leaving = append(c.leaving, other)
			c.release(other, now)
		}
	}
}

// release sends what waits for p.
func (c *core) release(p *peer, now time.Time) {
	for _, packet := range p.queue {
		c.send(indication(p.addr, packet), now)
	}
	p.packets += len(p.queue)
	p.queue = nil
}

// left is told that all of out has left. Packets to peers for which some waited
// meanwhile, so that none overtakes another, follow.
func (c *core) left(now time.Time) {
	c.leaving = slices.DeleteFunc(c.leaving, func(p *peer) bool {
		p.leaving = len(p.queue) > 0 && c.state == standing && c.peers[p.addr] == p && p.permission.stands(now)
		if p.leaving {
			c.release(p, now)
		}
		return !p.leaving
	})
}

// indication wraps packet in a Send indication.
func indication(to netip.AddrPort, packet []byte) message {
	return newMessage(sendIndication, newTxID()).addPeer(to).add(attrData, packet)
}

// bind takes in that the channel of p stands since start at the latest; its
// permission does so too (RFC 8656 section 12.2).
func (c *core) bind(p *peer, start, now time.Time) {
	p.binding, p.bound, p.held = false, start, now.Add(channelHold)
	c.permit(p, start, now)
}

// deny takes in that the server does not do t, because of err.
func (c *core) deny(t *transaction, err error, now time.Time) {
	p := t.peer
	switch t.method {
	case methodCreatePermission:
		p.permission.pending = false
		p.denied, p.retry = err, now.Add(denialLife)
		c.dropQueue(p)
		for _, other := range c.peers { // what was refused for one may be granted for another
			if other.permission == p.permission && len(other.queue) > 0 {
				c.askPermission(other, now)
			}
		}
	case methodChannelBind: // packets go on as indications
		p.binding, p.bound, p.rebind = false, time.Time{}, now.Add(channelRetry)
	}
}

// tickPeers renews what is in use and forgets what is not.
func (c *core) tickPeers(now time.Time) {
	for _, p := range c.peers {
		if p.channel != 0 && !p.binding && !now.Before(p.held) {
			c.channels[p.channel-minChannel] = nil
			p.channel, p.bound = 0, time.Time{}
		}
		leave := p.permission
		switch idle := now.Sub(p.used) >= idleAfter; {
		case idle && p.channel == 0:
			c.dropPeer(p)
		case idle:
		case p.hasChannel(now) && now.Sub(p.bound) >= renewAfter:
			c.askChannel(p, now)
		case leave.stands(now) && now.Sub(leave.granted) >= renewAfter:
			c.askPermission(p, now)
		}
	}
}

// nextPeers reports the deadlines of tickPeers.
func (c *core) nextPeers(sooner func(time.Time)) {
	for _, p := range c.peers {
		sooner(p.used.Add(idleAfter))
		sooner(p.permission.granted.Add(renewAfter))
		if p.channel != 0 {
			sooner(p.bound.Add(renewAfter))
			sooner(p.held)
		}
	}
}
