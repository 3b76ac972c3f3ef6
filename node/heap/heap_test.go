// SPDX-License-Identifier: Apache-2.0

package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

const mib = 1 << 20

func TestShare(t *testing.T) {
	for _, tt := range []struct {
		percent      int
		least, alive uint64
		want         int
	}{
		{50, 32 * mib, 0, 800}, // what the runtime takes for the smallest heap
		{50, 32 * mib, 4 * mib, 800},
		{50, 32 * mib, 16 * mib, 200},
		{50, 32 * mib, 64 * mib, 50},
		{50, 32 * mib, 1 << 40, 50},
		{100, 0, 10 * mib, 100},
	} {
		if got := share(tt.percent, tt.least, tt.alive); got != tt.want {
			t.Errorf("%d %% and %d bytes of %d: %d %%, want %d", tt.percent, tt.least, tt.alive, got, tt.want)
		}
	}
}

// percentage is what the runtime goes by.
func percentage() int {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	return int(sample[0].Value.Uint64())
}

// collected collects until the percentage is within bounds, or fails.
func collected(t *testing.T, what string, from, to int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for p := percentage(); p < from || p > to; p = percentage() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d %%, want %d to %d", what, p, from, to)
		}
		runtime.GC()
	}
}

func TestKeep_FollowsWhatIsAlive(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	const least = 64 * mib
	stop := Keep(50, least)
	ended := false
	defer func() {
		if !ended {
			stop()
		}
	}()
	collected(t, "a small heap", 400, share(50, least, 0))
	live := make([]byte, 2*least)
	collected(t, "a large heap", 50, 55)
	runtime.KeepAlive(live)
	live = nil
	collected(t, "a small heap again", 400, share(50, least, 0))
	stop()
	ended = true
	if got := percentage(); got != 50 {
		t.Errorf("after stop: %d %%, want 50", got)
	}
	for range 3 {
		runtime.GC()
	}
	if got := percentage(); got != 50 {
		t.Errorf("after stop and collections: %d %%, want 50", got)
	}
}
