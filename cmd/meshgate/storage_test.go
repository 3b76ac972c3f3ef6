// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/store/raftstore/raftstoretest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A gateway that is cut off from the others says at once who keeps the state:
// joins and updates ask for it.
func TestStorage_ServersWaitForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		hub := raftstoretest.NewHub()
		open := func(id string, join bool) *raftstore.Store {
			s, err := raftstore.Open(raftstore.Config{
				ID: id, Address: id + ":1", Network: hub.Endpoint(id, id+":1"), Join: join, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		a := open("a", false)
		if err := a.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		b := open("b", true)
		if err := a.AddVoter(ctx, "b", "b:1"); err != nil {
			t.Fatal(err)
		}
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		want := []api.StorageServer{
			{ID: "a", Address: "a:1", Status: v1.ClusterStatus_CLUSTER_LEADER},
			{ID: "b", Address: "b:1", Status: v1.ClusterStatus_CLUSTER_VOTER},
		}
		if got := (storage{store: b}).Servers(); !slices.Equal(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		hub.Part([]string{"a"}, []string{"b"})
		for leader := "a"; leader != ""; leader, _ = b.Leader() {
			select {
			case <-b.Changed():
			case <-ctx.Done():
				t.Fatal("b goes on with a leader that it does not hear")
			}
		}
		want[0].Status = v1.ClusterStatus_CLUSTER_VOTER
		start := time.Now()
		if got := (storage{store: b}).Servers(); !slices.Equal(got, want) {
			t.Errorf("cut off: got %+v, want %+v", got, want)
		}
		if got := (storage{store: b}).seats(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("seats of %q, want a and b", got)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("cut off it took %v, want no time", took)
		}
	})
}
