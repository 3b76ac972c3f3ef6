// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"connectrpc.com/connect"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// seatStride is how many steps lie between two that are tried: a gateway makes
// many more than a node.
const seatStride = 17

// voters are the ids of the voters, as a gateway says.
func (g *gate) voters(ctx context.Context) ([]string, error) {
	p, err := g.public()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	answer, err := p.Cluster().Status(ctx, connect.NewRequest(&meshgatev1.StatusRequest{}))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, r := range answer.Msg.GetReplicas() {
		if r.GetVoter() {
			ids = append(ids, r.GetId())
		}
	}
	return ids, nil
}

// expel takes a gateway out of the cluster and ends it.
func (g *gate) expel(ctx context.Context, other *gate) (err error) {
	p, err := g.public()
	if err != nil {
		return err
	}
	for until := time.Now().Add(readiness); time.Now().Before(until); pause(ctx, retryPause) {
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err = p.Cluster().Remove(limited, connect.NewRequest(&meshgatev1.RemoveRequest{Id: other.id}))
		cancel()
		if err == nil || connect.CodeOf(err) == connect.CodeNotFound {
			other.kill()
			return nil
		}
	}
	return fmt.Errorf("remove %s: %w", other.id, err)
}

// A gateway that is killed while it joins another one, for a seat in the
// cluster, takes the seat with its next start, and the cluster goes on: there
// are only two voters, so that each of them has to be what the other thinks.
func TestGatewayKilledWhileItJoinsTheCluster_TakesItsSeatLater(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	first, err := newGate(program, dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	first.args = append(first.args, "--cluster.address", first.address)
	if err := first.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		first.kill()
		if t.Failed() {
			t.Logf("gw1:\n%s", first.proc.log)
		}
	})
	l, err := first.local()
	if err != nil {
		t.Fatal(err)
	}
	for n, step := 2, 1; ; n, step = n+1, step+seatStride {
		g, err := newGate(program, dir, n, "--cluster.join", l.URL, "--cluster.pin", l.Pin, "--cluster.token-file", first.tokenFile())
		if err != nil {
			t.Fatal(err)
		}
		tr := trace(t, g.dir, step, true, g.args...)
		ready := g.run(ctx, tr.cmd)
		seen, what := tr.last(t)
		if ready == nil && seen < step {
			g.kill()
			t.Logf("a start has %d steps, of which %d were tried", seen, n-2)
			return
		}
		if seen < step {
			t.Fatalf("start until step %d, %s: %v", step, what, ready)
		}
		<-g.proc.done
		log := g.proc.log
		if err := g.run(ctx, exec.Command(program, g.args...)); err != nil {
			t.Fatalf("start after step %d, %s: %v\nbefore:\n%s", step, what, err, log)
		}
		if err := first.change(ctx, fmt.Sprintf("after-step-%d", step)); err != nil {
			t.Errorf("a change after step %d, %s: %v", step, what, err)
		}
		if ids, err := first.voters(ctx); err != nil || len(ids) != 2 {
			t.Errorf("after step %d, %s, the voters are %q: %v", step, what, ids, err)
		}
		if err := first.expel(ctx, g); err != nil {
			t.Fatalf("after step %d, %s: %v", step, what, err)
		}
	}
}
