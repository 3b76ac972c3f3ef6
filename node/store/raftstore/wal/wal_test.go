// SPDX-License-Identifier: Apache-2.0

package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

func entry(index, term uint64, data string) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte(data), AppendedAt: time.Unix(int64(index), 5)}
}

// testSize makes files small, so that there are several soon.
const testSize = 8 << 10

func mustOpen(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := open(dir, testSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func reopen(t testing.TB, l *Log) *Log {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, l.dir)
}

func put(t testing.TB, l *Log, logs ...*raft.Log) {
	t.Helper()
	if err := l.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

// fill appends entries in appends of several.
func fill(t testing.TB, l *Log, from, to uint64, data string) {
	t.Helper()
	for i := from; i <= to; i += 3 {
		var logs []*raft.Log
		for j := i; j < i+3 && j <= to; j++ {
			logs = append(logs, entry(j, 1, fmt.Sprintf("%d%s", j, data)))
		}
		put(t, l, logs...)
	}
}

// contents returns all entries that the log says it has.
func contents(t testing.TB, l *Log) []raft.Log {
	t.Helper()
	first, err := l.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := l.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	var all []raft.Log
	for i := max(first, 1); i <= last; i++ {
		var log raft.Log
		if err := l.GetLog(i, &log); err != nil {
			t.Fatalf("entry %d of %d to %d: %v", i, first, last, err)
		}
		all = append(all, log)
	}
	return all
}

func indexes(logs []raft.Log) []uint64 {
	var list []uint64
	for _, log := range logs {
		list = append(list, log.Index)
	}
	return list
}

// TestLog_IsAList compares the log with a slice over random operations,
// restarts and files of a few entries each.
func TestLog_IsAList(t *testing.T) {
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 1))
		l := mustOpen(t, t.TempDir())
		var want []raft.Log
		next := uint64(1)
		big := bytes.Repeat([]byte("x"), testSize/3)
		for range 20 {
			switch random.IntN(6) {
			case 0, 1:
				var logs []*raft.Log
				for range 1 + random.IntN(4) {
					log := entry(next, 1+random.Uint64N(9), string(big[:random.IntN(20)]))
					if len(log.Data) == 0 {
						log.Data = nil
					}
					if random.IntN(3) == 0 {
						log.Data = big
					}
					if random.IntN(2) == 0 {
						log.Extensions, log.AppendedAt = []byte("e"), time.Time{}
					}
					logs, want, next = append(logs, log), append(want, *log), next+1
				}
				put(t, l, logs...)
			case 2: // remove the oldest
				if len(want) > 0 {
					n := 1 + random.IntN(len(want))
					if err := l.DeleteRange(want[0].Index, want[n-1].Index); err != nil {
						t.Fatal(err)
					}
					want = want[n:]
				}
			case 3: // remove the newest
				if len(want) > 1 {
					n := 1 + random.IntN(len(want)-1)
					if err := l.DeleteRange(want[n].Index, want[len(want)-1].Index); err != nil {
						t.Fatal(err)
					}
					next = want[n].Index
					want = want[:n]
				}
			case 4: // continue behind a gap
				next += 1 + random.Uint64N(5)
				log := entry(next, 1, "gap")
				put(t, l, log)
				want, next = []raft.Log{*log}, next+1
			case 5:
				l = reopen(t, l)
				got := contents(t, l)
				if len(got) < len(want) { // some that were removed may be back
					t.Fatalf("after a restart there are %d entries, want %d", len(got), len(want))
				}
				want = got
			}
			if diff := cmp.Diff(want, contents(t, l)); diff != "" && len(want)+len(contents(t, l)) > 0 {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		}
	}
}

