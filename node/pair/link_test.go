// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

// A gateway is asked at its endpoint in the plan, and where else it says to be.
func TestEndpoints(t *testing.T) {
	at := netip.MustParseAddrPort
	many := make([]netip.AddrPort, path.MaxRemote+5)
	for i := range many {
		many[i] = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1))
	}
	for _, c := range []struct {
		endpoint string
		says     []netip.AddrPort
		want     []netip.AddrPort
	}{
		{"192.0.2.9:1", nil, []netip.AddrPort{at("192.0.2.9:1")}},
		{"192.0.2.9:1", []netip.AddrPort{at("192.0.2.9:1"), at("192.0.2.9:2"), at("192.0.2.9:2")}, []netip.AddrPort{at("192.0.2.9:1"), at("192.0.2.9:2")}},
		{"gate.example:1", []netip.AddrPort{at("192.0.2.9:2")}, []netip.AddrPort{at("192.0.2.9:2")}},
		{"", many, many[:path.MaxRemote]},
	} {
		if got := endpoints(mesh.Peer{Endpoint: c.endpoint, Node: &mesh.Node{WireGuardEndpoints: c.says}}); !slices.Equal(got, c.want) {
			t.Errorf("%q and %v: %v", c.endpoint, c.says, got)
		}
	}
}

// The device is told whether the way is narrow: once, and again where it leads
// elsewhere, or is another path.
func TestLink_TellsTheDeviceOfNarrowWays(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		tell := func(want ...bool) {
			t.Helper()
			l.tend(time.Now())
			l.tend(time.Now())
			if got := s.ways[l.key].narrow; !slices.Equal(got, want) {
				t.Errorf("the path was told %v, want %v", got, want)
			}
		}
		f.finds(true)
		tell()
		f.narrow = true
		tell(true)
		f.selected.To = netip.MustParseAddrPort("10.0.0.7:51821")
		tell(true, true)
		f.narrow = false
		tell(true, true, false)
		f.narrow = true
		tell(true, true, false, true)
		s.ways[l.key].closed = true
		tell(true)
	})
}

// The finder is told of the packets, and what it wants to send goes out.
func TestLink_TellsTheFinderOfPackets(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		s.unknown = true
		if next := l.tend(time.Now()); next != time.Now().Add(openEvery) || l.way != nil {
			t.Errorf("without a peer in the device: after %s", time.Until(next))
		}
		s.unknown = false
		l.tend(time.Now())
		way := s.ways[l.key]
		s.pass(time.Minute)
		used := l.used
		if l.tend(time.Now()); l.used != used || !f.sent.IsZero() || !f.heard.IsZero() {
			t.Errorf("no packets: used %s, told %s and %s", l.used, f.sent, f.heard)
		}
		from := wg.Route{Socket: 3, To: netip.MustParseAddrPort("10.0.0.7:7")}
		way.activity = wg.Activity{Sent: time.Now().Add(-2 * time.Second)}
		if l.tend(time.Now()); l.used != way.activity.Sent || f.sent != way.activity.Sent || !f.heard.IsZero() {
			t.Errorf("sent: used %s, told %s", l.used, f.sent)
		}
		way.activity.Heard, way.activity.From = time.Now().Add(-time.Second), from
		f.out = []path.Packet{{Route: path.Route{To: from.To}}}
		s.stun = nil
		l.tend(time.Now())
		if l.used != way.activity.Heard || f.heard != way.activity.Heard || f.from != (path.Route{Socket: 3, To: from.To}) {
			t.Errorf("heard: used %s, told %s from %v", l.used, f.heard, f.from)
		}
		if !slices.Equal(s.stun, []netip.AddrPort{from.To}) {
			t.Errorf("messages went to %v", s.stun)
		}
		way.closed = true // the device made its peer anew
		l.tend(time.Now())
		if s.ways[l.key] == way || l.way != Way(s.ways[l.key]) {
			t.Error("a path that is closed is in use")
		}
	})
}

