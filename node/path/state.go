// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// State is what people want to know of the ways to a peer.
type State struct {
	// Standing says that there is a way; without one the rest up to Since is zero.
	Standing bool
	// Direct says that no relay is on it.
	Direct bool
	Route  Route
	// Local and Remote are what both ends of the way are. That of the native socket
	// is Host: what NATs make of it only the other end can see.
	Local, Remote Kind
	// Transport is the worse one of those that reach relays; NoRelay if direct.
	Transport Transport
	Relay     string // the gateway whose relay it is; "" if direct or unknown
	RTT       time.Duration
	// Verified is when a check of the way was answered last.
	Verified time.Time
	// Doubtful says that checks of the way have not been answered of late.
	Doubtful bool
	// Since is when data began to go where it goes now.
	Since time.Time
	// Why says in one sentence why the way is not direct, or why there is none.
	Why string
	// LastDirect is where packets went directly before, until DirectEnded; zero while
	// they do, and when they never did.
	LastDirect  netip.AddrPort
	DirectEnded time.Time
	// Ways is how many there are, Tried on how many checks were sent, and Alive how
	// many stand.
	Ways, Tried, Alive int
	Counters           Counters
}

// State returns what is known now.
func (s *ways) State() State {
	st := State{Ways: len(s.list), Counters: s.counters, Why: s.why(), LastDirect: s.lastDirect, DirectEnded: s.ended}
	for _, w := range s.list {
		if !w.asked.IsZero() {
			st.Tried++
		}
		if w.stands {
			st.Alive++
		}
	}
	if w := s.selected; w != nil {
		st.Standing, st.Direct, st.Route, st.Since = true, !w.relayed(), w.route, s.since
		st.Local, st.Remote, st.RTT = w.local.Kind, w.remote.Kind, w.rtt
		st.Verified = w.verified
		st.Doubtful = w.waiting >= suspectAfter
		if !st.Direct {
			st.Transport, st.Relay = max(w.local.Transport, w.remote.Transport), w.relay()
		}
	}
	return st
}

// why is State.Why.
func (s *ways) why() string {
	if s.selected != nil && !s.selected.relayed() {
		return ""
	}
	directs, tried := 0, 0
	for _, w := range s.list {
		if !w.relayed() {
			directs++
			tried += min(w.spent, 1)
		}
	}
	native := s.socket(Native)
	offers := slices.ContainsFunc(s.remotes, func(r remote) bool { return r.Kind != Relayed })
	switch {
	case len(s.remotes) == 0:
		return "the other node has not said yet where it can be reached"
	case native == nil:
		return "this node has no address of its own to be reached at"
	case !offers:
		return "the other node offers relayed addresses only: UDP may be blocked where it is"
	case directs == 0:
		return "one of the nodes has only IPv4 addresses and the other only IPv6"
	case s.selected == nil && !s.met:
		return fmt.Sprintf("the other node has not answered on any of %d ways", len(s.list))
	case tried == 0:
		return "direct ways are being tried"
	case s.selected == nil:
		return fmt.Sprintf("the other node does not answer any more on any of %d ways", len(s.list))
	}
	if !s.ended.IsZero() { // no NAT or firewall that was there all along
		return fmt.Sprintf("no answer any more on %d direct ways", directs)
	}
	return fmt.Sprintf("no answer on %d direct ways: a NAT that changes ports or a firewall is between the nodes", directs)
}
