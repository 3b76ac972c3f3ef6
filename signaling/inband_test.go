// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/client"
)

func dialTCP(t testing.TB, c *client.Conn, address string) *bridge.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := c.DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*bridge.Stream)
}

// roundTrip sends a message, half-closes and expects it back.
func roundTrip(t testing.TB, conn *bridge.Stream, message string) {
	t.Helper()
	if _, err := conn.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != message {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestInBand_EchoAndHalfClose(t *testing.T) {
	s := newService(t, &world{}, self)
	c := dial(t, s, self)
	roundTrip(t, dialTCP(t, c, listen(t, echo)), "hello")
	if p := c.Path(); p.Kind != "direct" || p.Local == "" || p.Remote == "" {
		t.Fatalf("path %+v", p)
	}
	list := s.Sessions()
	if len(list) != 1 || list[0].Kind != "in_band" || list[0].Caller != "alice" || list[0].Path.Kind != "direct" {
		t.Fatalf("sessions %+v", list)
	}
}

func TestInBand_ServerHalfClosesFirst(t *testing.T) {
	rest := make(chan string, 1)
	address := listen(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		rest <- string(b)
	})
	conn := dialTCP(t, dial(t, newService(t, &world{}, self), self), address)
	if got, err := io.ReadAll(conn); err != nil || string(got) != "bye" {
		t.Fatalf("%q, %v", got, err)
	}
	_, _ = conn.Write([]byte("still here"))
	_ = conn.Close()
	if got := <-rest; got != "still here" {
		t.Fatalf("after its half-close the destination got %q", got)
	}
}

func TestInBand_TransferBothWays(t *testing.T) {
	const size = transferSize
	conn := dialTCP(t, dial(t, newService(t, &world{}, self), self), listen(t, echo))
	sent, got := sha256.New(), sha256.New()
	wrote := make(chan error, 1)
	go func() {
		b := make([]byte, 64<<10)
		_, _ = rand.Read(b)
		var err error
		for n := 0; n < size && err == nil; n += len(b) {
			b[0]++
			sent.Write(b)
			_, err = conn.Write(b)
		}
		wrote <- errors.Join(err, conn.CloseWrite())
	}()
	n, err := io.Copy(got, conn)
	if err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Fatal("bytes changed on the way")
	}
}

// endless is a destination that sends for ever and counts what was taken.
type endless struct {
	net.Conn
	taken  atomic.Int64
	once   sync.Once
	closed chan struct{}
}

func (e *endless) Read(p []byte) (int, error) {
	select {
	case <-e.closed:
		return 0, net.ErrClosed
	default:
		e.taken.Add(int64(len(p)))
		return len(p), nil
	}
}
func (e *endless) Write(p []byte) (int, error) { <-e.closed; return 0, net.ErrClosed }
func (e *endless) Close() error                { e.once.Do(func() { close(e.closed) }); return nil }
func (e *endless) CloseWrite() error           { return nil }

// Whoever sets a deadline wants it to end, and that may be now.
func (e *endless) SetDeadline(time.Time) error      { return e.Close() }
func (e *endless) SetReadDeadline(time.Time) error  { return e.Close() }
func (e *endless) SetWriteDeadline(time.Time) error { return e.Close() }

// A client that does not read stops the destination after one window, and the
// other connections of its peer connection do not notice.
func TestInBand_SlowReaders(t *testing.T) {
	stalled := &endless{closed: make(chan struct{})}
	w := &world{}
	var d net.Dialer
	w.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "127.0.0.1:9" {
			return stalled, nil
		}
		return d.DialContext(ctx, network, address)
	}
	c := dial(t, newService(t, w, self), self)
	slow := dialTCP(t, c, "127.0.0.1:9")
	eventually(t, "the window is full", func() bool { return stalled.taken.Load() >= bridge.Window })
	address := listen(t, echo)
	done := make(chan error, 20)
	message := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	for range cap(done) {
		conn := dialTCP(t, c, address)
		go func() {
			_, err := conn.Write(message)
			_ = conn.CloseWrite()
			got, readErr := io.ReadAll(conn)
			if err = errors.Join(err, readErr); err == nil && !bytes.Equal(got, message) {
				err = fmt.Errorf("%d bytes came back", len(got))
			}
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := stalled.taken.Load(); n != bridge.Window {
		t.Fatalf("%d bytes were taken for a reader that reads nothing", n)
	}
	// The other direction: a destination that takes nothing stops the client.
	n := 0
	eventually(t, "the client stands still", func() bool {
		_ = slow.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		m, err := slow.Write(make([]byte, 4*bridge.Window))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d bytes into a stalled connection, %v", n+m, err)
		}
		n += m
		return m == 0
	})
	if n != bridge.Window {
		t.Fatalf("wrote %d bytes into a stalled connection", n)
	}
	_ = slow.Close()
}

