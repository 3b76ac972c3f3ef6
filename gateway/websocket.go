// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// The grpc-websockets transport carries one call of any kind in one WebSocket,
// so that browsers, which cannot stream a request, can make bidirectional
// calls. The protocol is that of @improbable-eng/grpc-web:
//
//	client: headers "key: value\r\n"..., one binary message
//	        0x00 + gRPC frame(s), any number of times
//	        0x01, no more frames will come; to cancel, close
//	server: a byte stream in binary messages: a frame 0x80 with the headers,
//	        frames with messages, a frame 0x80 with the trailers; then close
//
// The call is served by the gRPC-web handler as if it had come over HTTP/2.
const (
	subprotocol = "grpc-websockets"

	moreFrames = 0x00 // first byte of a message with frames
	noMore     = 0x01 // the only byte of the message that ends the request

	// maxSocketMessage bounds one WebSocket message: a frame of maxMessage,
	// its prefix and the byte before it.
	maxSocketMessage = maxMessage + 5 + 1
	// maxSocketHeaders bounds the header message.
	maxSocketHeaders = maxHeaderBytes
	// maxPendingSockets may wait for their header message per network, and for
	// socketHeaderTimeout each: clients send it with the first packet that they can.
	maxPendingSockets   = 64
	socketHeaderTimeout = 3 * time.Second
	// lastWords is how long a call that was ended may take to say so.
	lastWords = 2 * time.Second
	// closeReason is as long as a close frame lets it be.
	closeReason = 120
)

// socket is one call in a WebSocket.
type socket struct {
	conn *websocket.Conn
	// body is the write end of the request's body.
	body *io.PipeWriter
	// delivering is true while the handler does not take what was received;
	// progress counts what it took.
	delivering atomic.Bool
	progress   atomic.Uint64
	release    func() // the slot of its caller; nil before it has one
}

// hold takes one of its caller's slots; false when there is none.
func (s *socket) hold(of *slots, caller string) bool {
	release, ok := of.acquire(caller)
	s.release = release
	return ok
}

// webSockets serves calls in WebSockets and passes everything else on.
func (g *Gateway) webSockets(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !headerHas(r.Header, "Connection", "upgrade") || !headerHas(r.Header, "Upgrade", "websocket") {
			next.ServeHTTP(w, r)
			return
		}
		q := requestFrom(r.Context())
		switch _, known := g.rules[r.URL.Path]; {
		case !known:
			http.NotFound(w, r)
			return
		case !headerHas(r.Header, "Sec-Websocket-Protocol", subprotocol):
			http.Error(w, "a WebSocket is served for the subprotocol "+subprotocol+" only", http.StatusBadRequest)
			return
		case !g.originAllowed(r):
			g.denyBrowser(w, r, "pages of this origin may not call the gateway; its operator can allow the origin")
			return
		}
		if !g.open.enter() {
			http.Error(w, "the gateway is shutting down", http.StatusServiceUnavailable)
			return
		}
		defer g.open.leave()
		wait, begun, _ := g.pending.enter(r.Context(), network(q.from.Addr()))
		defer begun()
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
			Subprotocols:       []string{subprotocol},
			InsecureSkipVerify: true, // originAllowed has looked at the origin
		})
		if err != nil {
			return // Accept has answered
		}
		g.metrics.sockets.Inc()
		defer g.metrics.sockets.Dec()
		header, err := readSocketHeader(wait, conn)
		if err != nil {
			g.endSocket(r.Context(), wait, conn, err)
			return
		}
		begun()
		g.serveSocket(conn, r, q, header)
	})
}

// serveSocket serves the call in conn that begins with header. It returns when
// nothing of it is left.
func (g *Gateway) serveSocket(conn *websocket.Conn, r *http.Request, q *request, header http.Header) {
	defer func() { _ = conn.CloseNow() }() // after the close that counts
	// The call may be ended from outside, at shutdown; the connection outlives
	// it by the time for its last words.
	line, hangUp := context.WithCancel(context.WithoutCancel(r.Context()))
	defer hangUp()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, hangUp) })()

	body, bodyWriter := io.Pipe()
	s := &socket{conn: conn, body: bodyWriter}
	w := newSocketWriter(line, s)
	inner := *q
	inner.socket, inner.deadlines = s, newDeadlines(w)
	defer inner.end()
	defer func() {
		if s.release != nil {
			s.release()
		}
	}()

	var wg sync.WaitGroup
	wg.Go(func() { defer cancel(); s.receive(line) })
	wg.Go(func() { s.keepAlive(line, hangUp) })

	w.Header().Set(headerRequestID, q.id)
	panicked := g.serveCall(w, socketRequest(context.WithValue(ctx, requestKey{}, &inner), r, header, body))
	inner.deadlines.over()
	_ = body.Close() // unblocks receive
	code, reason := websocket.StatusNormalClosure, ""
	if panicked || w.finish() != nil {
		code, reason = websocket.StatusInternalError, "the call was cut off"
	}
	g.closeSocket(conn, code, reason)
	hangUp()
	wg.Wait()
}

