// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/md5"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Times of RFC 8489 section 6.2 and RFC 8656 sections 3.2, 9 and 12.
const (
	firstRTO       = 500 * time.Millisecond // doubles with each retransmission
	maxSends       = 7                      // of one request over UDP
	lastWait       = 16 * firstRTO          // after the last of them
	streamWait     = 39500 * time.Millisecond
	hintWait       = 2 * time.Second // how long an unsigned refusal of Allocate may be contradicted
	maxLogins      = 4               // how often one request is sent anew under another nonce
	defaultLife    = 10 * time.Minute
	maxLife        = time.Hour              // a longer one is refreshed as if it were this
	retryInterval  = 30 * time.Second       // after a refusal that may pass
	keepInterval   = 25 * time.Second       // without a packet to the server: NATs forget UDP after 30 s
	silenceTimeout = 10 * time.Second       // sent without hearing: is the server there?
	refusedTimeout = 300 * time.Millisecond // a host that says this long that nothing listens is believed
	refusedRetry   = 100 * time.Millisecond // between questions to it meanwhile
	hintedEvery    = 200 * time.Millisecond // between questions because of hints
)

// state is where an allocation is in its life:
//
//	allocating -> standing -> closing -> ended
//	     '------------'-----------------^
type state int

const (
	allocating state = iota
	standing
	closing
	ended
)

// core is one allocation without I/O, clock and lock: who calls it brings the
// time and serialises, and sends what gathers in out afterwards. Its sizes are
// bounded: peers and permissions by maxPeers, transactions by two per peer and
// one more, queued packets by maxQueued per peer.
type core struct {
	stream bool // requests are sent once
	family byte // of the relay to ask for; 0 leaves it to the server

	username, password string
	realm, nonce, key  []byte // nil until the server's first challenge
	rejected           error  // the credential was refused; nothing is asked for until there is another

	state           state
	err             error // why the allocation ended
	unwanted        error // why nobody waits for the allocation any more; nil: somebody does
	relayed, mapped netip.AddrPort
	expires         time.Time
	refreshAt       time.Time

	sent    time.Time // the last packet to the server
	unheard time.Time // the first packet to the server since the last one from it; zero for none
	refused time.Time // since when the host says that nothing listens; zero for never since heard
	reasked time.Time // when the server was asked again because of that
	asked   time.Time // when it was because of a hint

	transactions []*transaction
	permissions  map[netip.Addr]*permission
	peers        map[netip.AddrPort]*peer
	channels     [maxChannels]*peer // by number, from minChannel on

	out []message // for the server, in this order
	// leaving are the peers with packets in out that have waited: later ones wait
	// until those have left.
	leaving []*peer
	woken   bool // deadlines have changed since the last tick
	// turned says that since the last look the allocation has come to stand, or ended,
	// or that the server has begun to drain.
	turned   bool
	draining bool // the server has said that its clients find another one

	dropped   uint64 // packets without a permission that found no room to wait
	malformed uint64 // packets that no server sends
}

func newCore(cfg Config, stream bool) *core {
	c := &core{
		stream: stream, username: cfg.Username, password: cfg.Password,
		permissions: make(map[netip.Addr]*permission), peers: make(map[netip.AddrPort]*peer),
	}
	switch cfg.Family {
	case IPv4:
		c.family = familyIPv4
	case IPv6:
		c.family = familyIPv6
	}
	return c
}

// open asks for the allocation.
func (c *core) open(now time.Time) { c.start(&transaction{method: methodAllocate}, now) }

// close gives the allocation back.
func (c *core) close(now time.Time) {
	switch c.state {
	case standing:
		c.state = closing
		c.transactions = nil
		c.start(&transaction{method: methodRefresh}, now)
	case allocating:
		c.end(net.ErrClosed)
	}
}

// abandon ends an allocation that nobody waits for any more because of err. One that
// the server may have given already, over UDP, would stay there until it expires: it is
// given back as soon as the server has answered.
func (c *core) abandon(err error, now time.Time) {
	c.unwanted = err
	asked := func(t *transaction) bool { return t.method == methodAllocate && t.key != nil }
	switch {
	case c.state == standing:
		c.close(now)
	case c.state == allocating && (c.stream || !slices.ContainsFunc(c.transactions, asked)):
		c.end(err)
	}
}

// end is final: nothing is asked for any more.
func (c *core) end(err error) {
	if c.state == ended {
		return
	}
	switch {
	case c.unwanted != nil:
		err = c.unwanted
	case c.state == closing:
		err = net.ErrClosed
	}
	c.state, c.err = ended, err
	c.transactions, c.woken, c.turned = nil, true, true
	for _, p := range c.peers {
		p.queue = nil
	}
}

// setCredential replaces the credential for the requests to come.
func (c *core) setCredential(username, password string, now time.Time) {
	c.username, c.password = username, password
	if c.realm != nil {
		c.key = longTermKey(username, string(c.realm), password)
	}
	if c.rejected == nil {
		return
	}
	c.rejected = nil
	for _, p := range c.peers {
		if errors.Is(p.denied, ErrCredential) {
			p.denied, p.retry = nil, time.Time{}
		}
	}
	c.refresh(now)
}

