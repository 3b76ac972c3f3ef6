// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// maxLentShare and minLentShare are the most and the least places of one network
// that are lent. Package turn serves 128 connections of an address: room is made
// here before it refuses there.
const maxLentShare, minLentShare = 112, 16

// lentTotal is how many places are lent at a time: the rest of the port is for
// calls.
func (l *placesListener) lentTotal() int { return max(l.total/4, 1) }

// lentShare is how many of them one network may have.
func (l *placesListener) lentShare() int {
	return min(max(l.lentTotal()/4, minLentShare), maxLentShare)
}

// lend gives p, which may be nil, to TURN, which has bounds of its own. Where as
// many are lent as may be, the one that was lent first of those without a relay
// makes room. False: all have one.
func (p *place) lend() bool {
	if p == nil {
		return true
	}
	limit, displaced, ok := p.borrow()
	if limit != "" {
		from, _ := netip.ParseAddrPort(p.RemoteAddr().String())
		p.of.flood.closed(limit, network(from.Addr()))
	}
	if displaced != nil {
		p.of.displaced.WithLabelValues(limit).Inc()
		_ = displaced.Conn.Close() // whoever uses it hears of it and closes it as well
	}
	if !ok {
		p.of.lentRefused.Inc()
	}
	return ok
}

// borrow makes p a lent place, maybe in place of another, which is to be closed
// then. limit is what was reached; "": there was room.
func (p *place) borrow() (limit string, displaced *place, ok bool) {
	l := p.of
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.gone {
		return "", nil, false
	}
	switch ofKey := l.byKey[p.key]; {
	case p.key != "" && ofKey.lent >= l.lentShare():
		limit, displaced = limitRelaysNetwork, firstOf(ofKey.borrowers)
	case l.all.lent >= l.lentTotal():
		limit, displaced = limitRelays, firstOf(l.all.borrowers)
	}
	if limit != "" && displaced == nil {
		return limit, nil, false
	}
	if displaced != nil {
		displaced.leaveLocked()
	}
	p.lent = true
	p.lentLocked(1)
	p.sortLocked()
	return limit, displaced, true
}

// lentLocked counts p among those that are lent, or no more.
func (p *place) lentLocked(n int) {
	p.of.all.lent += n
	p.of.byKey[p.key].lent += n
	p.of.relays.Add(float64(n))
}

// settle says whether p, which was lent, has a relay. Then it makes room for
// nobody, and somebody is known on it.
func (p *place) settle(holds bool) {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.settled = holds
	if holds {
		p.trusted.Store(true)
	}
	p.sortLocked()
}

// lentConn is a connection whose place is lent. Package turn tells it whether its
// client holds a relay.
type lentConn struct {
	net.Conn
	place *place // nil: it has none
}

// Settled is for package turn.
func (c *lentConn) Settled(holds bool) {
	if c.place != nil {
		c.place.settle(holds)
	}
}

// CloseWrite ends the client's half of a connection that package turn carries to a peer.
func (c *lentConn) CloseWrite() error {
	v, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("close one direction of a %T: %w", c.Conn, errors.ErrUnsupported)
	}
	return v.CloseWrite()
}

// NetConn is the connection below TLS, which package turn closes when the client
// does not read: the last word of TLS would wait for it.
func (c *lentConn) NetConn() net.Conn {
	if v, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		return v.NetConn()
	}
	return c.Conn
}

// firstOf is the place in front of a list; nil: it is empty.
func firstOf(l *list.List) *place {
	if e := l.Front(); e != nil {
		return e.Value.(*place)
	}
	return nil
}