func TestInBand_UDPKeepsBorders(t *testing.T) {
	c := dial(t, newService(t, &world{}, self), self)
	conn, err := c.DialContext(context.Background(), "udp", udpEcho(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for _, n := range []int{1, 2, 0, 1200, 1400, 9000} {
		if _, err := conn.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		if got, err := conn.Read(buf); err != nil || got != n {
			t.Fatalf("a datagram of %d bytes came back with %d, %v", n, got, err)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
}

func udpEcho(t testing.TB) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	return pc.LocalAddr().String()
}

func TestInBand_UDPIdleEnds(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) { c.Timeouts.UDPIdle = 50 * time.Millisecond })
	conn, err := dial(t, s, self).DialContext(context.Background(), "udp", udpEcho(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("read: %v", err)
	}
}

func TestInBand_RefusalsHaveACodeAndAReason(t *testing.T) {
	const refused, port = "127.0.0.1:1", "1" // which no host gives to anybody who does not ask for it
	w := &world{denied: map[string]error{
		"tcp 10.0.0.1:22":  fmt.Errorf("no network ACL accepts it: %w", mesh.ErrDenied),
		"udp 10.0.0.1:53":  fmt.Errorf("no network ACL accepts it: %w", mesh.ErrDenied),
		"tcp 10.0.0.2:80":  errors.New("database password is hunter2"),
		"tcp localhost:80": fmt.Errorf("localhost is localhost: %w", mesh.ErrInvalid),
	}}
	w.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "10.0.0.9:80" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	s := newService(t, w, self, func(c *signaling.Config) { c.Timeouts.Dial = time.Second })
	c := dial(t, s, self)
	for _, tc := range []struct{ network, address, code, message string }{
		{"tcp", "10.0.0.1:22", "permission_denied", "no network ACL accepts it: permission denied"},
		{"udp", "10.0.0.1:53", "permission_denied", "no network ACL accepts it: permission denied"},
		{"tcp", "10.0.0.2:80", "internal", "internal error"},
		{"tcp", ":80", "invalid_argument", "localhost is localhost: invalid argument"},
		{"tcp", "no-such-node:80", "not_found", `no node "no-such-node": not found`},
		{"tcp", "127.0.0.1:0", "invalid_argument", `port "0": it is a number from 1 to 65535: invalid argument`},
		{"tcp", refused, "unavailable", "gateway: tcp port " + port + " refused the connection; is something listening there?"},
		{"tcp", "10.0.0.9:80", "deadline_exceeded", "10.0.0.9: tcp port 80 did not answer in time"},
	} {
		_, err := c.DialContext(context.Background(), tc.network, tc.address)
		var got *client.Error
		if !errors.As(err, &got) || got.Code != tc.code || got.Message != tc.message {
			t.Errorf("%s %s: %v", tc.network, tc.address, err)
		}
	}
	if _, err := c.DialContext(context.Background(), "unix", "/x"); err == nil {
		t.Error("dialled a unix socket")
	}
	roundTrip(t, dialTCP(t, c, listen(t, echo)), "the others did no harm")
}

func TestInBand_ChannelLimit(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) { c.Limits.Channels = 4 })
	c := dial(t, s, self)
	address := listen(t, echo)
	var open []*bridge.Stream
	for range 4 {
		open = append(open, dialTCP(t, c, address))
	}
	_, err := c.DialContext(context.Background(), "tcp", address)
	var got *client.Error
	if !errors.As(err, &got) || got.Code != "resource_exhausted" {
		t.Fatalf("the fifth channel: %v", err)
	}
	roundTrip(t, open[0], "and one ends")
	eventually(t, "a channel is free again", func() bool {
		conn, err := c.DialContext(context.Background(), "tcp", address)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	for _, conn := range open {
		_ = conn.Close()
	}
}

func TestInBand_IdsAreRecycled(t *testing.T) {
	c := dial(t, newService(t, &world{}, self), self)
	address := listen(t, echo)
	for i := range 300 { // more than may be open at once
		roundTrip(t, dialTCP(t, c, address), fmt.Sprint("connection ", i))
	}
}

func TestInBand_LostConnectionReachesTheClient(t *testing.T) {
	address := listen(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0) // a reset
	})
	conn := dialTCP(t, dial(t, newService(t, &world{}, self), self), address)
	_, _ = conn.Write([]byte("x"))
	_, err := io.ReadAll(conn)
	var got *client.Error
	if !errors.As(err, &got) || got.Code != "unavailable" {
		t.Fatalf("read: %v", err)
	}
}

func TestInBand_CloseOfTheServiceSaysGoodbye(t *testing.T) {
	s := newService(t, &world{}, self)
	c := dial(t, s, self)
	conn := dialTCP(t, c, listen(t, echo))
	_ = s.Close()
	<-c.Done()
	if err := c.Err(); err == nil || err.Error() != "the node ended the connection: the node is shutting down" {
		t.Fatalf("reason %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("read from a dead connection")
	}
	if _, err := c.DialContext(context.Background(), "tcp", "127.0.0.1:1"); err == nil {
		t.Fatal("dialled through a dead peer connection")
	}
}

func TestInBand_IdleSessionEnds(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) { c.Timeouts.SessionIdle = time.Second })
	c := dial(t, s, self)
	<-c.Done()
	if err := c.Err(); err == nil || err.Error() != "the node ended the connection: idle" {
		t.Fatalf("reason %v", err)
	}
	eventually(t, "the session is gone", func() bool { return len(s.Sessions()) == 0 })
}
