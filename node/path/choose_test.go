// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"
)

// chooser has ways of these round-trip times in milliseconds, which stand and
// are equally direct; the first one is selected.
func chooser(decides bool, rtts ...int) *ways {
	s := &ways{decides: decides}
	for i, rtt := range rtts {
		w := &way{route: Route{To: mustAddr("198.51.100.1:1")}, stands: true, rtt: time.Duration(rtt) * time.Millisecond}
		w.route.Socket = Socket(i)
		s.list = append(s.list, w)
	}
	s.selected = s.list[0]
	return s
}

func TestChoose_ChangesBetweenEqualsForMuchAndForLong(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name   string
		rtts   []int
		checks int
		want   Socket
	}{
		{"quicker by half", []int{100, 50}, 3, 1},
		{"not for long", []int{100, 50}, 2, 0},
		{"by a tenth", []int{100, 90}, 9, 0},
		{"by a fifth", []int{100, 80}, 3, 1},
		{"by 4 ms of 8", []int{8, 4}, 9, 0},
		{"by 5 ms of 10", []int{10, 5}, 3, 1},
		{"slower", []int{50, 100}, 9, 0},
	} {
		s := chooser(true, tt.rtts...)
		for range tt.checks {
			s.compare(s.list[1])
			s.choose(now)
		}
		if got := s.selected.route.Socket; got != tt.want {
			t.Errorf("%s: way %d, want %d", tt.name, got, tt.want)
		}
		// In a row.
		s = chooser(true, tt.rtts...)
		for range tt.checks {
			s.compare(s.list[1])
			s.choose(now)
			s.list[1].rtt, tt.rtts[1] = time.Duration(tt.rtts[0])*time.Millisecond, tt.rtts[0]
		}
		if s.selected != s.list[0] {
			t.Errorf("%s once: changed", tt.name)
		}
	}
}

func TestChoose_FollowsTheOneThatDecides(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name    string
		decides bool
		change  func(hinted *way)
		want    Socket
	}{
		{"follows", false, func(*way) {}, 1},
		{"even to the slower one", false, func(w *way) { w.rtt = time.Second }, 1},
		{"decides", true, func(*way) {}, 0},
		{"not to what does not stand", false, func(w *way) { w.stands = false }, 0},
		{"not to a worse one", false, func(w *way) { w.remote = Candidate{Kind: Relayed, Transport: UDP} }, 0},
		{"not for what was said long ago", false, func(w *way) { w.used = now.Add(-time.Minute) }, 0},
		{"not to what is silent", false, func(w *way) { w.waiting = suspectAfter }, 0},
	} {
		s := chooser(tt.decides, 30, 30)
		s.list[1].used = now
		tt.change(s.list[1])
		s.choose(now)
		if got := s.selected.route.Socket; got != tt.want {
			t.Errorf("%s: way %d, want %d", tt.name, got, tt.want)
		}
		if tt.want != 0 && !s.selected.soon {
			t.Errorf("%s: the new way is not checked at once", tt.name)
		}
	}
}

func TestChoose_LeavesASilentWayForAnEqualOneOnly(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := chooser(true, 30, 90)
	s.selected.waiting = suspectAfter
	s.choose(now)
	if s.selected != s.list[1] {
		t.Error("stays on a silent way beside an equal one")
	}
	s = chooser(true, 30, 30)
	s.selected.waiting = suspectAfter
	s.list[1].local = Candidate{Kind: Relayed, Transport: UDP}
	s.choose(now)
	if s.selected != s.list[0] {
		t.Error("leaves a silent way for a worse one before it is dead")
	}
	// When it is dead, another silent one is the last resort.
	s = chooser(true, 30, 30, 30)
	s.list[0].stands, s.list[1].waiting = false, suspectAfter
	s.list[2].local = Candidate{Kind: Relayed, Transport: UDP}
	s.choose(now)
	if s.selected != s.list[2] {
		t.Error("goes from a dead way to a silent one")
	}
}

func TestChoose_KeepsASpareThatDoesNotFailWithTheWay(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	relay := func(name string, t Transport) Candidate {
		return Candidate{Kind: Relayed, Transport: t, Relay: name}
	}
	s := chooser(true, 30, 30, 30, 30)
	for i, c := range []Candidate{relay("gw-1", UDP), relay("gw-1", UDP), relay("gw-2", TLS), relay("gw-2", TCP)} {
		s.list[i].local = c
	}
	s.choose(now)
	if s.spare != s.list[3] {
		t.Errorf("the spare is %+v", s.spare)
	}
	s.list[3].stands, s.list[2].stands = false, false
	s.choose(now)
	if s.spare != s.list[1] {
		t.Errorf("the spare is %+v", s.spare)
	}
	// One of another gateway takes its place, wherever it is in the list.
	s.list[3].stands, s.list[3].local = true, relay("gw-2", UDP)
	s.list[1], s.list[3] = s.list[3], s.list[1]
	s.choose(now)
	if s.spare != s.list[1] {
		t.Errorf("the spare is %+v", s.spare)
	}
}
