// SPDX-License-Identifier: Apache-2.0

package path

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestWindow_TakesEachNumberOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var w window
		taken := map[uint64]bool{}
		last := uint64(0)
		for _, step := range rapid.SliceOf(rapid.Int64Range(-300, 600)).Draw(rt, "steps") {
			n := uint64(max(int64(last)+step, 0))
			want := n > 0 && !taken[n] && n+windowSize > last
			if got := w.fresh(n); got != want {
				rt.Fatalf("%d after %d: %v", n, last, got)
			}
			if want {
				taken[n] = true
				last = max(last, n)
			}
		}
	})
}

func TestWindow_EndsWithTheNumbers(t *testing.T) {
	var w window
	for _, tt := range []struct {
		n    uint64
		want bool
	}{{0, false}, {1, true}, {math.MaxUint64 - 300, true}, {1, false}, {math.MaxUint64 - 300, false}, {math.MaxUint64 - 555, true}, {math.MaxUint64 - 556, false}, {math.MaxUint64, false}} {
		if got := w.fresh(tt.n); got != tt.want {
			t.Errorf("%d: %v", tt.n, got)
		}
	}
}

func TestBucket_GivesABurstAndThenOneEachInterval(t *testing.T) {
	var b bucket
	now := time.Unix(1_800_000_000, 0)
	count := func() (n int) {
		for b.take(now, time.Second, 5) {
			n++
		}
		return n
	}
	if n := count(); n != 5 {
		t.Errorf("%d at once", n)
	}
	if got := b.next(time.Second, 5); !got.Equal(now.Add(time.Second)) {
		t.Errorf("the next at %v", got)
	}
	now = now.Add(2500 * time.Millisecond)
	if n := count(); n != 2 {
		t.Errorf("%d after 2.5 s", n)
	}
	now = now.Add(time.Hour)
	if n := count(); n != 5 {
		t.Errorf("%d after an hour", n)
	}
}

func TestRank_PutsWaysInTheOrderOfTheDesign(t *testing.T) {
	relay := func(tr Transport) Candidate { return Candidate{Kind: Relayed, Transport: tr} }
	private, public := Candidate{Kind: Host}, Candidate{Kind: ServerReflexive}
	order := []way{
		{remote: private, route: Route{To: mustAddr("192.168.1.1:1")}},
		{remote: public, route: Route{To: mustAddr("198.51.100.1:1")}},
		{local: relay(UDP), route: Route{To: mustAddr("198.51.100.1:1")}},
		{local: relay(UDP), remote: relay(UDP), route: Route{To: mustAddr("198.51.100.1:1")}},
		{remote: relay(TCP), route: Route{To: mustAddr("198.51.100.1:1")}},
		{local: relay(UDP), remote: relay(TCP), route: Route{To: mustAddr("198.51.100.1:1")}},
		{local: relay(TLS), route: Route{To: mustAddr("198.51.100.1:1")}},
		{local: relay(TLS), remote: relay(UDP), route: Route{To: mustAddr("198.51.100.1:1")}},
	}
	for i := range order[1:] {
		if order[i].rank() >= order[i+1].rank() {
			t.Errorf("%d of %d, %d of %d", i, order[i].rank(), i+1, order[i+1].rank())
		}
	}
}

func mustAddr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
