// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// Bounds of what is kept for one peer. The product of sockets and addresses is
// what is checked at most.
const (
	MaxSockets = 8  // Native and relays
	MaxLocal   = 16 // candidates of one socket
	MaxRemote  = 16 // candidates that a peer signals
	maxLearned = 8  // addresses that nobody signalled, but checks came from

	// learnEvery is how often one more address may be learned. Between two NATs
	// that take a new port for each address and let in everyone, each check shows
	// the other side a new address, to which the next one goes from yet another.
	learnEvery = 5 * time.Second

	// keptAsks is how many checks of a way may be answered. More are sent only
	// when the answers to the first ones are seconds late.
	keptAsks = 6
)

// socket is one of this node's, and what it is reached at.
type socket struct {
	number Socket
	local  []Candidate
}

// reaches says whether the socket can send to addresses like this one.
func (s *socket) reaches(a netip.Addr) bool {
	return slices.ContainsFunc(s.local, func(c Candidate) bool { return c.Addr.Addr().Is4() == a.Is4() })
}

// leg is how packets leave by this socket.
func (s *socket) leg() Candidate {
	if i := slices.IndexFunc(s.local, func(c Candidate) bool { return c.Kind == Relayed }); i >= 0 {
		return s.local[i]
	}
	return Candidate{}
}

// remote is an address of the peer.
type remote struct {
	Candidate
	// learned says that checks came from there, to this socket, and that nobody
	// signalled it.
	learned bool
	socket  Socket
}

// ask is a check that may still be answered.
type ask struct {
	id Transaction
	at time.Time
}

// way is a socket of this node, an address of the peer, and what is known of
// the way between them. A way stands when the last check was answered.
type way struct {
	route         Route
	local, remote Candidate // local says how it is relayed

	stands   bool
	verified time.Time      // when an answer came last; zero: never
	mapped   netip.AddrPort // what it said of where the check came from
	heard    time.Time      // when data came last
	used     time.Time      // when the peer said last that it sends here
	served   time.Time      // when a check of the peer came last
	rtt      time.Duration
	better   int // checks in a row that were quicker by far than the selected way

	asks    [keptAsks]ask
	asked   time.Time // when the last check went out; zero: never
	waiting int       // checks since the last answer
	soon    bool      // a check is due as soon as the pace lets it
	tries   int       // checks of the round that runs, for a way that does not stand
	limit   int       // how many this round has
	spent   int       // checks since a message of the peer came this way
	room    room
}

// rank orders ways by what they are made of; less is better. It is the same for
// both ends of a way.
func (w *way) rank() int {
	if !w.relayed() {
		if w.route.To.Addr().IsPrivate() {
			return rankLAN
		}
		return rankDirect
	}
	worst := max(w.local.Transport, w.remote.Transport)
	rank := rankRelayed + 2*int(worst-UDP)
	if w.local.Kind == Relayed && w.remote.Kind == Relayed {
		rank++ // two relays
	}
	return rank
}

const (
	rankLAN = iota
	rankDirect
	rankRelayed
)

func (w *way) relayed() bool { return w.local.Kind == Relayed || w.remote.Kind == Relayed }

// relay names what relays the way, as well as it is known.
func (w *way) relay() string {
	if w.local.Kind == Relayed {
		return w.local.Relay
	}
	return w.remote.Relay
}

// ways are all ways to one peer. They are what Agent and Probe have in common.
type ways struct {
	tag Tag
	// decides says that this side chooses among equal ways, and the other follows.
	decides bool
	// patient is the longest wait between rounds while there is no way.
	patient time.Duration
	// veils is what checks say of this side; see Note.
	veils bool
	// marshal makes a check of a message that has its id and note.
	marshal func(*Message, *way) []byte

	sockets  []socket // ascending
	remotes  []remote // in the order in which they came
	list     []*way
	selected *way
	spare    *way // a relayed way that is kept for when the selected one dies
	since    time.Time
	// lastDirect is where the last direct way led that was selected, and ended when
	// it was no more; zero while one is, and for never.
	lastDirect netip.AddrPort
	ended      time.Time

	met      bool // a message of the peer came: it is there
	sequence uint64
	sent     time.Time // data
	heard    time.Time // data
	pace     bucket
	stranger bucket // checks while met is false
	learned  bucket
	round    rounds
	out      []Packet
	counters Counters
}

