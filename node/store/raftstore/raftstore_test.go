// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/store/storetest"
)

// logPath is the oldest file of the log.
var logPath = filepath.Join("log", "00000000000000000001.log")

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		os.Exit(writeForEver(dir))
	}
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	t.Run("Memory", func(t *testing.T) {
		storetest.Run(t, func(t testing.TB) store.Store { return mustOpen(t, raftstore.Config{}) })
	})
	t.Run("Disk", func(t *testing.T) {
		storetest.Run(t, func(t testing.TB) store.Store { return mustOpen(t, raftstore.Config{Dir: t.TempDir()}) })
	})
}

// open opens a store with the id "gw" unless cfg has another one.
func open(t testing.TB, cfg raftstore.Config) (*raftstore.Store, error) {
	t.Helper()
	if cfg.ID == "" {
		cfg.ID = "gw"
	}
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := raftstore.Open(cfg)
	if err == nil {
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	return s, err
}

// mustOpen opens a store and waits until it serves.
func mustOpen(t testing.TB, cfg raftstore.Config) *raftstore.Store {
	t.Helper()
	s, err := open(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Sync(ctx); err != nil {
		t.Fatalf("sync: %v", err)
	}
	return s
}

func put(t testing.TB, s store.Store, ops ...store.Op) uint64 {
	t.Helper()
	version, err := s.Apply(t.Context(), store.Batch{Ops: ops})
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return version
}

func list(t testing.TB, s store.Store) []store.Entry {
	t.Helper()
	entries, _, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func closeNow(t testing.TB, s *raftstore.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// fill writes all kinds of entries over several batches.
func fill(t testing.TB, s store.Store) {
	t.Helper()
	for i := range 20 {
		key := fmt.Sprintf("k%02d", i)
		put(t, s, store.Op{Key: key, Value: []byte(key)}, store.Op{Key: "last", Value: []byte(key)})
	}
	put(t, s, store.Op{Key: "k03", Delete: true})
	put(t, s, store.Op{Key: "binary", Value: []byte{0xff, 0}}, store.Op{Key: "empty"})
	put(t, s, store.Op{Key: "leased", Value: []byte("x"), TTL: time.Hour})
}

func TestRestart_KeepsEverything(t *testing.T) {
	for _, snapshot := range []string{"none", "before the end", "at the end"} {
		t.Run("snapshot "+snapshot, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, raftstore.Config{Dir: dir})
			if snapshot == "before the end" {
				put(t, s, store.Op{Key: "early", Value: []byte("x")})
				if err := s.Snapshot(); err != nil {
					t.Fatal(err)
				}
			}
			fill(t, s)
			if snapshot == "at the end" {
				if err := s.Snapshot(); err != nil {
					t.Fatal(err)
				}
			}
			want, version := list(t, s), s.Version()
			closeNow(t, s)
			for range 3 {
				s = mustOpen(t, raftstore.Config{Dir: dir})
				if diff := cmp.Diff(want, list(t, s)); diff != "" {
					t.Fatalf("state changed over a restart (-before +after):\n%s", diff)
				}
				if got := s.Version(); got != version {
					t.Fatalf("version is %d after a restart, want %d", got, version)
				}
				closeNow(t, s)
			}
			s = mustOpen(t, raftstore.Config{Dir: dir})
			if _, err := s.Apply(t.Context(), store.Batch{If: []store.Condition{{Key: "k01", Version: version}}, Ops: []store.Op{{Key: "k01"}}}); !errors.Is(err, store.ErrConflict) {
				t.Errorf("condition on another version: got %v, want ErrConflict", err)
			}
			if got := put(t, s, store.Op{Key: "next"}); got <= version {
				t.Errorf("next version is %d, want more than %d", got, version)
			}
		})
	}
}

func TestRestart_ExpiresWhatEndedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, raftstore.Config{Dir: dir})
	put(t, s, store.Op{Key: "short", TTL: time.Millisecond})
	closeNow(t, s) // the key may or may not have ended by now
	s = mustOpen(t, raftstore.Config{Dir: dir})
	entries, version, err := s.List(t.Context(), "short")
	if err != nil || len(entries) == 0 {
		return
	}
	for c, err := range s.Watch(t.Context(), "short", version) {
		if err != nil || !c.Events[0].Deleted {
			t.Errorf("got %v, %v, want a removal", c, err)
		}
		break
	}
}

