// SPDX-License-Identifier: Apache-2.0

package core

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"
)

// spending is a Guesses of which a test says what is spent.
type spending struct {
	spent   map[bool]bool // by proven
	refused []string
}

func (s *spending) Spent(_ netip.Addr, proven bool) bool { return s.spent[proven] }
func (s *spending) Refused(from netip.Addr, proven bool) {
	s.refused = append(s.refused, from.String()+" "+strconv.FormatBool(proven))
}

func guessWorld(t *testing.T) (*world, *spending) {
	s := &spending{spent: map[bool]bool{}}
	return newWorld(t, func(cfg *Config) {
		cfg.Guesses = s
		cfg.Authenticator = accounts(func(name string) (Account, bool) {
			a := Account{User: name, Keys: []Key{NewKey(name, "meshgate", "x")}, Drawn: name == "drawn", Awaited: name == "awaited"}
			if name == "ended" {
				a.Expires = start.Add(-time.Hour)
			}
			return a, name != "nobody"
		})
	}), s
}

// What is refused for its key or its name is counted, with whether the address is
// the client's own.
func TestGuesses_CountWhatIsRefused(t *testing.T) {
	w, s := guessWorld(t)
	for _, test := range []struct {
		listener       uint16
		user, password string
		nonce          string
		want           []string
	}{
		{udp4, "chosen", "x", "", nil},
		{udp4, "chosen", "y", "", []string{"192.0.2.1 true"}},
		{tcp4, "chosen", "y", "", []string{"192.0.2.1 true"}},
		{udp4, "drawn", "y", "", []string{"192.0.2.1 true"}},
		{udp4, "nobody", "y", "", []string{"192.0.2.1 true"}},
		{udp6, "chosen", "y", "", []string{"2001:db8:c::1 true"}},
		{udp4, "chosen", "y", "0123456789abcdef", []string{"192.0.2.1 false"}},
		{tcp4, "chosen", "y", "0123456789abcdef", []string{"192.0.2.1 true"}},
		{udp4, "chosen", "x", "0123456789abcdef", nil}, // only stale
		{udp4, "awaited", "y", "", nil},
		{udp4, "ended", "x", "", nil}, // it was right
	} {
		s.refused = nil
		c := w.client(test.listener, 1).as(test.user, test.password)
		c.nonce = test.nonce
		c.ask(methodRefresh)
		if !slices.Equal(s.refused, test.want) {
			t.Errorf("%+v: counted %q", test, s.refused)
		}
	}
}

// Who has had too many refused is told nothing of a credential that can be guessed,
// right or wrong; a drawn one that is right comes in, and who has an allocation
// keeps it.
func TestGuesses_SpentIsSilence(t *testing.T) {
	for _, listener := range []uint16{udp4, tcp4} {
		w, s := guessWorld(t)
		holder := w.client(listener, 1).as("chosen", "x")
		holder.allocate()
		forged := w.client(listener, 2).as("chosen", "x")
		forged.nonce = "0123456789abcdef"
		clients := map[string]*client{}
		for _, name := range []string{"chosen", "drawn", "nobody"} {
			for _, password := range []string{"x", "y"} {
				c := w.client(listener, 3+len(clients)).as(name, password)
				c.signed(methodRefresh) // has a nonce
				clients[name+" "+password] = c
			}
		}
		s.spent[true] = true
		for who, want := range map[string]string{
			"chosen x": "none", "chosen y": "none", "drawn x": "437", "drawn y": "none", "nobody x": "none", "nobody y": "none",
		} {
			if got := clients[who].ask(methodRefresh); got != want {
				t.Errorf("%s: %s, want %s", who, got, want)
			}
		}
		if got, want := w.core.Stats().Failed[FailedGuessing], uint64(5); got != want || w.core.Refused() != want {
			t.Errorf("%d were silent, %d refused; want %d", got, w.core.Refused(), want)
		}
		if n := len(s.refused); n != 1 { // the others were not tried
			t.Errorf("%d were counted, want 1", n)
		}
		if got := clients["chosen x"].exchange(clients["chosen x"].unsigned(methodAllocate, classRequest, udp())); got[:3] != "401" {
			t.Errorf("without a credential: %s", got)
		}
		holder.must(methodRefresh)
		holder.password = "y"
		if got := holder.ask(methodRefresh); got != "none" {
			t.Errorf("a guess of who has an allocation: %s", got)
		}
		holder.username, holder.password = "other", "x"
		if got := holder.ask(methodRefresh); got != "none" {
			t.Errorf("another user on its 5-tuple: %s", got)
		}
		want := "438"
		if listener == tcp4 {
			want = "non" // its address is known whatever its nonce
		}
		if got := forged.ask(methodRefresh); got[:3] != want {
			t.Errorf("with a nonce of nobody: %s, want %s", got, want)
		}
		s.spent = map[bool]bool{false: true}
		if got := clients["chosen x"].ask(methodRefresh); got != "437" {
			t.Errorf("others have guessed in its name: %s, want 437", got)
		}
	}
}
