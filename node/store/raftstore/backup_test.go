// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

func backup(t testing.TB, s *raftstore.Store) []byte {
	t.Helper()
	var buf bytes.Buffer
	info, err := s.Backup(t.Context(), &buf)
	if err != nil {
		t.Fatal(err)
	}
	got, err := raftstore.Verify(bytes.NewReader(buf.Bytes()))
	if err != nil || got != info {
		t.Fatalf("verify: got %+v, %v, want %+v", got, err, info)
	}
	if info.Version != s.Version() || info.Keys != len(list(t, s)) {
		t.Fatalf("got %+v, want %d keys at version %d", info, len(list(t, s)), s.Version())
	}
	return buf.Bytes()
}

func TestBackup_Restores(t *testing.T) {
	for _, name := range []string{"empty", "filled"} {
		t.Run(name, func(t *testing.T) {
			s := mustOpen(t, raftstore.Config{})
			if name == "filled" {
				fill(t, s)
			}
			want, version, data := list(t, s), s.Version(), backup(t, s)
			put(t, s, store.Op{Key: "after the backup"})
			dir := filepath.Join(t.TempDir(), "new")
			info, err := raftstore.Restore(dir, "other", bytes.NewReader(data))
			if err != nil || info.Version != version {
				t.Fatalf("restore: got %+v, %v, want version %d", info, err, version)
			}
			for range 2 {
				r := mustOpen(t, raftstore.Config{Dir: dir, ID: "other"})
				if diff := cmp.Diff(want, list(t, r)); diff != "" {
					t.Fatalf("(-backed up +restored):\n%s", diff)
				}
				closeNow(t, r)
			}
			r := mustOpen(t, raftstore.Config{Dir: dir, ID: "other"})
			if got := put(t, r, store.Op{Key: "next"}); got <= version {
				t.Errorf("next version is %d, want more than %d", got, version)
			}
			closeNow(t, r)
			mustOpen(t, raftstore.Config{Dir: dir, ID: "other"})
		})
	}
}

// TestBackup_OfACluster restores what a follower wrote out, and grows a new
// cluster from it. The old replicas do not take part in it by accident.
func TestBackup_OfACluster(t *testing.T) {
	dir := t.TempDir()
	c := newClusterOf(t, dir, calm, "a", "b", "c")
	_, s := c.follower()
	fill(t, s)
	want, data := list(t, s), backup(t, s)
	for id, s := range c.replicas {
		closeNow(t, s)
		delete(c.replicas, id)
	}
	if err := os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "old")); err != nil {
		t.Fatal(err)
	}
	if _, err := raftstore.Restore(filepath.Join(dir, "a"), "a", bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	a := c.open("a", false)
	c.sync(a)
	c.open("b", false)
	if err := a.AddVoter(c.ctx(), "b", address("b")); !errors.Is(err, raftstore.ErrOtherCluster) {
		t.Errorf("add a replica of the old cluster: got %v, want ErrOtherCluster", err)
	}
	d := c.open("d", true)
	if err := a.AddVoter(c.ctx(), "d", address("d")); err != nil {
		t.Fatal(err)
	}
	c.sync(d)
	if diff := cmp.Diff(want, list(t, d)); diff != "" {
		t.Errorf("(-backed up +restored):\n%s", diff)
	}
}

