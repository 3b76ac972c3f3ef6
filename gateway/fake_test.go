// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
	"github.com/meshgate/meshgate/node/topology"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
)

// fakeNode is a Node with a snapshot that tests set.
type fakeNode struct {
	mu      sync.Mutex
	snap    *mesh.Snapshot
	changed chan struct{}
	health  error
	stats   mesh.InterfaceStats
	reads   int // of stats
	ways    []mesh.Way
	joined  []mesh.JoinRequest
	updated []mesh.UpdateRequest
	left    []mesh.NodeID
	changes []mesh.Change
	syncs   int
	// behind is what Sync brings to a node that lags; nil: it does not.
	behind *mesh.Snapshot
	// syncErr and changeErr are what Sync and Change answer.
	syncErr, changeErr error
	published          int
	// keys is where raw keys are.
	keys *storetest.Memory
}

func newFakeNode(s *mesh.Snapshot) *fakeNode {
	return &fakeNode{snap: s, changed: make(chan struct{}), keys: storetest.New()}
}

func (n *fakeNode) Self() mesh.NodeID { return "gw-1" }

func (n *fakeNode) Snapshot() *mesh.Snapshot {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.snap
}

func (n *fakeNode) set(s *mesh.Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snap = s
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *fakeNode) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		n.mu.Lock()
		s, changed := n.snap, n.changed
		n.mu.Unlock()
		if s != nil && s.Version > after {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Sync counts how often it is asked.
func (n *fakeNode) Sync(ctx context.Context) (*mesh.Snapshot, error) {
	n.mu.Lock()
	n.syncs++
	err, behind := n.syncErr, n.behind
	n.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if behind != nil {
		n.set(behind)
	}
	return n.Wait(ctx, 0)
}

func (n *fakeNode) synced() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.syncs
}

func (n *fakeNode) ChangeAll(ctx context.Context, b mesh.Batch) (mesh.Outcome, error) {
	for _, c := range b.Changes {
		if err := n.Change(ctx, c, nil); err != nil {
			return mesh.Outcome{}, err
		}
	}
	return mesh.Outcome{Effects: make([]mesh.Effect, len(b.Changes))}, nil
}

func (n *fakeNode) Change(_ context.Context, c mesh.Change, _ mesh.Permit) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changeErr != nil {
		return n.changeErr
	}
	n.changes = append(n.changes, c)
	return nil
}

func (n *fakeNode) Key(ctx context.Context, key string) (mesh.Item, error) {
	e, err := n.keys.Get(ctx, key)
	if err != nil {
		return mesh.Item{}, fmt.Errorf("%w: %w", mesh.ErrNotFound, err)
	}
	return mesh.Item{Key: e.Key, Value: e.Value}, nil
}

func (n *fakeNode) Keys(ctx context.Context, prefix, after string, limit int) ([]mesh.Item, error) {
	entries, _, err := n.keys.Page(ctx, prefix, after, limit)
	var items []mesh.Item
	for _, e := range entries {
		items = append(items, mesh.Item{Key: e.Key, Value: e.Value})
	}
	return items, err
}

