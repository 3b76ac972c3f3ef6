// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"net/netip"
	"sync"
	"time"
)

// A candidate is an address that somebody named: the checks that go there are
// packets which a third party may get for it. Those to addresses that have
// shown the session's password are free. The others are few, and shared out
// so that nobody who asks for many takes them from the rest.
const (
	// checkRate is how many checks a second an engine sends to addresses that
	// have not answered, callerCheckRate how many of them for one caller.
	checkRate       = 200
	callerCheckRate = 60
	// firstRate and callerFirstRate are the same for first checks, which are to
	// go out at once; firstBurst is how many of one caller may come together.
	firstRate       = 100
	callerFirstRate = 30
	firstBurst      = 60
	// repeatWait is the least time between two checks on one path. ICE has a
	// pair for each of the machine's addresses, and they share the path.
	repeatWait = 40 * time.Millisecond

	// maxTried and maxProven bound what one peer remembers.
	maxTried  = 256
	maxProven = 64
	// callerMemory is how long a caller without peers is remembered: a caller
	// that hangs up has no new burst for it.
	callerMemory = 10 * time.Second
)

// pacer shares out the checks of an engine between callers, and those of a
// caller between its peers.
type pacer struct {
	mu      sync.Mutex // guards the fields below
	callers map[string]*callerChecks
	active  int // callers that have peers which check
	swept   time.Time
}

// callerChecks are those of one caller. The lock of the pacer guards it.
type callerChecks struct {
	peers int // that check now
	first float64
	at    time.Time // when first was counted
}

func newPacer() *pacer { return &pacer{callers: map[string]*callerChecks{}} }

// join notes one more peer of a caller that checks.
func (p *pacer) join(caller string, now time.Time) *callerChecks {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.swept) > time.Second {
		p.swept = now
		for name, c := range p.callers {
			if c.peers == 0 && now.Sub(c.at) > callerMemory {
				delete(p.callers, name)
			}
		}
	}
	c := p.callers[caller]
	if c == nil {
		c = &callerChecks{first: firstBurst, at: now}
		p.callers[caller] = c
	}
	if c.peers++; c.peers == 1 {
		p.active++
	}
	return c
}

func (p *pacer) leave(c *callerChecks) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.peers--; c.peers == 0 {
		p.active--
	}
}

// takeFirst says whether a peer of c may check an address for the first time.
func (p *pacer) takeFirst(c *callerChecks, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	rate := min(callerFirstRate, firstRate/float64(max(p.active, 1)))
	c.first = min(firstBurst, c.first+rate*now.Sub(c.at).Seconds())
	c.at = now
	if c.first < 1 {
		return false
	}
	c.first--
	return true
}

// wait is the time between two checks of a peer of c that tries n paths.
func (p *pacer) wait(c *callerChecks, n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	rate := min(callerCheckRate, checkRate/float64(max(p.active, 1))) / float64(max(c.peers, 1))
	return max(repeatWait, time.Duration(float64(n)/rate*float64(time.Second)))
}

// path is what one check travels: a socket of ours, and an address of theirs or
// a channel of a relay.
type path struct {
	socket any // as an identity
	to     netip.AddrPort
}

// checks are the ICE checks of one peer on all of its sockets: who has shown
// that it knows the password, and how often the others are asked. It is safe
// for concurrent use.
type checks struct {
	pacer  *pacer
	caller string
	paced  func() // counts a check that was not sent

	mu     sync.Mutex // guards the fields below
	local  *seal      // of requests to us
	remote *seal      // of responses; nil before the other side's description
	proven map[netip.AddrPort]struct{}
	tried  map[path]time.Time // the last check on each path that is not proven
	share  *callerChecks      // nil before the first of them, and after over
	over   bool               // nothing is paced any more
}

func newChecks(p *pacer, caller, password string, paced func()) *checks {
	return &checks{
		pacer: p, caller: caller, paced: paced, local: newSeal(password),
		proven: map[netip.AddrPort]struct{}{}, tried: map[path]time.Time{},
	}
}

// answerable sets the password of responses.
func (c *checks) answerable(password string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remote = newSeal(password)
}

// verify says whether the message p, which b was read from, came from one who
// knows the password of its kind. The address is proven from then on.
func (c *checks) verify(p []byte, b *binding, from netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.local
	if b.kind == bindingSuccess {
		s = c.remote
	}
	if s == nil || !s.holds(p, b.sealed) {
		return false
	}
	if _, known := c.proven[from]; known || len(c.proven) == maxProven {
		return true
	}
	c.proven[from] = struct{}{}
	for t := range c.tried {
		if t.to == from {
			delete(c.tried, t)
		}
	}
	return true
}

// allow says whether a check may be sent now. One that may not is lost to ICE
// like any packet, and its next turn comes soon.
func (c *checks) allow(on path, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.proven[on.to]; ok || c.over {
		return true
	}
	if !c.take(on, now) {
		c.paced()
		return false
	}
	c.tried[on] = now
	return true
}

// take needs the caller's lock.
func (c *checks) take(on path, now time.Time) bool {
	if c.share == nil {
		c.share = c.pacer.join(c.caller, now)
	}
	last, again := c.tried[on]
	switch {
	case again:
		return now.Sub(last) >= c.pacer.wait(c.share, len(c.tried))
	case len(c.tried) == maxTried:
		return false
	}
	return c.pacer.takeFirst(c.share, now)
}

// finish ends the pacing: there is a path, or no peer any more. ICE then asks
// only the address that it has chosen.
func (c *checks) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.share != nil {
		c.pacer.leave(c.share)
		c.share = nil
	}
	c.tried = nil
}
