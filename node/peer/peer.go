// SPDX-License-Identifier: Apache-2.0

// Package peer makes clients of the RPC services that other nodes serve: over
// the mesh, where WireGuard authenticates both ends, and on the public address
// of a gateway, with TLS and a token.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

const (
	// unaryTimeout bounds a unary call whose context has no deadline, so that
	// a node that is gone cannot hold a caller.
	unaryTimeout = 10 * time.Second
	// dialTimeout bounds the TCP (and TLS) handshake.
	dialTimeout = 5 * time.Second
	// idleTimeout is how long a connection without calls is kept.
	idleTimeout = 2 * time.Minute
	// pingAfter is the silence after which a connection is probed, and
	// pingTimeout how long the answer may take: a server that vanished ends its
	// streams within their sum.
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
	// meshPingAfter and meshPingTimeout are the same for nodes on the mesh. A
	// member is without a gateway until it notices; some packets may be lost.
	meshPingAfter   = 3 * time.Second
	meshPingTimeout = 3 * time.Second
	// MaxMessage bounds one message that a client takes. The largest is the list of
	// the nodes of a mesh with tens of thousands of them.
	MaxMessage = 32 << 20
	// maxHeaderBytes bounds the headers of an answer.
	maxHeaderBytes = 32 << 10
)

// Config says how Peers reach other nodes.
type Config struct {
	// Dial opens a connection into the mesh. Required.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Peers makes clients of nodes on the mesh. All clients of one node share a
// connection. It is safe for concurrent use.
type Peers struct {
	transport *http.Transport
	client    *http.Client
}

// New makes Peers. End them with Close.
func New(cfg Config) (*Peers, error) {
	if cfg.Dial == nil {
		return nil, errors.New("peer: Config.Dial is nil")
	}
	t := newTransport()
	t.HTTP2.SendPingTimeout, t.HTTP2.PingTimeout = meshPingAfter, meshPingTimeout
	t.DialContext = cfg.Dial
	t.Protocols.SetUnencryptedHTTP2(true)
	return &Peers{transport: t, client: newHTTPClient(t)}, nil
}

// Close ends idle connections. Calls under way keep theirs until they end.
func (p *Peers) Close() { p.transport.CloseIdleConnections() }

// Node is the client of the Node service at addr.
func (p *Peers) Node(addr netip.AddrPort) v1connect.NodeClient {
	return v1connect.NewNodeClient(p.client, "http://"+addr.String(), clientOptions(nil)...)
}

// Membership is the client of the Membership service at addr.
func (p *Peers) Membership(addr netip.AddrPort) v1connect.MembershipClient {
	return v1connect.NewMembershipClient(p.client, "http://"+addr.String(), clientOptions(nil)...)
}

// Store is the client of the Store service at addr.
func (p *Peers) Store(addr netip.AddrPort) meshgatev1connect.StoreClient {
	return meshgatev1connect.NewStoreClient(p.client, "http://"+addr.String(), clientOptions(nil)...)
}

// Member is the client with which nodes follow the gateway at addr.
func (p *Peers) Member(addr netip.AddrPort) *Member {
	m := NewMember(p.Membership(addr), meshgatev1connect.NewEnrolmentClient(p.client, "http://"+addr.String(), clientOptions(nil)...))
	m.presence = p.presence(addr)
	return m
}

// Pairs is what nodes that are a pair ask of the gateway at addr.
func (p *Peers) Pairs(addr netip.AddrPort) *Pairs {
	base := "http://" + addr.String()
	return NewPairs(meshgatev1connect.NewPairsClient(p.client, base, clientOptions(nil)...), v1connect.NewWebRTCClient(p.client, base, clientOptions(nil)...))
}

// newTransport is an HTTP/2 transport without its protocols and dialer.
func newTransport() *http.Transport {
	return &http.Transport{
		Protocols:              new(http.Protocols),
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
}

// newHTTPClient wraps t. Redirects are an error: an RPC server sends none, and
// following one would hand the token to somebody else.
func newHTTPClient(t *http.Transport) *http.Client {
	return &http.Client{
		Transport: endsWithContext{t},
		CheckRedirect: func(r *http.Request, _ []*http.Request) error {
			return fmt.Errorf("the server answered with a redirect to %s; use that address", r.URL.Redacted())
		},
	}
}

// endsWithContext closes the body of a request whose context has ended. The
// HTTP/2 transport itself waits for more of the body once it has the headers of
// the answer, so that a stream would outlive its context on both ends.
type endsWithContext struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (e endsWithContext) RoundTrip(r *http.Request) (*http.Response, error) {
	body := r.Body
	if body == nil {
		return e.next.RoundTrip(r)
	}
	stop := context.AfterFunc(r.Context(), func() { _ = body.Close() }) // that it was closed before is no error
	res, err := e.next.RoundTrip(r)
	if err != nil {
		stop()
		return nil, err
	}
	res.Body = &answerBody{ReadCloser: res.Body, closed: stop}
	return res, nil
}

// answerBody tells when it is closed.
type answerBody struct {
	io.ReadCloser
	closed func() bool
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	b.closed()
	return b.ReadCloser.Close()
}

// clientOptions are the options of every client. token gives each call its
// token; nil, or an empty one: it has none.
func clientOptions(token func() string) []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithGRPC(),
		connect.WithReadMaxBytes(MaxMessage),
		connect.WithInterceptors(outbound{token: token}),
	}
}

// outbound gives calls their token and unary calls a deadline if they have none.
type outbound struct{ token func() string }

var _ connect.Interceptor = outbound{}

// WrapUnary implements connect.Interceptor.
func (o outbound) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		o.authorize(req.Header())
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, unaryTimeout)
			defer cancel()
		}
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (o outbound) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		o.authorize(conn.RequestHeader())
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor; clients have no handlers.
func (o outbound) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (o outbound) authorize(h http.Header) {
	if o.token == nil {
		return
	}
	if token := o.token(); token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
}
