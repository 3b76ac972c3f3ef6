// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// How often a peer may have what. It has to be the peer: all of this comes after
// its seal.
const (
	serveEvery = 10 * time.Millisecond // one answer; twice what a peer's pace asks for
	serveBurst = 50
	// A peer that moves has new addresses, but not all the time.
	newcomerEvery = 5 * time.Second
	newcomerBurst = 2 * MaxRemote
	// keptSessions is how many earlier sessions of the peer are known as such.
	keptSessions = 4
)

// Config is what an Agent is made of.
type Config struct {
	// Self and Peer are the two nodes. The lesser one decides among equal ways.
	Self, Peer mesh.NodeID
	// Local is from NewCredentials, for this agent alone, and goes to the peer.
	Local Credentials
	// Forbidden says which addresses are not to be sent to besides those that
	// CheckAddress refuses: those of the mesh, for a tunnel must not run in itself.
	// nil: none.
	Forbidden func(netip.Addr) bool
}

// Agent keeps the best way to a node that exchanges signals with this one. It
// sends nothing that is not a check to an address of the peer or the answer to
// one of the peer's. It is not safe for concurrent use.
//
// Checks are those of RFC 8445 section 7: Binding requests with USERNAME,
// PRIORITY, MESSAGE-INTEGRITY and FINGERPRINT, and a Note in place of roles and
// nominations. A request whose Note was seen before changes nothing. The key of the
// integrity is not the password alone: see seal.
type Agent struct {
	ways
	cfg      Config
	remote   Credentials
	session  uint64
	signaled bool     // remote and session are set
	earlier  []uint64 // sessions that are over, the latest last
	window   window   // requests of the peer
	serve    bucket
	newcomer bucket
	veiled   bool // the peer takes veiled data, as its latest request said
}

// New returns an agent that knows nothing yet. Errors wrap mesh.ErrInvalid.
func New(cfg Config) (*Agent, error) {
	tag, ok := cfg.Local.tag()
	if err := cfg.Local.Validate(); err != nil || !ok {
		return nil, fmt.Errorf("local credentials are not from NewCredentials: %w", mesh.ErrInvalid)
	}
	if cfg.Self == cfg.Peer {
		return nil, fmt.Errorf("node %q has no path to itself: %w", cfg.Self, mesh.ErrInvalid)
	}
	a := &Agent{cfg: cfg}
	a.ways = ways{tag: tag, decides: cfg.Self < cfg.Peer, patient: lostMostAgent, marshal: a.check}
	return a, nil
}

// Tag is what Owner returns of messages for this agent.
func (a *Agent) Tag() Tag { return a.tag }

// SetRemote says what the peer's signals say: its credentials, and the number of
// its session, which it draws anew when it begins anew. Then its addresses are
// forgotten, but for the way that is in use, on which data stays until the new
// ones stand or this one is dead. A signal of a session that is over, which came
// late, changes nothing. Errors wrap mesh.ErrInvalid and name the field.
func (a *Agent) SetRemote(now time.Time, remote Credentials, session uint64) error {
	if err := remote.Validate(); err != nil {
		return err
	}
	if remote.Ufrag == a.cfg.Local.Ufrag {
		return fmt.Errorf("ufrag is the one of this side: %w", mesh.ErrInvalid)
	}
	switch {
	case a.signaled && a.session == session && a.remote == remote:
		a.insist(now)
		return nil
	case a.signaled && a.session == session:
		return fmt.Errorf("session %d has other credentials already; begin another session: %w", session, mesh.ErrInvalid)
	case slices.Contains(a.earlier, session):
		return nil
	case a.signaled:
		a.earlier = append(a.earlier, a.session)
		a.earlier = a.earlier[max(len(a.earlier)-keptSessions, 0):]
	}
	a.remote, a.session, a.signaled = remote, session, true
	a.window = window{}
	a.met, a.veiled = false, false
	a.forget(now)
	return nil
}

// TakeVeils says whether this side takes data that comes veiled; at first it does
// not. The peer is told with the next check, which is soon if that is news to it.
func (a *Agent) TakeVeils(on bool) {
	if a.veils == on {
		return
	}
	a.veils = on
	if a.selected != nil {
		a.selected.soon = true
	}
}