// A link that carries nothing is looked at less often, unless it is the way to a
// gateway that does not answer.
func TestLink_Rests(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		ada, adas := s.link(sought, s.peer("ada", 1))
		gate, gates := s.link(gateway, s.gate("gate", 9))
		quiet, busy := wg.Activity{}, wg.Activity{Sent: time.Now()}
		for _, c := range []struct {
			what string
			l    *link
			f    *stillFinder
			ok   bool
			a    []wg.Activity
			want []time.Duration
		}{
			{"a pair", ada, adas, true, []wg.Activity{quiet, quiet, quiet, quiet, busy, busy}, []time.Duration{250, 500, 1000, 1000, 250, 500}},
			{"a pair without a way", ada, adas, false, []wg.Activity{busy, busy}, []time.Duration{1000, 1000}},
			{"a gateway", gate, gates, true, []wg.Activity{busy, busy, busy}, []time.Duration{250, 500, 1000}},
			{"a gateway without a way", gate, gates, false, []wg.Activity{busy, busy}, []time.Duration{250, 250}},
		} {
			c.f.finds(c.ok)
			for i, a := range c.a {
				if got := c.l.rest(a); got != c.want[i]*time.Millisecond {
					t.Errorf("%s: look %d after %s", c.what, i, got)
				}
			}
		}
	})
}

// A link is unsure while it has no way, and while nothing comes back on a relayed
// one that packets went over just now.
func TestLink_Doubts(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		at := func(sent, heard time.Duration) wg.Activity {
			return wg.Activity{Sent: time.Now().Add(-sent), Heard: time.Now().Add(-heard)}
		}
		for _, c := range []struct {
			what         string
			ok           bool
			socket       path.Socket
			sent, heard  time.Duration
			unsure, same bool
		}{
			{"no way", false, path.Native, time.Hour, time.Hour, true, false},
			{"none still", false, path.Native, time.Hour, time.Hour, true, true},
			{"a direct way", true, path.Native, time.Second, 5 * time.Second, false, false},
			{"a relay that is silent", true, 1, time.Second, 5 * time.Second, true, false},
			{"a relay that was not asked lately", true, 1, 3 * time.Second, 9 * time.Second, false, false},
			{"a relay that answered", true, 1, time.Second, 1500 * time.Millisecond, false, false},
			{"a relay that is silent again", true, 1, 0, 5 * time.Second, true, false},
			{"and again", true, 1, 0, 5 * time.Second, true, true},
			{"and then direct", true, path.Native, 0, 5 * time.Second, false, false},
		} {
			s.pass(time.Second)
			f.ok, l.ready, l.route.Socket = c.ok, time.Time{}, c.socket
			if c.ok {
				l.ready = time.Now()
			}
			before := l.unsure
			l.doubt(time.Now(), at(c.sent, c.heard))
			want := time.Time{}
			switch {
			case c.same:
				want = before
			case c.unsure:
				want = time.Now()
			}
			if l.unsure != want {
				t.Errorf("%s: unsure since %s", c.what, l.unsure)
			}
		}
	})
}

