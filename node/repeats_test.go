// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestRepeats_SaysTheSameAtGrowingIntervals(t *testing.T) {
	var r repeats
	start := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	var said []time.Duration
	for at := time.Duration(0); at < 5*time.Hour; at += 10 * time.Second {
		if _, due := r.failed(fmt.Sprintf("read 127.0.0.1:%d: connection reset", 40000+at/time.Second), start.Add(at)); due {
			said = append(said, at)
		}
	}
	want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183, 243}
	for i := range want {
		want[i] *= time.Minute
	}
	if !slices.Equal(said, want) {
		t.Errorf("said after %v, want %v", said, want)
	}
}

func TestRepeats_SaysWhatIsNewAtOnce(t *testing.T) {
	var r repeats
	now := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	for i, step := range []struct {
		text string
		due  bool
		over bool
	}{
		{"no route", true, false},
		{"no route", false, false},
		{"refused", true, false},
		{"no route", false, false}, // one that comes and goes is told once
		{"refused", false, true},
		{"refused", true, false},
	} {
		n, due := r.failed(step.text, now)
		if due != step.due {
			t.Errorf("step %d: due %t", i, due)
		}
		if want := i%5 + 1; n != want {
			t.Errorf("step %d is attempt %d, want %d", i, n, want)
		}
		if step.over {
			r.over()
		}
	}
}

// However many kinds of trouble there are, little is kept and little is said.
func TestRepeats_IsBounded(t *testing.T) {
	var r repeats
	now := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	said := 0
	for i := range 1000 {
		if _, due := r.failed(fmt.Sprintf("trouble %s", string(rune('a'+i))), now); due {
			said++
		}
	}
	if said != maxTroubles || len(r.seen) != maxTroubles {
		t.Errorf("said %d, kept %d, want %d", said, len(r.seen), maxTroubles)
	}
}