// PeerTakesVeils reports whether the peer does, as far as its checks have said so in
// this session.
func (a *Agent) PeerTakesVeils() bool { return a.veiled }

// insist gives a peer another round that signals, and has not shown itself by
// checks. It pays for that as for new addresses.
func (a *Agent) insist(now time.Time) {
	if a.met || a.selected != nil || !slices.ContainsFunc(a.list, a.spent) || !a.newcomer.take(now, newcomerEvery, newcomerBurst) {
		return
	}
	for _, w := range a.list {
		w.spent = min(w.spent, unmetSpent-roundAsks)
	}
	a.startRound(now)
}

// forget drops the peer's addresses but the one in use, and what is known of
// that.
func (a *Agent) forget(now time.Time) {
	a.remotes = nil
	if w := a.selected; w != nil {
		kept := remote{Candidate: w.remote, learned: true, socket: w.route.Socket}
		if kept.Kind != Relayed {
			kept.Kind = PeerReflexive
		}
		a.remotes = append(a.remotes, kept)
		w.asks, w.waiting, w.spent, w.used, w.soon = [keptAsks]ask{}, 0, 0, time.Time{}, true
	}
	a.rebuild(now)
	a.round.again(now)
}

// AddRemote says at which address the peer may be reached. It may be told again
// of the same, and of a relay with another transport: the peer says so of one that it
// will give up. When there are MaxRemote of them, the oldest that is not in use
// makes room. Errors wrap mesh.ErrInvalid and say what is wrong.
func (a *Agent) AddRemote(now time.Time, c Candidate) error {
	if !a.signaled {
		return fmt.Errorf("candidate %v came before the credentials: %w", c.Addr, mesh.ErrInvalid)
	}
	if err := c.Validate(); err != nil {
		return fmt.Errorf("candidate: %w", err)
	}
	if a.forbidden(c.Addr.Addr()) {
		return fmt.Errorf("candidate: address %v is in the mesh, or behind a tunnel of another one; a tunnel does not run in itself: %w", c.Addr, mesh.ErrInvalid)
	}
	for i := range a.remotes {
		if r := &a.remotes[i]; !r.learned && r.Addr == c.Addr {
			if r.Kind == Relayed && c.Kind == Relayed && r.Transport != c.Transport && a.newcomer.take(now, newcomerEvery, newcomerBurst) {
				r.Transport = c.Transport
				a.rebuild(now)
			}
			return nil
		}
	}
	if !a.newcomer.take(now, newcomerEvery, newcomerBurst) {
		return fmt.Errorf("candidate %v is one of too many new ones; they may come every %v: %w", c.Addr, newcomerEvery, mesh.ErrInvalid)
	}
	if !a.room(MaxRemote, false) {
		return fmt.Errorf("candidate %v is one more than %d, which are all in use: %w", c.Addr, MaxRemote, mesh.ErrInvalid)
	}
	// What was learned before is now known as what it is.
	a.remotes = slices.DeleteFunc(a.remotes, func(r remote) bool { return r.learned && r.Addr == c.Addr })
	a.remotes = append(a.remotes, remote{Candidate: c})
	a.rebuild(now)
	for _, w := range a.list {
		if w.route.To == c.Addr && w.limit < len(askGaps) && !w.stands {
			w.tries, w.limit = 0, len(askGaps)
		}
	}
	return nil
}

func (a *Agent) forbidden(addr netip.Addr) bool {
	return a.cfg.Forbidden != nil && a.cfg.Forbidden(addr)
}

// check makes the bytes of a check.
func (a *Agent) check(m *Message, w *way) []byte {
	kind := PeerReflexive
	if w.local.Kind == Relayed {
		kind = Relayed
	}
	m.Username = []byte(a.remote.Ufrag + ":" + a.cfg.Local.Ufrag)
	m.Priority = priority(kind, w.local.Transport)
	return m.Marshal(seal(a.remote.Password, a.cfg.Self, a.cfg.Peer))
}

