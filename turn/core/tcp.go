// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// connection is a TCP connection between a relay and a peer (RFC 6062).
type connection struct {
	id       ConnectionID
	alloc    *allocation
	peer     netip.AddrPort
	state    connectionState
	deadline int64
	timer    timer

	// Of the Connect request, while it waits for its answer.
	transaction [12]byte
	signer      signer
	print       bool
}

type connectionState uint8

const (
	connecting connectionState = iota // the driver dials
	waiting                           // for the client's ConnectionBind
	spliced
)

// connect handles a Connect request (RFC 6062 section 5.2).
func (c *Core) connect(r *request) {
	a := c.owned(r)
	if a == nil {
		return
	}
	m := &r.msg
	code := 0
	switch {
	case a.transport != TCP:
		code = codeMismatch
	case m.has&hasPeer == 0 || m.peer.Port() == 0:
		code = codeBadRequest
	default:
		code = c.judgePeer(a, m.peer, true)
	}
	switch {
	case code != 0:
	case a.connections[keyOfSocket(m.peer)] != nil:
		code = codeConnectionExists
	case len(a.connections) >= c.cfg.Limits.Connections:
		code = c.full(Connections, BoundAllocation)
	case c.cfg.MayConnect != nil && !c.cfg.MayConnect(r.wall, a.user):
		code = codeQuota
	default:
		code = c.take(a.user, Connections, 1) // forget gives it back
	}
	if code != 0 {
		c.fail(r, code)
		return
	}
	v := c.newConnection(a, m.peer, r.now)
	v.transaction, v.signer, v.print = m.transaction, r.signer, m.has&hasFingerprint != 0
	r.out.add(Action{Kind: Connect, Relay: a.relayOf(m.peer.Addr()).id, Connection: v.id, Peer: m.peer})
}

// newConnection makes a connection that waits for connectPatience.
func (c *Core) newConnection(a *allocation, addr netip.AddrPort, now int64) *connection {
	v := &connection{alloc: a, peer: addr, deadline: now + int64(connectPatience)}
	for v.id == 0 || c.connections[v.id] != nil {
		var b [4]byte
		c.cfg.Random(b[1:])
		b[0] = c.cfg.Shard
		v.id = ConnectionID(binary.BigEndian.Uint32(b[:]))
	}
	v.timer.owner = v
	c.connections[v.id] = v
	if a.connections == nil {
		a.connections = make(map[socketKey]*connection)
	}
	a.connections[keyOfSocket(addr)] = v
	c.wake(&v.timer, v.deadline)
	return v
}

// Connected tells that the connection of a Connect action stands. Its bytes
// must wait for Splice.
func (c *Core) Connected(now time.Time, id ConnectionID, out *Output) {
	v := c.connections[id]
	if v == nil || v.state != connecting {
		return
	}
	c.stop(&v.timer)
	v.state, v.deadline = waiting, c.at(now)+int64(connectPatience)
	c.wake(&v.timer, v.deadline)
	w := out.build(methodConnect, classSuccess, v.transaction)
	w.uint32(attrConnectionID, uint32(id))
	c.sendClient(v.alloc.flow, w.finish(v.signer, v.print), out)
}

// ConnectFailed tells that the connection of a Connect action cannot be made.
func (c *Core) ConnectFailed(id ConnectionID, out *Output) {
	if v := c.connections[id]; v != nil && v.state == connecting {
		c.answerConnect(v, codeConnectionFailed, out)
		c.forget(v)
	}
}

// answerConnect answers the Connect request of v with an error.
func (c *Core) answerConnect(v *connection, code int, out *Output) {
	c.stats.count(code)
	w := out.build(methodConnect, classError, v.transaction)
	w.errorCode(code, reason(code))
	c.sendClient(v.alloc.flow, w.finish(v.signer, v.print), out)
}

