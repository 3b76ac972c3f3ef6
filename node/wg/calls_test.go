// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// lineTakes is how long a datagram takes from one end to the other in tests.
const lineTakes = 20 * time.Millisecond

// gets waits for the next message that the library gets, and says when that was.
func (b *handBind) gets(t *testing.T, want []byte, began time.Time, after time.Duration) {
	t.Helper()
	select {
	case p := <-b.got:
		if !bytes.Equal(p.data, want) {
			t.Errorf("the library got %x, want %x", p.data[:12], want[:12])
		}
		if took := p.at.Sub(began); took != after {
			t.Errorf("it came after %v, want %v", took, after)
		}
	case <-time.After(time.Minute):
		t.Errorf("%x did not come", want[:12])
	}
}

// quiet checks that the library gets nothing else.
func (b *handBind) quiet(t *testing.T) {
	t.Helper()
	select {
	case p := <-b.got:
		t.Errorf("the library got %x", p.data[:12])
	case <-time.After(2 * callTime):
	}
	if n := b.calls.watched.Load(); n != 0 {
		t.Errorf("%d calls are still watched", n)
	}
}

// gaps are the times at which calls left.
func gaps(w *wire, began time.Time) (at []time.Duration) {
	for _, p := range w.sent(device.MessageInitiationType) {
		at = append(at, p.at.Sub(began))
	}
	return at
}

// line makes two binds with a line between them.
func line(t *testing.T) (a, b *handBind) {
	t.Helper()
	x, y := newWire(t, lineTakes)
	return byHand(t, x), byHand(t, y)
}

// Of two calls that cross, the library of one end gets the other end's, and that
// of the other gets the answer, whoever was quicker.
func TestCalls_OneOfTwoThatCrossCounts(t *testing.T) {
	for _, ahead := range []time.Duration{-lineTakes + 1, 0, lineTakes - 1} {
		synctest.Test(t, func(t *testing.T) {
			a, b := line(t)
			first, second := initiationOf(1, 1), initiationOf(2, 2)
			began := time.Now()
			if ahead < 0 {
				b.say(t, second)
				<-time.After(-ahead)
				began = time.Now()
			}
			a.say(t, first)
			if ahead >= 0 {
				<-time.After(ahead)
				b.say(t, second)
			}
			b.gets(t, first, began, lineTakes)
			answer := responseTo(first)
			b.say(t, answer)
			a.gets(t, answer, began, 2*lineTakes)
			a.quiet(t)
			b.quiet(t)
			if n := len(gaps(a.line, began)) + len(gaps(b.line, began)); n != 2 {
				t.Errorf("%d calls left, want 2", n)
			}
		})
	}
}

// A call is not lost for one that crosses it and does not arrive, or to whose
// maker nothing gets.
func TestCalls_HeldCallsComeLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		a.line.losing(isHandshake)
		first, second := initiationOf(1, 1), initiationOf(2, 2)
		began := time.Now()
		a.say(t, first)
		b.say(t, second)
		a.gets(t, second, began, crossTime)
		a.line.losing(nil)
		answer := responseTo(second)
		a.say(t, answer)
		b.gets(t, answer, began, crossTime+lineTakes)
		a.quiet(t)
		b.quiet(t)
		if got := gaps(a.line, began); len(got) != 1 {
			t.Errorf("calls left after %v: a call that the library has given up was sent again", got)
		}
	})
}

// A call that comes just after an answer waits until the library is done with that.
func TestCalls_WaitBehindAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		call, other := initiationOf(1, 1), initiationOf(2, 2)
		began, answer := time.Now(), responseTo(call)
		a.say(t, call)
		b.gets(t, call, began, lineTakes)
		b.say(t, answer)
		b.say(t, other) // its library had begun that before
		a.gets(t, answer, began, 2*lineTakes)
		a.gets(t, other, began, 2*lineTakes+answeredTime)
		a.say(t, responseTo(other))
		b.gets(t, responseTo(other), began, 3*lineTakes+answeredTime)
	})
}

// Of two calls that come while one is kept back the first counts, so that nobody
// pushes a peer's out: not while we wait for an answer, and not after one.
func TestCalls_HeldOnesStay(t *testing.T) {
	for _, answered := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := line(t)
			call, honest, other := initiationOf(1, 1), initiationOf(2, 2), initiationOf(3, 3)
			began, late := time.Now(), crossTime
			a.say(t, call)
			if answered {
				b.say(t, responseTo(call))
				a.gets(t, responseTo(call), began, lineTakes)
				late = lineTakes + answeredTime
			}
			_ = b.line.Send([][]byte{honest, other}, nil) // and they are not sent again
			a.gets(t, honest, began, late)
			a.say(t, responseTo(honest))
			a.quiet(t)
		})
	}
}

// What is not sealed with our key changes nothing, wherever it comes from: the library
// gets it, and refuses it.
func TestCalls_AreNotHeldForGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		call, garbage, forged := initiationOf(1, 1), initiationOf(3, 3), responseTo(initiationOf(1, 1))
		for _, message := range [][]byte{garbage, forged} {
			message[len(message)-device.NoisePublicKeySize] ^= 1 // in MAC1
		}
		began := time.Now()
		a.say(t, call)
		b.gets(t, call, began, lineTakes)
		_ = b.line.Send([][]byte{garbage, forged, responseTo(call)}, nil)
		a.gets(t, garbage, began, 2*lineTakes)
		a.gets(t, forged, began, 2*lineTakes)
		a.gets(t, responseTo(call), began, 2*lineTakes)
		if n := len(a.calls.seen); n != 0 {
			t.Errorf("%d calls that came are remembered, want none", n)
		}
		a.quiet(t)
	})
}

