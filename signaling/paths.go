// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// maxPathChannels is how many path channels may go from one node to another:
	// the present one, and some that are on their way out.
	maxPathChannels = 4
	// pathIdle ends a path channel on which nothing is said. Who has something to
	// say later opens another one.
	pathIdle = 10 * time.Minute
)

// PathStream is a channel on which two nodes tell each other how they can be
// reached. What comes out of it was checked.
type PathStream = Stream[mesh.PathSignal, mesh.PathSignal]

// PathSignals takes the part of this node in path channels that others open.
type PathSignals interface {
	// ServePaths answers a channel that node from has opened by way of a gateway,
	// which vouches for that name and for nothing else. It returns when the channel
	// is over, with what the other node is to be told, or nil. The channel ends with
	// ctx, and is not used afterwards.
	ServePaths(ctx context.Context, from mesh.NodeID, channel PathStream) error
}

// errNoPaths is for channels to a node that takes no part in pairs.
var errNoPaths = fmt.Errorf("this node takes no part in pairs: it is reached through a gateway: %w", mesh.ErrUnsupported)

// inPath is the path of a message in a channel of paths, checked.
func (m signal) inPath() (mesh.PathSignal, error) {
	if m.description != "" || m.candidate != "" {
		return mesh.PathSignal{}, fmt.Errorf("description and candidate have no place in a channel that began with a path: %w", mesh.ErrInvalid)
	}
	return mesh.PathSignalFromProto(m.path)
}

// notPath refuses a path in a channel that began without one, where nobody has
// asked whether the two may have one.
func (m signal) notPath() error {
	if m.path != nil {
		return fmt.Errorf("path: this channel began without one; open another: %w", mesh.ErrInvalid)
	}
	return nil
}

// pathChannel counts a path channel of a node to another until end is called.
func (s *Service) pathChannel(from, to string) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, key := &s.census, pathKey(from, to)
	switch {
	case s.closed:
		return nil, ErrClosed
	case c.pathsAll >= c.limits.PathChannels:
		err = fmt.Errorf("too many path channels at this node, try again later: %w", mesh.ErrExhausted)
	case c.paths[key] >= maxPathChannels:
		err = fmt.Errorf("%d path channels from %q to %q are open; close some: %w", maxPathChannels, from, to, mesh.ErrExhausted)
	default:
		err = c.open(from, to)
	}
	if err != nil {
		s.metrics.refused.Inc()
		return nil, err
	}
	c.paths[key]++
	c.pathsAll++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.pathsAll--
		drop(c.paths, key)
	}, nil
}

// startPaths answers StartSignalChannel for a channel that begins with a path:
// caller is a node that may signal to node, as who called has checked.
func (s *Service) startPaths(ctx context.Context, caller Caller, node mesh.NodeID, first signal, in *inbox, stream Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
	path, err := first.inPath()
	if err != nil {
		return err
	}
	local, err := s.cfg.Peers.Local(node)
	switch {
	case err != nil:
		return fmt.Errorf("node %q: %w", node, err)
	case local && node != s.cfg.Self:
		return fmt.Errorf("node %q is a plain WireGuard peer, and has no paths: %w", node, mesh.ErrUnsupported)
	case local:
		return s.servePaths(ctx, caller.ID, path, in, func(p *v1.PathSignal) error {
			return stream.Send(&v1.WebRTCSignal{NodeId: string(node), Path: p})
		})
	}
	end, err := s.pathChannel(caller.ID, string(node))
	if err != nil {
		return err
	}
	defer end()
	callCtx, endNode := context.WithCancel(ctx)
	defer endNode()
	call, err := s.cfg.Peers.Signal(callCtx, node)
	if err != nil {
		return unreachable(node, err)
	}
	toNode := s.tellingPaths(string(node), caller.ID, func(p *v1.PathSignal) error {
		return call.Send(&v1.WebRTCSignal{NodeId: caller.ID, Caller: caller.ID, Path: p}) // whatever the caller wrote there
	})
	if err := toNode(path); err != nil {
		return sendFailed(call.Receive, node, err)
	}
	s.metrics.relayed.Inc()
	r := pathRelay{
		clientPace: func() error { return s.pacePath(caller.ID, string(node)) },
		nodePace:   func() error { return s.pacePath(string(node), caller.ID) },
		node:       node, client: in, toNode: toNode, closeNode: call.CloseSend, endNode: endNode,
		fromNode: s.newInbox(ctx, func() (signal, error) {
			m, err := call.Receive()
			return signalOf(m), err
		}),
		toClient: s.tellingPaths(caller.ID, string(node), func(p *v1.PathSignal) error {
			return stream.Send(&v1.WebRTCSignal{NodeId: string(node), Path: p})
		}),
	}
	return r.run(ctx)
}

// pathRelay carries paths between a node that opened a channel and another one.
type pathRelay struct {
	node             mesh.NodeID
	client, fromNode *inbox
	toClient, toNode func(mesh.PathSignal) error
	closeNode        func() error
	endNode          func() // ends the call to the node, and what waits to be sent there
	// clientPace and nodePace count a signal of either; their errors end the channel.
	clientPace, nodePace func() error
}

