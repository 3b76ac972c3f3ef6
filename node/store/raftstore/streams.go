// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// Network is how the replicas of a cluster reach each other. Its connections
// are reliable, ordered, private and have working deadlines; who is at the
// other end has been proven.
type Network interface {
	// Accept returns the next connection that another replica opened, and the
	// id of that replica. It returns an error once Close was called; after any
	// other error it is called again.
	Accept() (conn net.Conn, peer string, err error)
	// Dial opens a connection to the replica with the given id at an address
	// that was given to AddVoter, AddObserver or Config.
	Dial(ctx context.Context, id, address string) (net.Conn, error)
	// Close ends Accept.
	Close() error
}

// What a stream is for: its first byte.
const (
	streamRaft  = 'R'
	streamCalls = 'C'
)

const (
	// greetTimeout bounds the greeting on a new stream.
	greetTimeout = 5 * time.Second
	// maxGreetings is how many streams may be in their greeting at a time.
	maxGreetings = 64
	// maxStreams is how many streams one replica may hold open here. Raft
	// pools a handful, calls need one.
	maxStreams = 32
	// acceptPause is the pause after an Accept that failed.
	acceptPause = 50 * time.Millisecond
)

// errStreamsClosed says that the store is closing.
var errStreamsClosed = errors.New("streams are closed")

// streams are the connections of a store: it greets the other end, tells
// raft's streams from those of calls, and closes all of them together.
type streams struct {
	self    string
	network Network // nil: there is nobody else
	logger  *slog.Logger
	metrics *metrics
	// hello returns what is said to a replica.
	hello func(to string) *pb.ReplicaHello
	// judge decides whether a replica may open a stream.
	judge func(kind byte, peer string, hello *pb.ReplicaHello) *pb.ReplicaStatus
	// serve answers the calls on a stream until it ends.
	serve func(conn net.Conn, peer string)

	// ctx ends with close.
	ctx    context.Context
	cancel context.CancelFunc
	// accepted are raft's streams on their way to raft.
	accepted chan net.Conn
	greeting chan struct{}
	wg       sync.WaitGroup
	// raft counts the streams that raft has accepted and not closed yet.
	raft sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	open   map[*stream]struct{}
	held   map[string]int // accepted streams by the replica that opened them
	closed bool
}

// stream is a connection that streams knows.
type stream struct {
	net.Conn
	owner *streams
	peer  string // who opened it; empty when that was this replica
	raft  bool   // raft has it, and will close it
}

// Close implements net.Conn.
func (s *stream) Close() error {
	err := s.Conn.Close()
	s.owner.forget(s)
	return err
}

func newStreams(self string, network Network, logger *slog.Logger, m *metrics) *streams {
	s := &streams{
		self:     self,
		network:  network,
		logger:   logger,
		metrics:  m,
		accepted: make(chan net.Conn),
		greeting: make(chan struct{}, maxGreetings),
		open:     map[*stream]struct{}{},
		held:     map[string]int{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background()) //nolint:forbidigo // ended by close
	return s
}

// track makes a connection one that close closes.
func (s *streams) track(conn net.Conn, peer string) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errors.Join(errStreamsClosed, conn.Close())
	case peer != "" && s.held[peer] >= maxStreams:
		return nil, errors.Join(fmt.Errorf("more than %d streams", maxStreams), conn.Close())
	}
	t := &stream{Conn: conn, owner: s, peer: peer}
	s.open[t] = struct{}{}
	if peer != "" {
		s.held[peer]++
	}
	return t, nil
}

func (s *streams) forget(t *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[t]; !ok {
		return
	}
	delete(s.open, t)
	if t.raft {
		s.raft.Done()
	}
	if t.peer == "" {
		return
	}
	if s.held[t.peer]--; s.held[t.peer] == 0 {
		delete(s.held, t.peer)
	}
}

// run accepts streams until close.
func (s *streams) run() {
	if s.network == nil {
		return
	}
	s.wg.Go(func() {
		for {
			conn, peer, err := s.network.Accept()
			if s.ctx.Err() != nil {
				if err == nil {
					_ = conn.Close()
				}
				return
			}
			if err != nil {
				s.logger.Warn("accept a replica", "err", err)
				if !pause(s.ctx, acceptPause) {
					return
				}
				continue
			}
			s.receive(conn, peer)
		}
	})
}

// receive greets a new connection on a goroutine of its own; when too many
// are in their greeting, this waits for one to end.
func (s *streams) receive(conn net.Conn, peer string) {
	t, err := s.track(conn, peer)
	if err != nil {
		s.metrics.streamsRefused.WithLabelValues("limit").Inc()
		s.logger.Warn("refuse a stream", "peer", peer, "err", err)
		return
	}
	select {
	case s.greeting <- struct{}{}:
	case <-s.ctx.Done():
		_ = t.Close()
		return
	}
	s.wg.Go(func() {
		kind, err := s.welcome(t, peer)
		<-s.greeting
		if err != nil {
			s.logger.Debug("refuse a stream", "peer", peer, "err", err)
			_ = t.Close()
			return
		}
		if kind == streamCalls {
			s.serve(t, peer)
			_ = t.Close()
			return
		}
		if err := s.hand(s.ctx, t); err != nil {
			_ = t.Close()
		}
	})
}