// TestOpen_IsReadyAtOnce runs on a clock that stands still while anything is
// done: what it measures is waiting, such as that for a leader's heartbeat.
func TestOpen_IsReadyAtOnce(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"new", "again"} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			s := mustOpen(t, raftstore.Config{Dir: dir})
			if waited := time.Since(start); waited > 10*time.Millisecond {
				t.Errorf("%s: ready after waiting for %v, want no wait", name, waited)
			}
			if leader, self := s.Leader(); leader != "gw" || !self {
				t.Errorf("%s: leader is %q, %v, want this store", name, leader, self)
			}
			fill(t, s)
			closeNow(t, s)
		})
	}
}

func TestOpen_Refuses(t *testing.T) {
	t.Run("no id", func(t *testing.T) {
		if _, err := raftstore.Open(raftstore.Config{Dir: t.TempDir()}); err == nil {
			t.Error("opened without an id")
		}
	})
	t.Run("the data of another node", func(t *testing.T) {
		dir := t.TempDir()
		closeNow(t, mustOpen(t, raftstore.Config{Dir: dir}))
		_, err := open(t, raftstore.Config{Dir: dir, ID: "other"})
		if !errors.Is(err, raftstore.ErrOtherNode) || !strings.Contains(err.Error(), `"gw"`) {
			t.Errorf("got %v, want ErrOtherNode that names gw", err)
		}
		mustOpen(t, raftstore.Config{Dir: dir}) // and leaves the data alone
	})
	t.Run("a directory in use", func(t *testing.T) {
		dir := t.TempDir()
		mustOpen(t, raftstore.Config{Dir: dir})
		if _, err := open(t, raftstore.Config{Dir: dir}); !errors.Is(err, raftstore.ErrInUse) {
			t.Errorf("got %v, want ErrInUse", err)
		}
	})
	t.Run("a file in the place of the directory", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, raftstore.Config{Dir: file}); err == nil {
			t.Error("opened a file")
		}
	})
	t.Run("metrics registered twice", func(t *testing.T) {
		registry := prometheus.NewRegistry()
		mustOpen(t, raftstore.Config{Registerer: registry})
		if _, err := open(t, raftstore.Config{Registerer: registry}); err == nil {
			t.Error("opened with metrics that are registered already")
		}
	})
}

func TestOpen_DirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	mustOpen(t, raftstore.Config{Dir: dir})
	for path, want := range map[string]os.FileMode{"": 0o700, logPath: 0o600, "votes.db": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%q has mode %o, want %o", path, got, want)
		}
	}
}

func TestOpen_RemovesUnfinishedSnapshots(t *testing.T) {
	dir := t.TempDir()
	closeNow(t, mustOpen(t, raftstore.Config{Dir: dir}))
	left := filepath.Join(dir, "snapshots", "2-9-1234.tmp")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, raftstore.Config{Dir: dir})
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the unfinished snapshot gone", err)
	}
}

func TestClose_EndsEverything(t *testing.T) {
	s := mustOpen(t, raftstore.Config{})
	watched := make(chan error, 1)
	go func() {
		for _, err := range s.Watch(t.Context(), "", s.Version()) {
			watched <- err
		}
	}()
	closeNow(t, s)
	closeNow(t, s)
	_, get := s.Get(t.Context(), "a")
	_, _, list := s.List(t.Context(), "")
	_, apply := s.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "a"}}})
	for name, err := range map[string]error{
		"get": get, "list": list, "apply": apply, "sync": s.Sync(t.Context()), "watch": <-watched,
	} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", name, err)
		}
	}
	if s.Err() != nil {
		t.Errorf("a closed store failed: %v", s.Err())
	}
}

