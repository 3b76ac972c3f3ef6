// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/store"
)

// TestRounds_BeginAfterTheQuestion has questions come while none is asked, before
// a round begins, while it runs, and when it is over: none may join a round that
// began before.
func TestRounds_BeginAfterTheQuestion(t *testing.T) {
	var r rounds
	join := func(wantStart bool) *round {
		t.Helper()
		round, start := r.join()
		if start != wantStart {
			t.Errorf("told to start: %t, want %t", start, wantStart)
		}
		return round
	}
	first := join(true)
	if join(false) != first {
		t.Error("two questions before a round begins are not asked together")
	}
	if r.begin() != first {
		t.Fatal("the first round is not run")
	}
	second := join(false)
	if second == first || join(false) != second {
		t.Error("a question joined a round that began before it")
	}
	close(first.done)
	if join(false) != second || r.begin() != second {
		t.Fatal("the second round is not run")
	}
	close(second.done)
	if r.begin() != nil {
		t.Fatal("a round is run that nobody asked for")
	}
	if third := join(true); third == second || r.begin() != third {
		t.Error("a question joined a round that was over")
	}
}

// TestReadHere_OfOneRole asks a leader for a read, and answers the question
// whether it leads when it has lost the leadership and won it again: what it knew
// before is not of its new term.
func TestReadHere_OfOneRole(t *testing.T) {
	for _, again := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := openFaulty(t, "")
			defer s.Close()
			s.rounds.join() // the test runs the rounds
			type answer struct {
				version uint64
				err     error
			}
			answers := make(chan answer, 1)
			go func() {
				version, err := s.readHere(t.Context())
				answers <- answer{version, err}
			}()
			synctest.Wait()
			version, before := s.state.Version(), s.role.Load()
			if again {
				after := *before
				after.term++
				s.role.Store(&after)
			}
			close(s.rounds.begin().done)
			got := <-answers
			if again != errors.Is(got.err, store.ErrNotLeader) || !again && (got.err != nil || got.version != version) {
				t.Errorf("led by another term: %t; got version %d, %v", again, got.version, got.err)
			}
			s.rounds.begin()
		})
	}
}

// TestNextExpiry_OnlyLeads has a replica with a key that ends: who does not lead,
// or does not know yet what others acknowledged, removes nothing.
func TestNextExpiry_OnlyLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := openFaulty(t, "")
		defer s.Close()
		if _, err := s.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "k", TTL: time.Hour}}}); err != nil {
			t.Fatal(err)
		}
		leads := s.role.Load()
		defer s.role.Store(leads)
		for _, is := range []*role{leads, {leader: s.id}, {leader: "b"}, {}} {
			s.role.Store(is)
			if moved, expired := s.nextExpiry(time.Time{}); (moved != nil) != is.ready || (expired != nil) != is.ready {
				t.Errorf("%q leads, ready is %t: looks for changes %t, for ends %t", is.leader, is.ready, moved != nil, expired != nil)
			}
		}
	})
}
