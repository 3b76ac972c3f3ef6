// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
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
func newServer(h http.Handler, ctx context.Context, log *slog.Logger) *http.Server { //nolint:revive // ctx is no call's
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
