// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// fakeState answers syncs with err, or when the context ends.
type fakeState struct {
	err     error
	changes []mesh.Change
}

func (f *fakeState) Sync(ctx context.Context) (*mesh.Snapshot, error) {
	if f.err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, f.err
}

func (f *fakeState) Change(_ context.Context, c mesh.Change, _ mesh.Permit) (*mesh.Snapshot, error) {
	f.changes = append(f.changes, c)
	return &mesh.Snapshot{}, f.err
}

func (f *fakeState) ChangeAll(_ context.Context, b mesh.Batch) (mesh.Outcome, error) {
	f.changes = append(f.changes, b.Changes...)
	return mesh.Outcome{}, f.err
}

func TestSync_WithoutALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{objects: &fakeState{}}
		start := time.Now()
		_, err := n.Sync(t.Context())
		if !errors.Is(err, mesh.ErrUnavailable) || !strings.Contains(err.Error(), "meshgate cluster status") || strings.Contains(err.Error(), "stale") || time.Since(start) != syncTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, mesh.ErrUnavailable) {
			t.Errorf("with a shorter deadline: %v", err)
		}
		n.objects = &fakeState{err: mesh.ErrPrecondition}
		if _, err := n.Sync(t.Context()); !errors.Is(err, mesh.ErrPrecondition) {
			t.Errorf("refused: %v", err)
		}
	})
}

// A node that follows a gateway has what it was told, and changes nothing.
func TestState_OfAFollower(t *testing.T) {
	s := &mesh.Snapshot{Version: 4}
	n := &Node{source: &follower{latest: s}}
	if got, err := n.Sync(t.Context()); err != nil || got != s {
		t.Errorf("%v, %v", got, err)
	}
	if err := n.Change(t.Context(), mesh.Change{}, nil); !errors.Is(err, mesh.ErrUnsupported) {
		t.Error(err)
	}
	state := &fakeState{}
	n.objects = state
	if err := n.Change(t.Context(), mesh.Change{Delete: true}, nil); err != nil || len(state.changes) != 1 {
		t.Errorf("%v, %v", err, state.changes)
	}
}
