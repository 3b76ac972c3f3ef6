// SPDX-License-Identifier: Apache-2.0

package core

import (
	"sync"
	"testing"
	"time"
)

// TestRate_CountsBytesWhenItChanges: what has passed at one rate is missing to another
// one as so many bytes, not as the time that they took.
func TestRate_CountsBytesWhenItChanges(t *testing.T) {
	for name, v := range map[string]struct {
		old, new int64
		passed   uint64 // at the old rate, of a full bucket
		room     time.Duration
	}{
		"a raise after the burst":              {2000, 10_000_000, 1 << 16, time.Second - 65536*100*time.Nanosecond},
		"a raise from next to nothing":         {1, 10_000_000, 1 << 16, time.Second - 65536*100*time.Nanosecond},
		"a raise after nothing":                {1000, 2000, 0, 1 << 16 * time.Second / 2000},
		"a raise with a debt":                  {100_000, 1_000_000, 100_000 + 50_000, time.Second - 100*time.Millisecond - 50*time.Millisecond},
		"less after half":                      {1_000_000, 500_000, 250_000, time.Second / 2},
		"less after more than it holds":        {10_000_000, 100_000, 10_000_000, 0},
		"less with a debt":                     {1_000_000, 100_000, 1_000_000 + 50_000, -time.Second / 2},
		"less with more than can ever be paid": {1 << 40, 1, 1 << 60, -maxDebt},
	} {
		r := newRate(start, v.old)
		at := start.Add(100_000 * time.Second) // it is full now
		r.spend(at, v.passed)
		r.Set(v.new)
		if got := r.Room(at); got < v.room-time.Microsecond || got > v.room+time.Microsecond {
			t.Errorf("%s: room of %v, want %v", name, got, v.room)
		}
		if v.room > 0 && !r.take(at, 1000, false) {
			t.Errorf("%s: nothing passes", name)
		}
	}
}

// TestRate_IsNotRenewedByChanges: who goes from one rate to another and back has no
// more than who stays, and who had none begins with a second's worth.
func TestRate_IsNotRenewedByChanges(t *testing.T) {
	r, at := newRate(start, 0), start.Add(time.Hour)
	r.take(at, 1000, false)
	r.Set(1000)
	if room := r.Room(at); room != time.Second {
		t.Errorf("the first bound begins with %v", room)
	}
	r.Set(100_000)
	r.spend(at, 100_000)
	for _, perSecond := range []int64{100_001, 0, 100_000, 1 << 30, 100_000} {
		r.Set(perSecond)
		r.take(at, 1, false)
	}
	if room := r.Room(at); room > time.Millisecond {
		t.Errorf("there is room of %v again", room)
	}
	if r.Idle(at) || !r.Idle(at.Add(time.Second)) {
		t.Error("it is idle too early or too late")
	}
}

// TestRate_ChangesWhileItIsUsed: whatever a packet has seen of a low rate costs nothing
// at a high one.
func TestRate_ChangesWhileItIsUsed(t *testing.T) {
	r, at := newRate(start, 1<<40), start.Add(time.Hour)
	var users sync.WaitGroup
	for i := range 3 {
		users.Go(func() {
			for n := range 2000 {
				r.take(at, 1000, n%2 == 0)
				if i == 0 {
					r.Set([]int64{1 << 10, 1 << 40}[n%2])
				}
			}
		})
	}
	users.Wait()
	if room := r.Room(at); room < time.Second/2 {
		t.Errorf("there is room of %v", room)
	}
}

