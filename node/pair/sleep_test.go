// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestSlept_TellsSleepFromWork(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var s slept
	for i, c := range []struct {
		ran  time.Duration
		wall time.Duration
		want bool
	}{
		{time.Minute, time.Hour, false}, // the first call knows of none before
		{2 * time.Minute, time.Hour + time.Minute, false},
		{2*time.Minute + time.Second, time.Hour + time.Minute + 5*time.Second, false}, // the clock was set
		{3 * time.Minute, 2 * time.Hour, true},
		{3 * time.Minute, 2 * time.Hour, false}, // once
		{4 * time.Minute, time.Hour, false},     // set back
	} {
		if got := s.since(c.ran, at.Add(c.wall)); got != c.want {
			t.Errorf("call %d: %v", i, got)
		}
	}
}

// A node that wakes up has its sessions made anew and its ways checked.
func TestPairs_WakeUp(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		<-time.After(10 * time.Second)
		synctest.Wait()
		before := a.shookWith(b)
		a.pairs.do(func(now time.Time) { a.pairs.woke(now) })
		l.until(time.Second, "a new session", func() bool { return a.shookWith(b).After(before) })
		if !standing(a, b) {
			t.Error("the pair broke")
		}
	})
}