// Packets are unanswered since the first one after the last that came, and a
// gateway that owes an answer for long is asked for a session, a pair is not.
func TestLink_NotesWhatIsUnanswered(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(gateway, s.gate("gate", 9))
		pair, _ := s.link(sought, s.peer("ada", 1))
		began := time.Now()
		after := func(d time.Duration) time.Time { return began.Add(d) }
		s.pass(time.Minute)
		for _, c := range []struct {
			sent, heard, want time.Time
			shakes            int
		}{
			{time.Time{}, time.Time{}, time.Time{}, 0},
			{after(1), time.Time{}, after(1), 0}, // nothing has ever come
			{time.Time{}, after(1), time.Time{}, 0},
			{after(2 * time.Second), after(2 * time.Second), time.Time{}, 0},
			{after(3 * time.Second), after(2 * time.Second), after(3 * time.Second), 0},
			{after(5 * time.Second), after(2 * time.Second), after(3 * time.Second), 0},
			{after(6 * time.Second), after(4 * time.Second), after(6 * time.Second), 0},
			{after(9*time.Second - 1), after(4 * time.Second), after(6 * time.Second), 0},
			{after(9 * time.Second), after(4 * time.Second), after(6 * time.Second), 1},
			{after(10 * time.Second), after(4 * time.Second), after(6 * time.Second), 1}, // soon after
		} {
			for _, l := range []*link{l, pair} {
				l.doubt(time.Now(), wg.Activity{Sent: c.sent, Heard: c.heard})
				if l.unanswered != c.want {
					t.Errorf("sent %s, heard %s: unanswered since %s", c.sent, c.heard, l.unanswered)
				}
			}
			if s.shakes[l.key] != c.shakes || s.shakes[pair.key] != 0 {
				t.Errorf("sent %s, heard %s: %d and %d sessions", c.sent, c.heard, s.shakes[l.key], s.shakes[pair.key])
			}
		}
		s.pass(reviveEvery - 1)
		if l.revive(time.Now()); s.shakes[l.key] != 1 {
			t.Error("asked for a session again too soon")
		}
		s.pass(1)
		if l.revive(time.Now()); s.shakes[l.key] != 2 {
			t.Error("not asked for a session again")
		}
	})
}

// The packets to a gateway go to its endpoint until something better is known, from
// where they are always taken.
func TestLink_SteersToTheGateway(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		peer := s.gate("gate", 9)
		home := wg.Route{Socket: wg.NativeSocket, To: netip.MustParseAddrPort(peer.Endpoint)}
		relay := wg.Route{Socket: 4, To: home.To}
		l, f := s.link(gateway, peer)
		l.tend(time.Now())
		way := s.ways[l.key]
		check := func(what string, routes []wg.Route, accepted [][]wg.Route, shakes int) {
			t.Helper()
			if !slices.Equal(way.routes, routes) || !slices.EqualFunc(way.accepted, accepted, slices.Equal) || s.shakes[l.key] != shakes {
				t.Errorf("%s: led to %v, accepts %v, %d sessions", what, way.routes, way.accepted, s.shakes[l.key])
			}
			way.routes, way.accepted = nil, nil
		}
		check("at first", []wg.Route{home}, [][]wg.Route{{home}}, 1)
		l.steer(time.Now())
		check("nothing new", nil, nil, 1)
		f.selected, f.ok = path.Route{Socket: 4, To: home.To}, true
		f.accepted = []path.Route{f.selected}
		l.steer(time.Now())
		check("over a relay", []wg.Route{relay}, [][]wg.Route{{relay, home}}, 2) // it is asked at once, though it was just now
		way.activity.Heard = time.Now()
		f.selected = path.Route{Socket: path.Native, To: home.To}
		f.accepted = []path.Route{f.selected}
		l.steer(time.Now())
		check("directly, and heard", []wg.Route{home}, [][]wg.Route{{home}}, 2)
		s.pass(silentAfter)
		f.selected = path.Route{Socket: 4, To: home.To}
		l.steer(time.Now())
		check("silent for not long enough", []wg.Route{relay}, nil, 2)
		if l.ready.IsZero() || l.ready == time.Now() {
			t.Errorf("there is a way since %s", l.ready)
		}
		f.accepted = make([]path.Route, path.MaxAccepted)
		for i := range f.accepted {
			f.accepted[i] = path.Route{Socket: path.Socket(i + 5), To: home.To}
		}
		if l.steer(time.Now()); len(l.accepted) != path.MaxAccepted || l.accepted[path.MaxAccepted-1].Socket != path.Native {
			t.Errorf("of as many as may be it accepts %v", l.accepted)
		}
	})
	inStill(t, func(t *testing.T, s *still) {
		peer := s.gate("gate", 9)
		peer.Endpoint = "gate.example:51820"
		l, _ := s.link(gateway, peer)
		for range 3 {
			l.tend(time.Now())
			s.pass(brokenAfter)
		}
		if way := s.ways[l.key]; len(way.routes)+len(way.accepted) != 0 || !l.stands || s.shakes[l.key] != 0 {
			t.Errorf("a gateway with a name: led to %v, accepts %v, stands %v", way.routes, way.accepted, l.stands)
		}
	})
}

