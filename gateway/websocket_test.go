// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func TestWebSocket_Origins(t *testing.T) {
	s := serve(t, func(c *Config) {
		c.Access.Origins = []string{"https://console.example.org", "http://localhost:5173"}
	})
	for _, tt := range []struct {
		origins []string
		ok      bool
	}{
		{nil, true}, // no browser
		{[]string{"http://" + s.public}, true},
		{[]string{"https://" + s.public}, true}, // behind a proxy that ends TLS
		{[]string{"https://console.example.org"}, true},
		{[]string{"http://localhost:5173"}, true},
		{[]string{"https://evil.example"}, false},
		{[]string{"http://console.example.org"}, false},
		{[]string{"https://console.example.org:8443"}, false},
		{[]string{"https://console.example.org.evil.example"}, false},
		{[]string{"https://evil.example/https://console.example.org"}, false},
		{[]string{"null"}, false},
		{[]string{""}, false},
		{[]string{"file://"}, false},
		{[]string{"ftp://" + s.public}, false},
		{[]string{"http://127.0.0.1"}, false}, // another port is another origin
		{[]string{"https://console.example.org", "https://evil.example"}, false},
	} {
		conn, res, err := websocket.Dial(testContext(t), "ws://"+s.public+v1connect.MeshGetNodeProcedure, &websocket.DialOptions{
			Subprotocols: []string{subprotocol}, HTTPHeader: http.Header{"Origin": tt.origins},
		})
		if (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.origins, err)
		}
		if err != nil && res != nil && res.StatusCode != http.StatusForbidden {
			t.Errorf("%q: status %d", tt.origins, res.StatusCode)
		}
		if conn != nil {
			_ = conn.CloseNow()
		}
	}
}

