// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
)

// openFaulty opens a store on a disk whose log can be broken.
func openFaulty(t *testing.T, dir string) (*Store, *FaultyLog) {
	t.Helper()
	s, faulty, err := OpenFaulty(Config{Dir: dir, ID: "gw", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, faulty
}

func batch(key string) store.Batch { return store.Batch{Ops: []store.Op{{Key: key}}} }

// TestDisk_FailedWrite shows that nothing is acknowledged after a write failed.
func TestDisk_FailedWrite(t *testing.T) {
	s, faulty := openFaulty(t, t.TempDir())
	defer s.Close()
	if _, err := s.Apply(t.Context(), batch("before")); err != nil {
		t.Fatal(err)
	}
	faulty.Fail(syscall.EIO)
	if _, err := s.Apply(t.Context(), batch("during")); !errors.Is(err, ErrDisk) || !errors.Is(err, store.ErrUncertain) {
		t.Errorf("the write that failed: got %v, want ErrDisk and ErrUncertain", err)
	}
	<-s.Failed()
	if err := s.Err(); !errors.Is(err, ErrDisk) || !errors.Is(err, syscall.EIO) {
		t.Errorf("the store failed with %v, want ErrDisk with its cause", err)
	}
	faulty.Fail(nil) // what a disk says after a failed sync is not to be trusted
	if _, err := s.Apply(t.Context(), batch("after")); !errors.Is(err, ErrDisk) {
		t.Errorf("a write after the failed one: got %v, want ErrDisk", err)
	}
	if err := s.Sync(t.Context()); !errors.Is(err, ErrDisk) {
		t.Errorf("sync: got %v, want ErrDisk", err)
	}
	if _, err := s.Get(t.Context(), "before"); err != nil {
		t.Errorf("reads go on: got %v", err)
	}
	if _, err := s.Get(t.Context(), "during"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a write that was not kept is visible: %v", err)
	}
}

// TestDisk_HangingWrite shows that a disk that does not answer is noticed.
func TestDisk_HangingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, faulty := openFaulty(t, "")
		release := faulty.Hang()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Apply(ctx, batch("a")); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, store.ErrUncertain) {
			t.Errorf("a write with a deadline: got %v, want it and ErrUncertain", err)
		}
		if _, err := s.Apply(t.Context(), batch("b")); !errors.Is(err, ErrDisk) || !errors.Is(err, store.ErrUncertain) {
			t.Errorf("a write without one: got %v, want ErrDisk and ErrUncertain", err)
		}
		<-s.Failed()
		if took := time.Since(start); took != stallLimit {
			t.Errorf("noticed after %v, want %v", took, stallLimit)
		}
		if err := s.Close(); !errors.Is(err, ErrDisk) {
			t.Errorf("close: got %v, want ErrDisk", err)
		}
		if took := time.Since(start); took != stallLimit+closeTimeout {
			t.Errorf("closed after %v, want %v", took, stallLimit+closeTimeout)
		}
		release()
		synctest.Wait()
		<-s.stopped
	})
}

// hangingVotes is a raft.StableStore on a disk that does not answer.
type hangingVotes struct {
	raft.StableStore
	release chan struct{}
}

func (h hangingVotes) Set([]byte, []byte) error {
	<-h.release
	return nil
}

// TestDisk_HangingVote shows that a replica whose votes hang does not stay, deaf
// to everybody.
func TestDisk_HangingVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failure, disk := newFailure(slog.New(slog.DiscardHandler)), hangingVotes{release: make(chan struct{})}
		votes, done := guardedVotes{disk, failure}, make(chan error, 1)
		start := time.Now()
		go func() { done <- votes.SetUint64(keyTerm, 7) }()
		<-failure.failed
		if took := time.Since(start); took != stallLimit || !errors.Is(failure.err, ErrDisk) {
			t.Errorf("after %v: %v", took, failure.err)
		}
		close(disk.release)
		if err := <-done; err != nil {
			t.Error(err)
		}
		quick := newFailure(slog.New(slog.DiscardHandler))
		if err := (guardedVotes{disk, quick}).SetUint64(keyTerm, 8); err != nil {
			t.Error(err)
		}
		time.AfterFunc(2*stallLimit, func() { close(done) })
		<-done
		select {
		case <-quick.failed:
			t.Errorf("a vote in time: %v", quick.err)
		default:
		}
	})
}

// TestDisk_Full shows that writes are refused before raft stumbles, and go on
// when there is room again.
func TestDisk_Full(t *testing.T) {
	s, faulty := openFaulty(t, t.TempDir())
	defer s.Close()
	var free atomic.Uint64
	var broken atomic.Bool
	free.Store(reserve - 1)
	faulty.SetFree(func(string) (uint64, error) {
		if broken.Load() {
			return 0, syscall.EIO
		}
		return free.Load(), nil
	})
	for range 2 {
		if _, err := s.Apply(t.Context(), batch("a")); !errors.Is(err, store.ErrFull) {
			t.Errorf("got %v, want ErrFull", err)
		}
	}
	if !s.full.Load() {
		t.Error("operators are not told that the disk is full")
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Errorf("reads go on: got %v", err)
	}
	free.Store(reserve)
	if _, err := s.Apply(t.Context(), batch("a")); err != nil {
		t.Errorf("with room again: got %v", err)
	}
	if s.full.Load() {
		t.Error("it still tells operators that the disk is full")
	}
	broken.Store(true)
	if _, err := s.Apply(t.Context(), batch("a")); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v, want the error of the question for free space", err)
	}
	if s.Err() != nil {
		t.Errorf("the store failed: %v", s.Err())
	}
}

// TestDisk_InterruptedBootstrap has the process die between the two writes of
// the first start.
func TestDisk_InterruptedBootstrap(t *testing.T) {
	dir := t.TempDir()
	s := newStore(Config{Logger: slog.New(slog.DiscardHandler)})
	m, err := newMetrics(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	d, err := openDisk(dir, newRaftLogger(s.logger), m, s.failure)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.stable.SetUint64(keyTerm, 1), d.close()); err != nil {
		t.Fatal(err)
	}
	s, _ = openFaulty(t, dir)
	if _, err := s.Apply(t.Context(), batch("a")); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestFSM_EntryOfALaterVersion shows that what is not understood is not skipped.
func TestFSM_EntryOfALaterVersion(t *testing.T) {
	s, _ := openFaulty(t, t.TempDir())
	defer s.Close()
	for _, data := range [][]byte{[]byte("no snappy block"), nil} {
		if _, err := s.propose(t.Context(), data); err == nil {
			t.Errorf("%q was applied", data)
		}
	}
	<-s.Failed()
	if s.state.Version() != 0 {
		t.Error("the state changed")
	}
}

// TestRole_OfALoneVoter shows that it cannot lose its role.
func TestRole_OfALoneVoter(t *testing.T) {
	s, _ := openFaulty(t, "")
	defer s.Close()
	old := s.role.Load()
	if err := s.raft.LeadershipTransfer().Error(); err == nil {
		t.Fatal("a lone voter gave its leadership away")
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Errorf("sync: %v", err)
	}
	if now := s.role.Load(); now != old || !now.ready || now.leader != "gw" {
		t.Errorf("role is %+v", now)
	}
}