// A pair is led where the finder says alone; what is not accepted is asked for no
// more often for that.
func TestLink_SteersThePair(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		peer := s.peer("ada", 1)
		peer.Endpoint = "10.0.0.1:51820"
		l, f := s.link(sought, peer)
		l.tend(time.Now())
		way := s.ways[l.key]
		if len(way.routes)+len(way.accepted) != 0 || !l.ready.IsZero() {
			t.Errorf("without a way: led to %v", way.routes)
		}
		f.finds(true)
		f.accepted = []path.Route{f.selected}
		way.err = errors.New("too many")
		s.fresh = false
		l.steer(time.Now())
		ready := l.ready
		if ready != time.Now() || !s.fresh || l.last != f.state || s.shakes[l.key] != 0 || len(way.routes) != 1 || len(way.accepted) != 1 {
			t.Errorf("with a way: since %s, fresh %v, state %+v, led to %v", ready, s.fresh, l.last, way.routes)
		}
		s.pass(time.Second)
		s.fresh = false
		if l.steer(time.Now()); l.ready != ready || s.fresh || len(way.accepted) != 1 {
			t.Errorf("the same way is there since %s, fresh %v; accepts %v", l.ready, s.fresh, way.accepted)
		}
		for _, change := range []func(*path.State){
			func(s *path.State) { s.Direct = false }, func(s *path.State) { s.Standing = false }, func(s *path.State) { s.Route.Socket = 9 },
		} {
			s.fresh = false
			change(&f.state)
			if l.steer(time.Now()); !s.fresh || l.last != f.state {
				t.Errorf("%+v is not told", f.state)
			}
		}
		f.finds(false)
		if l.steer(time.Now()); !l.ready.IsZero() {
			t.Error("no way, and ready")
		}
	})
}

// The log says where packets go: for all to read where a pair stands.
func TestLink_LogsWherePacketsGo(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		var log bytes.Buffer
		s.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		l, _ := s.link(sought, s.peer("ada", 1))
		gate, _ := s.link(gateway, s.gate("gate", 9))
		direct := path.State{Standing: true, Direct: true}
		for _, c := range []struct {
			l      *link
			stands bool
			state  path.State
			want   string
		}{
			{l, true, direct, "level=INFO msg=\"packets go directly\""},
			{l, true, path.State{Standing: true, Relay: "gate", Transport: path.TLS}, "level=INFO msg=\"packets go over a relay\" node=ada gateway=gate transport=TLS"},
			{l, true, path.State{}, "level=INFO msg=\"no way to the node\""},
			{l, false, direct, "level=DEBUG msg=\"packets go directly\""},
			{gate, true, direct, "level=DEBUG msg=\"packets go directly\""},
		} {
			log.Reset()
			c.l.stands = c.stands
			if c.l.moved(c.state); !strings.Contains(log.String(), c.want) {
				t.Errorf("got %s, want %s", log.String(), c.want)
			}
		}
		log.Reset()
		s.drop(gate, "x")
		if log.String() != "" {
			t.Errorf("of a gateway: %s", log.String())
		}
		if s.drop(l, "why"); !strings.Contains(log.String(), "reason=why") {
			t.Errorf("of a pair: %q", log.String())
		}
	})
}

