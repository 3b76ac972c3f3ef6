// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/store/raftstore"
)

// TestDiskLoss_EndsTheEarlierLife adds a voter, and an observer, again whose disk
// was lost. What it voted and stored counts no more, for good, before it is told
// that it may take part; and until it holds all again it has no vote.
func TestDiskLoss_EndsTheEarlierLife(t *testing.T) {
	for _, voter := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, "", "a", "b", "c")
			_, leader := c.leader()
			lost, _ := c.follower()
			if !voter {
				if err := leader.Demote(c.ctx(), lost); err != nil {
					t.Fatal(err)
				}
			}
			c.kill(lost)
			c.hub.Heal()
			endpoint := c.hub.Endpoint(lost, address(lost))
			defer endpoint.Close()
			admitted := 0
			go func() {
				for {
					conn, _, err := endpoint.Accept()
					if err != nil {
						return
					}
					go raftstore.ServeLost(conn, func() {
						admitted++
						members, ok := leader.Committed()
						if !ok || len(members) != 2 || slices.Contains(members, lost) {
							t.Errorf("admitted while the members are %q, committed is %t, want those without %q", members, ok, lost)
						}
					})
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := leader.AddVoter(ctx, lost, address(lost)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "caught up") {
				t.Errorf("got %v, want a wait until it has caught up", err)
			}
			if admitted != 1 {
				t.Errorf("admitted %d times, want once", admitted)
			}
			for _, r := range leader.Configured() {
				if r.Voter != (r.ID != lost) {
					t.Errorf("replica %q: voter is %t", r.ID, r.Voter)
				}
			}
		})
	}
}
