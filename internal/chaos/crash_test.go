// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// mostSteps is more than a join has.
const mostSteps = 150

// traced is a command that runs meshgate under the eyes of runTrace.
type traced struct {
	cmd   *exec.Cmd
	arm   io.WriteCloser
	steps string
}

// trace is a command of meshgate that is killed at a step; 0 for none.
// armed says whether steps count from the start.
func trace(t *testing.T, dir string, killAt int, armed bool, args ...string) *traced {
	t.Helper()
	cfg := traceConfig{Args: append([]string{program}, args...), Dir: dir, KillAt: killAt, Steps: filepath.Join(t.TempDir(), "steps"), Armed: armed}
	cmd, err := role(context.Background(), roleTrace, cfg)
	if err != nil {
		t.Fatal(err)
	}
	arm, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return &traced{cmd, arm, cfg.Steps}
}

// count returns when steps count.
func (tr *traced) count(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(tr.arm, "\n"); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(readiness); ; pause(t.Context(), 5*time.Millisecond) {
		raw, err := os.ReadFile(tr.steps)
		if err == nil && strings.Contains(string(raw), "armed\n") {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("steps do not count: %v", err)
		}
	}
}

// last are the steps that were seen, and what the last one was.
func (tr *traced) last(t *testing.T) (int, string) {
	t.Helper()
	raw, err := os.ReadFile(tr.steps)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
	return len(lines) - 1, lines[len(lines)-1] // but for the one that says that they count
}

// outcomes is how often a node was there as a whole after a kill, and how often
// not at all.
type outcomes struct{ whole, none int }

// both says whether kills came before the node was kept, and after.
func (o outcomes) both() bool { return o.whole > 0 && o.none > 0 }

// mostSurvivors is how many joins may come to their end before all kinds of kills
// were seen.
const mostSurvivors = 10

// part is what there is of a node that joins with a route.
type part struct{ node, edge, route bool }

func (p part) whole() bool { return p == part{true, true, true} }
func (p part) none() bool  { return p == part{} }

// partOf looks for all that a join makes.
func (g *gate) partOf(ctx context.Context, id, key string) (p part, err error) {
	public, err := g.public()
	if err != nil {
		return p, err
	}
	ctx, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	nodes, err := public.Mesh().ListNodes(ctx, connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		return p, err
	}
	for _, n := range nodes.Msg.GetNodes() {
		if n.GetId() == id {
			p.node = n.GetPrivateIpv4() != "" && n.GetPrivateIpv6() != "" && (key == "" || n.GetPublicKey() == key)
		}
	}
	edges, err := public.Admin().ListEdges(ctx, connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		return p, err
	}
	p.edge = slices.ContainsFunc(edges.Msg.GetItems(), func(e *v1.MeshEdge) bool { return e.GetSource() == id || e.GetTarget() == id })
	routes, err := public.Admin().ListRoutes(ctx, connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		return p, err
	}
	p.route = slices.ContainsFunc(routes.Msg.GetItems(), func(r *v1.Route) bool { return r.GetNode() == id })
	return p, nil
}