// PeerConnected tells that a peer has opened a TCP connection to a relay. With
// false the driver must close it; else its bytes must wait for Splice.
func (c *Core) PeerConnected(now time.Time, id RelayID, from netip.AddrPort, out *Output) (ConnectionID, bool) {
	at, r := c.at(now), c.relay(id)
	if r == nil || r.alloc == nil || r.alloc.transport != TCP || r.deadline <= at {
		c.drop(DropNoAllocation)
		return 0, false
	}
	a := r.alloc
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	held := a.permissions[keyOfAddr(from.Addr())]
	switch {
	case held == nil || held.deadline <= at:
		c.drop(DropNoPermission)
		return 0, false
	case !c.permits(a, from, true):
		c.drop(DropForbidden)
		return 0, false
	case a.connections[keyOfSocket(from)] != nil:
		c.drop(DropRate)
		return 0, false
	case len(a.connections) >= c.cfg.Limits.Connections:
		c.full(Connections, BoundAllocation)
		c.drop(DropRate)
		return 0, false
	case c.take(a.user, Connections, 1) != 0:
		c.drop(DropRate)
		return 0, false
	}
	v := c.newConnection(a, from, at)
	v.state = waiting
	w := out.build(methodConnectionAttempt, classIndication, c.transaction())
	w.uint32(attrConnectionID, uint32(v.id))
	w.address(attrXORPeerAddress, from)
	c.sendClient(a.flow, w.finish(signer{}, false), out)
	return v.id, true
}

// connectionBind handles a ConnectionBind request (RFC 6062 section 5.4): the
// stream that it came on becomes the connection.
func (c *Core) connectionBind(r *request) {
	v := c.connections[r.msg.connection]
	switch {
	case !r.stream, r.msg.has&hasConnection == 0, c.flows[r.flow.key()] != nil, v == nil || v.state != waiting:
		c.fail(r, codeBadRequest)
		return
	case v.alloc.user != r.account.User:
		c.fail(r, codeWrongCredentials)
		return
	}
	c.stop(&v.timer)
	v.state = spliced
	c.reply(r, c.success(r))
	r.out.add(Action{Kind: Splice, Flow: r.flow, Connection: v.id})
}

// ConnectionClosed tells that a connection has ended, at the peer's side or,
// once spliced, at the client's. The driver closes what is left of it.
func (c *Core) ConnectionClosed(id ConnectionID, out *Output) {
	c.ConnectFailed(id, out)
	if v := c.connections[id]; v != nil {
		c.forget(v)
	}
}

// Carried counts what went through a spliced connection since it was told last.
// The driver must then leave both ends unread for wait, so that the allocation
// stays within its rate. Where there is one it is bounded, and the driver tells of
// every read; else now and then is enough.
func (c *Core) Carried(now time.Time, id ConnectionID, u Usage) (wait time.Duration, bounded bool) {
	v := c.connections[id]
	if v == nil {
		return 0, false
	}
	a, n := v.alloc, u.SentBytes+u.ReceivedBytes
	a.usage.add(u)
	c.stats.Relayed.add(u)
	if a.rate == nil {
		return 0, false
	}
	return a.rate.spend(now, n), a.rate.PerSecond() > 0
}

// due gives up on a connection that was not made or not fetched in time.
func (v *connection) due(c *Core, _ int64, out *Output) {
	if v.state == connecting {
		c.answerConnect(v, codeConnectionFailed, out)
	}
	c.disconnect(v, out)
}

// refuse ends a connection to a peer that is no longer permitted.
func (c *Core) refuse(v *connection, out *Output) {
	if v.state == connecting {
		c.answerConnect(v, codeForbidden, out)
	}
	c.disconnect(v, out)
}

func (c *Core) disconnect(v *connection, out *Output) {
	out.add(Action{Kind: Disconnect, Connection: v.id})
	c.forget(v)
}

func (c *Core) forget(v *connection) {
	c.stop(&v.timer)
	delete(c.connections, v.id)
	delete(v.alloc.connections, keyOfSocket(v.peer))
	c.give(v.alloc.user, Connections, 1)
}
