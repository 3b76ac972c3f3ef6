// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
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
// and callers that they had better ask another one. With Known it answers the
// calls whose rules are early, too. Run it until the Gateway is made.
type Early struct {
	// Public and Metrics are those of Config, on loan; either may be nil.
	Public, Metrics net.Listener
	// TLS secures Public, as in Config.
	TLS *TLS
	// Self is the id of the gateway.
	Self mesh.NodeID
	// Reason is what the gateway waits for. It may not block. Required.
	Reason func() error
	// Known is what it knows meanwhile; nil: nothing that it could answer from.
	Known *Known
	// Gatherer is what /metrics shows. Required with Metrics.
	Gatherer prometheus.Gatherer
	// Logger may be nil: discard logs.
	Logger *slog.Logger
}

// Known is what a gateway knows before it serves. State, Keys and what the
// Authenticators of Access take from the state have to be of the same moment:
// that is why nobody is shown what was kept from them.
type Known struct {
	// State is the mesh as it was, Keys the same key by key. Required.
	State *mesh.Snapshot
	Keys  KnownKeys
	// Replicas and Cluster are as in Config.
	Replicas api.Replicas
	Cluster  api.Cluster
	// Access says who may come in, besides members by their keys. Changed is not
	// called.
	Access Access
	// Build and Console are as in Config.
	Build   api.Build
	Console fs.FS
}

// Run answers until ctx ends, closes the listeners, and returns nil. It returns
// an error when it cannot answer.
func (e *Early) Run(ctx context.Context) error {
	node := earlyNode{self: e.Self, reason: e.Reason}
	cfg := Config{
		Signaling: earlySignaling{}, Public: e.Public,
		Limits: Limits{Connections: earlyConnections},
		Logger: e.Logger, Gatherer: e.Gatherer,
	}
	if e.Public != nil {
		cfg.TLS = e.TLS
	}
	if e.Metrics != nil {
		cfg.Metrics = limitListener(e.Metrics, earlyConnections)
	}
	if k := e.Known; k != nil {
		node.state, node.keys = k.State, k.Keys
		cfg.Replicas, cfg.Cluster, cfg.Access = k.Replicas, k.Cluster, k.Access
		cfg.Build, cfg.Console = k.Build, k.Console
		cfg.Access.Changed = nil
		cfg.Access.Authenticators = append([]Authenticator{NewNodeKeys(node)}, k.Access.Authenticators...)
	}
	cfg.Node = node
	g, err := New(cfg)
	if err != nil {
		return err
	}
	g.waits, g.drain = e.Reason, earlyDrain
	return g.Run(ctx)
}

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
