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

	"golang.org/x/net/netutil"
)

const (
	headerTimeout  = 5 * time.Second
	idleTimeout    = 60 * time.Second
	maxHeaderBytes = 32 << 10
	maxStreams     = 100 // of one HTTP/2 connection
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
// network, so that one stranger cannot take the places of all. More are closed
// at once.
type networkListener struct {
	net.Listener
	held *slots
}

// Accept implements net.Listener.
func (l networkListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		release, ok := l.held.acquire(network(from.Addr()))
		if ok {
			return &heldConn{Conn: conn, release: sync.OnceFunc(release)}, nil
		}
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