// run carries until one of the two ends. After the client's half-close the other
// node has gatherGrace to finish.
//
// A signal to the node is sent beside: a node that answers each signal before it
// reads the next one would wait for us to read, and we for it.
func (r *pathRelay) run(ctx context.Context) error {
	client := r.client.c
	next := client // nil while a signal is being sent to the node
	sent := make(chan error, 1)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer r.endNode()
	timer := time.NewTimer(pathIdle)
	defer timer.Stop()
	for {
		select {
		case m, ok := <-next:
			if !ok && !errors.Is(r.client.err, io.EOF) {
				return r.client.err
			}
			if !ok {
				client, next = nil, nil
				_ = r.closeNode() // what is wrong with the call shows when receiving
				timer.Reset(gatherGrace)
				continue
			}
			path, err := m.inPath()
			if err == nil {
				err = r.clientPace()
			}
			if err != nil {
				return err
			}
			next = nil
			sending.Go(func() { sent <- r.toNode(path) })
			timer.Reset(pathIdle)
		case err := <-sent:
			if err != nil {
				return r.lost(ctx)
			}
			next = client
		case m, ok := <-r.fromNode.c:
			if !ok {
				return r.over()
			}
			if err := r.answer(m); err != nil {
				return err
			}
			if client != nil {
				timer.Reset(pathIdle)
			}
		case <-timer.C:
			if client == nil {
				return nil
			}
			return errPathIdle
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// answer carries what the node says to the client.
func (r *pathRelay) answer(m signal) error {
	path, err := m.inPath()
	if err == nil {
		err = r.nodePace()
	}
	if err != nil {
		return fmt.Errorf("node %q: %w: %w", r.node, mesh.ErrUnavailable, err) // it is not the client's fault
	}
	if err := r.toClient(path); err != nil {
		return fmt.Errorf("relay from node %q: %w: %w", r.node, mesh.ErrUnavailable, err)
	}
	return nil
}

var errPathIdle = fmt.Errorf("nothing was said for %s: %w", pathIdle, context.DeadlineExceeded)

// lost is the result of a call to which nothing can be sent any more: it has
// ended, and receiving says why.
func (r *pathRelay) lost(ctx context.Context) error {
	for {
		select {
		case _, ok := <-r.fromNode.c:
			if !ok {
				return r.over()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// over is the result of a call that the node has ended.
func (r *pathRelay) over() error {
	if err := r.fromNode.err; !errors.Is(err, io.EOF) {
		return fmt.Errorf("node %q: %w", r.node, err)
	}
	return nil
}

// tellingPaths is send, and tells Config.Candidate of every address that user,
// who gets what is sent, is told by namer to send to.
func (s *Service) tellingPaths(user, namer string, send func(*v1.PathSignal) error) func(mesh.PathSignal) error {
	tell := s.cfg.Candidate
	if tell == nil {
		tell = func(string, string, netip.AddrPort) {}
	}
	return func(p mesh.PathSignal) error {
		for _, c := range p.Candidates {
			tell(user, namer, c.Addr)
		}
		return send(mesh.PathSignalToProto(p))
	}
}

// servePaths hands a channel that node from opened to this node's PathSignals.
func (s *Service) servePaths(ctx context.Context, from string, first mesh.PathSignal, in *inbox, send func(*v1.PathSignal) error) error {
	if s.cfg.Paths == nil {
		return errNoPaths
	}
	id, err := mesh.ParseNodeID(from)
	if err != nil {
		return fmt.Errorf("caller: %w", err)
	}
	if id == s.cfg.Self {
		return fmt.Errorf("caller: node %q signals to itself: %w", id, mesh.ErrInvalid)
	}
	end, err := s.pathChannel(from, string(s.cfg.Self))
	if err != nil {
		return err
	}
	defer end()
	return s.cfg.Paths.ServePaths(ctx, id, &pathEnd{
		ctx: ctx, first: &first, in: in, send: send,
		pace: func() error { return s.pacePath(from, string(s.cfg.Self)) },
	})
}

// pathEnd is this node's end of a path channel.
type pathEnd struct {
	ctx   context.Context //nolint:containedctx // it is a call
	first *mesh.PathSignal
	in    *inbox
	send  func(*v1.PathSignal) error
	pace  func() error // counts a signal of the other node
}

// Receive implements PathStream.
func (e *pathEnd) Receive() (mesh.PathSignal, error) {
	if first := e.first; first != nil {
		e.first = nil
		return *first, nil
	}
	idle := time.NewTimer(pathIdle)
	defer idle.Stop()
	select {
	case m, ok := <-e.in.c:
		if !ok {
			return mesh.PathSignal{}, e.in.err
		}
		path, err := m.inPath()
		if err == nil {
			err = e.pace()
		}
		return path, err
	case <-idle.C:
		return mesh.PathSignal{}, errPathIdle
	case <-e.ctx.Done():
		return mesh.PathSignal{}, context.Cause(e.ctx)
	}
}

// Send implements PathStream.
func (e *pathEnd) Send(p mesh.PathSignal) error { return e.send(mesh.PathSignalToProto(p)) }
