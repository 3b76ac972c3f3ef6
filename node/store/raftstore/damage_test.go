// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// makeStore fills a store in a new directory and closes it.
func makeStore(t *testing.T, snapshots int) (dir string, want []store.Entry) {
	t.Helper()
	dir = t.TempDir()
	s := mustOpen(t, raftstore.Config{Dir: dir})
	for range snapshots {
		fill(t, s)
		if err := s.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, s)
	want = list(t, s)
	closeNow(t, s)
	return dir, want
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// wantSameOrRefused opens a store whose files were changed: it serves exactly
// what was written, or nothing.
func wantSameOrRefused(t *testing.T, dir string, want []store.Entry) (served bool) {
	t.Helper()
	s, err := open(t, raftstore.Config{Dir: dir})
	if err != nil {
		if !errors.Is(err, raftstore.ErrDamaged) && !errors.Is(err, raftstore.ErrOtherNode) {
			t.Errorf("refused with %v, want ErrDamaged", err)
		}
		return false
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatalf("sync: %v", err)
	}
	if diff := cmp.Diff(want, list(t, s)); diff != "" {
		t.Errorf("serves something else than was written (-written +served):\n%s", diff)
	}
	closeNow(t, s)
	return true
}

// TestDamage_FlippedBytes changes single bytes of each file.
func TestDamage_FlippedBytes(t *testing.T) {
	dir, want := makeStore(t, 1)
	snapshots, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "*"))
	if err != nil || len(snapshots) != 2 {
		t.Fatalf("got snapshot files %q, %v", snapshots, err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, path := range append(snapshots, filepath.Join(dir, logPath), filepath.Join(dir, "votes.db")) {
		name, _ := filepath.Rel(dir, path)
		t.Run(name, func(t *testing.T) {
			original, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			refused := 0
			const flips = 25
			for range flips {
				flipped := append([]byte(nil), original...)
				flipped[usedByte(random, original)] ^= 1 << random.IntN(8)
				copied := copyDir(t, dir)
				if err := os.WriteFile(filepath.Join(copied, name), flipped, 0o600); err != nil {
					t.Fatal(err)
				}
				if !wantSameOrRefused(t, copied, want) {
					refused++
				}
			}
			t.Logf("%d of %d refused", refused, flips)
		})
	}
}

// usedByte picks a byte that is probably in use: databases have empty pages.
func usedByte(random *rand.Rand, data []byte) int {
	for {
		if i := random.IntN(len(data)); data[i] != 0 {
			return i
		}
	}
}

func TestDamage_MissingFiles(t *testing.T) {
	dir, want := makeStore(t, 2)
	tests := []struct {
		name    string
		remove  string // pattern
		refused bool
	}{
		{"log", "log", true},
		{"log file", logPath, true},
		{"votes", "votes.db", true},
		{"both snapshots", "snapshots/*", false}, // the log is whole
		{"state of the snapshots", "snapshots/*/state.bin", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			copied := copyDir(t, dir)
			paths, err := filepath.Glob(filepath.Join(copied, tt.remove))
			if err != nil || len(paths) == 0 {
				t.Fatalf("nothing to remove: %v", err)
			}
			for _, path := range paths {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
			if served := wantSameOrRefused(t, copied, want); served == tt.refused {
				t.Errorf("served: %v, want %v", served, !tt.refused)
			}
		})
	}
}

func TestDamage_TruncatedFiles(t *testing.T) {
	dir, want := makeStore(t, 1)
	for _, name := range []string{logPath, "votes.db"} {
		for _, size := range []int64{1, 4096, 9000, 16384} {
			copied := copyDir(t, dir)
			if err := os.Truncate(filepath.Join(copied, name), size); err != nil {
				t.Fatal(err)
			}
			wantSameOrRefused(t, copied, want)
		}
	}
}
