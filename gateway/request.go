// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/netip"
	"strings"
	"sync"
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
	// from is where the request came from; trusted proxies are seen through.
	from netip.AddrPort
	// mesh is true for requests on a mesh listener.
	mesh bool
	// local is true for requests on the local listener.
	local bool
	// place is that of the connection; nil where there is no such thing.
	place *place
	// caller is who it is from, once that is known.
	caller string
	// ended is called when the request has been served; nil: nothing is to be done.
	ended func()
	// stands says whether the credentials of the request are good still; nil
	// when they always are. Set by the gate.
	stands func() bool
	// named is called when the request has shown who it is from; nil where there
	// is no bound on those that have not. It may be called again.
	named func()
	// socket is set for a call in a WebSocket.
	socket *socket
	// decoded is called when the message that was read last is decoded; nil for
	// calls whose messages are not measured.
	decoded func()
	// onDrain calls f in its own goroutine once no new work should be begun, as
	// context.AfterFunc does.
	onDrain func(f func()) (stop func() bool)
	// draining reports whether that is so.
	draining  func() bool
	deadlines *deadlines
}

type requestKey struct{}

func requestFrom(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

// end calls ended.
func (q *request) end() {
	if q.ended != nil {
		q.ended()
	}
}

// key is under which limits know who it is from: by name, or else by network.
func (q *request) key() string {
	if q.caller != "" {
		return "caller " + q.caller
	}
	return network(q.from.Addr())
}

// isNamed calls named.
func (q *request) isNamed() {
	if q.named != nil {
		q.named()
	}
}

// hasDecoded calls decoded. q may be nil.
func (q *request) hasDecoded() {
	if q != nil && q.decoded != nil {
		q.decoded()
	}
}

// begin is the outermost middleware: it finds out where the request came from,
// gives it its id and its deadlines, and drops the headers that nobody may send.
func begin(draining context.Context, onMesh bool, trusted proxies) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, _ := netip.ParseAddrPort(r.RemoteAddr)
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			q := &request{
				id:        rand.Text(),
				from:      trusted.client(from, r.Header),
				mesh:      onMesh,
				onDrain:   func(f func()) func() bool { return context.AfterFunc(draining, f) },
				draining:  func() bool { return draining.Err() != nil },
				deadlines: newDeadlines(w),
			}
			defer q.deadlines.over()
			defer q.end()
			q.place = placeFrom(r.Context())
			defer q.place.begin()()
			q.deadlines.read(time.Now().Add(requestTimeout))
			q.deadlines.write(time.Now().Add(answerTimeout))
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

// deadlines are those of a request's connection or stream. A handler may leave
// goroutines behind that still use them, for a moment; net/http does not
// expect that, so that nothing happens any more once over was called.
type deadlines struct {
	mu         sync.Mutex               // guards controller
	controller *http.ResponseController // nil when the request is over
}

func newDeadlines(w http.ResponseWriter) *deadlines {
	return &deadlines{controller: http.NewResponseController(w)}
}

// read bounds what is left to read; the zero time does not. Not every
// connection has deadlines; those of package net do.
func (d *deadlines) read(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.controller != nil {
		_ = d.controller.SetReadDeadline(t)
	}
}

// write bounds what is left to write, likewise.
func (d *deadlines) write(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.controller != nil {
		_ = d.controller.SetWriteDeadline(t)
	}
}

// over says that the request has been served.
func (d *deadlines) over() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.controller = nil
}