func TestWebSocket_Handshake(t *testing.T) {
	s := serve(t, nil)
	for _, tt := range []struct {
		name, path string
		protocols  []string
		want       int
	}{
		{"unknown procedure", "/v1.Mesh/Nothing", []string{subprotocol}, http.StatusNotFound},
		{"no procedure", "/", []string{subprotocol}, http.StatusNotFound},
		{"dots", "/v1.Mesh/../v1.Mesh/GetNode", []string{subprotocol}, http.StatusNotFound},
		{"no subprotocol", v1connect.MeshGetNodeProcedure, nil, http.StatusBadRequest},
		{"other subprotocol", v1connect.MeshGetNodeProcedure, []string{"chat"}, http.StatusBadRequest},
	} {
		_, res, err := websocket.Dial(testContext(t), "ws://"+s.public+tt.path, &websocket.DialOptions{Subprotocols: tt.protocols})
		if err == nil || res == nil || res.StatusCode != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// Browsers reach no mesh address, and nothing there speaks WebSocket.
	_, res, err := websocket.Dial(testContext(t), "ws://"+s.mesh+v1connect.MeshGetNodeProcedure, &websocket.DialOptions{Subprotocols: []string{subprotocol}})
	if err == nil || res == nil || res.StatusCode == http.StatusSwitchingProtocols {
		t.Errorf("on the mesh: %v", err)
	}
}

// What a hostile client may send in place of a call; none of it may hang, and
// a healthy call goes on beside it.
func TestWebSocket_Garbage(t *testing.T) {
	s := serve(t, nil)
	headers := func(lines ...string) []byte {
		return []byte(strings.Join(append(lines, "authorization: Bearer "+tokenOf("admin")), "\r\n") + "\r\n")
	}
	good := headers("content-type: application/grpc-web+proto")
	request := frame(&v1.StartDataChannelRequest{NodeId: "web-1"})
	healthy := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, "admin")
	for _, tt := range []struct {
		name string
		text bool     // the last message is text
		send [][]byte // in this order
		want connect.Code
	}{
		{"header without colon", false, [][]byte{[]byte("nonsense\r\n")}, 0},
		{"header with a bad key", false, [][]byte{[]byte("a b: c\r\n")}, 0},
		{"header with an empty key", false, [][]byte{[]byte(": c\r\n")}, 0},
		{"header with a line feed in a value", false, [][]byte{[]byte("a: b\nauthorization: c\r\n")}, 0},
		{"headers as text", true, [][]byte{good}, 0},
		{"headers too long", false, [][]byte{[]byte("a: " + strings.Repeat("b", maxSocketHeaders))}, 0},
		{"no headers", false, [][]byte{{}}, connect.CodeInvalidArgument},
		{"no content type", false, [][]byte{headers(), append([]byte{0}, request...)}, connect.CodeInvalidArgument},
		{"text encoding", false, [][]byte{headers("content-type: application/grpc-web-text+proto")}, connect.CodeInvalidArgument},
		{"connect", false, [][]byte{headers("content-type: application/connect+proto")}, connect.CodeInvalidArgument},
		{"unknown codec", false, [][]byte{headers("content-type: application/grpc-web+xml")}, connect.CodeInvalidArgument},
		{"no credentials", false, [][]byte{[]byte("content-type: application/grpc-web+proto\r\n")}, connect.CodeUnauthenticated},
		{"credentials twice", false, [][]byte{headers("content-type: application/grpc-web+proto", "authorization: Bearer x")}, connect.CodeUnauthenticated},
		{"body as text", true, [][]byte{good, append([]byte{0}, request...)}, connect.CodeInvalidArgument},
		{"unknown first byte", false, [][]byte{good, append([]byte{2}, request...)}, connect.CodeInvalidArgument},
		{"empty message", false, [][]byte{good, {}}, connect.CodeInvalidArgument},
		{"end with a tail", false, [][]byte{good, {1, 1}}, connect.CodeInvalidArgument},
		{"end without a message", false, [][]byte{good, {1}}, connect.CodeInvalidArgument},
		{"frame cut off", false, [][]byte{good, append([]byte{0}, request[:6]...), {1}}, connect.CodeInvalidArgument},
		{"frame with a lying length", false, [][]byte{good, {0, 0, 0xff, 0xff, 0xff, 0xff, 1}, {1}}, connect.CodeResourceExhausted},
		{"no protobuf", false, [][]byte{good, {0, 0, 0, 0, 0, 2, 0xff, 0xff}}, connect.CodeInvalidArgument},
		{"compressed without saying", false, [][]byte{good, {0, 1, 0, 0, 0, 1, 0}}, connect.CodeInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := openWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, nil)
			for i, m := range tt.send {
				kind := websocket.MessageBinary
				if tt.text && i == len(tt.send)-1 {
					kind = websocket.MessageText
				}
				if err := c.conn.Write(c.ctx, kind, m); err != nil {
					t.Fatal(err)
				}
			}
			err := c.receive(&v1.DataChannelOffer{})
			if tt.want == 0 {
				if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
					t.Errorf("got %v", err)
				}
				return
			}
			if connect.CodeOf(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if code := c.closed(); code != websocket.StatusNormalClosure {
				t.Errorf("closed with %d", code)
			}
		})
	}
	t.Run("after the end", func(t *testing.T) {
		c := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, "admin")
		c.send(t, &v1.StartDataChannelRequest{NodeId: "web-1"})
		if err := c.receive(&v1.DataChannelOffer{}); err != nil {
			t.Fatal(err)
		}
		c.closeSend(t)
		_ = c.conn.Write(c.ctx, websocket.MessageBinary, []byte{0}) // may find the socket closed
		if err := c.receive(&v1.DataChannelOffer{}); err != io.EOF {
			t.Errorf("got %v", err)
		}
	})
	t.Run("message too long", func(t *testing.T) {
		c := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, "admin")
		big := frame(&v1.StartDataChannelRequest{NodeId: "web-1", Candidate: strings.Repeat("x", maxMessage)})
		_ = c.conn.Write(c.ctx, websocket.MessageBinary, append([]byte{0}, big...)) // may find the socket closed
		if err := c.receive(&v1.DataChannelOffer{}); err == nil {
			t.Error("it was taken")
		}
	})
	healthy.send(t, &v1.StartDataChannelRequest{NodeId: "web-1", Candidate: "x"})
	if m := (&v1.DataChannelOffer{}); healthy.receive(m) != nil || m.GetCandidate() != "x" {
		t.Error("the healthy call suffered")
	}
	healthy.closeSend(t)
	if err := healthy.receive(&v1.DataChannelOffer{}); err != io.EOF {
		t.Errorf("the healthy call ended with %v", err)
	}
}

