// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// strangerIdle is how long a connection may be without a call before anybody
	// has shown credentials on it. Browsers open another one when they need it.
	strangerIdle = 10 * time.Second
	// minShare is the least that a network has of the places: as many connections
	// as an office behind one address needs.
	minShare = 64
	// maxUnknown bounds what is read from one request of a stranger to the next
	// over TLS, in bytes: the largest header, and what carries it.
	maxUnknown = maxHeaderBytes + 8<<10
	// unknownWait is how long the rest waits for that request, or for credentials:
	// the body of a large one comes right behind its header, and the connection
	// reads on while the header is looked at.
	unknownWait = 2 * time.Second
)

// Limits of meshgate_gateway_connections_displaced_total.
const (
	limitNetwork       = "network"
	limitAll           = "all"
	limitRequests      = "requests"       // of the log only
	limitRelaysNetwork = "relays_network" // places of one network that are lent to TURN
	limitRelays        = "relays"         // all of them
)

// networkShare is how many of n places one network may hold. A site with a
// thousand people behind one address is one network; strangers who fill it keep
// nobody out, because they are the first to make room.
func networkShare(n int) int { return max(n/4, minShare) }

// placesListener keeps at most total connections of a listener open, and at most
// share of each key. Where they are taken, a newcomer gets the place of the
// connection that has been longest without a call by somebody known: of a
// stranger if there is one, else of one on which no call is under way. Only when
// there is neither is the newcomer closed. So who keeps silent keeps nobody out.
type placesListener struct {
	net.Listener
	total, share int
	// key is whose places a connection from an address takes; "" takes its own
	// alone, and is known.
	key func(netip.Addr) string
	// flood tells of connections that make room, and of those that get none.
	flood *overflow
	// displaced counts the connections that made room, by the limit that was
	// reached; refused those that got none.
	displaced *prometheus.CounterVec
	refused   prometheus.Counter
	// relays are the places that are lent, and lentRefused counts the connections
	// that none was lent to.
	relays      prometheus.Gauge
	lentRefused prometheus.Counter

	mu    sync.Mutex // guards the fields below, and those of every place
	all   *holders
	byKey map[string]*holders
}

// holders are the connections of one key, or all of them.
type holders struct {
	held, lent int // lent: of those that are held
	// strangers, borrowers and resting are of *place, the one to displace first in
	// front: who has shown no credentials yet, who speaks TURN and has no relay,
	// and who has shown credentials and makes no call.
	strangers, borrowers, resting *list.List
}

func newHolders() *holders {
	return &holders{strangers: list.New(), borrowers: list.New(), resting: list.New()}
}

// first is the connection to displace; nil: none may be.
func (h *holders) first() *place {
	for _, l := range []*list.List{h.strangers, h.borrowers, h.resting} {
		if p := firstOf(l); p != nil {
			return p
		}
	}
	return nil
}

// place is a connection that holds one.
type place struct {
	net.Conn
	of  *placesListener
	key string

	// unheard is how many bytes more are read before the next request, unless
	// trusted is true: somebody is known on the connection.
	unheard atomic.Int64
	trusted atomic.Bool
	// heard wakes who waits to read more; it holds one word.
	heard chan struct{}

	// Guarded by of.mu.
	gone  bool // it is closed
	known bool // somebody has shown credentials on it
	lent  bool
	// settled is true while TURN has a relay for it.
	settled bool
	calls   int
	idle    *time.Timer   // closes an idle stranger
	in      [2]*list.List // where it can be found to be displaced, nil: nowhere
	at      [2]*list.Element
}

// Accept implements net.Listener.
func (l *placesListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		p := &place{Conn: conn, of: l, key: l.key(from.Addr()), heard: make(chan struct{}, 1)}
		limit, displaced, ok := l.enter(p)
		if limit != "" {
			l.flood.closed(limit, network(from.Addr()))
		}
		switch {
		case displaced != nil:
			l.displaced.WithLabelValues(limit).Inc()
			_ = displaced.Conn.Close() // whoever uses it hears of it and closes it as well
		case !ok:
			l.refused.Inc()
			_ = conn.Close() // nothing was promised to it
			continue
		}
		return p, nil
	}
}

// Close implements net.Listener.
func (l *placesListener) Close() error {
	l.flood.end()
	return l.Listener.Close()
}

// enter gives p a place, maybe that of another, which is to be closed then. limit
// is what was reached; "": there was room.
func (l *placesListener) enter(p *place) (limit string, displaced *place, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ofKey := l.byKey[p.key]
	switch {
	case p.key != "" && ofKey != nil && ofKey.held >= l.share:
		limit, displaced = limitNetwork, ofKey.first()
	case l.all.held >= l.total:
		limit, displaced = limitAll, l.all.first()
	}
	if limit != "" && displaced == nil {
		return limit, nil, false
	}
	if displaced != nil {
		displaced.leaveLocked()
	}
	if ofKey = l.byKey[p.key]; ofKey == nil { // it may have gone with its last connection
		ofKey = newHolders()
		l.byKey[p.key] = ofKey
	}
	ofKey.held++
	l.all.held++
	p.known = p.key == ""
	p.trusted.Store(p.known)
	p.unheard.Store(maxUnknown)
	p.idle = time.AfterFunc(strangerIdle, p.tired)
	p.sortLocked()
	return limit, displaced, true
}

