// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

const (
	// requestTimeout bounds the arrival of a request's body; of a stream, of
	// its first message.
	requestTimeout = 10 * time.Second
	// answerTimeout bounds a whole answer that is no stream.
	answerTimeout = 60 * time.Second
	// sendTimeout bounds one message to a client that does not read.
	sendTimeout = 30 * time.Second

	headerRequestID = "X-Request-Id"
	// proxyHeaders begin the names of the headers by which v1 nodes speak for
	// somebody else. Nobody may in this version, so that they are dropped.
	proxyHeaders = "X-Webmesh-Proxied"
)

// request is what is known about an HTTP request before anybody looks into it.
type request struct {
	// id names the request in the answer and in the log. It is ours: a client
	// cannot choose it.
	id string
	// from is where the request came from.
	from netip.AddrPort
	// mesh is true for requests on a mesh listener.
	mesh bool
	// socket is set for a call in a WebSocket.
	socket *socket
	// draining ends when no new work should be begun.
	draining context.Context //nolint:containedctx // a request is a call
	// deadlines sets the deadlines of the request's connection or stream.
	deadlines *http.ResponseController
}

type requestKey struct{}

func requestFrom(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

// begin is the outermost middleware: it gives the request its id and its
// deadlines, and drops the headers that nobody may send.
func begin(draining context.Context, onMesh bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, _ := netip.ParseAddrPort(r.RemoteAddr)
			q := &request{
				id:        rand.Text(),
				from:      netip.AddrPortFrom(from.Addr().Unmap(), from.Port()),
				mesh:      onMesh,
				draining:  draining,
				deadlines: http.NewResponseController(w),
			}
			now := time.Now()
			// Not every connection has deadlines; those of package net do.
			_ = q.deadlines.SetReadDeadline(now.Add(requestTimeout))
			_ = q.deadlines.SetWriteDeadline(now.Add(answerTimeout))
			w.Header().Set(headerRequestID, q.id)
			dropProxyHeaders(r.Header)
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, q)))
		})
	}
}

// dropProxyHeaders removes every header by which a caller could claim to speak
// for another, in any spelling that net/http lets through.
func dropProxyHeaders(h http.Header) {
	for key := range h {
		if len(key) >= len(proxyHeaders) && strings.EqualFold(key[:len(proxyHeaders)], proxyHeaders) {
			delete(h, key)
		}
	}
}

// arrived says that the request's message is here: what is left to read, if
// anything, may take its time.
func (q *request) arrived() { _ = q.deadlines.SetReadDeadline(time.Time{}) }

// sending gives one message of a stream its time. Call the returned function
// after it was sent.
func (q *request) sending() (sent func()) {
	_ = q.deadlines.SetWriteDeadline(time.Now().Add(sendTimeout))
	return func() { _ = q.deadlines.SetWriteDeadline(time.Time{}) }
}

// streaming takes the limit of an answer's whole time away.
func (q *request) streaming() { _ = q.deadlines.SetWriteDeadline(time.Time{}) }

// cutOff ends the wait for more from the client.
func (q *request) cutOff() { _ = q.deadlines.SetReadDeadline(time.Unix(1, 0)) }
