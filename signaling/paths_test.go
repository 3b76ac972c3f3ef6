// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
)

// echoPaths answers each signal with one of its own that has the same
// candidates, and notes who asked.
type echoPaths struct {
	mu    sync.Mutex
	froms []mesh.NodeID
	ended []error
	last  error // what ServePaths returns at the end
}

func (e *echoPaths) ServePaths(_ context.Context, from mesh.NodeID, ch signaling.PathStream) error {
	e.mu.Lock()
	e.froms = append(e.froms, from)
	e.mu.Unlock()
	for {
		p, err := ch.Receive()
		if err == nil {
			p.Ufrag = "echo"
			err = ch.Send(p)
		}
		if err != nil {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.ended = append(e.ended, err)
			return e.last
		}
	}
}

func (e *echoPaths) callers() []mesh.NodeID {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.froms)
}

func (e *echoPaths) ends() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.ended)
}

func pathSignal(session uint64, addresses ...string) *v1.PathSignal {
	p := &v1.PathSignal{Ufrag: "ufrag", Password: strings.Repeat("secret", 4), Session: session}
	for _, a := range addresses {
		p.Candidates = append(p.Candidates, &v1.PathCandidate{Kind: v1.PathCandidate_KIND_HOST, Address: a})
	}
	return p
}

// pathNodes is a gateway, whose Config may be changed, and a node that answers.
func pathNodes(t *testing.T, change func(*signaling.Config)) (*world, *signaling.Service, *echoPaths) {
	t.Helper()
	answers := &echoPaths{}
	w := &world{nodes: map[mesh.NodeID]*signaling.Service{}}
	w.nodes[other] = newService(t, w, other, func(c *signaling.Config) { c.Paths = answers })
	gateway := newService(t, w, self, func(c *signaling.Config) {
		if change != nil {
			change(c)
		}
	})
	return w, gateway, answers
}