func (n *fakeNode) Publish(ctx context.Context, key string, value []byte, ttl time.Duration, guard *mesh.Snapshot) error {
	n.mu.Lock()
	err := n.changeErr
	if err == nil && n.syncErr != nil { // there is no leader
		err = n.syncErr
	}
	if err == nil {
		n.published++
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	b := store.Batch{Ops: []store.Op{{Key: key, Value: value, TTL: ttl}}}
	if guard != nil {
		b.If = []store.Condition{registry.Unchanged(guard)}
	}
	_, err = n.keys.Apply(ctx, b)
	return err
}

func (n *fakeNode) WatchKeys(ctx context.Context, prefix string) (iter.Seq2[mesh.Item, error], error) {
	_, version, err := n.keys.Page(ctx, prefix, "", 1)
	return func(yield func(mesh.Item, error) bool) {
		for c, err := range n.keys.Watch(ctx, prefix, version) {
			if errors.Is(err, store.ErrCompacted) {
				err = fmt.Errorf("%w: too slow", mesh.ErrExhausted)
			}
			if err != nil {
				yield(mesh.Item{}, err)
				return
			}
			for _, e := range c.Events {
				if !yield(mesh.Item{Key: e.Key, Value: e.Value, Deleted: e.Deleted}, nil) {
					return
				}
			}
		}
	}, err
}

func (n *fakeNode) Plan(s *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error) {
	plan := mesh.Plan{Self: s.Node(id)}
	for _, other := range s.Nodes.All() {
		if other.ID == "gw-1" && id != "gw-1" {
			plan.Peers = plan.Peers.With(mesh.Peer{Node: other, Endpoint: "192.0.2.1:51820", AllowedIPs: other.Prefixes()})
		}
	}
	return plan, nil
}

func (n *fakeNode) Pair(s *mesh.Snapshot, a, b mesh.NodeID) (mesh.Peer, error) {
	return topology.New(s, nil).Pair(a, b)
}

func (n *fakeNode) MaySignal(s *mesh.Snapshot, a, b mesh.NodeID) error {
	return topology.New(s, nil).MaySignal(a, b)
}

func (n *fakeNode) Holder(s *mesh.Snapshot, a mesh.NodeID, addr netip.Addr) (mesh.NodeID, error) {
	return topology.New(s, nil).Holder(a, addr)
}

func (n *fakeNode) Join(_ context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error) {
	n.mu.Lock()
	n.joined = append(n.joined, r)
	n.mu.Unlock()
	s := testSnapshot()
	s.Version++
	joined := r.Node
	joined.IPv4 = netip.MustParsePrefix("127.0.0.99/32")
	s.Nodes = s.Nodes.With(&joined)
	n.set(s)
	return s, nil
}

func (n *fakeNode) Update(_ context.Context, r mesh.UpdateRequest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.updated = append(n.updated, r)
	return nil
}

func (n *fakeNode) Leave(_ context.Context, id mesh.NodeID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left = append(n.left, id)
	return nil
}

func (n *fakeNode) LeaveBound(ctx context.Context, id mesh.NodeID) error { return n.Leave(ctx, id) }

func (n *fakeNode) Adopt(context.Context, mesh.NodeID) (*mesh.Snapshot, error) {
	return n.Snapshot(), nil
}

func (n *fakeNode) Stats() (mesh.InterfaceStats, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reads++
	return n.stats, nil
}

func (n *fakeNode) statsReads() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reads
}

func (n *fakeNode) setStats(s mesh.InterfaceStats) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats = s
}

func (n *fakeNode) RemoteStatus(_ context.Context, id mesh.NodeID) (*v1.Status, error) {
	return &v1.Status{Id: string(id)}, nil
}

func (n *fakeNode) Ways(context.Context) ([]mesh.Way, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ways, nil
}

func (n *fakeNode) WayTo(_ context.Context, o *mesh.Node) (mesh.Way, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.ways {
		if w.Node == o.ID {
			return w, nil
		}
	}
	return mesh.Way{Node: o.ID}, nil
}

func (n *fakeNode) Locate(_ context.Context, id mesh.NodeID) (*mesh.Node, error) {
	if o := n.Snapshot().Node(id); o != nil {
		return o, nil
	}
	return nil, fmt.Errorf("%w: no node %q", mesh.ErrNotFound, id)
}

func (n *fakeNode) Ping(_ context.Context, o *mesh.Node) (mesh.Pong, error) {
	return mesh.Pong{Address: o.Addrs()[0], RTT: time.Millisecond}, nil
}

func (n *fakeNode) RemotePaths(_ context.Context, id mesh.NodeID) (*meshgatev1.ListPathsResponse, error) {
	return &meshgatev1.ListPathsResponse{NodeId: string(id)}, nil
}

func (n *fakeNode) RemotePing(_ context.Context, _ mesh.NodeID, r *meshgatev1.PingRequest, each func(*meshgatev1.PingResponse) error) error {
	return each(&meshgatev1.PingResponse{NodeId: r.GetNodeId(), Sequence: 1})
}

func (n *fakeNode) Healthy() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.health
}

// writes counts what was asked to change the mesh.
func (n *fakeNode) writes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.joined) + len(n.updated) + len(n.left) + len(n.changes) + n.published
}

// fakeSignaling echoes what it gets: the answer of the first message names the
// caller, the others repeat the candidate. It ends at the client's half-close.
type fakeSignaling struct {
	// entered and left tell of StartDataChannel calls; nil: nobody is told.
	entered, left chan error
	// callers gets the caller of each StartDataChannel call; nil: nobody does.
	callers chan signaling.Caller
	// panics makes StartDataChannel panic when the candidate is this text.
	panics string
}

