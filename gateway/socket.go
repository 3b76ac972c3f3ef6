// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
)

const (
	// socketPing is how often a socket is probed, and socketPong how long the
	// answer may take.
	socketPing = 30 * time.Second
	socketPong = 15 * time.Second
	// socketBuffer collects what a handler writes between two flushes, in bytes.
	socketBuffer = 32 << 10

	frameHeaders = 0x80 // flag of a frame with headers or trailers
	framePrefix  = 5    // bytes before the content of a frame: flags, length
)

// errSocketProtocol ends the body of a request that is not well formed.
var errSocketProtocol = errors.New("message is not of the protocol " + subprotocol)

// receive turns the client's messages into the request's body. It blocks while
// the handler does not read, and so, in the end, does the client. It returns
// when the client has gone or breaks the protocol.
func (s *socket) receive(ctx context.Context) {
	ended := false
	for {
		kind, message, err := s.conn.Reader(ctx)
		if err != nil {
			// Unless the request was complete, the handler must not take what
			// it has for all of it.
			_ = s.body.CloseWithError(context.Canceled)
			return
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(message, first); err != nil || kind != websocket.MessageBinary || ended || first[0] > noMore {
			_ = s.body.CloseWithError(connect.NewError(connect.CodeInvalidArgument, errSocketProtocol))
			return
		}
		if first[0] == noMore {
			if n, err := message.Read(first); n != 0 || !errors.Is(err, io.EOF) {
				_ = s.body.CloseWithError(connect.NewError(connect.CodeInvalidArgument, errSocketProtocol))
				return
			}
			ended = true
			_ = s.body.Close()
			continue
		}
		if err := s.deliver(message); err != nil {
			_ = s.body.CloseWithError(connect.NewError(connect.CodeInvalidArgument, err))
			return
		}
	}
}

// deliver gives the handler the rest of a message; when the handler does not
// want it any more, nobody gets it.
func (s *socket) deliver(message io.Reader) error {
	s.delivering.Store(true)
	defer func() {
		s.delivering.Store(false)
		s.progress.Add(1)
	}()
	_, err := io.Copy(s.body, message)
	if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, os.ErrDeadlineExceeded) {
		_, err = io.Copy(io.Discard, message)
	}
	return err
}

// keepAlive calls dead when the client does not answer a probe. Answers are
// read by receive: while that waits for the handler, silence proves nothing.
func (s *socket) keepAlive(ctx context.Context, dead func()) {
	ticker := time.NewTicker(socketPing)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		before := s.progress.Load()
		if s.delivering.Load() {
			continue
		}
		pong, cancel := context.WithTimeout(ctx, socketPong)
		err := s.conn.Ping(pong)
		cancel()
		if err != nil && !s.delivering.Load() && s.progress.Load() == before {
			dead()
			return
		}
	}
}

// socketWriter is the http.ResponseWriter of a call in a socket. Like any, it
// is for one goroutine at a time, but for SetReadDeadline.
type socketWriter struct {
	write  func(message []byte) error // a message to the client
	body   *io.PipeWriter             // of the request
	header http.Header
	out    bytes.Buffer // what was not sent yet
	status int          // 0 before WriteHeader
	err    error        // of sending; final

	mu    sync.Mutex  // guards timer
	timer *time.Timer // closes the request's body; nil for no deadline
}

var (
	_ http.ResponseWriter = (*socketWriter)(nil)
	_ http.Flusher        = (*socketWriter)(nil)
)

// newSocketWriter makes the writer of s; ctx is the life of the connection.
func newSocketWriter(ctx context.Context, s *socket) *socketWriter {
	write := func(message []byte) error {
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		return s.conn.Write(ctx, websocket.MessageBinary, message)
	}
	return &socketWriter{write: write, body: s.body, header: make(http.Header)}
}

// Header implements http.ResponseWriter.
func (w *socketWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. The headers become the first
// frame. An answer that is no gRPC answer becomes one without messages.
func (w *socketWriter) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if status != http.StatusOK {
		w.header = http.Header{
			headerRequestID: w.header[headerRequestID],
			"Grpc-Status":   {strconv.Itoa(int(codeOfStatus(status)))},
			"Grpc-Message":  {fmt.Sprintf("the gateway answered %d %s", status, http.StatusText(status))},
		}
	}
	var frame bytes.Buffer
	frame.Write(make([]byte, framePrefix))
	_ = w.header.Write(&frame) // a buffer takes everything
	raw := frame.Bytes()
	raw[0] = frameHeaders
	binary.BigEndian.PutUint32(raw[1:framePrefix], uint32(len(raw)-framePrefix))
	w.out.Write(raw)
	// The stock client reads no further in a message after a frame with
	// headers, until the next message comes.
	w.send()
}

// Write implements http.ResponseWriter. It blocks when a buffer's worth is
// waiting for a client that does not read.
func (w *socketWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status != http.StatusOK {
		return len(p), w.err // a page about an error has no place in the protocol
	}
	w.out.Write(p)
	if w.out.Len() >= socketBuffer {
		w.send()
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// Flush implements http.Flusher.
func (w *socketWriter) Flush() {
	w.WriteHeader(http.StatusOK)
	w.send()
}

// finish sends what is left.
func (w *socketWriter) finish() error {
	w.Flush()
	return w.err
}

// send sends what waits as one message. A client that does not take it within
// sendTimeout loses its connection.
func (w *socketWriter) send() {
	if w.out.Len() == 0 || w.err != nil {
		return
	}
	w.err = w.write(w.out.Bytes())
	w.out.Reset()
}

// SetReadDeadline ends the request's body at t, for http.ResponseController;
// a zero t lets it run on.
func (w *socketWriter) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	if !t.IsZero() {
		w.timer = time.AfterFunc(time.Until(t), func() { _ = w.body.CloseWithError(os.ErrDeadlineExceeded) })
	}
	return nil
}

func (w *socketWriter) stopTimer() { _ = w.SetReadDeadline(time.Time{}) }

// codeOfStatus is the RPC code that gRPC gives an HTTP status.
func codeOfStatus(status int) connect.Code {
	switch status {
	case http.StatusBadRequest, http.StatusUnsupportedMediaType:
		return connect.CodeInvalidArgument
	case http.StatusUnauthorized:
		return connect.CodeUnauthenticated
	case http.StatusForbidden:
		return connect.CodePermissionDenied
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return connect.CodeUnimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return connect.CodeUnavailable
	}
	return connect.CodeUnknown
}
