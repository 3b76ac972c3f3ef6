// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"time"

	"github.com/meshgate/meshgate/node/wg"
)

// Checks show that a way is there, not that WireGuard's packets arrive on it, or are
// taken for what they are. WireGuard answers data within 10 s, if with nothing but a
// keepalive, and asks for a session where nothing has come for 15 s, and each 5 s
// then. Peers of pairs have no keepalives of their own, which nobody answers.
const (
	// muteAfter is for how long packets go out, without pauses of more than
	// mutePause, until a link of which nothing comes back is not believed in. One
	// keepalive that was right to stay unanswered may be at the beginning.
	muteAfter, mutePause = 20 * time.Second, 6 * time.Second
	// muteCount is when what has come until then is counted, wherever it came from:
	// a path knows of the places that it accepts alone.
	muteCount = 8 * time.Second
)

// silence is what a link knows of packets that went out since the last one that
// came. The zero value is that nothing is unanswered.
type silence struct {
	first, last time.Time // when they went out
	counted     bool
	received    uint64 // bytes, once counted is true
}

// voiceless says whether nothing comes back on a link whose session stands, of whose
// packets a is what there is to know.
func (l *link) voiceless(a wg.Activity) bool {
	s := &l.silence
	switch {
	case l.kind == gateway || !l.stands || l.ready.IsZero() || !a.Sent.After(a.Heard):
		*s = silence{}
		return false
	case s.first.IsZero() || a.Heard.After(s.first) || a.Sent.Sub(s.last) > mutePause:
		*s = silence{first: a.Sent}
	}
	s.last = a.Sent
	took := s.last.Sub(s.first)
	if took < muteCount || s.counted && took < muteAfter {
		return false
	}
	received, ok := l.received()
	switch {
	case !ok:
		return false
	case !s.counted:
		s.counted, s.received = true, received
		return false
	case received != s.received:
		*s = silence{}
		return false
	}
	return true
}

// received is how many bytes WireGuard has of the node; false when it does not know
// it.
func (l *link) received() (uint64, bool) {
	stats, err := l.pairs.cfg.Device.Stats()
	if err != nil {
		return 0, false // it is closing
	}
	for i := range stats.Peers {
		if stats.Peers[i].PublicKey == l.key {
			return stats.Peers[i].ReceiveBytes, true
		}
	}
	return 0, false
}

// mistrust gives the packets of a mute link to the gateway, until there is another
// session.
func (l *link) mistrust(now time.Time) {
	l.stands, l.began, l.shook = false, now, time.Time{}
	l.silence = silence{}
	l.pairs.fresh = true
	l.pairs.log.Info("nothing comes back; the gateway carries the packets of the pair until it does", "node", string(l.peer.Node.ID), "addr", l.route.To)
}