// TestRate_PeersLeaveClientsTheirPart has a peer that is permitted send far more than
// the rate: what the client sends passes up to half of the rate, of whatever size it is,
// and both together stay within it. What the client does not use is for the peer.
func TestRate_PeersLeaveClientsTheirPart(t *testing.T) {
	const seconds, step = 20, 5 * time.Millisecond
	for _, v := range []struct {
		perSecond   int64
		flood, size int // bytes from peers in each step, and of each packet of the client
		own         float64
	}{
		{1_250_000, 12_000, 1200, 0.1}, {1_250_000, 60_000, 1200, 0.5}, {1_250_000, 600_000, 1200, 0.5},
		{1_250_000, 60_000, 1200, 0}, {50_000, 12_000, 1200, 0.5}, {2000, 12_000, 1200, 0.5}, {1 << 20, 60_000, 60_000, 0.5},
	} {
		r, at := newRate(start, v.perSecond), start.Add(100_000*time.Second)
		out, in, lost, due := 0, 0, 0, 0.0
		for range int(seconds * time.Second / step) {
			at = at.Add(step)
			for range v.flood / 1200 {
				if r.take(at, 1200, true) {
					in += 1200
				}
			}
			for due += v.own * float64(v.perSecond) * step.Seconds(); due >= float64(v.size); due -= float64(v.size) {
				if out += v.size; !r.take(at, v.size, false) {
					lost++
				}
			}
		}
		if lost > 0 {
			t.Errorf("%+v: the client lost %d packets of %d", v, lost, out/v.size)
		}
		// All but the last quarter is used, and that is all.
		least, most := seconds*int(v.perSecond)*9/10, seconds*int(v.perSecond)+max(1<<16, int(v.perSecond))
		if in+out < least || in+out > most {
			t.Errorf("%+v: %d bytes in %d seconds, want %d to %d", v, in+out, seconds, least, most)
		}
	}
}

// TestRate_GivesClientsHalf has clients send more than half of the rate beside a flood:
// half of it is theirs.
func TestRate_GivesClientsHalf(t *testing.T) {
	const perSecond, seconds, step = 1_250_000, 20, 5 * time.Millisecond
	for _, packets := range []int{3, 4, 5, 10} { // of 1200 bytes in each step; 5 are nearly the rate
		r, at, out := newRate(start, perSecond), start, 0
		for range int(seconds * time.Second / step) {
			at = at.Add(step)
			for i := range 500 {
				r.take(at, 1200, true)
				if i >= 500-packets && r.take(at, 1200, false) { // what there is has been taken
					out += 1200
				}
			}
		}
		if least := min(packets*1200*200, perSecond/2) * seconds * 98 / 100; out < least {
			t.Errorf("%d of %d bytes of the client passed, want %d", out, packets*1200*200*seconds, least)
		}
	}
}

// TestRate_ClientsDoNotShutPeersOut: who sends without end still gets part of what
// comes back to it, such as what tells it to send less.
func TestRate_ClientsDoNotShutPeersOut(t *testing.T) {
	r, at, passed := newRate(start, 1_250_000), start, 0
	for range 2000 {
		at = at.Add(5 * time.Millisecond)
		for i := range 10 { // twice as much as may pass
			r.take(at, 1200, false)
			if i == 5 && r.take(at, 100, true) {
				passed++
			}
		}
	}
	if passed < 1000 {
		t.Errorf("%d packets of 2000 came from peers", passed)
	}
}

// TestRate_PeersShareTheLastQuarter goes to the borders of what peers may have, in the
// numbers in which the program in the kernel is tested, too.
func TestRate_PeersShareTheLastQuarter(t *testing.T) {
	r, at := newRate(start, 100), start.Add(100_000*time.Second)
	r.spend(at, 1<<16-1<<14-1000)
	passed := func(n int, toClient bool) (times int) {
		for r.take(at, n, toClient) {
			times++
		}
		return times
	}
	if !r.take(at, 900, true) {
		t.Error("a peer does not have what is there above the last quarter")
	}
	if peers, clients := passed(1024, true), passed(1024, false); peers != 5 || clients != 11 {
		t.Errorf("%d from peers and %d from the client are in the last quarter, want 5 and 11", peers, clients)
	}
	at = at.Add(2*1024*time.Second/100 + time.Millisecond)
	if peers, clients := passed(1024, true), passed(1024, false); peers != 1 || clients != 1 {
		t.Errorf("%d from peers and %d from the client after two more, want 1 and 1", peers, clients)
	}
}
