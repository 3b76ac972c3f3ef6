// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// within checks that what began at started took about want.
func within(t *testing.T, started time.Time, want time.Duration) {
	t.Helper()
	if took := time.Since(started); took < want-time.Second || took > want+2*time.Second {
		t.Errorf("took %s, want %s", took, want)
	}
}

func TestDeadline_SlowHeaders(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		conn, err := p.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		started := time.Now()
		var writing sync.WaitGroup
		defer writing.Wait()
		writing.Go(func() { // one byte now and then, for ever
			for _, b := range []byte("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + strings.Repeat("a", 100)) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				pass(time.Second)
			}
		})
		_, _ = io.Copy(io.Discard, conn)
		within(t, started, headerTimeout)
	})
}

func TestDeadline_SlowBody(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
			body, w := io.Pipe()
			defer w.Close()
			started := time.Now()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://gate"+v1connect.MeshGetNodeProcedure, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/proto")
			res, err := bearer(p.client(t, http2), "admin").Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			raw, _ := io.ReadAll(res.Body)
			if res.StatusCode == http.StatusOK || !strings.Contains(string(raw), "deadline_exceeded") {
				t.Errorf("HTTP/2 %v: %d %s", http2, res.StatusCode, raw)
			}
			within(t, started, requestTimeout)
		})
	}
}

func TestDeadline_FirstMessageOfAStream(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		started := time.Now()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		call := v1connect.NewWebRTCClient(bearer(p.client(t, true), "admin"), "http://gate", connect.WithGRPC()).StartDataChannel(ctx)
		defer call.CloseResponse()
		if err := call.Send(nil); err != nil { // the headers alone
			t.Fatal(err)
		}
		_, err := call.Receive()
		if connect.CodeOf(err) != connect.CodeDeadlineExceeded || !strings.Contains(err.Error(), "first message") {
			t.Errorf("got %v", err)
		}
		within(t, started, requestTimeout)
	})
}

// After the first message a stream may be silent for as long as it likes.
func TestDeadline_NoneAfterTheFirstMessage(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		call := v1connect.NewWebRTCClient(bearer(p.client(t, true), "admin"), "http://gate").StartDataChannel(context.Background())
		defer call.CloseResponse()
		for range 3 {
			if err := call.Send(&v1.StartDataChannelRequest{NodeId: "web-1"}); err != nil {
				t.Fatal(err)
			}
			if _, err := call.Receive(); err != nil {
				t.Fatal(err)
			}
			pass(10 * time.Minute)
		}
		if err := call.CloseRequest(); err != nil {
			t.Fatal(err)
		}
		if _, err := call.Receive(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// A client that does not read stops the handler, not the memory, and loses its
// call in the end.
func TestDeadline_SlowReader(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		s.signaling.entered, s.signaling.left = make(chan error, 1), make(chan error, 1)
		call := v1connect.NewWebRTCClient(bearer(p.client(t, true), "admin"), "http://gate", connect.WithGRPC(),
			connect.WithAcceptCompression("gzip", nil, nil)).StartDataChannel(context.Background())
		defer call.CloseResponse()
		if err := call.Send(&v1.StartDataChannelRequest{NodeId: "web-1", Candidate: "flood"}); err != nil {
			t.Fatal(err)
		}
		if _, err := call.Receive(); err != nil {
			t.Fatal(err)
		}
		<-s.signaling.entered
		started := time.Now()
		if err := <-s.signaling.left; err == nil {
			t.Error("the handler ended well")
		}
		within(t, started, sendTimeout)
	})
}

// wsPipe opens a WebSocket through the pipes.
func wsPipe(t *testing.T, p *pipes, procedure string, h http.Header) *wsCall {
	t.Helper()
	conn, _, err := websocket.Dial(context.Background(), "ws://gate"+procedure, &websocket.DialOptions{
		HTTPClient: p.client(t, false), Subprotocols: []string{"grpc-websockets"}, HTTPHeader: h,
	})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(8 << 20)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &wsCall{conn: conn, ctx: context.Background()}
}

func wsHeaders(who string) []byte {
	return []byte("content-type: application/grpc-web+proto\r\nx-grpc-web: 1\r\nauthorization: Bearer " + tokenOf(who) + "\r\n")
}

func TestDeadline_WebSocketWithoutHeaders(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		started := time.Now()
		c := wsPipe(t, p, v1connect.MeshGetNodeProcedure, nil)
		_, _, err := c.conn.Read(context.Background())
		if err == nil {
			t.Error("got an answer")
		}
		within(t, started, socketHeaderTimeout)
	})
}

func TestDeadline_WebSocketWithoutMessage(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		started := time.Now()
		c := wsPipe(t, p, v1connect.WebRTCStartDataChannelProcedure, nil)
		c.write(t, wsHeaders("admin"))
		if err := c.receive(&v1.DataChannelOffer{}); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
			t.Errorf("got %v", err)
		}
		within(t, started, requestTimeout)
	})
}