// sortLocked puts p where it belongs among those that may be displaced.
func (p *place) sortLocked() {
	of := [2]*holders{p.of.all, p.of.byKey[p.key]}
	for i := range of {
		var want *list.List
		switch {
		case p.gone || p.settled:
		case p.lent:
			want = of[i].borrowers
		case !p.known:
			want = of[i].strangers
		case p.calls == 0:
			want = of[i].resting
		}
		if want == p.in[i] {
			continue
		}
		if p.in[i] != nil {
			p.in[i].Remove(p.at[i])
		}
		if p.in[i] = want; want != nil {
			p.at[i] = want.PushBack(p)
		}
	}
	if p.gone || p.known || p.lent || p.calls > 0 {
		p.idle.Stop()
	}
}

// leaveLocked gives the place back.
func (p *place) leaveLocked() {
	if p.gone {
		return
	}
	p.gone = true
	p.sortLocked()
	if p.lent {
		p.lentLocked(-1)
	}
	p.of.all.held--
	ofKey := p.of.byKey[p.key]
	if ofKey.held--; ofKey.held == 0 {
		delete(p.of.byKey, p.key)
	}
}

// Close implements net.Conn.
func (p *place) Close() error {
	p.of.mu.Lock()
	p.leaveLocked()
	p.of.mu.Unlock()
	return p.Conn.Close()
}

// tired closes a stranger that has been idle for too long.
func (p *place) tired() {
	p.of.mu.Lock()
	over := !p.gone && !p.known && !p.lent && p.calls == 0
	if over {
		p.leaveLocked()
	}
	p.of.mu.Unlock()
	if over {
		_ = p.Conn.Close() // whoever uses it hears of it and closes it as well
	}
}

// begin says that a call has begun on p, which may be nil; the caller calls end
// once, when it is over.
func (p *place) begin() (end func()) {
	if p == nil {
		return func() {}
	}
	p.count(1)
	return func() { p.count(-1) }
}

func (p *place) count(n int) {
	p.unheard.Store(maxUnknown)
	p.wake()
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.calls += n
	p.sortLocked()
	if p.calls == 0 && !p.gone && !p.known {
		p.idle.Reset(strangerIdle)
	}
}

// recognise says that somebody has shown credentials on p, which may be nil.
func (p *place) recognise() {
	if p == nil {
		return
	}
	p.trusted.Store(true)
	p.wake()
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.known = true
	p.sortLocked()
}

// errUnknown ends a connection on which a stranger says too much.
var errUnknown = errors.New("too much was sent without a request, and nobody has shown credentials")

// wake lets somebody who waits in read look again. It does not wait.
func (p *place) wake() {
	select {
	case p.heard <- struct{}{}:
	default:
	}
}

// read reads from c, the connection of p, which may be nil: no more than
// maxUnknown bytes from one request to the next, until somebody is known. More of
// it waits for that, for unknownWait. One goroutine reads at a time.
func (p *place) read(c net.Conn, b []byte) (int, error) {
	switch {
	case p == nil:
		return c.Read(b)
	case !p.mayRead():
		p.of.refused.Inc()
		return 0, errUnknown
	case p.trusted.Load():
		return c.Read(b)
	}
	n, err := c.Read(b[:min(int64(len(b)), p.unheard.Load())])
	p.unheard.Add(int64(-n))
	return n, err
}

// mayRead waits until somebody is known, or a request allows for more.
func (p *place) mayRead() bool {
	if p.trusted.Load() || p.unheard.Load() > 0 {
		return true
	}
	timer := time.NewTimer(unknownWait)
	defer timer.Stop()
	for !p.trusted.Load() && p.unheard.Load() <= 0 {
		select {
		case <-p.heard:
		case <-timer.C:
			return false
		}
	}
	return true
}

// placeOf is the place of a connection that was accepted by way of a
// placesListener; nil: it is none.
func placeOf(c net.Conn) *place {
	for {
		switch inner := c.(type) {
		case *place:
			return inner
		case interface{ NetConn() net.Conn }:
			c = inner.NetConn()
		default:
			return nil
		}
	}
}

type placeKey struct{}

// withPlace notes in ctx which place its connection holds.
func withPlace(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, placeKey{}, placeOf(c))
}

// placeFrom is what withPlace noted; nil: none.
func placeFrom(ctx context.Context) *place {
	p, _ := ctx.Value(placeKey{}).(*place)
	return p
}
