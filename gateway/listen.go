// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"

	"github.com/meshgate/meshgate/gateway/gather"
)

const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 60 * time.Second
	// meshIdleTimeout is for members, who have nothing to wait for between two
	// calls: streams that wait keep their connection.
	meshIdleTimeout = 15 * time.Second
	maxHeaderBytes  = 32 << 10
	maxStreams      = 100 // of one HTTP/2 connection
	// A silent HTTP/2 connection is probed after pingAfter and closed when it
	// does not answer within pingTimeout.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// connWindow and streamWindow bound what a client may send before a
	// handler reads it.
	connWindow   = 1 << 20
	streamWindow = 256 << 10
)

// newServer is an HTTP/1.1 and HTTP/2 server with the limits that every
// listener has. ctx ends the calls.
func newServer(ctx context.Context, h http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			gather.Start(c)
			return withPlace(ctx, c)
		},
		// What net/http has to say is about clients, not about this program.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: connWindow,
			MaxReceiveBufferPerStream:     streamWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
			WriteByteTimeout:              sendTimeout,
		},
	}
}

// limitListener keeps at most n connections of l open; more wait in the
// kernel's queue.
func limitListener(l net.Listener, n int) net.Listener { return netutil.LimitListener(l, n) }

// networkListener keeps at most the limit of held connections open for each
// key, so that one member cannot take the places of all. More are closed at
// once.
type networkListener struct {
	net.Listener
	held *slots
	// key is whose places a connection from an address takes.
	key func(netip.Addr) string
	// refused counts the connections that are one too many.
	refused prometheus.Counter
}

// publicListener is the public listener with its bounds.
func (g *Gateway) publicListener() net.Listener {
	return &placesListener{
		Listener: g.cfg.Public,
		total:    g.cfg.Limits.Connections, share: g.cfg.Limits.NetworkConnections,
		key:       g.publicKey,
		flood:     &overflow{log: g.log, msg: "the public port is full: connections that nobody has signed in on make room for new ones"},
		displaced: g.metrics.madeRoom, refused: g.metrics.refused.WithLabelValues(listenerPublic),
		relays: g.metrics.lent, lentRefused: g.metrics.refused.WithLabelValues(listenerTURN),
		all: newHolders(), byKey: make(map[string]*holders),
	}
}

// publicKey counts strangers by network. A proxy brings everybody's connections.
func (g *Gateway) publicKey(addr netip.Addr) string {
	if proxies(g.cfg.Access.TrustedProxies).trusts(addr) {
		return ""
	}
	return network(addr)
}

// memberKey counts members by node: one holds a whole network of addresses.
func (g *Gateway) memberKey(addr netip.Addr) string {
	if s := g.cfg.Node.Snapshot(); s != nil {
		if n, ok := s.NodeByAddr(addr); ok {
			return "node " + string(n.ID)
		}
	}
	const holding = 112 // bits: what a node of this mesh is given of its IPv6 network
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		if p, err := addr.Prefix(holding); err == nil {
			return p.String()
		}
	}
	return addr.String()
}

// Accept implements net.Listener.
func (l networkListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		release, ok := l.held.acquire(l.key(from.Addr()))
		if ok {
			return &heldConn{Conn: conn, release: sync.OnceFunc(release)}, nil
		}
		l.refused.Inc()
		_ = conn.Close() // nothing was promised to it
	}
}

// heldConn gives its place back when it is closed.
type heldConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *heldConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