// longTermKey is that of RFC 8489 section 9.2.2.
func longTermKey(username, realm, password string) []byte {
	sum := md5.Sum([]byte(username + ":" + realm + ":" + password))
	return sum[:]
}

// refresh asks the server to keep the allocation, which also shows that it
// does, and that it sees the client where it saw it before. One at a time.
func (c *core) refresh(now time.Time) {
	asks := func(t *transaction) bool { return t.method == methodRefresh }
	if c.state == standing && c.rejected == nil && !slices.ContainsFunc(c.transactions, asks) {
		c.start(&transaction{method: methodRefresh}, now)
	}
}

// check is refresh at once: one that waits longer and longer for its answer is
// repeated, and begins to wait anew.
func (c *core) check(now time.Time) {
	if c.state != standing {
		return
	}
	for _, t := range c.transactions {
		if t.method != methodRefresh {
			continue
		}
		if c.stream {
			return // it arrives, if anything does
		}
		t.sends, t.wait = 1, firstRTO
		t.due = now.Add(t.wait)
		c.send(t.raw, now)
		return
	}
	c.refresh(now)
}

// wrote notes that a packet leaves for the server.
func (c *core) wrote(now time.Time) {
	c.sent = now
	if c.unheard.IsZero() {
		c.unheard = now
	}
}

// noteRefusal takes in that the server's host says that nothing listens. One
// such word may be old or forged; it takes several over time to end an allocation.
func (c *core) noteRefusal(now time.Time) {
	switch {
	case c.state == allocating:
		c.end(ErrRefused)
	case c.refused.IsZero():
		c.refused, c.reasked = now, now
		c.check(now)
	case now.Sub(c.refused) >= refusedTimeout:
		c.end(ErrRefused)
	}
}

// reask asks the server again whose host says that nothing listens: it may be
// starting anew, and then has lost the allocation.
func (c *core) reask(now time.Time) {
	if !c.refused.IsZero() && now.Sub(c.reasked) >= refusedRetry && now.Sub(c.refused) < 2*refusedTimeout {
		c.reasked = now
		c.check(now)
	}
}

// tick does what is due at now and returns when it wants to be called again.
func (c *core) tick(now time.Time) time.Time {
	c.woken = false
	for _, t := range slices.Clone(c.transactions) {
		if !now.Before(t.due) {
			c.resend(t, now)
		}
	}
	if c.state == standing {
		c.reask(now)
		c.tickAllocation(now)
		c.tickPeers(now)
	}
	return c.next(now)
}

func (c *core) tickAllocation(now time.Time) {
	switch {
	case !now.Before(c.expires):
		c.end(c.expiry())
	case !now.Before(c.refreshAt):
		c.refreshAt = now.Add(retryInterval) // for the case that this one is refused
		c.refresh(now)
	case now.Sub(c.sent) >= keepInterval,
		!c.unheard.IsZero() && now.Sub(c.unheard) >= silenceTimeout:
		c.refresh(now)
	}
}

// expiry is why the allocation has lived for as long as the server gave it, and no longer.
func (c *core) expiry() error {
	switch {
	case c.rejected != nil:
		return c.rejected
	case !c.unheard.IsZero():
		return ErrTimeout
	default:
		return ErrLost
	}
}

// next returns the earliest deadline. Packets move some of them without a
// call of tick, never to less than silenceTimeout from then on.
func (c *core) next(now time.Time) time.Time {
	at := now.Add(silenceTimeout)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(at) { // what is due already waits for something else
			at = t
		}
	}
	for _, t := range c.transactions {
		sooner(t.due)
	}
	if c.state == standing {
		sooner(c.expires)
		sooner(c.refreshAt)
		sooner(c.sent.Add(keepInterval))
		sooner(c.unheard.Add(silenceTimeout))
		sooner(c.reasked.Add(refusedRetry))
		c.nextPeers(sooner)
	}
	return at
}

// receive takes one packet from the server. When it carries data of a peer,
// from is valid and data lies in b.
func (c *core) receive(b []byte, now time.Time) (from netip.AddrPort, data []byte, ok bool) {
	if len(b) > 0 && b[0]>>6 == 1 {
		channel, data, ok := checkChannelData(b)
		if !ok || c.channels[channel-minChannel] == nil {
			c.malformed++
			return from, nil, false
		}
		p := c.channels[channel-minChannel]
		c.heard()
		return p.addr, data, true
	}
	if !checkMessage(b) {
		c.malformed++
		return from, nil, false
	}
	m := message(b)
	if m.kind() == dataIndication {
		return c.receiveData(m)
	}
	c.receiveResponse(m, now)
	return from, nil, false
}

// receiveData unpacks a Data indication of a peer with whom a permission was
// asked for (RFC 8656 section 11.4).
func (c *core) receiveData(m message) (from netip.AddrPort, data []byte, ok bool) {
	from = m.address(attrXORPeerAddress)
	data, _, ok = m.find(attrData)
	if !ok || c.permissions[from.Addr()] == nil || c.state != standing {
		c.malformed++
		return netip.AddrPort{}, nil, false
	}
	c.heard()
	return from, data, true
}

// heard notes a packet that only the server, or who sees its packets, can have sent.
func (c *core) heard() { c.unheard, c.refused = time.Time{}, time.Time{} }