// seal is the key of the integrity of messages from one node to another. It names
// both, since a third node may pass off the credentials and addresses of one to the
// other as its own: the checks between the two must not stand for ways to it. No
// password holds a zero byte, and no id does.
func seal(password string, from, to mesh.NodeID) string {
	return password + "\x00" + string(from) + "\x00" + string(to)
}

// Packet takes a datagram that came to one of the sockets from an address, and
// says whether it is a STUN message for this agent; whether it is believed is
// another matter. b is the caller's again afterwards.
func (a *Agent) Packet(now time.Time, number Socket, from netip.AddrPort, b []byte) bool {
	m, err := ParseMessage(b)
	if err != nil {
		return false
	}
	r := Route{number, unmap(from)}
	if m.Type != BindingRequest {
		if Tag(m.ID[:len(Tag{})]) != a.tag {
			return false
		}
		a.response(now, r, &m)
		return true
	}
	if to := a.cfg.Local.Ufrag + ":"; len(m.Username) < len(to) || string(m.Username[:len(to)]) != to {
		return false
	}
	if !a.request(now, r, &m) {
		a.counters.Refused++
	}
	return true
}

// response takes the answer to a check. One that comes from elsewhere than where
// the check went is not believed (RFC 8445 section 7.2.5.2.1): the way back is
// not the way there.
func (a *Agent) response(now time.Time, r Route, m *Message) {
	w, took, ok := a.answered(now, r, m.ID)
	if !ok || m.Type != BindingSuccess || m.strange || !m.Mapped.IsValid() || !m.Fingerprint || !m.Holds(seal(a.remote.Password, a.cfg.Peer, a.cfg.Self)) {
		a.counters.Refused++
		return
	}
	a.stood(now, w, m, took)
}

// request takes a check of the peer; false if it is none, or one too many.
func (a *Agent) request(now time.Time, r Route, m *Message) bool {
	if !a.signaled || m.strange || m.Note == nil || !m.Fingerprint ||
		string(m.Username[len(a.cfg.Local.Ufrag)+1:]) != a.remote.Ufrag || !m.Holds(seal(a.cfg.Local.Password, a.cfg.Peer, a.cfg.Self)) {
		return false
	}
	if a.socket(r.Socket) == nil || CheckAddress(r.To) != nil || a.forbidden(r.To.Addr()) {
		return false
	}
	// What was replayed does not use up the turns of the peer.
	if !a.window.fresh(m.Note.Sequence) || !a.serve.take(now, serveEvery, serveBurst) {
		return false
	}
	a.counters.Served++
	a.met = true
	if m.Note.Sequence == a.window.last { // none that is late
		a.veiled = m.Note.Veils
	}
	answer := Message{Type: BindingSuccess, ID: m.ID, Mapped: r.To, Fingerprint: true}
	a.out = append(a.out, Packet{r, answer.Marshal(seal(a.cfg.Local.Password, a.cfg.Self, a.cfg.Peer))})
	w := a.learn(now, r, m.Note.Leg)
	if w == nil {
		return true
	}
	w.spent, w.served = 0, now
	if !w.stands {
		w.soon = true // the triggered check of RFC 8445 section 7.3.1.4
	}
	if m.Note.Uses {
		w.used = now
		a.choose(now)
	}
	if m.Note.Round {
		a.joinRound(now)
	}
	return true
}

// window tells numbers that came already from those that did not, as far as they
// do not come much too late. The zero value has seen none.
type window struct {
	last uint64
	seen [4]uint64 // of the numbers up to last; bit n%256 is the number n
}

const windowSize = 256

// fresh says whether a number is new, and remembers it.
func (w *window) fresh(n uint64) bool {
	if n == 0 || n+windowSize <= w.last || n+windowSize < n {
		return false
	}
	if n > w.last {
		for i := w.last + 1; i <= n && i <= w.last+windowSize; i++ {
			w.seen[i%windowSize/64] &^= 1 << (i % 64)
		}
		if n-w.last > windowSize {
			w.seen = [4]uint64{}
		}
		w.last = n
	}
	word, bit := &w.seen[n%windowSize/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
