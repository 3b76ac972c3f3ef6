// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net/netip"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

const (
	// policyAge is how long a verdict of the policy is kept at most: rights end
	// without anybody saying so, and so do addresses of the host.
	policyAge = 5 * time.Second
	// followEvery is how often the kernel path looks for interfaces, besides when the
	// host's addresses have changed.
	followEvery = time.Minute
	// policyPause keeps news of the policy from keeping the threads busy with nothing else.
	policyPause = 20 * time.Millisecond
)

// news is of whom the policy has changed since it was taken. It is safe for
// concurrent use.
type news struct {
	mu    sync.Mutex // guards the fields below
	all   bool
	users map[string]bool
}

// maxNews is how many users are told apart: what concerns more concerns all.
const maxNews = 64

// leave adds users to the news; none are all.
func (n *news) leave(users []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, u := range users {
		if n.users == nil {
			n.users = make(map[string]bool)
		}
		n.users[u] = true
	}
	if len(users) == 0 || len(n.users) > maxNews {
		n.all, n.users = true, nil
	}
}

// take returns the news, and forgets them.
func (n *news) take() (all bool, users map[string]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all, users = n.all, n.users
	n.all, n.users = false, nil
	return all, users
}

// PolicyChanged tells that AllowPeer may answer differently from now on about peers
// of these users, or of all if none is named: what passes is judged anew, within some
// 20 milliseconds. It only leaves word, from any goroutine, and is cheap to call often.
func (s *Server) PolicyChanged(users ...string) {
	s.news.leave(users)
	select {
	case s.changed <- struct{}{}:
	default: // word is left already
	}
}

// SetNetworks changes AllowNetworks, also for those who hold allocations. On an
// error nothing has changed.
func (s *Server) SetNetworks(networks []netip.Prefix) error {
	if err := s.policy.setOpen(networks); err != nil {
		return err
	}
	s.judgeAnew()
	return nil
}

// SetLimits changes the limits. Who holds more than it could get now keeps it. The
// bounds of connections stay as New was told. On an error nothing has changed.
func (s *Server) SetLimits(l Limits) error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	l = l.withDefaults(s.relay)
	if err := l.validate(); err != nil {
		return err
	}
	before := s.limits.Load()
	l.PeerConnections = before.PeerConnections
	if l.AnswersPerSecond != before.AnswersPerSecond {
		s.answers.Store(newAnswers(l))
	}
	s.limits.Store(&l)
	s.ledger.SetLimits(l.counts())
	s.connects.set(l.ConnectsPerSecond)
	s.rates.set(l.BytesPerSecond)
	var err error
	s.each(func(_ time.Time, c *core.Core, _ *core.Output) {
		if e := c.SetLimits(l.core()); e != nil {
			err = e // of limits that were validated: never
		}
	})
	if l.BytesPerSecond != before.BytesPerSecond {
		s.judgeAnew() // the kernel path has the rate, too
	}
	return err
}

// Drain has the server refuse new allocations: with 300 and one of the alternates
// of the client's family and transport, and with 508 if there is none. Those that
// clients hold go on until they end them; those of package turn/client hear of it
// (Allocation.Draining). It may be called again with others.
func (s *Server) Drain(alternates []Alternate) {
	list := make([]core.Alternate, len(alternates))
	for i, a := range alternates {
		list[i] = core.Alternate(a)
	}
	s.draining.Store(true)
	s.each(func(_ time.Time, c *core.Core, out *core.Output) { c.Drain(true, list, out) })
}

// Undrain takes Drain back: there are new allocations again.
func (s *Server) Undrain() {
	s.draining.Store(false)
	s.each(func(_ time.Time, c *core.Core, out *core.Output) { c.Drain(false, nil, out) })
}

// Draining reports whether new allocations go to other servers.
func (s *Server) Draining() bool { return s.draining.Load() }

// each calls f on the core of each shard, one after the other, and waits for it.
func (s *Server) each(f func(now time.Time, c *core.Core, out *core.Output)) {
	for i := range s.shards {
		s.at(uint8(i), f)
	}
}

// at calls f on the core of a shard and waits for it. There may be no such shard,
// or none any more.
func (s *Server) at(number uint8, f func(now time.Time, c *core.Core, out *core.Output)) {
	sh := s.shard(number)
	if sh == nil {
		return
	}
	ran := make(chan struct{})
	if sh.Do(func(now time.Time, c *core.Core, out *core.Output) {
		defer close(ran)
		f(now, c, out)
	}) {
		<-ran // what Do has taken is called, also when the shard closes
	}
}

// judgeAnew forgets all verdicts.
func (s *Server) judgeAnew() {
	s.each(func(_ time.Time, c *core.Core, out *core.Output) { c.PolicyChanged(out) })
}

// judgeNews forgets the verdicts about those whom the news are of.
func (s *Server) judgeNews() {
	all, users := s.news.take()
	if all {
		s.judgeAnew()
		return
	}
	s.each(func(_ time.Time, c *core.Core, out *core.Output) {
		for u := range users {
			c.PolicyChangedFor(u, out)
		}
	})
}

// watch forgets verdicts when there is reason to, and keeps the policy's idea of
// the host's own addresses fresh.
func (s *Server) watch() {
	tick := time.NewTicker(policyAge)
	defer tick.Stop()
	followed := time.Now()
	for {
		select {
		case <-s.done:
			return
		case <-s.changed:
			s.judgeNews()
			s.pause(policyPause)
		case now := <-tick.C:
			if s.keepFresh() || now.Sub(followed) >= followEvery {
				followed = now
				s.follow()
			}
		}
	}
}

// keepFresh is what watch does every policyAge: what changes without a word is looked
// at again, and what nobody needs any more is forgotten. It reports whether the host
// has other addresses.
func (s *Server) keepFresh() (moved bool) {
	moved, err := s.policy.refresh()
	if err != nil {
		s.log.Warn("reading interface addresses failed; the last ones stay denied", "err", err)
	}
	s.judgeAnew()
	s.connects.sweep(time.Now())
	s.rates.keep(time.Now(), func(user string) bool { return s.ledger.Held(user, core.Relays) > 0 })
	return moved
}

// follow has the kernel path find the host's interfaces.
func (s *Server) follow() {
	if err := s.kernel.Follow(); err != nil {
		s.log.Warn("the kernel path of turn does not know all interfaces", "err", err)
	}
}

// rateChanged has the kernel path learn that a user has another bound of bytes. The
// shards, who call it, know already.
func (s *Server) rateChanged(user string) {
	if s.kernel != nil {
		s.PolicyChanged(user)
	}
}

// pause waits, unless the server closes.
func (s *Server) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
	}
}