// exchangePath sends a path and returns the answer.
func exchangePath(t *testing.T, call signals, m *v1.WebRTCSignal) *v1.WebRTCSignal {
	t.Helper()
	if err := call.Send(m); err != nil {
		t.Fatal(err)
	}
	answer, err := call.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestPaths_AreRelayedBothWaysAndTold(t *testing.T) {
	var mu sync.Mutex
	told := map[string][]netip.AddrPort{}
	_, gateway, answers := pathNodes(t, func(c *signaling.Config) {
		c.Candidate = func(user, namer string, at netip.AddrPort) {
			mu.Lock()
			defer mu.Unlock()
			if namer != map[string]string{"laptop": string(other), string(other): "laptop"}[user] {
				t.Errorf("%q named %v to %q", namer, at, user)
			}
			told[user] = append(told[user], at)
		}
	})
	call := startSignals(t, gateway, "laptop")
	first := exchangePath(t, call, &v1.WebRTCSignal{NodeId: string(other), Caller: "root", Path: pathSignal(7, "192.0.2.1:5", "[2001:db8::1]:6")})
	if first.GetNodeId() != string(other) || first.GetPath().GetUfrag() != "echo" || first.GetPath().GetSession() != 7 || len(first.GetPath().GetCandidates()) != 2 {
		t.Errorf("answer %v", first)
	}
	// Later messages are for the same node, whatever they say.
	if next := exchangePath(t, call, &v1.WebRTCSignal{NodeId: "somebody-else", Caller: "gateway", Path: pathSignal(7, "192.0.2.9:5")}); next.GetNodeId() != string(other) {
		t.Errorf("answer %v", next)
	}
	if got := answers.callers(); !slices.Equal(got, []mesh.NodeID{"laptop"}) {
		t.Errorf("the node was called by %q", got)
	}
	mu.Lock()
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:5"), netip.MustParseAddrPort("[2001:db8::1]:6"), netip.MustParseAddrPort("192.0.2.9:5")}
	if !slices.Equal(told[string(other)], want) || !slices.Equal(told["laptop"], want) {
		t.Errorf("told: %v", told)
	}
	mu.Unlock()
	if err := call.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := call.Receive(); err != io.EOF {
		t.Errorf("after the half-close: %v", err)
	}
	eventually(t, "the node's end is over", func() bool { return len(answers.ends()) == 1 })
	if err := answers.ends()[0]; err != io.EOF {
		t.Errorf("the node received %v", err)
	}
}

func TestPaths_EndsAndErrorsOfTheNodeReachTheClient(t *testing.T) {
	_, gateway, answers := pathNodes(t, nil)
	answers.last = fmt.Errorf("no more of this: %w", mesh.ErrDenied)
	call := startSignals(t, gateway, "laptop")
	exchangePath(t, call, &v1.WebRTCSignal{NodeId: string(other), Path: pathSignal(1)})
	_ = call.CloseSend()
	if _, err := call.Receive(); !errors.Is(err, mesh.ErrDenied) || !strings.Contains(err.Error(), `node "node-b": no more of this`) {
		t.Errorf("got %v", err)
	}
}

func TestPaths_BadInput(t *testing.T) {
	good := &v1.WebRTCSignal{NodeId: string(other), Path: pathSignal(1)}
	many := make([]string, 17)
	for i := range many {
		many[i] = "192.0.2.1:5"
	}
	for name, c := range map[string]struct {
		messages []*v1.WebRTCSignal
		kind     error
		text     string
	}{
		"nobody":             {[]*v1.WebRTCSignal{{Path: pathSignal(1)}}, mesh.ErrInvalid, "node_id of the first signal is empty"},
		"no id":              {[]*v1.WebRTCSignal{{NodeId: "a/b", Path: pathSignal(1)}}, mesh.ErrInvalid, "a/b"},
		"an unknown node":    {[]*v1.WebRTCSignal{{NodeId: "x", Path: pathSignal(1)}}, mesh.ErrNotFound, `node "x"`},
		"a gateway":          {[]*v1.WebRTCSignal{{NodeId: string(self), Path: pathSignal(1)}}, mesh.ErrUnsupported, "this node takes no part in pairs"},
		"a stock peer":       {[]*v1.WebRTCSignal{{NodeId: "stock", Path: pathSignal(1)}}, mesh.ErrUnsupported, `node "stock" is a plain WireGuard peer`},
		"session 0":          {[]*v1.WebRTCSignal{{NodeId: string(other), Path: pathSignal(0)}}, mesh.ErrInvalid, "path.session: it is 0"},
		"17 candidates":      {[]*v1.WebRTCSignal{{NodeId: string(other), Path: pathSignal(1, many...)}}, mesh.ErrInvalid, "path.candidates: 17 entries"},
		"with a description": {[]*v1.WebRTCSignal{{NodeId: string(other), Path: pathSignal(1), Description: "{}"}}, mesh.ErrInvalid, "description and candidate have no place"},
		"then a candidate":   {[]*v1.WebRTCSignal{good, {Candidate: "candidate:1"}}, mesh.ErrInvalid, "description and candidate have no place"},
		"then nothing":       {[]*v1.WebRTCSignal{good, {}}, mesh.ErrInvalid, "path: it is missing"},
		"then a bad one":     {[]*v1.WebRTCSignal{good, {Path: pathSignal(1, "0.0.0.0:1")}}, mesh.ErrInvalid, "path.candidates[0].address"},
		"a path in a channel of descriptions": {[]*v1.WebRTCSignal{{NodeId: string(other)}, {Path: pathSignal(1)}},
			mesh.ErrInvalid, "path: this channel began without one"},
		"a path in a channel to the gateway": {[]*v1.WebRTCSignal{{NodeId: string(self)}, {Path: pathSignal(1)}},
			mesh.ErrInvalid, "path: this channel began without one"},
	} {
		t.Run(name, func(t *testing.T) {
			w, gateway, _ := pathNodes(t, nil)
			w.stock = map[mesh.NodeID]bool{"stock": true}
			call := startSignals(t, gateway, "laptop")
			for _, m := range c.messages {
				_ = call.Send(m)
			}
			var err error
			for err == nil {
				_, err = call.Receive()
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "secretsecret") {
				t.Errorf("got %v, want %v: %s", err, c.kind, c.text)
			}
		})
	}
}

// receivePath calls ReceiveSignalChannel of a node as a gateway does.
func receivePath(t *testing.T, s *signaling.Service, m *v1.WebRTCSignal) (signals, error) {
	t.Helper()
	c := newCall[*v1.WebRTCSignal, *v1.WebRTCSignal](context.Background())
	c.serve(func(ctx context.Context, stream signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
		return s.ReceiveSignalChannel(ctx, self, stream)
	})
	t.Cleanup(func() { c.cancel(); <-c.done })
	call := signals{c}
	if err := call.Send(m); err != nil {
		return call, err
	}
	_, err := call.Receive()
	return call, err
}

func TestPaths_ReceivedByANode(t *testing.T) {
	w, _, answers := pathNodes(t, nil)
	if _, err := receivePath(t, w.nodes[other], &v1.WebRTCSignal{NodeId: "laptop", Caller: "laptop", Path: pathSignal(1)}); err != nil {
		t.Fatal(err)
	}
	if got := answers.callers(); !slices.Equal(got, []mesh.NodeID{"laptop"}) {
		t.Errorf("called by %q", got)
	}
	for name, c := range map[string]struct {
		m    *v1.WebRTCSignal
		text string
	}{
		"from itself":      {&v1.WebRTCSignal{Caller: string(other), Path: pathSignal(1)}, `caller: node "node-b" signals to itself`},
		"from no id":       {&v1.WebRTCSignal{Caller: "a/b", Path: pathSignal(1)}, "caller: "},
		"without a ufrag":  {&v1.WebRTCSignal{Caller: "laptop", Path: &v1.PathSignal{}}, "path.ufrag"},
		"with a candidate": {&v1.WebRTCSignal{Caller: "laptop", Candidate: "x", Path: pathSignal(1)}, "description and candidate have no place"},
	} {
		if _, err := receivePath(t, w.nodes[other], c.m); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPaths_ChannelsAreBounded(t *testing.T) {
	_, gateway, _ := pathNodes(t, func(c *signaling.Config) { c.Limits.PathChannels = 5 })
	open := func(who string) (signals, error) {
		call := startSignals(t, gateway, who)
		_ = call.Send(&v1.WebRTCSignal{NodeId: string(other), Path: pathSignal(1)})
		_, err := call.Receive()
		return call, err
	}
	var calls []signals
	for range 4 {
		call, err := open("laptop")
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, call)
	}
	if _, err := open("laptop"); !errors.Is(err, mesh.ErrExhausted) || !strings.Contains(err.Error(), `4 path channels from "laptop" to "node-b" are open`) {
		t.Errorf("a fifth one: %v", err)
	}
	if _, err := open("phone"); err != nil {
		t.Errorf("of another node: %v", err)
	}
	if _, err := open("tablet"); !errors.Is(err, mesh.ErrExhausted) || !strings.Contains(err.Error(), "too many path channels at this node") {
		t.Errorf("beyond all: %v", err)
	}
	calls[0].cancel()
	eventually(t, "there is room again", func() bool { _, err := open("laptop"); return err == nil })
}

func TestPaths_AFloodEndsTheChannel(t *testing.T) {
	_, gateway, _ := pathNodes(t, nil)
	call := startSignals(t, gateway, "laptop")
	go func() {
		for call.Send(&v1.WebRTCSignal{NodeId: string(other), Path: pathSignal(1)}) == nil {
		}
	}()
	// Some answers may be on their way when the channel ends.
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = call.Receive()
	}
	if !errors.Is(err, mesh.ErrExhausted) {
		t.Errorf("after %d signals: %v", n, err)
	}
}

// talkative answers each signal a hundred times before it reads the next one.
type talkative struct{}

func (talkative) ServePaths(_ context.Context, _ mesh.NodeID, ch signaling.PathStream) error {
	for {
		p, err := ch.Receive()
		for n := 0; err == nil && n < 100; n++ {
			err = ch.Send(p)
		}
		if err != nil {
			return err
		}
	}
}

func TestPaths_NoDirectionWaitsForTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{nodes: map[mesh.NodeID]*signaling.Service{}}
		w.nodes[other] = newService(t, w, other, func(c *signaling.Config) { c.Paths = talkative{} })
		gateway := newService(t, w, self)
		call := startSignals(t, gateway, "laptop")
		time.AfterFunc(time.Minute, call.cancel)
		go func() {
			for range 8 {
				_ = call.Send(&v1.WebRTCSignal{NodeId: string(other), Path: pathSignal(1)})
			}
		}()
		for n := range 100 {
			if _, err := call.Receive(); err != nil {
				t.Fatalf("after %d answers: %v", n, err)
			}
		}
	})
}

func TestPaths_ASilentChannelEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := &echoPaths{}
		w := &world{nodes: map[mesh.NodeID]*signaling.Service{}}
		w.nodes[other] = newService(t, w, other, func(c *signaling.Config) { c.Paths = answers })
		gateway := newService(t, w, self)
		call := startSignals(t, gateway, "laptop")
		exchangePath(t, call, &v1.WebRTCSignal{NodeId: string(other), Path: pathSignal(1)})
		<-time.After(9 * time.Minute)
		exchangePath(t, call, &v1.WebRTCSignal{Path: pathSignal(1)})
		began := time.Now()
		if _, err := call.Receive(); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 10*time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}
