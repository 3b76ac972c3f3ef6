// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// unaryTimeout bounds the work for a unary call.
const unaryTimeout = 10 * time.Second

// interceptor is around every handler: it checks roles, sets deadlines, turns
// errors into codes, counts, and writes the one log record of a call.
type interceptor struct{ *Gateway }

var _ connect.Interceptor = interceptor{}

// WrapUnary implements connect.Interceptor.
func (g interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		started := g.began(req.Spec())
		defer func() { err = g.ended(ctx, req.Spec(), started, err); g.metrics.inFlight.Dec() }()
		requestFrom(ctx).hasDecoded()
		requestFrom(ctx).deadlines.read(time.Time{}) // the message is here
		ctx, cancel := context.WithTimeout(ctx, unaryTimeout)
		defer cancel()
		if err := g.measure(ctx, req); err != nil {
			return nil, err
		}
		if res, err, done := g.guarded(ctx, req, next); done {
			return res, err
		}
		s, err := g.state(ctx, req.Spec(), req.Header())
		if err != nil {
			return nil, err
		}
		if err := g.authorize(ctx, s, req.Spec(), req.Any()); err != nil {
			return nil, err
		}
		if g.rules[req.Spec().Procedure].relays {
			ctx = g.withRelayRight(ctx, s)
		}
		if g.rules[req.Spec().Procedure].written != nil {
			ctx = g.withPermit(ctx, req)
		}
		return next(api.WithState(ctx, s), req)
	}
}

// withPermit has the handler ask for the rights to req where its change is written.
func (g *Gateway) withPermit(ctx context.Context, req connect.AnyRequest) context.Context {
	return api.WithPermit(ctx, func(before, after *mesh.Snapshot) error {
		if after == nil {
			return g.authorize(ctx, before, req.Spec(), req.Any())
		}
		return g.rules[req.Spec().Procedure].written(before, after, api.CallerFrom(ctx).ID)
	})
}

// measure counts what a call writes against its caller's share.
func (g *Gateway) measure(ctx context.Context, req connect.AnyRequest) error {
	rule, caller := g.rules[req.Spec().Procedure], api.CallerFrom(ctx).ID
	if rule.weight != nil && !g.writes.takeN(caller, rule.weight(req.Any())) {
		return tooManyWrites(caller)
	}
	if rule.volume != nil && !g.volumes.takeN(caller, rule.volume(req.Any())) {
		return fmt.Errorf("%w: %q publishes more than %d bytes per second; wait a second", mesh.ErrExhausted, caller, publishRate)
	}
	return nil
}

// contended is how long guarded calls are not tried after one of them was
// refused because the mesh had changed: it may be changing all the time.
const contended = time.Second

// guarded makes a call whose rule is guarded by what this gateway knows. It is
// not done, and nothing was written, when that does not allow it, or is not the
// newest, or when the call makes no sense.
func (g *Gateway) guarded(ctx context.Context, req connect.AnyRequest, next connect.UnaryFunc) (res connect.AnyResponse, err error, done bool) {
	spec := req.Spec()
	if !g.rules[spec.Procedure].guarded || g.cfg.Node.Snapshot() == nil || time.Now().UnixNano() < g.quiet.Load() {
		return nil, nil, false
	}
	s, err := g.latest(ctx)
	if err != nil || g.authorize(ctx, s, spec, req.Any()) != nil {
		return nil, nil, false
	}
	res, err = next(api.WithGuard(ctx, s), req)
	switch {
	case errors.Is(err, store.ErrUncertain):
		return res, err, true // it may be written: not twice
	case errors.Is(err, store.ErrConflict):
		g.quiet.Store(time.Now().Add(contended).UnixNano())
		return nil, nil, false
	case errors.Is(err, mesh.ErrInvalid):
		return nil, nil, false // nothing was written, and without a leader that is what counts
	}
	return res, err, true
}