func (f *fakeSignaling) StartDataChannel(ctx context.Context, caller signaling.Caller, stream signaling.Stream[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) (err error) {
	if f.callers != nil {
		f.callers <- caller
	}
	if f.entered != nil {
		f.entered <- nil
		defer func() { f.left <- err }()
	}
	for first := true; ; first = false {
		m, err := stream.Receive()
		if err == io.EOF && !first {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case m.GetCandidate() == f.panics && f.panics != "":
			panic("on demand")
		case m.GetCandidate() == "flood":
			if err := flood(ctx, stream); err != nil {
				return err
			}
		case m.GetCandidate() == "fault":
			return errors.New("secret cause")
		}
		out := &v1.DataChannelOffer{Candidate: m.GetCandidate()}
		if first {
			out.Offer = "offer for " + caller.ID
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// flood sends until the client is gone.
func flood(ctx context.Context, stream signaling.Stream[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) error {
	big := &v1.DataChannelOffer{Offer: string(make([]byte, 64<<10))}
	for ctx.Err() == nil {
		if err := stream.Send(big); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func echoSignals(stream signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal], who string) error {
	for {
		m, err := stream.Receive()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		m.Caller = who
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

func (f *fakeSignaling) StartSignalChannel(_ context.Context, caller signaling.Caller, stream signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
	return echoSignals(stream, caller.ID)
}

func (f *fakeSignaling) ReceiveSignalChannel(_ context.Context, from mesh.NodeID, stream signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
	return echoSignals(stream, string(from))
}

func (f *fakeSignaling) NegotiateDataChannel(_ context.Context, from mesh.NodeID, stream signaling.Stream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]) error {
	for {
		m, err := stream.Receive()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		m.Caller = string(from)
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

// testSnapshot is a mesh of this gateway, another one at 127.0.0.3, a member
// at 127.0.0.2 and a stock WireGuard peer, with three roles.
func testSnapshot() *mesh.Snapshot {
	node := func(id mesh.NodeID, addr string, features ...v1.Feature) *mesh.Node {
		n := &mesh.Node{ID: id, IPv4: netip.MustParsePrefix(addr + "/32")}
		for _, f := range features {
			n.Features = append(n.Features, mesh.Feature{Kind: f, Port: 8443})
		}
		return n
	}
	s := &mesh.Snapshot{
		Version: 7,
		Domain:  "mesh.test.",
		IPv4:    netip.MustParsePrefix("127.0.0.0/24"),
		IPv6:    netip.MustParsePrefix("fd00:1:2::/32"),
		Edges:   mesh.EdgesOf(mesh.Edge{Source: "gw-1", Target: "web-1", Weight: 1}),
	}
	for _, n := range []*mesh.Node{
		node("gw-1", "127.0.0.10", v1.Feature_NODES, v1.Feature_MEMBERSHIP, v1.Feature_ICE_NEGOTIATION),
		node("gw-2", "127.0.0.3", v1.Feature_NODES, v1.Feature_ICE_NEGOTIATION),
		node("laptop", "127.0.0.2", v1.Feature_NODES),
		node("web-1", "127.0.0.4"),
	} {
		s.Nodes = s.Nodes.With(n)
	}
	grant := func(who string, rules ...mesh.Rule) {
		s.Roles = append(s.Roles, mesh.Role{Name: who, Rules: rules})
		s.Bindings = append(s.Bindings, mesh.RoleBinding{Name: who, Role: who, Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: who}}})
	}
	grant("admin", mesh.Rule{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_ALL}})
	grant("opener", mesh.Rule{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_DATA_CHANNELS},
		Names:     []string{"web-1"},
		Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
	})
	grant("viewer", mesh.Rule{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_EDGES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_GET}})
	grant("gw-2", mesh.Rule{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT}})
	return s
}

// tokenOf is the token of one of the users admin, opener, viewer and nobody.
func tokenOf(who string) string { return who + "-0123456789abcdef0123" }

func testTokens(t testing.TB) *Tokens {
	t.Helper()
	fixed := map[string]string{}
	for _, who := range []string{"admin", "opener", "viewer", "nobody"} {
		fixed[tokenOf(who)] = who
	}
	tokens, err := NewTokens(fixed, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}
