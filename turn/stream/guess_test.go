// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"testing"

	"github.com/pion/stun"
)

// Who tries one password after the other is not served until it has the right one,
// also with an allocation of somebody else's.
func TestServe_EndsWhoGuesses(t *testing.T) {
	for _, holds := range []bool{false, true} {
		s := newServer(t, nil)
		newShards(t, s, 1, nil)
		c := dial(t, serve(t, s, listen(t)))
		c.user, c.password = "bob", "builder"
		if c.signed(stun.MethodAllocate); holds {
			c.allocate(17)
		}
		c.user = "alice"
		var all []byte
		for range 3 * maxRefused {
			c.password = "guess"
			all = append(all, c.signed(stun.MethodRefresh).Raw...)
		}
		c.password = "wonder"
		all = append(all, c.signed(stun.MethodAllocate, raw(stun.AttrRequestedTransport, 17, 0, 0, 0)).Raw...)
		c.send(all)
		for {
			b, err := c.tryFrame()
			if err != nil {
				break // it may be reset before its last answers are read
			}
			if m := (&stun.Message{Raw: b}); m.Decode() != nil || code(m) != 401 {
				t.Errorf("the guess was answered by %v, code %d", m, code(m))
			}
		}
		if n := s.Stats().Ended[Guessing]; n != 1 {
			t.Errorf("%d connections ended for it, want 1 (allocation %t)", n, holds)
		}
	}
}

// A few wrong ones are anybody's: the right one is still taken.
func TestServe_ForgivesWrongCredentials(t *testing.T) {
	s := newServer(t, nil)
	newShards(t, s, 1, nil)
	c := dial(t, serve(t, s, listen(t)))
	c.password = "old"
	for range maxRefused - 1 {
		if got := code(c.ask(stun.MethodRefresh)); got != 401 {
			t.Errorf("a wrong password: %d", got)
		}
	}
	c.password = "wonder"
	c.channel()
}
