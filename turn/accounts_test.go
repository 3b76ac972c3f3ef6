// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"slices"
	"testing"
	"time"
)

// The bound of a user is the lower one of what every user has and what the credential
// says that was shown last.
func TestRates_TakeTheLowerBound(t *testing.T) {
	var changed []string
	r := newRates(0, func(user string) { changed = append(changed, user) })
	rate := r.of("u", 500)
	for i, step := range []struct {
		do   func()
		want int64
	}{
		{func() {}, 500},
		{func() { r.set(300) }, 300},
		{func() { r.set(800) }, 500},
		{func() { r.of("u", 500) }, 500},
		{func() { r.of("u", 900) }, 800},
		{func() { r.of("u", 0) }, 800},
		{func() { r.set(0) }, 0},
		{func() { r.of("u", 700) }, 700},
		{func() { r.of("v", 1) }, 700},
	} {
		if step.do(); rate.PerSecond() != step.want {
			t.Errorf("step %d: %d bytes a second, want %d", i, rate.PerSecond(), step.want)
		}
	}
	if want := []string{"u", "u"}; !slices.Equal(changed, want) {
		t.Errorf("told of %q, want %q", changed, want)
	}
}

// Who has used up a rate does not get another one by letting go of all allocations.
func TestRates_AreKeptUntilTheyAreWhole(t *testing.T) {
	r := newRates(1000, nil)
	rate, now := r.of("u", 0), time.Now()
	r.keep(now, func(string) bool { return false }) // it begins with a second's worth of 65
	if got := r.of("u", 0); got != rate {
		t.Error("the rate is another one already")
	}
	r.keep(now.Add(time.Hour), func(string) bool { return true })
	if got := r.of("u", 0); got != rate {
		t.Error("the rate of who holds something is another one")
	}
	if r.keep(now.Add(time.Hour), func(string) bool { return false }); len(r.users) != 0 {
		t.Errorf("%d rates of nobody are kept", len(r.users))
	}
}