// Counters are how often things happened since the start.
type Counters struct {
	Asked    uint64 // checks sent
	Answered uint64 // of these, answered
	Served   uint64 // checks of the peer that were answered
	Refused  uint64 // messages that were forged, replayed, or beyond a bound
}

// SetLocal says at which addresses one of this node's sockets is reached now;
// none means that the socket is gone. A relay has one candidate, which is
// Relayed; Native has those of the interfaces and, for people, what STUN servers
// say. It may be called again with the same. New addresses of interfaces mean
// another network: everything is checked again. Errors wrap mesh.ErrInvalid.
func (s *ways) SetLocal(now time.Time, number Socket, local []Candidate) error {
	if err := checkLocal(number, local); err != nil {
		return err
	}
	at, found := slices.BinarySearchFunc(s.sockets, number, func(k socket, n Socket) int { return int(int64(k.number) - int64(n)) })
	if found && slices.Equal(s.sockets[at].local, local) || !found && len(local) == 0 {
		return nil
	}
	moved := false
	switch {
	case len(local) == 0:
		s.sockets = slices.Delete(s.sockets, at, at+1)
	case found:
		moved = number == Native && !slices.Equal(hosts(s.sockets[at].local), hosts(local))
		s.sockets[at].local = slices.Clone(local)
	case len(s.sockets) >= MaxSockets:
		return fmt.Errorf("socket %d is one more than %d: %w", number, MaxSockets, mesh.ErrInvalid)
	default:
		s.sockets = slices.Insert(s.sockets, at, socket{number, slices.Clone(local)})
	}
	s.rebuild(now)
	if moved {
		s.Restart(now)
	}
	return nil
}

func checkLocal(number Socket, local []Candidate) error {
	if len(local) > MaxLocal {
		return fmt.Errorf("socket %d has %d candidates, more than %d: %w", number, len(local), MaxLocal, mesh.ErrInvalid)
	}
	for _, c := range local {
		if !c.Addr.IsValid() {
			return fmt.Errorf("socket %d: address is missing: %w", number, mesh.ErrInvalid)
		}
		if (c.Kind == Relayed) == (number == Native) || (c.Kind == Relayed) == (c.Transport == NoRelay) {
			return fmt.Errorf("socket %d: kind %v with transport %v: relays, and they alone, have relayed candidates, and these alone a transport: %w",
				number, c.Kind, c.Transport, mesh.ErrInvalid)
		}
	}
	return nil
}

// hosts are the addresses of interfaces among candidates.
func hosts(local []Candidate) []netip.AddrPort {
	var list []netip.AddrPort
	for _, c := range local {
		if c.Kind == Host {
			list = append(list, c.Addr)
		}
	}
	return list
}

// socket returns one of this node's sockets; nil for none.
func (s *ways) socket(number Socket) *socket {
	for i := range s.sockets {
		if s.sockets[i].number == number {
			return &s.sockets[i]
		}
	}
	return nil
}

// find returns the way with a route; nil for none.
func (s *ways) find(r Route) *way {
	for _, w := range s.list {
		if w.route == r {
			return w
		}
	}
	return nil
}

// rebuild makes the list of ways what the sockets and addresses give, in the
// order of their ranks. Ways that were there stay what they are.
func (s *ways) rebuild(now time.Time) {
	old := make(map[Route]*way, len(s.list))
	for _, w := range s.list {
		old[w.route] = w
	}
	seen := make(map[Route]bool, len(s.list))
	s.list = s.list[:0:0]
	for i := range s.sockets {
		k := &s.sockets[i]
		for j := range s.remotes {
			r := &s.remotes[j]
			route := Route{k.number, r.Addr}
			if !r.from(k.number) || !k.reaches(r.Addr.Addr()) || seen[route] {
				continue
			}
			seen[route] = true
			w := old[route]
			if w == nil {
				w = &way{route: route, limit: r.asks(k.number)}
				if !r.learned {
					s.round.again(now)
				}
			}
			w.local, w.remote = k.leg(), r.Candidate
			s.list = append(s.list, w)
		}
	}
	slices.SortStableFunc(s.list, func(a, b *way) int { return a.rank() - b.rank() })
	s.choose(now)
}

