// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// A call that is asked for waits for the peer to take it, and for the library to be
// done with the one before. One that was made just now there serves as well.
func TestAnother_WaitsUntilThePeerTakesIt(t *testing.T) {
	const ms = time.Millisecond
	never := time.Duration(-1)
	for _, c := range []struct {
		name string
		// answered and asked are counted from the call; answered is -1 for never.
		answered, asked time.Duration
		to              mesh.WireGuardKey
		now             bool
		renewed         time.Duration
	}{
		{"at once", never, 0, mesh.WireGuardKey{}, false, never},
		{"too soon", never, 200 * ms, mesh.WireGuardKey{}, false, never},
		{"too soon, and of another peer", never, 10 * ms, mesh.WireGuardKey{1}, true, never},
		{"late enough", never, patience, mesh.WireGuardKey{}, true, never},
		{"answered meanwhile", 200 * ms, 10 * ms, mesh.WireGuardKey{}, false, never},
		{"elsewhere, too soon", never, 10 * ms, mesh.WireGuardKey{}, false, renewSoon},
		{"elsewhere, answered meanwhile", 20 * ms, 10 * ms, mesh.WireGuardKey{}, false, never},
		{"elsewhere", never, 30 * ms, mesh.WireGuardKey{}, true, never},
		{"answered before", 2 * ms, 10 * ms, mesh.WireGuardKey{}, false, 2*ms + renewSoon},
		{"just answered", 100 * ms, 101 * ms, mesh.WireGuardKey{}, false, 100*ms + renewSoon},
		{"answered long ago", 2 * ms, 100 * ms, mesh.WireGuardKey{}, true, never},
		{"answered, and forgotten", 2 * ms, time.Second, mesh.WireGuardKey{}, true, never},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x, y := newWire(t, 0)
				a, b := byHand(t, x), byHand(t, y)
				call, began := initiationOf(1, 1), time.Now()
				a.say(t, call)
				if c.answered >= 0 {
					time.AfterFunc(c.answered, func() { b.say(t, responseTo(call)) })
				}
				<-time.After(c.asked)
				synctest.Wait()
				var at *path
				if strings.HasPrefix(c.name, "elsewhere") {
					at = new(path)
				}
				if now := a.calls.another(c.to, at); now != c.now {
					t.Errorf("it may be made at once: %t, want %t", now, c.now)
				}
				<-time.After(2 * time.Second)
				got := never
				if len(a.renewed) > 0 {
					got = (<-a.renewed).Sub(began)
				}
				if got != c.renewed || len(a.renewed) > 0 {
					t.Errorf("it was made after %v, want %v; and %d times more", got, c.renewed, len(a.renewed))
				}
			})
		})
	}
}

// What comes for a call that the library gives up does not get to it: an answer
// never, and a call of the peer when it would have.
func TestAnother_TakesThePlaceOfACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		b.line.losing(isHandshake)
		call, crossing, next := initiationOf(1, 1), initiationOf(2, 2), initiationOf(3, 1)
		began := time.Now()
		a.say(t, call)
		<-time.After(patience - lineTakes - time.Millisecond)
		b.line.losing(nil)
		b.say(t, crossing)
		<-time.After(lineTakes + time.Millisecond)
		synctest.Wait()
		if !a.calls.another(mesh.WireGuardKey{}, nil) {
			t.Error("no other call may be made")
		}
		b.say(t, responseTo(call))
		<-time.After(lineTakes)
		synctest.Wait()
		a.say(t, next)
		a.gets(t, crossing, began, repeatAfter[0]+crossTime) // after the copy
		a.say(t, responseTo(crossing))
		a.quiet(t)
	})
}

// An answer that waits for the library to answer the peer makes the session that is
// asked for.
func TestAnother_WaitsForAHeldAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		call, crossing := initiationOf(1, 2), initiationOf(2, 1)
		began := time.Now()
		a.say(t, call)
		b.say(t, crossing)
		a.gets(t, crossing, began, lineTakes)
		_ = b.line.Send([][]byte{responseTo(call)}, nil)
		<-time.After(lineTakes)
		synctest.Wait()
		if a.calls.another(mesh.WireGuardKey{}, nil) {
			t.Error("another call may be made")
		}
		a.gets(t, responseTo(call), began, lineTakes+crossTime)
		<-time.After(2 * callTime)
		if len(a.renewed) > 0 {
			t.Error("it was made")
		}
	})
}

// Of two calls that the library makes at once the second one is lost, and made anew.
func TestCalls_AreMadeAnewAfterTwoAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		began, first, second := time.Now(), initiationOf(1, 1), initiationOf(2, 1)
		a.say(t, first)
		a.say(t, second)
		b.gets(t, first, began, lineTakes)
		if took := (<-a.renewed).Sub(began); took != renewSoon {
			t.Errorf("called anew after %v, want %v", took, renewSoon)
		}
	})
}