// Frames may be cut and joined in any way: the request is a byte stream.
func TestWebSocket_FramesAreAStream(t *testing.T) {
	s := serve(t, nil)
	c := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, "admin")
	all := append(frame(&v1.StartDataChannelRequest{NodeId: "web-1", Candidate: "a"}), frame(&v1.StartDataChannelRequest{Candidate: "b"})...)
	for _, b := range all[:7] {
		c.write(t, []byte{0, b})
	}
	c.write(t, append([]byte{0}, all[7:]...))
	for _, want := range []string{"a", "b"} {
		m := &v1.DataChannelOffer{}
		if err := c.receive(m); err != nil || m.GetCandidate() != want {
			t.Fatalf("%v, %v", m, err)
		}
	}
	c.closeSend(t)
	if err := c.receive(&v1.DataChannelOffer{}); err != io.EOF {
		t.Error(err)
	}
	if c.header.Get("X-Request-Id") == "" || c.header.Get("Content-Type") != "application/grpc-web+proto" {
		t.Errorf("headers %v", c.header)
	}
}

func TestWebSocket_HeadersOfTheConnectionAreDropped(t *testing.T) {
	h, err := parseSocketHeader("Content-Type: a\r\nHost: evil\r\ncookie: c\r\nx-forwarded-for: 1.2.3.4\r\nSEC-fetch-site: none\r\n" +
		"transfer-encoding: chunked\r\ncontent-length: 5\r\norigin: x\r\nx-webmesh-proxied-for: admin\r\nX-WEBMESH-PROXIED-FROM: gw\r\n" +
		"x-request-id: mine\r\ngrpc-timeout: 1S\r\nx-own: 1\r\nx-own: 2\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(h) != 3 || h.Get("Content-Type") != "a" || h.Get("Grpc-Timeout") != "1S" || len(h["X-Own"]) != 2 {
		t.Errorf("got %v", h)
	}
}

// A client that goes away takes its call with it.
func TestWebSocket_CloseCancels(t *testing.T) {
	s := serve(t, nil)
	s.signaling.entered, s.signaling.left = make(chan error, 1), make(chan error, 1)
	for name, leave := range map[string]func(*websocket.Conn) error{
		"close":  func(c *websocket.Conn) error { return c.Close(websocket.StatusNormalClosure, "") },
		"vanish": func(c *websocket.Conn) error { return c.CloseNow() },
	} {
		c := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, "admin")
		c.send(t, &v1.StartDataChannelRequest{NodeId: "web-1"})
		if err := c.receive(&v1.DataChannelOffer{}); err != nil {
			t.Fatal(err)
		}
		<-s.signaling.entered
		go func() { _ = leave(c.conn) }()
		select {
		case err := <-s.signaling.left:
			if err == nil {
				t.Errorf("%s: the handler took it for the end of the request", name)
			}
		case <-testContext(t).Done():
			t.Fatalf("%s: the handler did not end", name)
		}
	}
}

// grpc-timeout bounds a call in a socket as anywhere.
func TestWebSocket_Timeout(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		s.signaling.entered, s.signaling.left = make(chan error, 1), make(chan error, 1)
		c := wsPipe(t, p, v1connect.WebRTCStartDataChannelProcedure, nil)
		c.write(t, append(wsHeaders("admin"), "grpc-timeout: 3S\r\n"...))
		c.send(t, &v1.StartDataChannelRequest{NodeId: "web-1"})
		if err := c.receive(&v1.DataChannelOffer{}); err != nil {
			t.Fatal(err)
		}
		if err := c.receive(&v1.DataChannelOffer{}); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
			t.Errorf("got %v", err)
		}
	})
}

