// SPDX-License-Identifier: Apache-2.0

package path

import "time"

// Whether a way has room for full packets. Routers cut no IPv6 packets, and where
// ICMPv6 is filtered nobody tells that they drop them: a check as large as a full
// packet is answered, or it is not. That none is says nothing against the way.
const (
	// fullCheck is the datagram of a packet of 1500 bytes, in bytes.
	fullCheck = 1500 - 40 - 8
	// relayedCheck is the same by way of a relay, with room for the head of a Send
	// indication. What is larger than the host's link would go in fragments, and be
	// answered whatever room there is for what is not.
	relayedCheck = fullCheck - 36 - 8
	// roomAsks unanswered checks in a row mean that there is no room.
	roomAsks = 3
	// roomEvery is between such rounds while data flows: the way may lead over
	// other links by then.
	roomEvery = 5 * time.Second
)

// room is what is known of the room that a way has.
type room struct {
	full  bool // there is room for full packets
	asks  [roomAsks]ask
	asked time.Time // when the last one went out; zero: never, or too long ago to count
	n     int       // asked since the last answer
}

// Narrow says that data goes now where only packets of 1280 bytes are known to
// get through, the least that IPv6 has room for. Ways of IPv4 are not narrow, as
// routers cut packets there, unless a relay is on them that is reached by UDP: by
// which IP version its owner does that, nobody says.
func (s *ways) Narrow() bool {
	return s.selected != nil && s.selected.uncut() && !s.selected.room.full
}

// uncut says that packets may go on the way, or a part of it, as IPv6 packets.
func (w *way) uncut() bool {
	return w.local.Transport == UDP || w.remote.Transport == UDP || w.route.Socket == Native && w.route.To.Addr().Is6()
}

// measure sends a full check on the selected way if one is due, and returns when
// the next one is; false for not in the foreseeable future.
func (s *ways) measure(now time.Time) (next time.Time, ok bool) {
	w := s.selected
	if w == nil || !w.uncut() {
		return time.Time{}, false
	}
	at, ok := s.measureAt(w)
	if !ok || at.After(now) {
		return at, ok
	}
	if at := s.pace.next(paceEvery, paceBurst); at.After(now) {
		return at, true
	}
	s.pace.take(now, paceEvery, paceBurst)
	s.askFull(now, w)
	return s.measureAt(w)
}

// measureAt is when a full check is due.
func (s *ways) measureAt(w *way) (time.Time, bool) {
	r := &w.room
	switch {
	case r.asked.IsZero():
		return time.Time{}, true
	case r.n > 0 && r.n < roomAsks:
		return r.asked.Add(w.patience()), true
	}
	return r.asked.Add(roomEvery), s.active(w)
}

// askFull sends a full check.
func (s *ways) askFull(now time.Time, w *way) {
	r := &w.room
	if r.n >= roomAsks {
		r.n = 0
	}
	m := s.newCheck(w, false)
	if m.Length = fullCheck; w.relayed() {
		m.Length = relayedCheck
	}
	r.asks[r.n] = ask{m.ID, now}
	r.asked = now
	if r.n++; r.n == roomAsks {
		r.full = false // until this one is answered
	}
	s.out = append(s.out, Packet{w.route, s.marshal(m, w)})
}

// answered returns when the full check went out that has an id; the zero time for
// none.
func (r *room) answered(id Transaction) time.Time {
	for _, a := range r.asks {
		if a.id == id {
			return a.at
		}
	}
	return time.Time{}
}

// stood notes that the check with an id was answered.
func (r *room) stood(id Transaction) {
	if !r.answered(id).IsZero() {
		r.full, r.n, r.asks = true, 0, [roomAsks]ask{}
	}
}
