// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

const (
	// dialTimeout bounds the way to another replica.
	dialTimeout = 2 * time.Second
	// callWrite bounds one write to a stream of calls: all requests, or all
	// responses, that were queued when it began, maxQueued and one more message
	// at most.
	callWrite = 5 * time.Second
	// maxPending is how many calls may wait for their answers on one stream;
	// the next one waits for its turn.
	maxPending = 1024
	// While calls wait, the other end is asked every pingEvery whether it is
	// still there, and given pingTimeout to answer.
	pingEvery   = time.Second
	pingTimeout = 3 * time.Second
	// pingIdle is how often the other end is asked the same on a stream on which
	// no calls wait.
	pingIdle = 30 * time.Second
	// answerGrace is how long an answer is waited for from a leader that was
	// replaced meanwhile: it may be on its way.
	answerGrace = 100 * time.Millisecond
)

// errNotSent says that a call surely did not reach the other replica.
var errNotSent = errors.New("not sent")

// callStream is a stream of calls to one replica. Many calls may be on it.
type callStream struct {
	id, address string
	conn        net.Conn
	out         *frameWriter
	slots       chan struct{} // holds one token for each call
	done        chan struct{} // closed when the stream ended
	wg          sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	next    uint64
	pending map[uint64]chan *pb.ReplicaResponse
	ended   bool
}

// newCallStream takes over a greeted connection; close ends it.
func newCallStream(conn net.Conn, id, address string) *callStream {
	c := &callStream{
		id: id, address: address, conn: conn,
		out:     newFrameWriter(conn, maxFrame),
		slots:   make(chan struct{}, maxPending),
		done:    make(chan struct{}),
		pending: map[uint64]chan *pb.ReplicaResponse{},
	}
	c.wg.Go(c.read)
	c.wg.Go(c.write)
	c.wg.Go(c.keep)
	return c
}

// alive says whether the stream may still be used.
func (c *callStream) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// close ends the stream and all calls on it, and waits for its goroutines.
func (c *callStream) close() {
	c.end()
	c.wg.Wait()
}

func (c *callStream) end() {
	c.mu.Lock()
	ended := c.ended
	c.ended = true
	c.mu.Unlock()
	if !ended {
		close(c.done)
		_ = c.conn.Close()
	}
}

// read hands responses to those who wait for them.
func (c *callStream) read() {
	defer c.end()
	for in := newFrameReader(c.conn); ; {
		var resp pb.ReplicaResponse
		if _, err := readFrame(in, &resp, maxFrame); err != nil {
			return
		}
		c.mu.Lock()
		answer, ok := c.pending[resp.GetId()]
		delete(c.pending, resp.GetId())
		c.mu.Unlock()
		if ok { // else nobody waits any more
			answer <- &resp
		}
	}
}

// keep ends the stream when the other end does not answer.
func (c *callStream) keep() {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for idle := time.Duration(0); ; {
		select {
		case <-ticker.C:
		case <-c.done:
			return
		}
		c.mu.Lock()
		busy := len(c.pending) > 0
		c.mu.Unlock()
		if idle += pingEvery; !busy && idle < pingIdle {
			continue
		}
		idle = 0
		if !c.ping() {
			c.end()
			return
		}
	}
}

func (c *callStream) ping() bool {
	id, answer, err := c.register()
	if err != nil {
		return false
	}
	defer c.unregister(id)
	expired := make(chan struct{})
	defer time.AfterFunc(pingTimeout, func() { close(expired) }).Stop()
	if c.out.put(expired, &pb.ReplicaRequest{Id: id, Call: &pb.ReplicaRequest_Ping{Ping: &pb.ReplicaPing{}}}) != nil {
		return false
	}
	select {
	case <-answer:
		return true
	case <-expired:
		return false
	case <-c.done:
		return false
	}
}

func (c *callStream) register() (uint64, chan *pb.ReplicaResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return 0, nil, net.ErrClosed
	}
	c.next++
	answer := make(chan *pb.ReplicaResponse, 1)
	c.pending[c.next] = answer
	return c.next, answer, nil
}