func TestWebSocket_LimitPerCaller(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.Sockets = 3 })
	begin := func(who string) (*wsCall, error) {
		c := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, who)
		c.send(t, &v1.StartDataChannelRequest{NodeId: "web-1"})
		return c, c.receive(&v1.DataChannelOffer{})
	}
	var calls []*wsCall
	for range 3 {
		c, err := begin("admin")
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
	if _, err := begin("admin"); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	if _, err := begin("opener"); err != nil {
		t.Errorf("another caller: %v", err)
	}
	calls[0].closeSend(t)
	if err := calls[0].receive(&v1.DataChannelOffer{}); err != io.EOF {
		t.Fatal(err)
	}
	calls[0].closed()
	poll(t, func() bool { _, err := begin("admin"); return err == nil })
}

// Whoever opens sockets and keeps silent displaces the oldest of the same
// network, and keeps nobody out who speaks.
func TestWebSocket_LimitBeforeHeaders(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		var silent []*wsCall
		for range maxPendingSockets {
			silent = append(silent, wsPipe(t, p, v1connect.MeshGetNodeProcedure, nil))
		}
		synctest.Wait()
		started := time.Now()
		honest := wsPipe(t, p, v1connect.WebRTCStartDataChannelProcedure, nil)
		honest.write(t, wsHeaders("admin"))
		honest.send(t, &v1.StartDataChannelRequest{NodeId: "web-1"})
		if err := honest.receive(&v1.DataChannelOffer{}); err != nil || time.Since(started) != 0 {
			t.Errorf("an honest client, after %s: %v", time.Since(started), err)
		}
		if _, _, err := silent[0].conn.Read(context.Background()); err == nil || time.Since(started) != 0 {
			t.Errorf("the oldest, after %s: %v", time.Since(started), err)
		}
		if n, open := s.metric(t, "meshgate_gateway_websockets_displaced_total"), s.metric(t, "meshgate_gateway_websockets"); n != 1 || open != maxPendingSockets {
			t.Errorf("%v displaced, %v open", n, open)
		}
		honest.closeSend(t)
		if err := honest.receive(&v1.DataChannelOffer{}); err != io.EOF {
			t.Error(err)
		}
		honest.closed()
		pass(socketHeaderTimeout)
		synctest.Wait()
		if n := s.metric(t, "meshgate_gateway_websockets"); n != 0 {
			t.Errorf("%v sockets are left", n)
		}
		if len(s.pending.byKey) != 0 {
			t.Errorf("%d networks are remembered", len(s.pending.byKey))
		}
	})
}

// A handler that panics ends its own call only.
func TestWebSocket_Panic(t *testing.T) {
	s := serve(t, nil)
	s.signaling.panics = "boom"
	c := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, "admin")
	c.send(t, &v1.StartDataChannelRequest{NodeId: "web-1", Candidate: "boom"})
	if err := c.receive(&v1.DataChannelOffer{}); connect.CodeOf(err) != connect.CodeInternal || strings.Contains(err.Error(), "demand") {
		t.Errorf("got %v", err)
	}
	if n := s.metric(t, "meshgate_gateway_panics_total"); n != 1 {
		t.Errorf("counted %v panics", n)
	}
}

// A fast sender is slowed down by a handler that does not read: the handler is
// blocked in Send, since this client does not receive, and so the bytes the
// gateway takes stay bounded.
func TestWebSocket_BackPressure(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		s.signaling.entered, s.signaling.left = make(chan error, 1), make(chan error, 1)
		c := wsPipe(t, p, v1connect.WebRTCStartDataChannelProcedure, nil)
		c.write(t, wsHeaders("admin"))
		big := &v1.StartDataChannelRequest{NodeId: "web-1", Candidate: strings.Repeat("x", 256<<10)}
		sent := 0
		ctx, cancel := context.WithTimeout(context.Background(), sendTimeout/2)
		defer cancel()
		for sent < 100 && c.conn.Write(ctx, websocket.MessageBinary, append([]byte{0}, frame(big)...)) == nil {
			sent++
		}
		if sent > 8 {
			t.Errorf("%d messages of 256 KiB were taken from a client that reads nothing", sent)
		}
		<-s.signaling.entered
		<-s.signaling.left
	})
}