// hand gives a stream to raft.
func (s *streams) hand(ctx context.Context, t *stream) error {
	s.mu.Lock()
	if _, open := s.open[t]; !open || s.closed {
		s.mu.Unlock()
		return errStreamsClosed
	}
	t.raft = true
	s.raft.Add(1)
	s.mu.Unlock()
	select {
	case s.accepted <- t:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return errStreamsClosed
	}
}

// welcome reads what a replica wants and says whether it may.
func (s *streams) welcome(conn net.Conn, peer string) (kind byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return 0, err
	}
	var first [1]byte
	if _, err := conn.Read(first[:]); err != nil {
		return 0, err
	}
	kind = first[0]
	var hello pb.ReplicaHello
	if _, err := readFrame(conn, &hello, maxGreeting); err != nil {
		s.metrics.streamsRefused.WithLabelValues("malformed").Inc()
		return 0, err
	}
	status := s.judge(kind, peer, &hello)
	if err := writeFrame(conn, &pb.ReplicaWelcome{Status: status}, maxGreeting); err != nil {
		return 0, err
	}
	if status.GetCode() != pb.ReplicaCode_REPLICA_CODE_OK {
		s.metrics.streamsRefused.WithLabelValues("not_member").Inc()
		return 0, &statusError{status}
	}
	return kind, conn.SetDeadline(time.Time{})
}

// dial opens a stream to a replica. A refusal is a *statusError.
func (s *streams) dial(ctx context.Context, kind byte, id, address string) (net.Conn, error) {
	if id == s.self {
		return s.dialSelf(ctx, kind)
	}
	if s.network == nil {
		return nil, fmt.Errorf("dial replica %q: this store has no network", id)
	}
	conn, err := s.network.Dial(ctx, id, address)
	if err != nil {
		return nil, fmt.Errorf("dial replica %q: %w", id, err)
	}
	t, err := s.track(conn, "")
	if err != nil {
		return nil, err
	}
	if err := s.greet(ctx, t, kind, id); err != nil {
		return nil, fmt.Errorf("dial replica %q: %w", id, errors.Join(err, t.Close()))
	}
	return t, nil
}

// greet says what the stream is for and waits for the welcome.
func (s *streams) greet(ctx context.Context, conn net.Conn, kind byte, id string) error {
	deadline := time.Now().Add(greetTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write([]byte{kind}); err != nil {
		return err
	}
	if err := writeFrame(conn, s.hello(id), maxGreeting); err != nil {
		return err
	}
	var welcome pb.ReplicaWelcome
	if _, err := readFrame(conn, &welcome, maxGreeting); err != nil {
		return err
	}
	if welcome.GetStatus().GetCode() != pb.ReplicaCode_REPLICA_CODE_OK {
		return &statusError{welcome.GetStatus()}
	}
	if !stop() {
		return ctx.Err() // the deadline of the past may come at any time
	}
	return conn.SetDeadline(time.Time{})
}

// dialSelf opens a stream of raft to itself, which it needs to stand for
// election out of turn.
func (s *streams) dialSelf(ctx context.Context, kind byte) (net.Conn, error) {
	if kind != streamRaft {
		return nil, errors.New("dial replica: that is this one")
	}
	near, far := net.Pipe()
	a, errA := s.track(near, "")
	b, errB := s.track(far, "")
	if err := errors.Join(errA, errB); err != nil {
		return nil, err
	}
	if err := s.hand(ctx, b); err != nil {
		return nil, errors.Join(err, a.Close(), b.Close())
	}
	return a, nil
}

// drop closes the streams that replicas hold open here and no longer may.
func (s *streams) drop(may func(peer string) bool) {
	var closing []*stream
	s.mu.Lock()
	for t := range s.open {
		if t.peer != "" && !may(t.peer) {
			closing = append(closing, t)
		}
	}
	s.mu.Unlock()
	for _, t := range closing {
		_ = t.Conn.Close() // its owner notices and closes it as well
	}
}

// close closes all streams and the network, and waits for what run started
// and for raft to let go of its streams; raft's transport was stopped before.
func (s *streams) close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	open := make([]*stream, 0, len(s.open))
	for t := range s.open {
		open = append(open, t)
	}
	s.mu.Unlock()
	s.cancel()
	for _, t := range open {
		_ = t.Conn.Close() // its owner notices and closes it as well
	}
	var err error
	if s.network != nil && !closed {
		err = s.network.Close()
	}
	s.wg.Wait()
	s.raft.Wait()
	return err
}

// raftLayer is the streams as raft sees them. Raft names a target by its
// address only; here that is what target makes of id and address.
type raftLayer struct {
	*streams
	address string
}

var _ raft.StreamLayer = raftLayer{}

// target joins what is needed to dial a replica.
func target(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(id) + "\x00" + address
}

// Dial implements raft.StreamLayer.
func (l raftLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, address, _ := strings.Cut(string(to), "\x00")
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	return l.dial(ctx, streamRaft, id, address)
}

// Accept implements net.Listener.
func (l raftLayer) Accept() (net.Conn, error) {
	select {
	case conn := <-l.accepted:
		return conn, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener; the store closes the streams.
func (raftLayer) Close() error { return nil }

// Addr implements net.Listener.
func (l raftLayer) Addr() net.Addr { return replicaAddr(l.address) }

// replicaAddr is an address of Config as a net.Addr.
type replicaAddr string

// Network implements net.Addr.
func (replicaAddr) Network() string { return "replica" }

// String implements net.Addr.
func (a replicaAddr) String() string { return string(a) }

// pause waits and says whether it did so to the end.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
