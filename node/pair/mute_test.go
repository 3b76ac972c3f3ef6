// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"errors"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/wg"
)

// sent lets a link send packets for a while, one each interval, while what else
// happens in each is up to the test. It says after how long the link did not stand
// any more; zero for never.
func (s *still) sent(l *link, for_, every time.Duration, also func(at time.Duration, a *wg.Activity)) time.Duration {
	way, began := s.ways[l.key], time.Now()
	for time.Since(began) <= for_ {
		way.activity.Sent = time.Now()
		if also != nil {
			also(time.Since(began), &way.activity)
		}
		if l.tend(time.Now()); !l.stands {
			return time.Since(began)
		}
		s.pass(every)
	}
	return 0
}

// A pair of which nothing comes back while packets go out is the gateway's again,
// though its checks are answered; one that is heard, or that need not answer, is
// not.
func TestLink_IsMute(t *testing.T) {
	heardEvery := func(d time.Duration) func(time.Duration, *wg.Activity) {
		return func(_ time.Duration, a *wg.Activity) {
			if time.Since(a.Heard) >= d {
				a.Heard = a.Sent.Add(-1)
			}
		}
	}
	for _, c := range []struct {
		what  string
		every time.Duration
		also  func(s *still) func(time.Duration, *wg.Activity)
		want  time.Duration
	}{
		{"nothing comes back", time.Second, nil, muteAfter},
		{"few packets go out", mutePause, nil, 4 * mutePause},
		{"fewer go out than need an answer", mutePause + time.Second, nil, 0},
		{"keepalives come back", time.Second, func(*still) func(time.Duration, *wg.Activity) { return heardEvery(10 * time.Second) }, 0},
		{"a session comes back", time.Second, func(*still) func(time.Duration, *wg.Activity) { return heardEvery(19 * time.Second) }, 0},
		{"something comes back from elsewhere", time.Second, func(s *still) func(time.Duration, *wg.Activity) {
			return func(at time.Duration, _ *wg.Activity) { s.received = uint64(at / (10 * time.Second)) }
		}, 0},
		{"something came at first only", time.Second, func(s *still) func(time.Duration, *wg.Activity) {
			return func(at time.Duration, _ *wg.Activity) { s.received = uint64(min(at/time.Second, 7)) }
		}, muteAfter},
		{"the device does not say", time.Second, func(s *still) func(time.Duration, *wg.Activity) {
			return func(time.Duration, *wg.Activity) { s.statsErr = errors.New("closing") }
		}, 0},
		{"the device does not know the peer", time.Second, func(s *still) func(time.Duration, *wg.Activity) {
			return func(time.Duration, *wg.Activity) { clear(s.shaken) }
		}, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			inStill(t, func(t *testing.T, s *still) {
				l, f := s.link(sought, s.peer("ada", 1))
				f.finds(true)
				s.shaken[l.key] = time.Now()
				l.tend(time.Now())
				l.stands = true
				s.ways[l.key].activity = wg.Activity{Heard: time.Now()}
				s.pass(time.Millisecond)
				var also func(time.Duration, *wg.Activity)
				if c.also != nil {
					also = c.also(s)
				}
				began := time.Now()
				s.fresh = false
				if got := s.sent(l, time.Minute, c.every, also); got != c.want {
					t.Fatalf("is mute after %s, not %s", got, c.want)
				}
				if c.want == 0 {
					return
				}
				if !s.fresh || l.began != began.Add(c.want) || l.silence != (silence{}) {
					t.Errorf("fresh %v, began %s, %+v", s.fresh, l.began, l.silence)
				}
				shakes := s.shakes[l.key]
				s.pass(shakeLate)
				l.due = time.Now()
				if s.shake(time.Now()); l.stands || s.shakes[l.key] != shakes+1 {
					t.Errorf("stands %v without another session, which was asked for %d times", l.stands, s.shakes[l.key]-shakes)
				}
				s.shaken[l.key] = time.Now()
				if s.shake(time.Now()); !l.stands {
					t.Error("does not stand with another session")
				}
			})
		})
	}
}

// Only pairs that carry packets can be mute, and a way that is lost is another
// matter.
func TestLink_IsNotMute(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate, gates := s.link(gateway, s.gate("gate", 9))
		lost, _ := s.link(sought, s.peer("ada", 1))
		waits, finds := s.link(sought, s.peer("cid", 3))
		gates.finds(true)
		finds.finds(true)
		for _, l := range []*link{gate, lost, waits} {
			l.tend(time.Now())
			s.shaken[l.key] = time.Now()
		}
		for range 60 {
			for _, l := range []*link{gate, lost, waits} {
				l.stands = l != waits
				if l.voiceless(wg.Activity{Sent: time.Now()}) {
					t.Fatalf("%s is mute", l.peer.Node.ID)
				}
			}
			s.pass(time.Second)
		}
		if s.looks > 0 {
			t.Errorf("the device was asked %d times", s.looks)
		}
	})
}