// WrapStreamingHandler implements connect.Interceptor.
func (g interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		started := g.began(conn.Spec())
		defer func() { err = g.ended(ctx, conn.Spec(), started, err); g.metrics.inFlight.Dec() }()
		q := requestFrom(ctx)
		q.deadlines.write(time.Time{}) // each message gets its own
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		if conn.Spec().StreamType == connect.StreamTypeServer {
			// It ends when the client goes, which at shutdown is too late.
			defer q.onDrain(func() { cancel(api.ErrClosing) })()
		}
		// Whoever waits for the client waits no longer than the call lasts.
		defer context.AfterFunc(ctx, func() { q.deadlines.read(time.Unix(1, 0)) })()
		release, err := g.holdStream(ctx, conn.Spec())
		if err != nil {
			return err
		}
		defer release()
		s, err := g.state(ctx, conn.Spec(), conn.RequestHeader())
		if err != nil {
			return err
		}
		caller := api.CallerFrom(ctx)
		rule := g.rules[conn.Spec().Procedure]
		right := &grant{state: g.cfg.Node, plans: g.cfg.Node, rule: rule, caller: caller, stands: q.stands}
		var lasting atomic.Pointer[func() bool] // ends that draining ends the call
		defer func() {
			if stop := lasting.Load(); stop != nil {
				(*stop)()
			}
		}()
		defer g.grants.hold(right, cancel)()
		caller.Allowed = right.check
		guarded := &guardedStream{
			StreamingHandlerConn: conn,
			decoded:              q.hasDecoded,
			deadlines:            q.deadlines,
			right:                right,
			admit: func(msg any) error {
				if err := g.authorize(ctx, s, conn.Spec(), msg); err != nil {
					return err
				}
				if rule.lasts != nil && rule.lasts(msg) {
					stop := q.onDrain(func() { cancel(api.ErrClosing) })
					lasting.Store(&stop)
				}
				return right.admit(s, msg)
			},
		}
		if conn.Spec().StreamType == connect.StreamTypeServer {
			guarded.again = g.reauthorize(ctx, s, conn.Spec())
		}
		return guarded.verdict(ctx, next(api.WithState(api.WithCaller(ctx, caller), s), guarded))
	}
}

// holdStream takes one of the caller's places for streams.
func (g *Gateway) holdStream(ctx context.Context, spec connect.Spec) (release func(), err error) {
	if g.rules[spec.Procedure].access != identified {
		return func() {}, nil
	}
	caller := api.CallerFrom(ctx).ID
	release, ok := g.streams.acquire(caller)
	if !ok {
		return nil, fmt.Errorf("%w: %q has %d streams open; close some", mesh.ErrExhausted, caller, g.cfg.Limits.Streams)
	}
	return release, nil
}