// A pair without a way for a moment stays, and one without for longer is given
// back to the gateway.
func TestLink_BreaksAfterAWhile(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(sought, s.peer("ada", 1))
		l.stands, l.ready = true, time.Now()
		l.settle(time.Now())
		for range 3 { // each time for less than it takes
			lost := time.Now()
			l.ready = time.Time{}
			for range 2 {
				if next := l.settle(time.Now()); next != lost.Add(brokenAfter) || !l.stands {
					t.Fatalf("stands %v; to look again after %s", l.stands, time.Until(next))
				}
				s.pass(brokenAfter/2 - 1)
			}
			l.ready = time.Now()
			if l.settle(time.Now()); !l.lost.IsZero() {
				t.Fatal("lost, and it has a way")
			}
		}
		// As long as no gateway answers nobody could carry the packets instead.
		gate, finder := s.link(gateway, s.gate("gate", 9))
		for answers, within := range map[bool]time.Duration{true: brokenAfter, false: brokenMost} {
			l.stands, l.ready = true, time.Time{}
			restarts := finder.restarts
			lost := time.Now()
			l.settle(lost)
			if finder.restarts != restarts+1 || gate.due != lost {
				t.Error("the gateway is not asked at once")
			}
			if answers {
				finder.state.Standing, finder.state.Verified = true, lost.Add(time.Millisecond)
			}
			s.pass(within - 1)
			if l.settle(time.Now()); !l.stands {
				t.Errorf("answers %v: broken before %s", answers, within)
			}
			s.fresh = false
			s.pass(1)
			if l.settle(time.Now()); l.stands || !s.fresh || !l.lost.IsZero() {
				t.Errorf("answers %v: after %s stands %v, fresh %v, lost %s", answers, within, l.stands, s.fresh, l.lost)
			}
		}
	})
}

// The lesser of two nodes asks for the session at once, and each second; the other
// one only if none comes.
func TestLink_ShakesInTurns(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		greater, _ := s.link(sought, s.peer("ada", 1)) // this node is bob
		lesser, _ := s.link(sought, s.peer("cid", 3))
		standing, _ := s.link(sought, s.peer("dan", 4))
		wayless, _ := s.link(sought, s.peer("eve", 5))
		resting, _ := s.link(sought, s.peer("fay", 6))
		gate, _ := s.link(gateway, s.gate("gate", 9))
		s.pass(time.Hour)
		for _, l := range []*link{greater, lesser, standing, resting, gate} {
			l.ready, l.opened = time.Now(), time.Now()
		}
		standing.stands = true
		resting.due = time.Now().Add(time.Hour)
		if next := lesser.settle(time.Now()); next != time.Now() {
			t.Errorf("asked for a session after %s", time.Until(next))
		}
		for i := range 5 {
			s.shake(time.Now())
			if s.shakes[lesser.key] != i+1 || s.shakes[greater.key] != max(0, i-1) {
				t.Errorf("after %ds: %d and %d", i, s.shakes[lesser.key], s.shakes[greater.key])
			}
			s.pass(shakeEvery - 1)
			s.shake(time.Now())
			s.pass(1)
		}
		for _, l := range []*link{standing, wayless, resting, gate} {
			if s.shakes[l.key] != 0 {
				t.Errorf("%s was asked for a session", l.peer.Node.ID)
			}
		}
		if next := time.Until(lesser.settle(time.Now())); next > shakeEvery || next < 0 {
			t.Errorf("to look after %s", next)
		}
		if next := time.Until(wayless.settle(time.Now())); next < time.Minute {
			t.Errorf("without a way: to look after %s", next)
		}
	})
}

// A session counts from when the path was there and the other node had begun.
func TestLink_StandsByANewSessionAlone(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _ := s.link(sought, s.peer("ada", 1))
		s.shake(time.Now())
		if s.looks != 0 {
			t.Error("the device was looked at for a link without a way")
		}
		l.ready, l.opened, l.began = time.Now(), time.Now(), time.Now().Add(time.Second)
		for _, c := range []struct {
			at   time.Duration
			fail error
			want bool
		}{{-time.Minute, nil, false}, {0, nil, false}, {time.Second, nil, false}, {2 * time.Second, mesh.ErrUnavailable, false}, {2 * time.Second, nil, true}} {
			s.shaken[l.key], s.statsErr, s.fresh = l.opened.Add(c.at), c.fail, false
			if s.shake(time.Now()); l.stands != c.want || s.fresh != c.want {
				t.Errorf("a session of %s: stands %v, fresh %v", c.at, l.stands, s.fresh)
			}
		}
		before := s.looks
		if s.shake(time.Now()); s.looks != before {
			t.Error("the device was looked at for a link that stands")
		}
	})
}
