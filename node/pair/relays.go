// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

const (
	// maxServers bounds on how many gateways the node has relays.
	maxServers = 2
	// streamsAfter is how long UDP may take until relays over TCP and TLS are
	// tried, too.
	streamsAfter = 400 * time.Millisecond
	// allocateTime bounds one attempt.
	allocateTime = 10 * time.Second
	// datagramsTime is how long UDP may take once TCP and TLS have failed. Nobody
	// may be there to refuse it.
	datagramsTime = 2500 * time.Millisecond
	// relayAgainFirst and relayAgainMost bound the pause after all attempts at a
	// gateway have failed. It begins to grow when patientFails have: a gateway that
	// starts anew is back within seconds.
	relayAgainFirst, relayAgainMost = 250 * time.Millisecond, 30 * time.Second
	patientFails                    = 16
	// fullFails is how many failures beyond patientFails it counts for when a server
	// has no relay left: the pause begins with 4 s.
	fullFails = 4
	// relayRest is how long a relay stays that no link needs.
	relayRest = 2 * time.Minute
	// A relay that may be gone is asked for each checkEvery, for doubtFor, and given
	// up when its server has been silent for silentRelay. For hurryFor it is asked
	// for each hurryEvery: gateways start anew in less.
	checkEvery, doubtFor = time.Second, 10 * time.Second
	hurryEvery, hurryFor = 200 * time.Millisecond, 3 * time.Second
	silentRelay          = 2500 * time.Millisecond
	// silentMoved is the same after an address of the host is gone, most likely
	// that of the way to the server: two requests fit.
	silentMoved = 700 * time.Millisecond
	// A relay that is lost is replaced at once, unless more than youngMost in a row
	// have each stood for less than youngRelay: then after a pause.
	youngRelay, youngMost = 10 * time.Second, 3
)

// Server is a TURN server, with a credential.
type Server struct {
	// Relay names whose it is: a gateway, or its host.
	Relay string
	// URLs are those of RFC 7065, of which one of each transport is used.
	URLs               []string
	Username, Password string
}

// Relay is an address that a server holds for this node; *client.Allocation of
// package turn/client is one.
type Relay interface {
	wg.PacketSocket
	// Relayed is the address.
	Relayed() netip.AddrPort
	// SetCredential is for what the relay asks the server from now on.
	SetCredential(username, password string)
	// Check asks the server whether it still has the relay, which ends if not.
	Check()
	// Silent is since when the server has not answered to anything.
	Silent() time.Duration
	// Draining is closed when the server says that it will end, and sends its clients on
	// to another one: it does so with who asks for a relay by the same URL.
	Draining() <-chan struct{}
	// Done is closed when the relay has ended.
	Done() <-chan struct{}
}

// ErrFull is what Allocate wraps when a server has no relay left for the node: it
// has none over any other transport either, and not in a moment.
var ErrFull = errors.New("no relay left")

// Allocate gets a relay from a server, by one of its URLs.
type Allocate func(ctx context.Context, url, username, password string) (Relay, error)

// relays are those of a node, for all of its links.
type relays struct {
	pairs   *Pairs
	servers []*server
	// needed is when a link last needed a relay.
	needed time.Time
	// doubted is when something happened that relays may not survive, such as
	// another address of the host, and moved when an address was gone.
	doubted, moved time.Time
}

// server is a Server with what this node has there.
type server struct {
	Server
	// began is when the present attempts began; zero when there are none.
	began time.Time
	// trying are those of now by their URLs, and tried the transports of which
	// there were some.
	trying map[string]context.CancelFunc
	tried  [path.TLS + 1]bool
	// failed is when the last attempt over a transport has ended, and repeats how
	// often one was repeated while others went on.
	failed  [path.TLS + 1]time.Time
	repeats int
	round   int            // of attempts; those of an earlier one are over
	worked  path.Transport // of the last relay
	again   time.Time      // not to be tried before
	fails   int
	// full is what the server said when it had no relay left; nil: nothing, or it
	// has given one since.
	full  error
	young int // relays in a row that were lost soon
	have  *relay
	// old is one over TCP or TLS, or whose server drains, that have took the place of a
	// moment ago; nil: none.
	old *relay
	// better is when to try UDP again while have is over TCP or TLS, or another relay
	// while its server drains, and improves how often that was tried, of UDP since that
	// has served well.
	better   time.Time
	improves int
	// lost says that there was a relay of which others may know. They are told of
	// the next one, even if it is at the same address: what its server lets in is
	// what it was told of.
	lost bool
}