func TestDeadline_WebSocketSlowReader(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		s.signaling.entered, s.signaling.left = make(chan error, 1), make(chan error, 1)
		c := wsPipe(t, p, v1connect.WebRTCStartDataChannelProcedure, nil)
		c.write(t, wsHeaders("admin"))
		c.send(t, &v1.StartDataChannelRequest{NodeId: "web-1", Candidate: "flood"})
		<-s.signaling.entered
		started := time.Now()
		if err := <-s.signaling.left; err == nil {
			t.Error("the handler ended well")
		}
		within(t, started, sendTimeout)
	})
}

// A live client stays for hours; one that has vanished without a word is
// noticed by the pongs that do not come.
func TestDeadline_WebSocketPing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		s.signaling.entered, s.signaling.left = make(chan error, 1), make(chan error, 1)
		begin := func() *wsCall {
			c := wsPipe(t, p, v1connect.WebRTCStartDataChannelProcedure, nil)
			c.write(t, wsHeaders("admin"))
			c.send(t, &v1.StartDataChannelRequest{NodeId: "web-1"})
			if err := c.receive(&v1.DataChannelOffer{}); err != nil {
				t.Fatal(err)
			}
			<-s.signaling.entered
			return c
		}
		live := begin()
		live.conn.CloseRead(context.Background()) // reads pings, and so answers them
		pass(2 * time.Hour)
		synctest.Wait()
		select {
		case err := <-s.signaling.left:
			t.Fatalf("a live client lost its call: %v", err)
		default:
		}
		_ = live.conn.CloseNow()
		<-s.signaling.left
		begin() // and never reads again
		started := time.Now()
		if err := <-s.signaling.left; err == nil {
			t.Error("the handler ended well")
		}
		if took := time.Since(started); took > socketPing+socketPong+time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestShutdown_DrainsAndTells(t *testing.T) {
	var log lockedBuffer
	bubble(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) }, func(t *testing.T, s *served, p *pipes) {
		client := bearer(p.client(t, true), "admin")
		call := v1connect.NewWebRTCClient(client, "http://gate").StartDataChannel(context.Background())
		defer call.CloseResponse()
		talk := func() error {
			if err := call.Send(&v1.StartDataChannelRequest{NodeId: "web-1"}); err != nil {
				return err
			}
			_, err := call.Receive()
			return err
		}
		if err := talk(); err != nil {
			t.Fatal(err)
		}
		peers, err := v1connect.NewMembershipClient(client, "http://gate").SubscribePeers(context.Background(), connect.NewRequest(&v1.SubscribePeersRequest{Id: "laptop"}))
		if err != nil || !peers.Receive() {
			t.Fatal(err)
		}
		defer peers.Close()
		socket := wsPipe(t, p, v1connect.WebRTCStartDataChannelProcedure, nil)
		socket.write(t, wsHeaders("admin"))
		socket.send(t, &v1.StartDataChannelRequest{NodeId: "web-1"})
		if err := socket.receive(&v1.DataChannelOffer{}); err != nil {
			t.Fatal(err)
		}

		started := time.Now()
		stopped := make(chan error, 1)
		go func() { stopped <- s.stop() }()
		synctest.Wait()
		// What never ends by itself ends at once, and says why.
		if peers.Receive() || connect.CodeOf(peers.Err()) != connect.CodeUnavailable {
			t.Errorf("subscription: %v", peers.Err())
		}
		// What is under way may finish.
		if err := talk(); err != nil {
			t.Errorf("call under way: %v", err)
		}
		if _, err := p.dial(); err == nil {
			t.Error("a new connection was accepted")
		}
		// What does not finish is cut off.
		if err := socket.receive(&v1.DataChannelOffer{}); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("socket: %v", err)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if took := time.Since(started); took > drainTimeout+2*time.Second {
			t.Errorf("took %s", took)
		}
		// The call and the socket.
		if said := log.String(); !strings.Contains(said, `level=WARN msg="calls cut off at shutdown" component=gateway n=2`) {
			t.Errorf("the log says %s", said)
		}
	})
}

// Connections that make no call keep nobody waiting who would have to be told.
func TestShutdown_SaysNothingOfIdleConnections(t *testing.T) {
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	bubble(t, func(c *Config) { c.Logger = logger }, func(t *testing.T, s *served, p *pipes) {
		silent, err := p.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		for _, http2 := range []bool{false, true} {
			if resp, err := p.client(t, http2).Get("http://gate/livez"); err != nil || resp.Body.Close() != nil {
				t.Fatal(err)
			}
		}
		s.drain = earlyDrain
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		said := log.String()
		if strings.Contains(said, "level=WARN") || !strings.Contains(said, `level=DEBUG msg="connections without a call closed at shutdown"`) {
			t.Errorf("the log says %s", said)
		}
	})
}