func TestLog_Refuses(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	fill(t, l, 1, 9, "")
	for name, err := range map[string]error{
		"an index again":        l.StoreLog(entry(9, 1, "")),
		"index 0":               l.StoreLog(entry(0, 1, "")),
		"entries out of order":  l.StoreLogs([]*raft.Log{entry(10, 1, ""), entry(12, 1, "")}),
		"an entry too large":    l.StoreLog(&raft.Log{Index: 10, Data: make([]byte, maxPayload)}),
		"removal in the middle": l.DeleteRange(3, 4),
	} {
		if err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if err := l.GetLog(10, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("got %v, want ErrLogNotFound", err)
	}
	put(t, l, entry(10, 1, ""))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLog(entry(11, 1, "")); !errors.Is(err, ErrBroken) {
		t.Errorf("after Close: got %v, want ErrBroken", err)
	}
}

// TestLog_Sync shows what counts as being on disk: what Sync or StoreLogs saw,
// up to where the log was cut.
func TestLog_Sync(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	write := func(from, to uint64, size int) {
		t.Helper()
		for i := from; i <= to; i++ {
			if err := l.Write([]*raft.Log{entry(i, 1, strings.Repeat("x", size))}); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(what string, index uint64) {
		t.Helper()
		if got := l.Synced(); got != index {
			t.Errorf("%s: synced up to %d, want %d", what, got, index)
		}
	}
	sync := func() {
		t.Helper()
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	write(1, 3, 1)
	want("written", 0)
	sync()
	want("synced", 3)
	write(4, 5, 1)
	put(t, l, entry(6, 1, ""))
	want("stored", 6)
	write(7, 9, 1)
	if err := l.DeleteRange(8, 9); err != nil {
		t.Fatal(err)
	}
	want("cut", 7)
	write(8, 9, 1)
	want("written behind the cut", 7)
	write(10, 10, testSize) // another file
	want("the files before", 9)
	sync()
	want("the new file", 10)
	if err := l.DeleteRange(1, 10); err != nil {
		t.Fatal(err)
	}
	want("emptied", 10)
	put(t, l, entry(20, 1, "behind a gap"))
	want("behind a gap", 20)
	write(21, 21, 1)
	l = reopen(t, l)
	want("opened", 21)
}

// TestLog_FailedSync shows that nothing counts as synced after a failure.
func TestLog_FailedSync(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	fill(t, l, 1, 3, "")
	if err := l.Write([]*raft.Log{entry(4, 1, "")}); err != nil {
		t.Fatal(err)
	}
	if err := l.segments[0].file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(); err == nil {
		t.Error("a sync of a broken file succeeded")
	}
	if err := l.Sync(); !errors.Is(err, ErrBroken) || l.Synced() != 3 {
		t.Errorf("got %v and %d entries, want ErrBroken and 3", err, l.Synced())
	}
}

// TestLog_SyncCountsWhatWasThereWhenItBegan appends while a sync is under way,
// which may have passed the place of the new entry already.
func TestLog_SyncCountsWhatWasThereWhenItBegan(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	put(t, l, entry(1, 1, ""), entry(2, 1, ""))
	begun, release := make(chan struct{}), make(chan struct{})
	l.sync = func(file *os.File) error {
		close(begun)
		<-release
		return syncData(file)
	}
	write := func(index uint64) {
		t.Helper()
		if err := l.Write([]*raft.Log{entry(index, 1, "")}); err != nil {
			t.Error(err)
		}
	}
	write(3)
	done := make(chan error, 1)
	go func() { done <- l.Sync() }()
	<-begun
	write(4)
	if got := l.Synced(); got != 2 {
		t.Errorf("synced up to %d while the disk is at it, want 2", got)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := l.Synced(); got != 3 {
		t.Errorf("synced up to %d, want 3: entry 4 came later", got)
	}
	l.sync = syncData
	if err := l.Sync(); err != nil || l.Synced() != 4 {
		t.Errorf("the next sync: up to %d, %v", l.Synced(), err)
	}
}

// TestLog_FilesChangeWhenAllIsOnDisk shows that what was written is synced
// before a file comes or goes: nothing syncs an older file later.
func TestLog_FilesChangeWhenAllIsOnDisk(t *testing.T) {
	big := strings.Repeat("x", testSize)
	for name, change := range map[string]func(l *Log) error{
		"a file more":    func(l *Log) error { return l.Write([]*raft.Log{entry(4, 1, big)}) },
		"behind a gap":   func(l *Log) error { return l.Write([]*raft.Log{entry(9, 1, "")}) },
		"the oldest go":  func(l *Log) error { return l.DeleteRange(1, 2) },
		"the newest go":  func(l *Log) error { return l.DeleteRange(3, 3) },
		"all of them go": func(l *Log) error { return l.DeleteRange(1, 3) },
	} {
		t.Run(name, func(t *testing.T) {
			l := mustOpen(t, t.TempDir())
			put(t, l, entry(1, 1, ""))
			if err := l.Write([]*raft.Log{entry(2, 1, ""), entry(3, 1, "")}); err != nil {
				t.Fatal(err)
			}
			before := l.segments[0]
			syncs := 0
			l.sync = func(file *os.File) error {
				syncs++
				bases, err := list(l.dir)
				if err != nil || !slices.Equal(bases, []uint64{1}) || file != before.file || len(before.offsets) != 3 {
					t.Errorf("synced when the files were %v, %v", bases, err)
				}
				return syncData(file)
			}
			if err := change(l); err != nil || syncs != 1 {
				t.Errorf("%d syncs before it, %v", syncs, err)
			}
		})
		t.Run(name+", but the disk fails", func(t *testing.T) {
			l := mustOpen(t, t.TempDir())
			put(t, l, entry(1, 1, ""))
			if err := l.Write([]*raft.Log{entry(2, 1, ""), entry(3, 1, "")}); err != nil {
				t.Fatal(err)
			}
			l.sync = func(*os.File) error { return syscall.EIO }
			if err := change(l); !errors.Is(err, syscall.EIO) {
				t.Errorf("got %v, want that of the disk", err)
			}
			if bases, err := list(l.dir); err != nil || !slices.Equal(bases, []uint64{1}) || len(l.segments[0].offsets) != 3 {
				t.Errorf("the files are %v, %v", bases, err)
			}
			if err := change(l); !errors.Is(err, ErrBroken) || l.Synced() != 1 {
				t.Errorf("again: got %v and %d entries on disk, want ErrBroken and 1", err, l.Synced())
			}
		})
	}
}

// TestLog_FailedWrite shows that nothing is taken after a write failed.
func TestLog_FailedWrite(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	fill(t, l, 1, 3, "")
	if err := l.segments[0].file.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.StoreLog(entry(4, 1, "")); err == nil {
			t.Error("an append to a broken file was acknowledged")
		}
	}
	if last, _ := l.LastIndex(); last != 3 {
		t.Errorf("last index is %d, want 3", last)
	}
	if err := l.DeleteRange(1, 1); !errors.Is(err, ErrBroken) {
		t.Errorf("got %v, want ErrBroken", err)
	}
}

// TestOpen_TornAppend cuts the last append at every sector, as if the power
// had gone while it was written, in any order of the sectors.
func TestOpen_TornAppend(t *testing.T) {
	t.Run("one", func(t *testing.T) {
		tear(t, func(l *Log, logs []*raft.Log) { put(t, l, logs...) })
	})
	t.Run("several that were not synced", func(t *testing.T) {
		tear(t, func(l *Log, logs []*raft.Log) {
			for _, log := range logs {
				if err := l.Write([]*raft.Log{log}); err != nil {
					t.Fatal(err)
				}
			}
			if got := l.Synced(); got != 9 {
				t.Fatalf("synced up to %d, want 9", got)
			}
		})
	})
}

func tear(t *testing.T, write func(l *Log, logs []*raft.Log)) {
	t.Helper()
	dir := t.TempDir()
	l := mustOpen(t, dir)
	fill(t, l, 1, 9, "acknowledged")
	before := l.segments[0].end
	random := rand.New(rand.NewPCG(1, 2))
	var torn []*raft.Log
	for i := uint64(10); i < 14; i++ {
		data := make([]byte, 700)
		for j := range data {
			data[j] = byte(1 + random.IntN(255))
		}
		torn = append(torn, entry(i, 2, string(data)))
	}
	write(l, torn)
	after := l.segments[0].end
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 60 {
		data := slices.Clone(whole)
		lost := 0
		for start := before / sector * sector; start < after; start += sector {
			if round > 0 && random.IntN(2) == 0 {
				continue // this one was written
			}
			lost++
			for i := max(start, before); i < start+sector; i++ {
				data[i] = 0
			}
		}
		if lost == 0 {
			continue
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			l := mustOpen(t, dir)
			got := contents(t, l)
			if len(got) < 9 || len(got) > 12 || !slices.Equal(indexes(got), []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}[:len(got)]) {
				t.Fatalf("round %d: got entries %v, want all that was acknowledged", round, indexes(got))
			}
			next := uint64(len(got)) + 1
			put(t, l, entry(next, 3, "next"))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, dir)
			if last, _ := l.LastIndex(); last != next {
				t.Fatalf("round %d: last index is %d, want %d", round, last, next)
			}
			if err := l.DeleteRange(next, next); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOpen_FindsEveryFlippedBit changes single bits of all that is in use, the
// last append included.
func TestOpen_FindsEveryFlippedBit(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	fill(t, l, 1, 20, " some data")
	want := contents(t, l)
	used := int(l.segments[0].end)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i := range used {
		for bit := range 8 {
			if _, err := file.WriteAt([]byte{whole[i] ^ 1<<bit}, int64(i)); err != nil {
				t.Fatal(err)
			}
			l, err := open(dir, testSize)
			if err == nil {
				t.Errorf("bit %d of byte %d was changed: opened with %v", bit, i, indexes(contents(t, l)))
				_ = l.Close()
			} else if !errors.Is(err, ErrDamaged) {
				t.Errorf("bit %d of byte %d was changed: got %v, want ErrDamaged", bit, i, err)
			}
			if i%16 != 0 {
				break // all bits of some bytes are enough
			}
		}
		if _, err := file.WriteAt(whole[i:i+1], int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, contents(t, mustOpen(t, dir))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOpen_DamageWhileOpen changes a byte under an open log.
func TestOpen_DamageWhileOpen(t *testing.T) {
	l := mustOpen(t, t.TempDir())
	fill(t, l, 1, 3, "data")
	if _, err := l.segments[0].file.WriteAt([]byte{0xff}, l.segments[0].offsets[1]+headerSize+2); err != nil {
		t.Fatal(err)
	}
	if err := l.GetLog(2, new(raft.Log)); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
}

func TestOpen_Files(t *testing.T) {
	make3 := func(t *testing.T) string {
		dir := t.TempDir()
		l := mustOpen(t, dir)
		for i := range uint64(9) {
			put(t, l, entry(i+1, 1, string(bytes.Repeat([]byte("x"), testSize/3))))
		}
		if len(l.segments) < 3 {
			t.Fatalf("there are %d files, want several", len(l.segments))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Run("one in the middle is missing", func(t *testing.T) {
		dir := make3(t)
		bases, err := list(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, segmentName(bases[1]))); err != nil {
			t.Fatal(err)
		}
		if _, err := open(dir, testSize); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v, want ErrDamaged", err)
		}
	})
	t.Run("one in the middle is cut short", func(t *testing.T) {
		dir := make3(t)
		if err := os.Truncate(filepath.Join(dir, segmentName(1)), testSize/2); err != nil {
			t.Fatal(err)
		}
		if _, err := open(dir, testSize); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v, want ErrDamaged", err)
		}
	})
	t.Run("an older one seems torn", func(t *testing.T) {
		// No power cut tears it: a newer one was begun when it was on disk. It
		// shows what happened, and stays as it is.
		dir := make3(t)
		path := filepath.Join(dir, segmentName(1))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		offsets, end, err := scan(data, 1)
		if err != nil || end-offsets[len(offsets)-1] < 3*sector {
			t.Fatalf("entries at %v up to %d, %v", offsets, end, err)
		}
		clear(data[end/sector*sector-sector : end/sector*sector])
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := open(dir, testSize); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), segmentName(1)) {
				t.Errorf("got %v, want ErrDamaged in %s", err, segmentName(1))
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, data) {
				t.Errorf("the file that was refused is another one now, %v", err)
			}
		}
	})
	t.Run("one that was not finished", func(t *testing.T) {
		dir := make3(t)
		left := filepath.Join(dir, segmentName(77)+".tmp")
		if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := len(contents(t, mustOpen(t, dir))); n != 9 {
			t.Errorf("got %d entries, want 9", n)
		}
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the unfinished file is still there: %v", err)
		}
	})
	t.Run("older ones are void", func(t *testing.T) {
		dir := make3(t)
		s, err := createSegment(dir, 20, testSize, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.file.Close(); err != nil {
			t.Fatal(err)
		}
		l := mustOpen(t, dir)
		if n := len(contents(t, l)); n != 0 {
			t.Errorf("got %d entries, want none", n)
		}
		put(t, l, entry(20, 1, ""))
	})
	t.Run("a stranger", func(t *testing.T) {
		dir := make3(t)
		if err := os.WriteFile(filepath.Join(dir, "x.log"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(dir, testSize); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v, want ErrDamaged", err)
		}
	})
}

// FuzzScan reads a file of any bytes.
func FuzzScan(f *testing.F) {
	dir := f.TempDir()
	l := mustOpen(f, dir)
	fill(f, l, 1, 5, "data")
	end := l.segments[0].end
	whole, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:end])
	f.Add(whole[:end+600])
	f.Add(whole[:end-9])
	f.Fuzz(func(t *testing.T, data []byte) {
		offsets, end, err := scan(data, 1)
		if err != nil {
			return
		}
		if end < fileHeader || end > int64(len(data)) {
			t.Fatalf("%d bytes end at %d", len(data), end)
		}
		for i, offset := range offsets {
			h, err := decodeHeader(data[offset:])
			if err != nil || h.index != uint64(i)+1 {
				t.Errorf("entry %d: got %+v, %v", i, h, err)
			}
		}
		torn, err := inspectTail(data[end:], end, uint64(len(offsets))+1)
		if err == nil && !blank(data[end+torn:]) {
			t.Error("something stays behind the tail")
		}
	})
}

func BenchmarkStoreLogs(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			l, err := Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			data := string(make([]byte, 200))
			next := uint64(1)
			for b.Loop() {
				logs := make([]*raft.Log, n)
				for i := range logs {
					logs[i] = entry(next, 1, data)
					next++
				}
				put(b, l, logs...)
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