// serveCall runs the call's handler, which must not take the process with it.
func (g *Gateway) serveCall(w *socketWriter, r *http.Request) (panicked bool) {
	_ = w.SetReadDeadline(time.Now().Add(requestTimeout))
	defer w.stopTimer()
	defer func() {
		if v := recover(); v != nil {
			panicked = true
			if !aborted(v) {
				g.metrics.panics.Inc()
				g.log.Error("handler panicked", "rpc", r.URL.Path, "err", fmt.Sprint(v))
			}
		}
	}()
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc-web") || strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc-web-text") {
		w.WriteHeader(http.StatusUnsupportedMediaType)
		return false
	}
	g.rpc.ServeHTTP(w, r)
	return false
}

// endSocket closes a socket whose header did not come, for why: because wait,
// its place, was given to another, or within ctx.
func (g *Gateway) endSocket(ctx, wait context.Context, conn *websocket.Conn, why error) {
	if ctx.Err() == nil && wait.Err() != nil {
		g.metrics.displaced.Inc()
	}
	g.closeSocket(conn, websocket.StatusPolicyViolation, why.Error())
	_ = conn.CloseNow() // where the client does not close its side
}

func (g *Gateway) closeSocket(conn *websocket.Conn, code websocket.StatusCode, reason string) {
	if err := conn.Close(code, reason[:min(len(reason), closeReason)]); err != nil {
		g.log.Debug("websocket not closed in peace", "err", err)
	}
}

// readSocketHeader reads the first message of a socket.
func readSocketHeader(ctx context.Context, conn *websocket.Conn) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, socketHeaderTimeout)
	defer cancel()
	conn.SetReadLimit(maxSocketMessage)
	kind, raw, err := conn.Read(ctx)
	switch {
	case err != nil:
		return nil, errors.New("the message with the headers did not come")
	case kind != websocket.MessageBinary || len(raw) > maxSocketHeaders:
		return nil, fmt.Errorf("the first message has to be binary, with at most %d bytes of headers", maxSocketHeaders)
	}
	return parseSocketHeader(string(raw))
}

// parseSocketHeader reads lines "key: value". Several values of a key may
// stand in one line, but a comma is also part of many values; they are left
// as they are, so that a key has one value for each of its lines.
func parseSocketHeader(raw string) (http.Header, error) {
	h := make(http.Header)
	for line := range strings.SplitSeq(raw, "\r\n") {
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok || !validHeaderKey(key) || strings.ContainsAny(value, "\r\n\x00") {
			return nil, errors.New(`headers are lines "key: value" that end with CR LF`)
		}
		if !connectionHeader(key) {
			h.Add(key, value)
		}
	}
	dropProxyHeaders(h)
	return h, nil
}

// validHeaderKey reports whether s is a token (RFC 9110 section 5.6.2).
func validHeaderKey(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r|0x20 < 'a' || r|0x20 > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// connectionHeader reports whether a header speaks of the connection, the
// host or the page, about which a message inside the connection has no say.
func connectionHeader(key string) bool {
	key = http.CanonicalHeaderKey(key)
	return slices.Contains([]string{
		"Connection", "Content-Encoding", "Content-Length", "Cookie", "Forwarded", "Host", "Keep-Alive", "Origin",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Via", headerRequestID,
	}, key) || strings.HasPrefix(key, "Sec-") || strings.HasPrefix(key, "Proxy-") || strings.HasPrefix(key, "X-Forwarded-")
}

// socketRequest is the call as its handler sees it: an HTTP/2 request.
func socketRequest(ctx context.Context, r *http.Request, h http.Header, body io.ReadCloser) *http.Request {
	// What the client calls gRPC travels in gRPC-web frames here.
	if rest, ok := strings.CutPrefix(h.Get("Content-Type"), "application/grpc"); ok && (rest == "" || rest[0] == '+') {
		h.Set("Content-Type", "application/grpc-web"+rest)
	}
	inner := &http.Request{
		Method:        http.MethodPost,
		URL:           &url.URL{Path: r.URL.Path},
		Proto:         "HTTP/2.0",
		ProtoMajor:    2,
		Header:        h,
		Body:          body,
		ContentLength: -1,
		Host:          r.Host,
		RemoteAddr:    r.RemoteAddr,
		TLS:           r.TLS,
	}
	return inner.WithContext(ctx)
}

// headerHas reports whether a comma-separated header holds token.
func headerHas(h http.Header, key, token string) bool {
	for _, value := range h[key] {
		for t := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}