// A gateway that is killed at any step of a join, from the first byte of the
// greeting to the last of the answer, has the whole node after its next start,
// or no trace of it; the whole node if it said so.
func TestGatewayKilledAtEveryStepOfAJoin_WholeNodeOrNone(t *testing.T) {
	ctx := t.Context()
	g, err := newGate(program, t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.kill() })
	var seen outcomes
	survivors := 0
	for step, try := 1, 1; ; step, try = step+1, try+1 {
		g.kill()
		tr := trace(t, g.dir, step, false, g.args...)
		if err := g.run(ctx, tr.cmd); err != nil {
			t.Fatal(err)
		}
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf("node-%d", try)
		p, err := g.public()
		if err != nil {
			t.Fatal(err)
		}
		tr.count(t)
		request := &v1.JoinRequest{Id: id, PublicKey: key.Public().Encode(), AssignIpv4: true, Routes: []string{fmt.Sprintf("10.201.%d.0/24", try)}}
		limited, cancel := context.WithTimeout(ctx, readiness)
		_, joined := p.Member().Join(limited, request, key)
		cancel()
		n, what := tr.last(t)
		if joined == nil && n < step {
			t.Logf("a join has %d steps; %+v", n, seen)
			if survivors++; seen.both() || survivors > mostSurvivors {
				break
			}
			step = n - 1 // what is sent together is one step, and another time several
			continue
		}
		if n < step {
			t.Fatalf("a join failed at step %d, %s, although nobody was killed: %v", n, what, joined)
		}
		if step > mostSteps {
			t.Fatalf("a join has more than %d steps: %d, the last is %s", mostSteps, n, what)
		}
		<-g.proc.done
		if err := g.start(ctx); err != nil {
			t.Fatalf("start after step %d, %s: %v", step, what, err)
		}
		have, err := g.partOf(ctx, id, key.Public().Encode())
		switch {
		case err != nil:
			t.Fatal(err)
		case have.whole():
			seen.whole++
		case have.none() && joined != nil:
			seen.none++
		default:
			t.Errorf("killed at step %d, %s: there is %+v; the join said: %v", step, what, have, joined)
		}
	}
	if !seen.both() {
		t.Errorf("%+v: it was never killed before the node was kept, or never after", seen)
	}
}

// A node that is killed at any step of its start joins with its next one, as
// one whole node, and before that it is one or none.
func TestNodeKilledAtEveryStepOfItsJoin_WholeNodeOrNone(t *testing.T) {
	ctx := t.Context()
	g, err := newGate(program, t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.kill() })
	l, err := g.local()
	if err != nil {
		t.Fatal(err)
	}
	var seen outcomes
	survivors := 0
	for step, try := 1, 1; ; step, try = step+1, try+1 {
		id, dir := fmt.Sprintf("node-%d", try), t.TempDir()
		args := []string{"join", l.URL, "--pin", l.Pin, "--token", l.Token, "--data-dir", dir, "--id", id,
			"--routes", fmt.Sprintf("10.202.%d.0/24", try), "--wireguard.mode", "netstack", "--ice.listen", "127.0.0.1:0", "--output", "json"}
		tr := trace(t, dir, step, true, args...)
		p, err := launch(tr.cmd)
		if err != nil {
			t.Fatal(err)
		}
		err = p.await(ctx)
		n, what := tr.last(t)
		if err == nil && n < step {
			p.kill()
			t.Logf("a start has %d steps; %+v", n, seen)
			if survivors++; seen.both() || survivors > mostSurvivors {
				break
			}
			step = n - 1 // what is sent together is one step, and another time several
			continue
		}
		if n < step {
			t.Fatalf("a start failed at step %d, %s, although nobody was killed: %v", n, what, err)
		}
		if step > mostSteps {
			t.Fatalf("a start has more than %d steps: %d, the last is %s\n%s", mostSteps, n, what, p.log)
		}
		<-p.done
		have, err := g.partOf(ctx, id, "")
		switch {
		case err != nil:
			t.Fatal(err)
		case have.whole():
			seen.whole++
		case have.none():
			seen.none++
		default:
			t.Errorf("killed at step %d, %s: there is %+v", step, what, have)
		}
		again, err := launch(exec.Command(program, args...))
		if err != nil {
			t.Fatal(err)
		}
		if err := again.await(ctx); err != nil {
			t.Errorf("start after step %d, %s: %v", step, what, err)
		}
		if have, err = g.partOf(ctx, id, ""); err != nil || !have.whole() {
			t.Errorf("after the start after step %d, %s: there is %+v: %v", step, what, have, err)
		}
		again.kill()
	}
	if !seen.both() {
		t.Errorf("%+v: it was never killed before the node was kept, or never after", seen)
	}
}
