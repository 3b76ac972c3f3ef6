// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

// entries makes log entries of which each writes a key; "?" is one that this
// program does not understand, "!" a configuration.
func entries(t *testing.T, first uint64, keys ...string) []*raft.Log {
	t.Helper()
	var logs []*raft.Log
	for i, key := range keys {
		log := &raft.Log{Index: first + uint64(i), Term: 1, Type: raft.LogCommand}
		switch key {
		case "?":
			log.Data = []byte("no snappy block")
		case "!":
			log.Type = raft.LogConfiguration
		default:
			data, err := encodeBatch(batch(key), time.Unix(1, 0))
			if err != nil {
				t.Fatal(err)
			}
			log.Data = data
		}
		logs = append(logs, log)
	}
	return logs
}

// TestFSM_StopsAtWhatItDoesNotUnderstand shows that nothing behind such an entry
// is applied, in its batch or later, nor becomes part of a snapshot.
func TestFSM_StopsAtWhatItDoesNotUnderstand(t *testing.T) {
	tests := []struct {
		name    string
		batches [][]string
		want    []string // keys
		applied uint64   // index of the last entry
	}{
		{"first", [][]string{{"?", "b"}}, nil, 0},
		{"between", [][]string{{"a", "?", "b"}}, []string{"a"}, 1},
		{"behind a configuration", [][]string{{"a", "!", "?", "!", "b"}}, []string{"a"}, 2},
		{"last", [][]string{{"a", "b", "?"}}, []string{"a", "b"}, 2},
		{"in a batch before", [][]string{{"a", "?"}, {"b"}, {"!", "c"}}, []string{"a"}, 1},
		{"alone", [][]string{{"a"}, {"?"}, {"b"}}, []string{"a"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			applied := uint64(0)
			f := &fsm{
				state: kv.New(), failure: newFailure(slog.New(slog.DiscardHandler)), members: newMembers(),
				applied: func(_, index uint64) { applied = index },
			}
			next, wrong := uint64(1), error(nil)
			for _, keys := range tt.batches {
				answers := f.ApplyBatch(entries(t, next, keys...))
				for i, key := range keys {
					next++
					if key == "!" {
						continue
					}
					got := answers[i].(outcome)
					if wrong == nil && key == "?" {
						wrong = got.err
					}
					if got.err != wrong || (key == "?") && wrong == nil {
						t.Errorf("answer to entry %d (%s): %v, want %v", next-1, key, got.err, wrong)
					}
				}
			}
			if applied != tt.applied {
				t.Errorf("the last entry applied is %d, want %d", applied, tt.applied)
			}
			if err := f.failure.err; err == nil || err != wrong || !strings.HasPrefix(err.Error(), "log entry ") {
				t.Errorf("the store failed with %v, want the error of the entry, %v", err, wrong)
			}
			list, version, err := f.state.List("")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range list {
				got = append(got, e.Key)
			}
			if !slices.Equal(got, tt.want) || version > applied {
				t.Errorf("it holds %q at version %d, want %q", got, version, tt.want)
			}
			if _, err := f.Snapshot(); !errors.Is(err, wrong) {
				t.Errorf("snapshot: got %v, want %v", err, wrong)
			}
		})
	}
}

// TestFSM_GoesOnFromASnapshot gives one that stopped the state of another one,
// who understood.
func TestFSM_GoesOnFromASnapshot(t *testing.T) {
	f := &fsm{state: kv.New(), failure: newFailure(slog.New(slog.DiscardHandler)), members: newMembers()}
	f.ApplyBatch(entries(t, 1, "?"))
	var snapshot bytes.Buffer
	all := []store.Entry{{Key: "a", Version: 1}}
	if err := writeSnapshot(&snapshot, slices.Values(all), 1, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := f.Restore(io.NopCloser(&snapshot)); err != nil {
		t.Fatal(err)
	}
	if got := f.Apply(entries(t, 2, "b")[0]).(outcome); got != (outcome{version: 2}) {
		t.Errorf("got %+v, want version 2", got)
	}
	if _, err := f.Snapshot(); err != nil {
		t.Error(err)
	}
}
