// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hashicorp/raft"
)

// countedLog counts what is read of it.
type countedLog struct {
	*raft.InmemStore
	reads int
	err   error // of writes
}

func (c *countedLog) GetLog(index uint64, log *raft.Log) error {
	c.reads++
	return c.InmemStore.GetLog(index, log)
}

func (c *countedLog) StoreLogs(logs []*raft.Log) error {
	if c.err != nil {
		return c.err
	}
	return c.InmemStore.StoreLogs(logs)
}

// What the cache holds is bounded in bytes, not only in entries.
func TestLogCache_IsBoundedInBytes(t *testing.T) {
	for name, tt := range map[string]struct {
		size, entries, want int
	}{
		"small":              {10, 2 * cachedLogs, cachedLogs},
		"large":              {500 << 10, 100, cachedBytes / (500<<10 + entryOverhead)},
		"one that is larger": {cachedBytes, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			logs := &countedLog{InmemStore: raft.NewInmemStore()}
			c := &logCache{LogStore: logs}
			for i := range tt.entries {
				if err := c.StoreLog(&raft.Log{Index: uint64(i + 1), Data: bytes.Repeat([]byte{byte(i)}, tt.size)}); err != nil {
					t.Fatal(err)
				}
				if c.bytes > cachedBytes {
					t.Fatalf("%d bytes are held, at most %d may be", c.bytes, cachedBytes)
				}
			}
			for i := range tt.entries {
				var log raft.Log
				if err := c.GetLog(uint64(i+1), &log); err != nil || log.Index != uint64(i+1) || len(log.Data) != tt.size || log.Data[0] != byte(i) {
					t.Fatalf("entry %d: %d with %d bytes, %v", i+1, log.Index, len(log.Data), err)
				}
			}
			if cached := tt.entries - logs.reads; cached != tt.want {
				t.Errorf("%d entries came from memory, want %d", cached, tt.want)
			}
		})
	}
}

// An entry that took the place of another one is not read as that.
func TestLogCache_ForgetsWhatWent(t *testing.T) {
	logs := &countedLog{InmemStore: raft.NewInmemStore()}
	c := &logCache{LogStore: logs}
	store := func(term uint64, from, to uint64) {
		t.Helper()
		for i := from; i <= to; i++ {
			if err := c.StoreLog(&raft.Log{Index: i, Term: term}); err != nil {
				t.Fatal(err)
			}
		}
	}
	terms := func(want ...uint64) {
		t.Helper()
		for i, term := range want {
			var log raft.Log
			err := c.GetLog(uint64(i+1), &log)
			if term == 0 && !errors.Is(err, raft.ErrLogNotFound) || term > 0 && (err != nil || log.Term != term) {
				t.Errorf("entry %d: term %d, %v; want term %d", i+1, log.Term, err, term)
			}
		}
	}
	store(1, 1, 4)
	if err := c.DeleteRange(3, 4); err != nil {
		t.Fatal(err)
	}
	terms(1, 1, 0, 0)
	store(2, 3, 3)
	terms(1, 1, 2, 0)
	store(3, 7, 8) // after a snapshot, from another leader
	terms(1, 1, 2, 0, 0, 0, 3, 3)
	store(4, 8, 8)
	terms(1, 1, 2, 0, 0, 0, 3, 4)
	logs.err = errors.New("full")
	if err := c.StoreLog(&raft.Log{Index: 9}); !errors.Is(err, logs.err) {
		t.Errorf("a write that failed: %v", err)
	}
	terms(1, 1, 2, 0, 0, 0, 3, 4, 0)
}
