// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store/raftstore/wal"
)

// makeOld puts a log as earlier versions kept it in the place of that of a
// store, and returns its directory and how many keys it holds.
func makeOld(t *testing.T) (dir string, keys int) {
	t.Helper()
	dir = t.TempDir()
	s, _ := openFaulty(t, dir)
	for _, key := range []string{"a", "b", "c"} {
		if _, err := s.Apply(t.Context(), batch(key)); err != nil {
			t.Fatal(err)
		}
	}
	keys = s.state.Len()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	from, err := wal.Open(filepath.Join(dir, logDir))
	if err != nil {
		t.Fatal(err)
	}
	to, err := openBolt(filepath.Join(dir, oldLogFile))
	if err != nil {
		t.Fatal(err)
	}
	last, err := from.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= last; i++ {
		var log raft.Log
		if err := from.GetLog(i, &log); err != nil {
			t.Fatal(err)
		}
		log.Data = binary.BigEndian.AppendUint32(log.Data[:len(log.Data):len(log.Data)], sum(&log, log.Data))
		if err := to.StoreLog(&log); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(from.Close(), to.Close(), os.RemoveAll(filepath.Join(dir, logDir))); err != nil {
		t.Fatal(err)
	}
	return dir, keys
}

func TestMigrate_KeepsTheLog(t *testing.T) {
	for _, left := range []string{"", logDir + ".new"} {
		dir, keys := makeOld(t)
		if left != "" { // of an attempt that did not end
			if err := os.CopyFS(filepath.Join(dir, left), os.DirFS(filepath.Join(dir, "snapshots"))); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			s, _ := openFaulty(t, dir)
			if n := s.state.Len(); n != keys {
				t.Errorf("it holds %d keys, want %d", n, keys)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if exists(filepath.Join(dir, oldLogFile)) || exists(filepath.Join(dir, logDir+".new")) {
			t.Error("something of the old log is left")
		}
	}
}

func TestMigrate_FindsDamage(t *testing.T) {
	dir, _ := makeOld(t)
	old, err := openBolt(filepath.Join(dir, oldLogFile))
	if err != nil {
		t.Fatal(err)
	}
	var log raft.Log
	if err := old.GetLog(3, &log); err != nil {
		t.Fatal(err)
	}
	log.Data[0] ^= 1
	if err := errors.Join(old.StoreLog(&log), old.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := OpenFaulty(Config{Dir: dir, ID: "gw"}); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v, want ErrDamaged", err)
		}
	}
}
