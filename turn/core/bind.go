// SPDX-License-Identifier: Apache-2.0

package core

import (
	"iter"
	"net/netip"
)

// judgePeer says with which code a peer of a CreatePermission, ChannelBind or
// Connect request, the last of which is traffic, is refused, 0 when it is not.
func (c *Core) judgePeer(a *allocation, addr netip.AddrPort, traffic bool) int {
	switch {
	case a.relayOf(addr.Addr()) == nil:
		return codePeerFamily
	case !c.permits(a, addr, traffic):
		return codeForbidden
	default:
		return 0
	}
}

// createPermission handles a CreatePermission request (RFC 8656 section 10.2):
// all of its peers get a permission, or none.
func (c *Core) createPermission(r *request) {
	a := c.owned(r)
	if a == nil {
		return
	}
	c.sweep(a, r.now)
	if code := c.judgePeers(a, &r.msg); code != 0 {
		c.fail(r, code)
		return
	}
	if code := c.permit(a, r.msg.peers, r.now); code != 0 {
		c.fail(r, code)
		return
	}
	c.tell(a, r.out)
	c.reply(r, c.success(r))
}

func (c *Core) judgePeers(a *allocation, m *message) int {
	code, n := codeBadRequest, 0
	for addr := range m.peers {
		if n++; n > 4*c.cfg.Limits.Permissions {
			return c.full(Permissions, BoundAllocation) // more than there is room for, even if some come twice
		}
		if code = c.judgePeer(a, addr, false); code != 0 {
			return code
		}
	}
	return code
}

// permit gives a permissions for all peers, or none, and says with which code they
// are refused.
func (c *Core) permit(a *allocation, peers iter.Seq[netip.AddrPort], now int64) int {
	var fresh []addrKey
	for addr := range peers {
		key := keyOfAddr(addr.Addr())
		if a.permissions[key] != nil {
			continue
		}
		if a.permissions == nil {
			a.permissions = make(map[addrKey]*permission)
		}
		a.permissions[key] = &permission{}
		fresh = append(fresh, key)
	}
	if code := c.takePermissions(a, len(fresh)); code != 0 {
		for _, key := range fresh {
			delete(a.permissions, key)
		}
		return code
	}
	for addr := range peers {
		a.permissions[keyOfAddr(addr.Addr())].deadline = now + int64(permissionLifetime)
	}
	if len(fresh) > 0 {
		c.wake(&a.timer, now+int64(permissionLifetime))
	}
	return 0
}

// takePermissions counts the n permissions that a has got last, and says with which
// code they are refused. Without new ones there is nothing to refuse, whatever the
// limits are by now.
func (c *Core) takePermissions(a *allocation, n int) int {
	switch {
	case n == 0:
		return 0
	case len(a.permissions) > c.cfg.Limits.Permissions:
		return c.full(Permissions, BoundAllocation)
	default:
		return c.take(a.user, Permissions, n)
	}
}

// takeChannel counts a channel more of a, and says with which code it is refused.
func (c *Core) takeChannel(a *allocation) int {
	if len(a.channels) >= c.cfg.Limits.Channels {
		return c.full(Channels, BoundAllocation)
	}
	return c.take(a.user, Channels, 1)
}

// channelBind handles a ChannelBind request (RFC 8656 section 12.2).
func (c *Core) channelBind(r *request) {
	a := c.owned(r)
	if a == nil {
		return
	}
	m := &r.msg
	c.sweep(a, r.now)
	code := codeBadRequest
	if m.has&hasPeer != 0 && m.has&hasChannel != 0 && m.peer.Port() != 0 && a.transport == UDP &&
		m.channel >= minChannel && m.channel <= maxChannel && a.fits(m.channel, m.peer) {
		code = c.judgePeer(a, m.peer, false)
	}
	if code == 0 {
		code = c.bind(a, m, r.now)
	}
	if code != 0 {
		c.fail(r, code)
		return
	}
	c.tell(a, r.out)
	c.reply(r, c.success(r))
}

// fits reports whether a channel can be bound to a peer: neither has another
// of the other's kind.
func (a *allocation) fits(channel uint16, addr netip.AddrPort) bool {
	bound, at := a.channels[channel], a.peers[keyOfSocket(addr)]
	return (bound == nil || bound.addr == addr) && (at == nil || at.channel == 0 || at.channel == channel)
}

// bind binds the channel of m or refreshes it, and the permission with it. It says
// with which code that is refused.
func (c *Core) bind(a *allocation, m *message, now int64) int {
	p := a.channels[m.channel]
	if p == nil {
		if code := c.takeChannel(a); code != 0 {
			return code
		}
	}
	first := func(yield func(netip.AddrPort) bool) { yield(m.peer) }
	if code := c.permit(a, first, now); code != 0 {
		if p == nil {
			c.give(a.user, Channels, 1)
		}
		return code
	}
	if p == nil {
		p = c.newChannel(a, m)
	}
	p.deadline = now + int64(channelLifetime)
	c.wake(&a.timer, p.deadline)
	return 0
}

func (c *Core) newChannel(a *allocation, m *message) *peer {
	key := keyOfSocket(m.peer)
	p := a.peers[key]
	if p == nil {
		p = &peer{addr: m.peer}
		a.keep(key, p)
	} else {
		a.verdicts--
	}
	p.channel, p.permission = m.channel, a.permissions[key.addr]
	p.permission.channels++
	if a.channels == nil {
		a.channels = make(map[uint16]*peer)
	}
	a.channels[m.channel] = p
	return p
}

// keep stores a peer.
func (a *allocation) keep(key socketKey, p *peer) {
	if a.peers == nil {
		a.peers = make(map[socketKey]*peer)
	}
	a.peers[key] = p
}

// peer returns what is known about a socket at an address with permission. Of a
// socket that is not known and for which there is no room it is good until the
// next call, and judged anew.
func (c *Core) peer(a *allocation, addr netip.AddrPort) *peer {
	key := keyOfSocket(addr)
	if p := a.peers[key]; p != nil {
		return p
	}
	held := a.permissions[key.addr]
	if held == nil {
		return nil
	}
	if a.verdicts >= maxVerdicts {
		c.lookup = peer{addr: addr, permission: held}
		return &c.lookup
	}
	p := &peer{addr: addr, permission: held}
	a.keep(key, p)
	a.verdicts++
	return p
}