// relay is one that stands.
type relay struct {
	Relay
	transport path.Transport
	socket    wg.Socket
	remove    func()
	candidate path.Candidate
	stood     time.Time // when it was there
	drains    bool      // its server does
	// doubted is since when it may be gone, zero when it is not in doubt, and
	// asked when its server was asked last.
	doubted, asked time.Time
}

func (r *relays) init(p *Pairs) { r.pairs = p }

// offer tells which servers there are from now on.
func (r *relays) offer(now time.Time, list []Server) {
	var next []*server
	for _, s := range list {
		if len(s.URLs) == 0 || len(next) == maxServers {
			continue
		}
		i := slices.IndexFunc(r.servers, func(o *server) bool { return o.Relay == s.Relay })
		if i < 0 {
			next = append(next, &server{Server: s, trying: make(map[string]context.CancelFunc)})
			continue
		}
		known := r.servers[i]
		known.Server = s
		// A gateway that says something may be one that was away.
		known.again, known.fails = time.Time{}, 0
		if known.have != nil {
			known.have.SetCredential(s.Username, s.Password)
			r.doubted = now
		}
		next = append(next, known)
	}
	for _, s := range r.servers {
		if !slices.Contains(next, s) {
			r.close(now, s)
		}
	}
	r.servers = next
}

// tend gets relays where they are needed and gives up those that are not. It
// returns when to look again.
func (r *relays) tend(now time.Time) time.Time {
	next := now.Add(time.Minute)
	if r.need(now) {
		r.needed = now
	}
	if r.needed.IsZero() {
		return next
	}
	if now.Sub(r.needed) > relayRest {
		for _, s := range r.servers {
			r.close(now, s)
		}
		r.needed = time.Time{}
		return next
	}
	doubt := r.doubt(now)
	for _, s := range r.servers {
		next = earlier(next, r.verify(now, s, doubt))
		next = earlier(next, r.attempt(now, s))
	}
	return earlier(next, r.needed.Add(relayRest+time.Second))
}

// need reports whether a link needs relays: a pair always, to begin with and to
// fall back to; a gateway when nothing has come from it.
func (r *relays) need(now time.Time) bool {
	for _, l := range r.pairs.links {
		if l.kind != gateway {
			return true
		}
		if l.unheard(now) {
			return true
		}
		if s, ok := l.finder.Selected(); ok && s.Socket != path.Native {
			return true
		}
	}
	return false
}

// doubt reports whether relays may be gone: something has happened to the host,
// or a link has lost its way.
func (r *relays) doubt(now time.Time) bool {
	if !r.doubted.IsZero() && now.Sub(r.doubted) < doubtFor {
		return true
	}
	for _, l := range r.pairs.links {
		if !l.unsure.IsZero() && now.Sub(l.unsure) < doubtFor {
			return true
		}
	}
	return false
}

// verify asks for a relay that may be gone, and gives it up when its server does
// not answer. It returns when to look again.
func (r *relays) verify(now time.Time, s *server, doubt bool) time.Time {
	one := s.have
	switch {
	case one == nil:
		return now.Add(time.Minute)
	case !doubt:
		one.doubted = time.Time{}
		return now.Add(time.Minute)
	case one.doubted.IsZero():
		one.doubted = now
	}
	every := checkEvery
	if now.Sub(later(one.doubted, r.doubted)) < hurryFor {
		every = hurryEvery
	}
	if now.Sub(one.asked) >= every {
		one.asked = now
		one.Check()
	}
	patience := silentRelay
	if now.Sub(r.moved) < silentRelay {
		patience = silentMoved
	}
	if now.Sub(one.doubted) >= patience && one.Silent() >= patience {
		r.pairs.log.Debug("relay does not answer", "gateway", s.Relay, "addr", one.Relayed())
		r.lost(now, s)
		return now
	}
	return earlier(one.asked.Add(every), later(one.doubted.Add(patience), now.Add(checkEvery/4)))
}

// lost gives up a relay that is gone. Its gateway may have started anew, and then
// knows no session either; the other relays may be gone as well.
func (r *relays) lost(now time.Time, s *server) {
	s.young++
	if now.Sub(s.have.stood) >= youngRelay {
		s.young = 0
		if s.have.transport == path.UDP {
			s.improves = 0
		}
	}
	r.pairs.metrics.lost.Inc()
	r.close(now, s)
	s.lost = true
	r.doubted = now
	if s.young > youngMost {
		r.failed(now, s)
	} else {
		s.again = now
	}
	for _, l := range r.pairs.links {
		l.finder.Doubt(now, s.Relay)
		l.due = now
		if l.kind == gateway && string(l.peer.Node.ID) == s.Relay {
			l.revive(now)
		}
	}
}