// WrapStreamingClient implements connect.Interceptor; a gateway's handlers
// have no client.
func (g interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// state returns the state by which a call is decided, nil before there is one.
// Roles are read from the latest, not from the one that the data plane follows
// a moment later, so that what was granted or taken counts at once.
func (g *Gateway) state(ctx context.Context, spec connect.Spec, h http.Header) (*mesh.Snapshot, error) {
	if g.cfg.Node.Snapshot() == nil {
		return nil, nil
	}
	if r := g.rules[spec.Procedure]; r.fresh == always || r.fresh == unlessStale && !api.Stale(h) {
		return g.cfg.Node.Sync(ctx)
	}
	return g.latest(ctx)
}

// latest returns the newest state that the node knows of; there is one.
func (g *Gateway) latest(ctx context.Context) (*mesh.Snapshot, error) { return g.cfg.Node.Wait(ctx, 0) }

// authorize checks the caller's roles in s against the call's first message. A
// member has to be one still: a long call may outlive its caller's membership.
// Whose address is whose is what the data plane follows, which drops packets
// from others.
func (g *Gateway) authorize(ctx context.Context, s *mesh.Snapshot, spec connect.Spec, msg any) error {
	inForce, caller := g.cfg.Node.Snapshot(), api.CallerFrom(ctx)
	if err := stillMember(inForce, caller); err != nil {
		return err
	}
	rule := g.rules[spec.Procedure]
	if to, ok, err := rule.pairWith(msg); err != nil {
		return err
	} else if ok {
		return maySignal(g.cfg.Node, s, caller, to)
	}
	return rule.authorize(s, caller, msg)
}

// reauthorize returns a check of a stream that was allowed by s, to be made
// before each message: it decides again once the state is another one.
func (g *Gateway) reauthorize(ctx context.Context, s *mesh.Snapshot, spec connect.Spec) func(msg any) error {
	inForce := g.cfg.Node.Snapshot()
	return func(msg any) error {
		latest, err := g.latest(ctx)
		if err != nil {
			return err
		}
		if now := g.cfg.Node.Snapshot(); latest != s || now != inForce {
			s, inForce = latest, now
			return g.authorize(ctx, s, spec, msg)
		}
		return nil
	}
}

// began counts a call.
func (g *Gateway) began(spec connect.Spec) time.Time {
	g.metrics.started.WithLabelValues(spec.Procedure).Inc()
	g.metrics.inFlight.Inc()
	return time.Now()
}

// ended turns err into what the client gets, counts the call and writes its
// log record. It returns a literal nil for a nil err.
func (g *Gateway) ended(ctx context.Context, spec connect.Spec, started time.Time, err error) error {
	q, caller, took := requestFrom(ctx), api.CallerFrom(ctx), time.Since(started)
	public := api.Error(ctx, err, q.id)
	code := "ok"
	if public != nil {
		code = public.Code().String()
	}
	g.metrics.handled.WithLabelValues(spec.Procedure, code).Inc()
	if spec.StreamType == connect.StreamTypeUnary {
		g.metrics.seconds.WithLabelValues(spec.Procedure).Observe(took.Seconds())
	}
	from, level := q.from.String(), g.level(spec.Procedure, public)
	if q.local { // it has no address, and what its commands may not ask tells nobody anything
		from = "local"
		if code == connect.CodePermissionDenied.String() {
			level = slog.LevelDebug
		}
	}
	attrs := []slog.Attr{
		slog.String("rpc", spec.Procedure), slog.String("code", code), slog.Duration("dur", took),
		slog.String("caller", caller.ID), slog.String("addr", from), slog.String("request_id", q.id),
	}
	if public != nil && level == slog.LevelError {
		attrs = append(attrs, slog.Any("err", err)) // the cause, which the client does not get
	} else if public != nil {
		attrs = append(attrs, slog.String("err", public.Message()))
	}
	g.log.LogAttrs(ctx, level, "rpc", attrs...)
	if public == nil {
		return nil
	}
	return public
}

// level of a call's log record: what changes the mesh and what roles refused
// is for the audit, faults are for somebody to act on, the rest is detail.
func (g *Gateway) level(procedure string, err *connect.Error) slog.Level {
	switch {
	case err != nil && err.Code() == connect.CodeInternal:
		return slog.LevelError
	case err != nil && g.waits != nil && err.Code() == connect.CodeUnavailable:
		return slog.LevelDebug // strangers, too, are told that it does not serve yet
	case err != nil && g.rules[procedure].writes && degraded(err.Code()):
		return slog.LevelWarn
	case err != nil && err.Code() == connect.CodePermissionDenied, err == nil && g.rules[procedure].writes:
		return slog.LevelInfo
	case err != nil && err.Code() == connect.CodeUnauthenticated && g.strangers.Allow():
		return slog.LevelInfo
	case procedure == v1connect.MembershipSubscribePeersProcedure:
		return slog.LevelInfo // a node that followed this gateway does so no more
	}
	return slog.LevelDebug
}

// degraded reports whether a change that fails with this code fails because of
// the gateway and not because of its caller.
func degraded(c connect.Code) bool {
	switch c {
	case connect.CodeResourceExhausted, connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		return true
	default:
		return false
	}
}

// recovered answers for a handler that panicked.
func (g *Gateway) recovered(ctx context.Context, spec connect.Spec, _ http.Header, value any) error {
	g.metrics.panics.Inc()
	g.log.Error("handler panicked", "rpc", spec.Procedure, "request_id", requestFrom(ctx).id,
		"err", fmt.Sprint(value), "stack", string(debug.Stack()))
	return fmt.Errorf("panic in %s", spec.Procedure)
}

// guardedStream is a call's stream: its first message has to come in time and
// is what roles are checked against; each message sent has to be taken in time.
type guardedStream struct {
	connect.StreamingHandlerConn
	decoded   func() // a message was received
	deadlines *deadlines
	right     *grant
	admit     func(first any) error
	again     func(first any) error // asked before each message that is sent; nil: nobody is

	mu      sync.Mutex // guards the fields below: a handler may return while it receives
	asked   bool       // the first message was received, or did not come
	first   any
	refused error // what admit said
	late    bool  // the first message did not come in time
}

// Receive implements connect.StreamingHandlerConn.
func (s *guardedStream) Receive(msg any) error {
	err := s.StreamingHandlerConn.Receive(msg)
	s.decoded()
	if connect.CodeOf(err) == connect.CodeInternal {
		err = connect.NewError(connect.CodeInvalidArgument, err) // it is the client that broke the protocol
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked {
		return err
	}
	s.asked = true
	if err != nil {
		s.late = connect.CodeOf(err) == connect.CodeDeadlineExceeded
		return err
	}
	s.deadlines.read(time.Time{})
	s.refused = s.admit(msg)
	s.first = msg
	return s.refused
}

// Send implements connect.StreamingHandlerConn.
func (s *guardedStream) Send(msg any) error {
	if s.again != nil {
		if err := s.admitAgain(); err != nil {
			return err
		}
	}
	s.deadlines.write(time.Now().Add(sendTimeout))
	defer s.deadlines.write(time.Time{})
	return s.StreamingHandlerConn.Send(msg)
}

// admitAgain asks whether the caller may still have what it asked for.
func (s *guardedStream) admitAgain() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused == nil {
		s.refused = s.again(s.first)
	}
	return s.refused
}

// verdict is the error of a call whose handler returned err, which may have
// lost on the way why the first message was not given to it.
func (s *guardedStream) verdict(ctx context.Context, err error) error {
	gone := s.right.refusal()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.refused != nil:
		return s.refused
	case gone != nil:
		return gone
	case s.late && ctx.Err() == nil:
		return fmt.Errorf("the first message did not come within %s: %w", requestTimeout, context.DeadlineExceeded)
	}
	return err
}