// from says whether an address is of use to a socket. What was learned is so to
// the socket at which it was; and what a relay saw, the native socket may reach
// as well: that is how both sides find each other again whose NATs forgot them.
func (r *remote) from(number Socket) bool {
	return !r.learned || r.socket == number || number == Native && r.Kind != Relayed
}

// asks is how many checks a new way to an address begins with. Who only says
// that it is elsewhere pays for each check with one.
func (r *remote) asks(number Socket) int {
	switch {
	case !r.learned:
		return len(askGaps)
	case r.socket != number:
		return roundAsks
	}
	return 0
}

// learn takes the source of a check of the peer for one of its addresses.
func (s *ways) learn(now time.Time, from Route, leg Transport) *way {
	if w := s.find(from); w != nil {
		return w
	}
	r := remote{Candidate: Candidate{Kind: PeerReflexive, Addr: from.To}, learned: true, socket: from.Socket}
	if leg != NoRelay {
		r.Kind, r.Transport = Relayed, leg
	}
	if k := s.socket(from.Socket); k == nil || !k.reaches(from.To.Addr()) ||
		!s.learned.take(now, learnEvery, maxLearned) || !s.room(maxLearned, true) {
		return nil
	}
	s.remotes = append(s.remotes, r)
	s.rebuild(now)
	return s.find(from)
}

// room makes room for one more address among those that were learned or
// signalled; false when all of them are in use.
func (s *ways) room(bound int, learned bool) bool {
	n, oldest := 0, -1
	for i := range s.remotes {
		if r := &s.remotes[i]; r.learned == learned {
			n++
			if oldest < 0 && !s.inUse(r.Addr) {
				oldest = i
			}
		}
	}
	switch {
	case n < bound:
		return true
	case oldest < 0:
		return false
	}
	s.remotes = slices.Delete(s.remotes, oldest, oldest+1)
	return true
}

// inUse says whether a way to an address of the peer stands.
func (s *ways) inUse(a netip.AddrPort) bool {
	return slices.ContainsFunc(s.list, func(w *way) bool { return w.route.To == a && (w.stands || w == s.selected) })
}

// Outgoing returns what is to be sent now, and forgets it. The packets are the
// caller's.
func (s *ways) Outgoing() []Packet {
	out := s.out
	s.out = nil
	return out
}

// Selected returns where data goes now; false when there is no way.
func (s *ways) Selected() (Route, bool) {
	if s.selected == nil {
		return Route{}, false
	}
	return s.selected.route, true
}

// Accepted returns from where the peer's data may come: each way of which a check
// was answered within the last minute, or on which one of the peer's came: the peer
// may send as soon as it has the answer to that. It has at most MaxAccepted of them, the
// best first.
func (s *ways) Accepted(now time.Time) []Route {
	var list []Route
	for _, w := range s.list {
		last := later(w.verified, w.served)
		if len(list) < MaxAccepted && (w.stands || !last.IsZero() && now.Sub(last) < acceptedFor) {
			list = append(list, w.route)
		}
	}
	return list
}

// Verified returns when a check of a route was answered last: that is where the
// peer was then. Zero for never, which may be so of what Accepted returns, since who
// sends a check may have forged its source.
func (s *ways) Verified(r Route) time.Time {
	if w := s.find(r); w != nil {
		return w.verified
	}
	return time.Time{}
}

// MaxAccepted bounds what Accepted returns.
const MaxAccepted = 32

// acceptedFor is how long packets of the peer may take, and the peer to see that
// a way is dead.
const acceptedFor = time.Minute

// Sent says when data was last sent on the selected way. It is cheap, and need
// not be called for each packet: a few times a second while there are any.
func (s *ways) Sent(at time.Time) {
	if at.After(s.sent) {
		s.sent = at
	}
}

// Heard says when data last came from where a route leads to. It vouches for the
// way for a moment, and no longer: who forges the source of a packet must not
// keep a dead way alive.
func (s *ways) Heard(at time.Time, from Route) {
	if at.After(s.heard) {
		s.heard = at
	}
	from.To = unmap(from.To)
	if w := s.find(from); w != nil && at.After(w.heard) {
		w.heard = at
	}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