func TestVerify_FindsDamage(t *testing.T) {
	s := mustOpen(t, raftstore.Config{})
	fill(t, s)
	data := backup(t, s)
	for i := range data {
		flipped := bytes.Clone(data)
		flipped[i] ^= 1 << (i % 8)
		if _, err := raftstore.Verify(bytes.NewReader(flipped)); !errors.Is(err, raftstore.ErrDamaged) {
			t.Fatalf("byte %d: got %v, want ErrDamaged", i, err)
		}
		if _, err := raftstore.Verify(bytes.NewReader(data[:i])); !errors.Is(err, raftstore.ErrDamaged) {
			t.Fatalf("the first %d bytes: got %v, want ErrDamaged", i, err)
		}
	}
	if _, err := raftstore.Verify(bytes.NewReader(append(bytes.Clone(data), 0))); !errors.Is(err, raftstore.ErrDamaged) {
		t.Errorf("a byte more: got %v, want ErrDamaged", err)
	}
	if _, err := raftstore.Verify(iotest.ErrReader(os.ErrPermission)); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

func TestRestore_Refuses(t *testing.T) {
	s := mustOpen(t, raftstore.Config{})
	data := backup(t, s)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "new")
	tests := []struct{ name, dir, id, data, says string }{
		{"a directory in use", full, "a", string(data), "not empty"},
		{"no id", fresh, "", string(data), "no id"},
		{"no backup", fresh, "a", "x", "no backup"},
	}
	for _, tt := range tests {
		if _, err := raftstore.Restore(tt.dir, tt.id, strings.NewReader(tt.data)); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want an error that says %q", tt.name, err, tt.says)
		}
	}
	if _, err := os.Stat(fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused restore left a directory: %v", err)
	}
}

// TestBackupStale_WithoutAMajority takes a backup of a replica that is the only
// one left, while it runs and after that, and grows a cluster from it.
func TestBackupStale_WithoutAMajority(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		id, s := c.follower()
		fill(t, s)
		want := list(t, s)
		for other, r := range c.replicas {
			if other != id {
				closeNow(t, r)
				delete(c.replicas, other)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Backup(ctx, io.Discard); err == nil {
			t.Fatal("a fresh backup without a majority")
		}
		var running, stopped bytes.Buffer
		info, err := s.BackupStale(&running)
		if err != nil || info.Version != s.Version() || info.Keys != len(want) {
			t.Fatalf("got %+v, %v, want %d keys at version %d", info, err, len(want), s.Version())
		}
		of := filepath.Join(dir, id)
		if _, err := raftstore.BackupDir(of, io.Discard); !errors.Is(err, raftstore.ErrInUse) {
			t.Errorf("of a directory in use: got %v, want ErrInUse", err)
		}
		delete(c.replicas, id)
		closeNow(t, s)
		for range 2 { // reading it changes nothing
			stopped.Reset()
			if got, err := raftstore.BackupDir(of, &stopped); err != nil || got.Version != info.Version || got.Keys != info.Keys {
				t.Fatalf("of the directory: got %+v, %v, want %+v", got, err, info)
			}
		}
		for name, data := range map[string][]byte{"running": running.Bytes(), "stopped": stopped.Bytes()} {
			to := filepath.Join(dir, "restored-"+name)
			if _, err := raftstore.Restore(to, id, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			r := mustOpen(t, raftstore.Config{Dir: to, ID: id})
			if diff := cmp.Diff(want, list(t, r)); diff != "" {
				t.Errorf("%s (-acknowledged +restored):\n%s", name, diff)
			}
			closeNow(t, r)
		}
	})
}

// TestBackupDir_OfSnapshotAndLog reads a directory whose log begins behind its
// snapshot.
func TestBackupDir_OfSnapshotAndLog(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, raftstore.Config{Dir: dir, TrailingLogs: 1})
	fill(t, s)
	if err := s.Snapshot(); err != nil {
		t.Fatal(err)
	}
	put(t, s, store.Op{Key: "behind the snapshot"})
	want, version := len(list(t, s)), s.Version()
	closeNow(t, s)
	info, err := raftstore.BackupDir(dir, io.Discard)
	if err != nil || info.Keys != want || info.Version != version {
		t.Errorf("got %+v, %v, want %d keys at version %d", info, err, want, version)
	}
}

func TestBackupDir_OfNothing(t *testing.T) {
	dir := t.TempDir()
	for _, of := range []string{"", dir, filepath.Join(dir, "absent")} {
		if _, err := raftstore.BackupDir(of, io.Discard); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no state of a gateway") {
			t.Errorf("of %q: got %v", of, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it made %v (%v)", left, err)
	}
}
