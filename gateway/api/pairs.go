// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// maxWanted is how much a node may want to reach in one stream.
	maxWanted = 512
	// maxPairStreams is how many streams a node may have: its present one, and
	// some that it lost and that have not ended here yet.
	maxPairStreams = 4
	// wantedRate and wantedBurst bound what a stream may ask per second and at
	// once. More waits.
	wantedRate, wantedBurst = 256, 2 * maxWanted
	// minServersAge is the least time between two lists of ICE servers.
	minServersAge = 30 * time.Second
)

// PairPlans say who may be a pair by a state; *node.Node does. Their errors are
// for the caller to read: what is a *mesh.Refusal without its kind.
type PairPlans interface {
	// Pair returns the peer that node b is for node a, or why it is none.
	Pair(s *mesh.Snapshot, a, b mesh.NodeID) (mesh.Peer, error)
	// MaySignal is nil when node a may tell node b how to find a path to it.
	MaySignal(s *mesh.Snapshot, a, b mesh.NodeID) error
	// Holder returns the node at which what node a sends to an address arrives, or
	// leaves the mesh.
	Holder(s *mesh.Snapshot, a mesh.NodeID, addr netip.Addr) (mesh.NodeID, error)
}

// pairsService serves meshgate.v1.Pairs.
type pairsService struct {
	plans PairPlans
	// servers mints credentials of ICE servers; nil: there are none.
	servers func(ctx context.Context, user string) []*v1.ICEServer
	// membership has what all who follow the state share.
	membership *membershipService
	forwarders forwarders

	mu      sync.Mutex // guards streams
	streams map[mesh.NodeID]int
}

var _ meshgatev1connect.PairsHandler = (*pairsService)(nil)

// Follow tells a node who its pairs are. A goroutine receives, for as long as the
// call lasts, and another waits for changes; this one alone sends, so that while
// the client does not read, nothing is queued for it and nobody waits for it.
func (p *pairsService) Follow(ctx context.Context, stream *connect.BidiStream[meshgatev1.FollowPairsRequest, meshgatev1.FollowPairsResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	id, err := mesh.ParseNodeID(first.GetNodeId())
	if err != nil {
		return fmt.Errorf("node_id: %w", err)
	}
	release, err := p.enter(id)
	if err != nil {
		return err
	}
	defer release()
	s, err := p.membership.caughtUp(ctx, id, 0)
	if err != nil {
		return err
	}
	f := &pairFollower{service: p, id: id, answer: answerFrom(ctx), wanted: make(map[string]*wanted)}
	if err := f.ask(first); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	requests, newer := f.receive(ctx, stream.Receive), p.follow(ctx, s.Version)
	defer func() {
		cancel()
		for range newer { // wait for follow to end
		}
	}()
	return f.run(ctx, s, requests, newer, stream.Send)
}

// enter counts a stream of a node until release is called.
func (p *pairsService) enter(id mesh.NodeID) (release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[id] >= maxPairStreams {
		return nil, fmt.Errorf("%w: node %q follows its pairs %d times; end one of these streams", mesh.ErrExhausted, id, maxPairStreams)
	}
	if p.streams == nil {
		p.streams = make(map[mesh.NodeID]int)
	}
	p.streams[id]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.streams[id]--; p.streams[id] == 0 {
			delete(p.streams, id)
		}
	}, nil
}