// unheard reports whether a gateway has not been heard directly.
func (l *link) unheard(now time.Time) bool {
	if l.way == nil {
		return false
	}
	if _, ok := l.finder.Selected(); ok {
		return false
	}
	heard := later(l.opened, l.way.Activity().Heard)
	return now.Sub(heard) > l.pairs.late.patience(silentAfter)
}

// open puts a relay to use.
func (r *relays) open(now time.Time, s *server, t path.Transport, got Relay) {
	p := r.pairs
	socket, remove, err := p.cfg.Device.AddSocket(got)
	if err != nil {
		p.log.Warn("relay not used", "err", err)
		if s.have == nil {
			r.failed(now, s)
		}
		return
	}
	s.stop()
	one := &relay{Relay: got, transport: t, socket: socket, remove: remove, candidate: path.Candidate{
		Kind: path.Relayed, Addr: got.Relayed(), Transport: t, Relay: s.Relay,
	}, stood: now}
	s.old, s.have, s.fails, s.full, s.began, s.worked = s.have, one, 0, nil, time.Time{}, t
	if s.old != nil && s.old.drains {
		s.improves = 0
		r.demote(now, s.old)
	}
	s.better = now.Add(improvePause(s.improves))
	p.metrics.relays[t].Inc()
	p.log.Debug("relay stands", "gateway", s.Relay, "transport", t.String(), "addr", got.Relayed())
	for _, l := range p.links {
		if s.lost {
			l.told = nil
		}
		l.offer(now, one)
	}
	s.lost = false
	p.running.Go(func() { r.watch(s, one) })
}

// watch waits for the end of a relay, and for the word that it comes.
func (r *relays) watch(s *server, one *relay) {
	p := r.pairs
	for draining := one.Draining(); ; {
		select {
		case <-draining:
			draining = nil
			p.do(func(now time.Time) { r.leave(now, s, one) })
			continue
		case <-one.Done():
		case <-p.ended:
			return
		}
		p.do(func(now time.Time) {
			switch one {
			case s.have:
				r.lost(now, s)
				p.log.Debug("relay is lost", "gateway", s.Relay)
			case s.old:
				r.retire(now, s)
			}
		})
		return
	}
}

// offer tells a link of a relay.
func (l *link) offer(now time.Time, r *relay) {
	if err := l.finder.SetLocal(now, path.Socket(r.socket), []path.Candidate{r.candidate}); err != nil {
		l.pairs.log.Debug("relay is of no use for a path", "err", err)
	}
	l.due = now
}

// introduce tells a new link of the relays.
func (r *relays) introduce(now time.Time, l *link) {
	for _, s := range r.servers {
		if s.have != nil {
			l.offer(now, s.have)
		}
	}
}

// close gives up what the node has at a server, and all attempts.
func (r *relays) close(now time.Time, s *server) {
	s.stop()
	s.began = time.Time{}
	have, old := s.have, s.old
	s.have, s.old = nil, nil
	for _, one := range []*relay{have, old} {
		if one != nil {
			r.giveUp(now, one)
		}
	}
}

// giveUp ends a relay, which is no server's any more.
func (r *relays) giveUp(now time.Time, one *relay) {
	r.pairs.metrics.relays[one.transport].Dec()
	for _, l := range r.pairs.links {
		_ = l.finder.SetLocal(now, path.Socket(one.socket), nil) // none is always right
		l.due = now
	}
	// Closing says goodbye to the server, which may take a moment.
	r.pairs.running.Go(one.remove)
}

// end gives up everything.
func (r *relays) end() {
	for _, s := range r.servers {
		r.close(time.Now(), s)
	}
}

// candidates are the relayed ones. Of one whose place another has taken the other nodes
// are told once more, so that they take it last (demote).
func (r *relays) candidates() []path.Candidate {
	var list, last []path.Candidate
	for _, s := range r.servers {
		if s.have != nil {
			list = append(list, s.have.candidate)
		}
		if s.old != nil && s.old.drains {
			last = append(last, s.old.candidate)
		}
	}
	return append(list, last...)
}
