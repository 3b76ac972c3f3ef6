// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/store"
)

// TestForward_LostAnswerIsUncertainAndNotRepeated has the leader make a change for
// a follower that its answer does not reach, and go on or die: the follower says
// that it does not know, and asks nobody again.
func TestForward_LostAnswerIsUncertainAndNotRepeated(t *testing.T) {
	for _, dies := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, "", "a", "b", "c")
			leads, leader := c.leader()
			id, s := c.follower()
			put(t, s, store.Op{Key: "before"}) // on a stream that stays open
			before := leader.Version()
			c.hub.Cut(leads, id)
			answer := make(chan error, 1)
			go func() {
				_, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "k"}}})
				answer <- err
			}()
			c.until("the leader has made the change", func() bool { return leader.Version() > before })
			made, err := leader.Get(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			if dies {
				c.kill(leads)
			} else {
				defer time.AfterFunc(5*time.Second, c.hub.Heal).Stop()
			}
			if err := <-answer; !errors.Is(err, store.ErrUncertain) {
				t.Errorf("the leader dies: %t; got %v, want ErrUncertain", dies, err)
			}
			c.hub.Heal()
			c.sync(s)
			if now, err := s.Get(t.Context(), "k"); err != nil || now.Version != made.Version {
				t.Errorf("the leader dies: %t; it is of version %d, %v, want %d", dies, now.Version, err, made.Version)
			}
		})
	}
}