// follow delivers snapshots after version, gatherTime apart at least, whenever
// the receiver is ready. The channel closes when ctx ends or the state is closed.
func (p *pairsService) follow(ctx context.Context, version uint64) <-chan *mesh.Snapshot {
	out := make(chan *mesh.Snapshot)
	go func() {
		defer close(out)
		for {
			s, err := p.membership.next(ctx, version, time.Now())
			if err != nil {
				return
			}
			version = s.Version
			select {
			case out <- s:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// pairFollower is one stream of a node. One goroutine uses it, but for receive.
type pairFollower struct {
	service *pairsService
	id      mesh.NodeID
	answer  *shiftWriter
	// wanted is what the node wants to reach, at most maxWanted, by its text.
	wanted map[string]*wanted
	// decided is the state by which all of wanted but what is new was decided;
	// nil before the first.
	decided *mesh.Snapshot
	// servers are to be sent with the next message; renew is when to make more.
	servers []*v1.ICEServer
	renew   <-chan time.Time
	greeted bool
}

// pairRequest is what the client sent, or why it sends nothing more.
type pairRequest struct {
	message *meshgatev1.FollowPairsRequest
	err     error
}

// receive delivers what the client sends, no faster than wantedRate, and ends
// with the error that ended it. The goroutine ends when the call is over, which
// is when receive fails: at the latest a moment after the handler returned.
func (f *pairFollower) receive(ctx context.Context, receive func() (*meshgatev1.FollowPairsRequest, error)) <-chan pairRequest {
	out := make(chan pairRequest)
	pace := rate.NewLimiter(wantedRate, wantedBurst)
	go func() {
		for {
			m, err := receive()
			if err == nil {
				err = pace.WaitN(ctx, min(1+len(m.GetAdd())+len(m.GetDrop()), wantedBurst))
			}
			select {
			case out <- pairRequest{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

// run answers until the call ends. After the client's half-close it goes on.
func (f *pairFollower) run(ctx context.Context, s *mesh.Snapshot, requests <-chan pairRequest, newer <-chan *mesh.Snapshot, send func(*meshgatev1.FollowPairsResponse) error) error {
	f.mint(ctx)
	for {
		if err := f.tell(ctx, s, send); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-requests:
			if errors.Is(r.err, io.EOF) {
				continue // nothing comes from there any more
			}
			if r.err != nil {
				return r.err
			}
			if err := f.ask(r.message); err != nil {
				return err
			}
		case _, ok := <-newer:
			if !ok {
				return fmt.Errorf("follow the mesh: %w", cmp.Or(context.Cause(ctx), mesh.ErrUnavailable))
			}
		case <-f.renew:
			f.mint(ctx)
		}
		// What was delivered may be old: the client was not reading.
		latest, err := f.service.membership.state.Wait(ctx, s.Version-1)
		if err != nil {
			return err
		}
		s = latest
	}
}

// mint makes servers for the next message, and sets renew to when half of their
// time is over.
func (f *pairFollower) mint(ctx context.Context) {
	if f.service.servers == nil {
		return
	}
	f.servers = f.service.servers(ctx, string(f.id))
	f.renew = nil
	var first time.Time
	for _, server := range f.servers {
		if t := server.GetExpiresAt(); t.IsValid() && (first.IsZero() || t.AsTime().Before(first)) {
			first = t.AsTime()
		}
	}
	if !first.IsZero() {
		f.renew = time.After(max(time.Until(first)/2, minServersAge))
	}
}

// ask takes what the client sent. Its errors name the field.
func (f *pairFollower) ask(m *meshgatev1.FollowPairsRequest) error {
	if id := m.GetNodeId(); id != "" && id != string(f.id) {
		return fmt.Errorf("%w: node_id: %q asks in a stream of node %q; open another one", mesh.ErrInvalid, id, f.id)
	}
	for _, text := range m.GetDrop() {
		delete(f.wanted, text)
	}
	for i, text := range m.GetAdd() {
		if w := f.wanted[text]; w != nil {
			*w = wanted{text: text, addr: w.addr} // to be answered again
			continue
		}
		w := &wanted{text: text}
		if addr, err := netip.ParseAddr(text); err == nil {
			if addr.Zone() != "" {
				return fmt.Errorf("%w: add[%d]: an address of the mesh has no zone", mesh.ErrInvalid, i)
			}
			w.addr = addr.Unmap()
		} else if _, err := mesh.ParseNodeID(text); err != nil {
			return fmt.Errorf("add[%d]: neither an IP address nor the id of a node: %w", i, err)
		}
		if len(f.wanted) >= maxWanted {
			return fmt.Errorf("%w: add: node %q wants to reach more than %d at a time; drop some", mesh.ErrExhausted, f.id, maxWanted)
		}
		f.wanted[text] = w
	}
	return nil
}

// tell sends what has changed for the node with s, if anything has. It takes
// shifts with all who are told, but only where something may have changed.
func (f *pairFollower) tell(ctx context.Context, s *mesh.Snapshot, send func(*meshgatev1.FollowPairsResponse) error) error {
	self := s.Node(f.id)
	if self == nil {
		return fmt.Errorf("%w: node %q is not, or no longer, in this mesh; join first", mesh.ErrNotFound, f.id)
	}
	stale := f.stale(s, self)
	if len(stale) == 0 && f.greeted && f.servers == nil {
		return nil
	}
	end, err := f.service.membership.shifts.take(ctx)
	if err != nil {
		return err
	}
	defer end()
	m := &meshgatev1.FollowPairsResponse{IceServers: f.servers}
	for _, w := range stale {
		if w.decide(f.service.plans, s, f.id) {
			m.Pairs = append(m.Pairs, w.message())
		}
	}
	if len(m.GetPairs()) == 0 && f.greeted && f.servers == nil {
		return nil
	}
	f.greeted, f.servers = true, nil
	f.answer.endsShift(end)
	return send(m)
}
