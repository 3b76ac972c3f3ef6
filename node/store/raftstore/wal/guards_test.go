// SPDX-License-Identifier: Apache-2.0

package wal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// files returns what the files of a log hold, by their names.
func files(t *testing.T, l *Log) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, s := range l.segments {
		data, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		all[s.path] = data
	}
	return all
}

// TestOpen_WhatWasReplacedStaysGone replaces all entries, or removes them, and has
// the power fail before the old files are gone: they do not come back, whatever
// was removed from the new one since.
func TestOpen_WhatWasReplacedStaysGone(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(l *Log) error
		want []uint64
	}{
		"replaced from behind a gap": {func(l *Log) error { return l.StoreLog(entry(100, 2, "")) }, []uint64{100}},
		"and cut since": {func(l *Log) error {
			return errors.Join(l.StoreLogs([]*raft.Log{entry(100, 2, ""), entry(101, 2, "")}), l.DeleteRange(101, 101))
		}, []uint64{100}},
		"removed":                {func(l *Log) error { return l.DeleteRange(1, 9) }, nil},
		"removed, and more came": {func(l *Log) error { return errors.Join(l.DeleteRange(1, 9), l.StoreLog(entry(10, 2, ""))) }, []uint64{10}},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustOpen(t, t.TempDir())
			fill(t, l, 1, 9, strings.Repeat("x", testSize/3))
			old := files(t, l)
			if err := tt.do(l); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			for path, data := range old {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is there: %v", path, err)
				}
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := indexes(contents(t, mustOpen(t, l.dir))); len(old) < 2 || !slices.Equal(got, tt.want) {
				t.Errorf("of %d files it has %v, want %v", len(old), got, tt.want)
			}
		})
	}
}

// TestOpen_MissesNothingAcknowledged takes what was on disk away from the newest
// file in ways that look like an append that was cut short, or like none: entries
// that came later tell, and the size of the file.
func TestOpen_MissesNothingAcknowledged(t *testing.T) {
	for name, take := range map[string]func(data []byte, l *Log) []byte{
		"a sector of an entry that others follow": func(data []byte, l *Log) []byte {
			from := l.segments[0].offsets[1]/sector*sector + sector
			clear(data[from : from+sector])
			return data
		},
		"an entry that others follow": func(data []byte, l *Log) []byte {
			clear(data[l.segments[0].offsets[1]:l.segments[0].offsets[2]])
			return data
		},
		"the end of the file, from an entry on": func(data []byte, l *Log) []byte { return data[:l.segments[0].offsets[2]] },
		"the end of the file, with nothing in it": func(data []byte, l *Log) []byte {
			return data[:(l.segments[0].end+sector-1)/sector*sector]
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustOpen(t, t.TempDir())
			for i := range uint64(3) {
				put(t, l, entry(i+1, 1, strings.Repeat("x", 3*sector)))
			}
			if len(l.segments) != 1 {
				t.Fatalf("there are %d files, want one", len(l.segments))
			}
			path := filepath.Join(l.dir, segmentName(1))
			data := take(files(t, l)[path], l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if l, err := open(l.dir, testSize); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
				if err == nil {
					t.Errorf("it has %v", indexes(contents(t, l)))
					_ = l.Close()
				}
			}
		})
	}
}

// TestGetLog_OfAnotherPlace has a disk give back another entry of the same size.
func TestGetLog_OfAnotherPlace(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	fill(t, l, 1, 3, "data")
	s := l.segments[0]
	record := make([]byte, s.offsets[1]-s.offsets[0])
	if _, err := s.file.ReadAt(record, s.offsets[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.file.WriteAt(record, s.offsets[1]); err != nil {
		t.Fatal(err)
	}
	if err := l.GetLog(2, new(raft.Log)); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
}

// TestDeleteRange_KeepsTheRest removes the oldest entries up to each, over the
// ends of files.
func TestDeleteRange_KeepsTheRest(t *testing.T) {
	for to := range uint64(9) {
		l := mustOpen(t, t.TempDir())
		for i := range uint64(9) {
			put(t, l, entry(i+1, 1, strings.Repeat("x", testSize/3)))
		}
		if err := l.DeleteRange(1, to); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, l); len(got) != int(9-to) || got[0].Index != to+1 {
			t.Errorf("without the first %d it has %v", to, indexes(got))
		}
		if n := len(l.segments); n > 1 && l.segments[1].base <= to+1 {
			t.Errorf("without the first %d it keeps a file that nothing needs, of %d", to, n)
		}
	}
}
