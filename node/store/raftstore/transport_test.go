// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestTransport_WhoIsToldOfACommit has entry 7 of term 2 committed.
func TestTransport_WhoIsToldOfACommit(t *testing.T) {
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		p    progress
		late time.Time
		want bool
	}{
		"after a while":                      {progress{term: 2, stored: 7, told: 6}, past, true},
		"not before the next entries may be": {progress{term: 2, stored: 7, told: 6}, future, false},
		"at once where it is waited for":     {progress{term: 2, stored: 7, told: 6, wanted: 7}, future, true},
		"not again for what it was told":     {progress{term: 2, stored: 7, told: 6, wanted: 6}, future, false},
		"who knows":                          {progress{term: 2, stored: 7, told: 7, wanted: 7}, past, false},
		"who does not have it":               {progress{term: 2, stored: 6, told: 5, wanted: 7}, past, false},
		"who has that of another term":       {progress{term: 1, stored: 7, told: 6, wanted: 7}, past, false},
		"not if entries are telling it":      {progress{term: 2, stored: 7, told: 6, tells: 7}, past, false},
		"if entries tell of an earlier one":  {progress{term: 2, stored: 7, told: 5, tells: 6}, past, true},
		"at once, whatever entries tell":     {progress{term: 2, stored: 7, told: 6, tells: 7, wanted: 7}, past, true},
	} {
		x := &transport{commit: commitMark{term: 2, index: 7}, late: c.late}
		if got := x.dueLocked(&c.p); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestTransport_EntriesOnTheirWay follows what entries tell a replica of, until
// they are answered or lost.
func TestTransport_EntriesOnTheirWay(t *testing.T) {
	entries := &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 7, Entries: []*raft.Log{{Index: 8, Term: 2}}, LeaderCommitIndex: 7}
	notice := &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 7, LeaderCommitIndex: 7}
	refused := func(x *transport) { x.answered("b", "", 1, entries, &raft.AppendEntriesResponse{Term: 2}) }
	for name, c := range map[string]struct {
		do    func(*transport)
		tells uint64
	}{
		"on their way": {func(*transport) {}, 7},
		"answered": {func(x *transport) {
			x.answered("b", "", 1, entries, &raft.AppendEntriesResponse{Term: 2, Success: true})
		}, 0},
		"refused":                 {refused, 0},
		"lost":                    {func(x *transport) { x.failed("b", entries, time.Now()) }, 0},
		"something else answered": {func(x *transport) { x.answered("b", "", 1, notice, &raft.AppendEntriesResponse{Term: 2}) }, 7},
		"something else lost":     {func(x *transport) { x.failed("b", notice, time.Now()) }, 7},
	} {
		x := &transport{
			peers: map[raft.ServerID]*progress{"b": {term: 2, stored: 7}}, moved: make(chan struct{}),
			commit: commitMark{2, 7}, late: time.Now().Add(time.Hour),
		}
		x.departs("b", notice, time.Now())
		if p := x.peers["b"]; p.tells != 0 {
			t.Errorf("%s: without entries it waits for %d", name, p.tells)
		}
		x.departs("b", entries, time.Now())
		c.do(x)
		if p := x.peers["b"]; p.tells != c.tells {
			t.Errorf("%s: tells of %d, want %d", name, p.tells, c.tells)
		}
	}
}