// What comes long after our own call did not cross it.
func TestCalls_LaterCallsAreNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		a.line.losing(isHandshake)
		began := time.Now()
		a.say(t, initiationOf(1, 1))
		sent := repeatAfter[0] + repeatAfter[1] + crossTime
		<-time.After(sent)
		b.say(t, initiationOf(2, 2))
		a.gets(t, initiationOf(2, 2), began, sent+lineTakes)
	})
}

// A call that gets lost is sent again, at the times that were promised and no more
// often, and not after it was answered.
func TestCalls_AreRepeatedUntilAnswered(t *testing.T) {
	all := []time.Duration{0, 150 * time.Millisecond, 600 * time.Millisecond, 1950 * time.Millisecond}
	for _, c := range []struct {
		name   string
		answer func(initiation []byte) []byte
		at     time.Duration
		want   []time.Duration
	}{
		{"nobody answers", nil, 0, all},
		{"an answer", responseTo, 500 * time.Millisecond, all[:2]},
		{"a cookie", cookieFor, 500 * time.Millisecond, all[:2]},
		{"another one's answer", func([]byte) []byte { return responseTo(initiationOf(8, 8)) }, 500 * time.Millisecond, all},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := line(t)
				began, call := time.Now(), initiationOf(1, 1)
				a.say(t, call)
				if c.answer != nil {
					<-time.After(c.at)
					b.say(t, c.answer(call))
				}
				<-time.After(device.RekeyTimeout)
				if got := gaps(a.line, began); !slices.Equal(got, c.want) {
					t.Errorf("calls left after %v, want %v", got, c.want)
				}
			})
		})
	}
}

// An answer that gets lost is sent again when the call comes again, which the library
// does not see.
func TestCalls_AnswersAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := line(t)
		b.line.losing(isHandshake)
		began, call := time.Now(), initiationOf(1, 1)
		answer := responseTo(call)
		a.say(t, call)
		b.gets(t, call, began, lineTakes)
		b.say(t, answer)
		b.line.losing(nil)
		a.gets(t, answer, began, repeatAfter[0]+2*lineTakes)
		for range 20 {
			a.say(t, call)
		}
		<-time.After(time.Second)
		if n := len(b.line.sent(device.MessageResponseType)); n < 3 || n > 1+len(repeatAfter) {
			t.Errorf("the answer was sent %d times", n)
		}
		for len(a.got) > 0 {
			<-a.got
		}
		other, began := initiationOf(1, 9), time.Now() // of a peer that has started anew
		a.say(t, other)
		b.gets(t, other, began, lineTakes)
		b.say(t, responseTo(other))
		a.gets(t, responseTo(other), began, 2*lineTakes)
		a.quiet(t)
		b.quiet(t)
	})
}

// However often the library calls, a peer hears three copies in five seconds at
// most, and one who does not answer one.
func TestCalls_RepeatsAreFew(t *testing.T) {
	for _, c := range []struct {
		name  string
		every time.Duration
		calls int
		want  func(n int) bool
	}{
		{"by the library's timers", device.RekeyTimeout + 100*time.Millisecond, 18, func(n int) bool { return n == 3+17 }},
		{"by a caller in a hurry", 300 * time.Millisecond, 16, func(n int) bool { return n <= 3 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, _ := line(t)
				for i := range c.calls {
					a.say(t, initiationOf(uint32(i+1), byte(i+1)))
					<-time.After(c.every)
				}
				if n := len(a.line.sent(device.MessageInitiationType)) - c.calls; !c.want(n) {
					t.Errorf("%d calls had %d copies", c.calls, n)
				}
			})
		})
	}
}

// Where two have answered each other, since the way is long or the other end has no
// such bind, the one whose call counts calls again at once, and the other one if
// nothing came of that.
func TestCalls_VoidOnesAreMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = crossTime - time.Millisecond
		x, y := newWire(t, takes)
		a, b := byHand(t, x), byHand(t, y)
		first, second := initiationOf(1, 1), initiationOf(2, 2)
		began := time.Now()
		a.say(t, first)
		b.say(t, second)
		b.gets(t, first, began, takes)
		b.say(t, responseTo(first))
		late := repeatAfter[0] + crossTime
		a.gets(t, second, began, late)
		a.say(t, responseTo(second))
		if took := (<-a.renewed).Sub(began); took != 2*takes+renewSoon {
			t.Errorf("the first called anew after %v, want %v", took, 2*takes+renewSoon)
		}
		if took := (<-b.renewed).Sub(began); took != late+takes+renewLate {
			t.Errorf("the second called anew after %v, want %v", took, late+takes+renewLate)
		}
		a.gets(t, responseTo(first), began, 2*takes)
		a.gets(t, responseTo(first), began, repeatAfter[0]+2*takes) // to the copy
		b.gets(t, responseTo(second), began, late+takes)
		for _, end := range []*handBind{a, b} {
			end.quiet(t)
			if len(end.renewed) > 0 {
				t.Error("called anew twice")
			}
		}
	})
}

// The number of calls is bounded, and those beyond go out all the same.
func TestCalls_AreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := line(t)
		a.line.losing(isHandshake)
		for i := range maxCalls + 10 {
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1)
			if err := a.Send([][]byte{initiationOf(uint32(i+1), 1)}, &conn.StdNetEndpoint{AddrPort: to}); err != nil {
				t.Fatal(err)
			}
		}
		if n := a.calls.watched.Load(); n != maxCalls {
			t.Errorf("%d calls are watched, want %d", n, maxCalls)
		}
		<-time.After(2 * callTime)
		if n := a.calls.watched.Load(); n != 0 {
			t.Errorf("%d calls are still watched", n)
		}
	})
}