func (c *callStream) unregister(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// write writes requests.
func (c *callStream) write() {
	defer c.end() // half a message may be on its way
	_ = c.out.run(c.done)
}

// call sends a request and waits for its response. The error wraps errNotSent
// when the request surely did not leave; after any other error the outcome is
// unknown. It sets the request's id and timeout. Once over is closed it waits
// for answerGrace and no longer; a nil over never is.
func (c *callStream) call(ctx context.Context, over <-chan struct{}, req *pb.ReplicaRequest) (*pb.ReplicaResponse, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	case <-c.done:
		return nil, fmt.Errorf("%w: %w", errNotSent, net.ErrClosed)
	}
	id, answer, err := c.register()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	defer c.unregister(id)
	req.Id = id
	if deadline, ok := ctx.Deadline(); ok {
		req.TimeoutMs = uint64(max(time.Until(deadline).Milliseconds(), 1))
	}
	switch err := c.out.put(ctx.Done(), req); {
	case errors.Is(err, errNotQueued):
		return nil, fmt.Errorf("%w: %w", errNotSent, cmp.Or(ctx.Err(), err))
	case err != nil: // it would fail again
		return nil, fmt.Errorf("call replica %q: %w", c.id, err)
	}
	for expired := (<-chan time.Time)(nil); ; {
		select {
		case resp := <-answer:
			return resp, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-over:
			over, expired = nil, time.After(answerGrace)
		case <-expired:
			return nil, fmt.Errorf("call replica %q: no answer when it led no more", c.id)
		case <-c.done:
			select {
			case resp := <-answer: // it came with the last bytes of the stream
				return resp, nil
			default:
				return nil, fmt.Errorf("call replica %q: the stream ended before the answer", c.id)
			}
		}
	}
}

// caller keeps a stream of calls to each replica that leads or has led.
type caller struct {
	dialer *streams
	// mu is held while dialling: a channel, so that a wait for it can end. It
	// guards the fields below.
	mu      chan struct{}
	streams map[string]*callStream
	closed  bool
}

func newCaller(s *streams) *caller {
	return &caller{dialer: s, mu: make(chan struct{}, 1), streams: map[string]*callStream{}}
}

// to returns a stream to a replica, dialled if need be. Its error wraps
// errNotSent.
func (c *caller) to(ctx context.Context, id, address string) (*callStream, error) {
	select {
	case c.mu <- struct{}{}:
		defer func() { <-c.mu }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	}
	if c.closed {
		return nil, fmt.Errorf("%w: %w", errNotSent, errStreamsClosed)
	}
	if s := c.streams[id]; s != nil {
		if s.alive() && s.address == address {
			return s, nil
		}
		s.close()
		delete(c.streams, id)
	}
	s, err := c.dialer.dialCalls(ctx, id, address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	c.streams[id] = s
	return s, nil
}

// forget ends the streams to replicas for which keep is false.
func (c *caller) forget(keep func(id string) bool) {
	c.mu <- struct{}{}
	defer func() { <-c.mu }()
	for id, s := range c.streams {
		if !keep(id) {
			s.close()
			delete(c.streams, id)
		}
	}
}

// close ends all streams; to fails from then on.
func (c *caller) close() {
	c.forget(func(string) bool { return false })
	c.mu <- struct{}{}
	c.closed = true
	<-c.mu
}

// dialCalls opens a stream of calls; the caller closes it.
func (s *streams) dialCalls(ctx context.Context, id, address string) (*callStream, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := s.dial(ctx, streamCalls, id, address)
	if err != nil {
		return nil, err
	}
	return newCallStream(conn, id, address), nil
}

// ask makes one call on a stream of its own.
func (s *streams) ask(ctx context.Context, id, address string, req *pb.ReplicaRequest) (*pb.ReplicaResponse, error) {
	stream, err := s.dialCalls(ctx, id, address)
	if err != nil {
		return nil, err
	}
	defer stream.close()
	resp, err := stream.call(ctx, nil, req)
	if err != nil {
		return nil, err
	}
	return resp, errorOf(resp.GetStatus())
}
