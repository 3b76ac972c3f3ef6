// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

const (
	// earlyConnections is how many connections Early keeps open on a listener:
	// enough for probes, and for clients that look for a gateway that serves.
	earlyConnections = 1024
	// earlyDrain bounds what the answers under way may hold up the gateway.
	earlyDrain = time.Second
)

// Early answers on the ports of a gateway that does not serve yet, because it
// waits for others: who probes it hears that it lives, operators why it waits,
// and callers that they had better ask another one. Run it until the Gateway is
// made. It answers no calls: there is no state that it could answer them from.
type Early struct {
	// Public and Metrics are those of Config, on loan; either may be nil.
	Public, Metrics net.Listener
	// TLS secures Public, as in Config.
	TLS *TLS
	// Reason is what the gateway waits for. It may not block. Required.
	Reason func() error
	// Gatherer is what /metrics shows. Required with Metrics.
	Gatherer prometheus.Gatherer
	// Logger may be nil: discard logs.
	Logger *slog.Logger
}

// earlyNode is the node of a gateway that is not ready. Only Healthy is called.
type earlyNode struct {
	Node
	reason func() error
}

// Healthy implements Node.
func (n earlyNode) Healthy() error { return n.reason() }

// Run answers until ctx ends, closes the listeners, and returns nil. It returns
// an error when it cannot answer.
func (e *Early) Run(ctx context.Context) error {
	log := e.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(nil)
	if err != nil {
		return err
	}
	g := &Gateway{
		cfg: Config{Node: earlyNode{reason: e.Reason}, Gatherer: e.Gatherer},
		log: log.With("component", "gateway"), metrics: m, errors: connect.NewErrorWriter(),
	}
	group, ctx := errgroup.WithContext(ctx)
	serve := func(l net.Listener, h http.Handler) {
		s := newServer(context.WithoutCancel(ctx), h, g.log)
		group.Go(func() error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("answer on %s: %w", l.Addr(), err)
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), earlyDrain)
			defer cancel()
			if s.Shutdown(ending) != nil {
				_ = s.Close() // whoever is cut off asks again
			}
			return nil
		})
	}
	if e.Public != nil {
		l := limitListener(e.Public, earlyConnections)
		if e.TLS != nil {
			c, err := openCertificates(*e.TLS, g.log)
			if err != nil {
				return err
			}
			l = newTLSListener(ctx, l, c.config(false), nil)
		}
		serve(l, g.earlyHandler(ctx))
	}
	if e.Metrics != nil {
		serve(limitListener(e.Metrics, earlyConnections), g.metricsHandler(ctx))
	}
	group.Go(func() error { <-ctx.Done(); return nil })
	return group.Wait()
}

// earlyHandler serves everybody, before there is anything to serve.
func (g *Gateway) earlyHandler(draining context.Context) http.Handler {
	r := chi.NewRouter()
	r.Use(begin(draining, false, nil), g.recoverHTTP, securityHeaders)
	g.healthRoutes(r, false)
	r.HandleFunc("/*", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && g.errors.IsSupported(r) {
			g.writeError(w, r, connect.NewError(connect.CodeUnavailable, errEarly))
			return
		}
		http.Error(w, errEarly.Error(), http.StatusServiceUnavailable)
	})
	return r
}

// errEarly is what callers are told. Who the others are is for operators.
var errEarly = errors.New("this gateway has just started and waits for the other gateways: ask one of them, or try again")

// Loan returns a listener that accepts from l until it is closed; l, whose
// deadline it uses for that, stays open. Nobody else may accept from l until then.
func Loan(l *net.TCPListener) net.Listener {
	return &loan{TCPListener: l, idle: make(chan struct{}, 1)}
}

// loan is a listener on loan.
type loan struct {
	*net.TCPListener
	idle chan struct{} // holds a token while somebody is in Accept

	mu     sync.Mutex // guards the field below
	closed bool
}

// Accept implements net.Listener.
func (l *loan) Accept() (net.Conn, error) {
	l.idle <- struct{}{}
	defer func() { <-l.idle }()
	if l.isClosed() {
		return nil, net.ErrClosed
	}
	conn, err := l.TCPListener.Accept()
	if err != nil && l.isClosed() {
		return nil, net.ErrClosed
	}
	return conn, err
}

// Close implements net.Listener. It waits until nobody is in Accept.
func (l *loan) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	if err := l.SetDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	l.idle <- struct{}{}
	defer func() { <-l.idle }()
	return l.SetDeadline(time.Time{})
}

func (l *loan) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}