// TestClose_UnderLoad closes while many write: each write is acknowledged and
// kept, or refused.
func TestClose_UnderLoad(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, raftstore.Config{Dir: dir})
	const writers = 8
	acked, started := make(chan string, 1<<16), make(chan struct{}, writers)
	done := make(chan error, writers)
	for w := range writers {
		go func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d/%d", w, n)
				_, err := s.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: key}}})
				if err != nil {
					done <- err
					return
				}
				acked <- key
				if n == 2 {
					started <- struct{}{}
				}
			}
		}()
	}
	for range writers {
		<-started
	}
	closeNow(t, s)
	for range writers {
		if err := <-done; !errors.Is(err, store.ErrClosed) {
			t.Errorf("writer ended with %v, want ErrClosed", err)
		}
	}
	close(acked)
	s = mustOpen(t, raftstore.Config{Dir: dir})
	for key := range acked {
		if _, err := s.Get(t.Context(), key); err != nil {
			t.Errorf("acknowledged write: %v", err)
		}
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := mustOpen(t, raftstore.Config{Dir: t.TempDir(), Registerer: registry})
	put(t, s, store.Op{Key: "a"})
	_, _ = s.Apply(t.Context(), store.Batch{If: []store.Condition{{Key: "a"}}, Ops: []store.Op{{Key: "a"}}})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	want := map[string]float64{
		"meshgate_store_apply_seconds":        2,
		"meshgate_store_apply_failures_total": 1,
		"meshgate_store_keys":                 1,
		"meshgate_store_version":              float64(s.Version()),
		"meshgate_store_leader":               1,
		"meshgate_store_has_leader":           1,
		"meshgate_store_leader_changes_total": 1,
		"meshgate_store_dead_replicas_total":  0,
		"meshgate_store_voters":               1,
		"meshgate_store_max_lag":              0, "meshgate_store_voters_out_of_reach": 0,
		"meshgate_store_observers":         0,
		"meshgate_store_term":              got["meshgate_store_term"],
		"meshgate_store_log_write_seconds": got["meshgate_store_log_write_seconds"],
		"meshgate_store_free_bytes":        got["meshgate_store_free_bytes"],
	}
	if diff := cmp.Diff(want, got); diff != "" || got["meshgate_store_log_write_seconds"] < 2 || got["meshgate_store_free_bytes"] < 1 {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	inMemory := prometheus.NewRegistry()
	mustOpen(t, raftstore.Config{ID: "m", Registerer: inMemory})
	if families, err = inMemory.Gather(); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "meshgate_store_free_bytes" {
			t.Error("a state in memory tells of room on a disk, and a full disk looks the same")
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := mustOpen(b, raftstore.Config{Dir: dir})
	for range 50 { // a log as long as it gets: 10 000 entries behind a snapshot
		batches := make(chan error)
		for range 200 {
			go func() {
				_, err := s.Apply(b.Context(), store.Batch{Ops: []store.Op{{Key: "k", Value: []byte("a value of some bytes")}}})
				batches <- err
			}()
		}
		for range 200 {
			if err := <-batches; err != nil {
				b.Fatal(err)
			}
		}
	}
	closeNow(b, s)
	for b.Loop() {
		closeNow(b, mustOpen(b, raftstore.Config{Dir: dir}))
	}
}

func BenchmarkApply(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := mustOpen(b, raftstore.Config{Dir: b.TempDir()})
			b.SetParallelism(writers) // times GOMAXPROCS
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					put(b, s, store.Op{Key: "k", Value: []byte("a value of some bytes")})
				}
			})
		})
	}
}
