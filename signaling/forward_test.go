// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/sctp"

	"github.com/meshgate/meshgate/internal/v1client"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
)

// request asks for a destination as v1 clients do.
func request(t testing.TB, proto, address string) *v1.StartDataChannelRequest {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, _ := strconv.ParseUint(text, 10, 16)
	return &v1.StartDataChannelRequest{NodeId: string(self), Proto: proto, Dst: host, Port: uint32(port)}
}

func dialV1(t testing.TB, s *signaling.Service, cfg v1client.Config) *v1client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := v1client.Dial(ctx, start(t, s, "alice"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustOpen(t testing.TB, c *v1client.Client) datachannel.ReadWriteCloser {
	t.Helper()
	ch, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// exchange sends a message and reads as many bytes back.
func exchange(t testing.TB, ch io.ReadWriter, message string) {
	t.Helper()
	if _, err := ch.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 0, len(message))
	buf := make([]byte, 128<<10)
	for len(got) < len(message) {
		n, err := ch.Read(buf)
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", len(got), len(message), err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != message {
		t.Fatalf("%d bytes came back changed", len(got))
	}
}

func TestV1_ClientSpeaksFirst(t *testing.T) {
	s := newService(t, &world{}, self)
	c := dialV1(t, s, v1client.Config{Request: request(t, "tcp", listen(t, echo))})
	for i := range 50 {
		ch := mustOpen(t, c)
		exchange(t, ch, fmt.Sprint("message ", i))
		_ = ch.Close()
	}
}

// Data on a stream of which the server has not heard yet must wait for the
// open, in whatever order the two arrive.
func TestV1_DataBeforeTheOpen(t *testing.T) {
	s := newService(t, &world{}, self)
	c := dialV1(t, s, v1client.Config{Request: request(t, "tcp", listen(t, echo))})
	for id := uint16(1); id <= 20; id++ {
		ch, err := c.Channel(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.Write([]byte("early ")); err != nil {
			t.Fatal(err)
		}
		var open [4]byte
		binary.BigEndian.PutUint32(open[:], uint32(id))
		if _, err := c.Control().Write(open[:]); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		if n, err := ch.Read(buf); err != nil || string(buf[:n]) != "early " {
			t.Fatalf("channel %d: %q, %v", id, buf[:n], err)
		}
		exchange(t, ch, "and late")
	}
}

func TestV1_ManyConnectionsAtOnce(t *testing.T) {
	s := newService(t, &world{}, self)
	c := dialV1(t, s, v1client.Config{Request: request(t, "tcp", listen(t, echo))})
	done := make(chan error, 64)
	for i := range cap(done) {
		ch := mustOpen(t, c)
		go func() {
			message := fmt.Sprint("connection ", i)
			_, err := ch.Write([]byte(message))
			buf := make([]byte, 64)
			n := 0
			if err == nil {
				n, err = ch.Read(buf)
			}
			if err == nil && string(buf[:n]) != message {
				err = fmt.Errorf("got %q for %q", buf[:n], message)
			}
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestV1_SameIDAgain(t *testing.T) {
	s := newService(t, &world{}, self)
	c := dialV1(t, s, v1client.Config{Request: request(t, "tcp", listen(t, echo))})
	for i := range 20 {
		ch, err := c.OpenID(7)
		if err != nil {
			t.Fatal(err)
		}
		message := fmt.Sprint("round ", i)
		// pion wakes the reader of a closed channel a moment before it forgets
		// the stream, and then hands the dead one out again.
		for _, err = ch.Write([]byte(message)); errors.Is(err, sctp.ErrStreamClosed); _, err = ch.Write([]byte(message)) {
			if ch, err = c.Channel(7); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 64)
		if n, err := ch.Read(buf); err != nil || string(buf[:n]) != message {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		_ = ch.Close()
		if _, err := ch.Read(buf); err == nil {
			t.Fatal("bytes after close")
		}
	}
}

func TestV1_EndOfConnectionClosesChannel(t *testing.T) {
	address := listen(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("bye")) })
	c := dialV1(t, newService(t, &world{}, self), v1client.Config{Request: request(t, "tcp", address)})
	ch := mustOpen(t, c)
	buf := make([]byte, 16)
	if n, err := ch.Read(buf); err != nil || string(buf[:n]) != "bye" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	if _, err := ch.Read(buf); err == nil {
		t.Fatal("the channel stays open")
	}
}

func TestV1_ClosedChannelEndsConnection(t *testing.T) {
	ended := make(chan string, 1)
	address := listen(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		ended <- string(b)
	})
	c := dialV1(t, newService(t, &world{}, self), v1client.Config{Request: request(t, "tcp", address)})
	ch := mustOpen(t, c)
	_, _ = ch.Write([]byte("the end"))
	_ = ch.Close()
	select {
	case got := <-ended:
		if got != "the end" {
			t.Fatalf("got %q", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("the connection was not ended")
	}
}

func TestV1_DialFailureClosesChannel(t *testing.T) {
	// No host gives that port to anybody who does not ask for it.
	c := dialV1(t, newService(t, &world{}, self), v1client.Config{Request: request(t, "tcp", "127.0.0.1:1")})
	if _, err := mustOpen(t, c).Read(make([]byte, 1)); err == nil {
		t.Fatal("the channel stays open")
	}
}

func TestV1_LargeMessages(t *testing.T) {
	c := dialV1(t, newService(t, &world{}, self), v1client.Config{Request: request(t, "tcp", listen(t, echo))})
	for _, n := range []int{32768, 32769, 65535, 65536} {
		ch := mustOpen(t, c)
		b := make([]byte, n)
		_, _ = rand.Read(b)
		exchange(t, ch, string(b))
		exchange(t, ch, "still alive")
	}
}

func TestV1_UDPKeepsBorders(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
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
	c := dialV1(t, newService(t, &world{}, self), v1client.Config{Request: request(t, "udp", pc.LocalAddr().String())})
	ch := mustOpen(t, c)
	buf := make([]byte, 64<<10)
	for _, want := range []string{"a", "bc", "", string(make([]byte, 1400)), string(make([]byte, 20000))} {
		if _, err := ch.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if n, err := ch.Read(buf); err != nil || n != len(want) {
			t.Fatalf("a datagram of %d bytes came back with %d, %v", len(want), n, err)
		}
	}
}

func TestV1_VanillaAndRawCandidates(t *testing.T) {
	for name, cfg := range map[string]v1client.Config{
		"vanilla": {Vanilla: true},
		"raw":     {RawCandidates: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Request = request(t, "tcp", listen(t, echo))
			exchange(t, mustOpen(t, dialV1(t, newService(t, &world{}, self), cfg)), "hello")
		})
	}
}

func TestV1_MalformedOpenEndsThePeerConnection(t *testing.T) {
	for name, open := range map[string][]byte{
		"eight bytes": make([]byte, 8), "one byte": {1}, "empty": {}, "id 0": {0, 0, 0, 0}, "id 65536": {0, 1, 0, 0},
		"longer than the buffer": make([]byte, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, &world{}, self)
			c := dialV1(t, s, v1client.Config{Request: request(t, "tcp", listen(t, echo))})
			if _, err := c.Control().Write(open); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Control().Read(make([]byte, 16)); err == nil {
				t.Fatal("the control channel answers")
			}
			eventually(t, "the session is gone", func() bool { return len(s.Sessions()) == 0 })
		})
	}
}

func TestV1_TransferBothWays(t *testing.T) {
	c := dialV1(t, newService(t, &world{}, self), v1client.Config{Request: request(t, "tcp", listen(t, echo))})
	ch := mustOpen(t, c)
	const size = transferSize / 4
	sent, got := sha256.New(), sha256.New()
	wrote := make(chan error, 1)
	go func() {
		b := make([]byte, 16<<10)
		var err error
		for n := 0; n < size && err == nil; n += len(b) {
			_, _ = rand.Read(b)
			sent.Write(b)
			_, err = ch.Write(b)
		}
		wrote <- err
	}()
	buf := make([]byte, 64<<10)
	for n := 0; n < size; {
		m, err := ch.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(buf[:m])
		n += m
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if string(sent.Sum(nil)) != string(got.Sum(nil)) {
		t.Fatal("bytes changed on the way")
	}
}
