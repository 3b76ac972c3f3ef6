// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

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
