// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
)

// What passes is waited for, what a record is refused for ends the node.
func TestHolder_InsistsOnItsOwnRecord(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		tries int // until it is made, or given up
		final bool
	}{
		"others change the mesh all the time": {fmt.Errorf("%w: it changed 16 times", mesh.ErrUnavailable), 9, false},
		"the leader changes":                  {fmt.Errorf("%w: %w", mesh.ErrPrecondition, &store.NotLeaderError{}), 9, false},
		"nobody knows what came of it":        {fmt.Errorf("%w: %w", mesh.ErrUnavailable, store.ErrUncertain), 9, false},
		"the disk is full":                    {fmt.Errorf("%w: %w", mesh.ErrExhausted, store.ErrFull), 9, false},
		"another key has the id":              {mesh.ErrExists, 1, true},
		"another node made the mesh":          {mesh.ErrPrecondition, 1, true},
		"a route is somebody else's":          {mesh.ErrInvalid, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &holder{node: &Node{log: slog.New(slog.DiscardHandler)}}
				tries, start := 0, time.Now()
				err := h.insist(t.Context(), func() error {
					if tries++; tries == 9 {
						return nil
					}
					return c.err
				})
				if tries != c.tries || (err != nil) != c.final || c.final && !errors.Is(err, c.err) {
					t.Errorf("after %d tries: %v", tries, err)
				}
				if took := time.Since(start); took > 9*maxAnnounceDelay || !c.final && took < maxAnnounceDelay {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// The wait ends with the node.
func TestHolder_InsistsNoLongerThanItLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &holder{node: &Node{log: slog.New(slog.DiscardHandler)}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		err := h.insist(ctx, func() error { return mesh.ErrUnavailable })
		if !errors.Is(err, mesh.ErrUnavailable) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
