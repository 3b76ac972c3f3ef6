// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

const testStream = "test-stream/1"

// front opens a Front on this machine whose one stream echoes over TLS.
func front(t *testing.T) *Front {
	t.Helper()
	return frontOf(t, newWaiting(maxSorted, maxSortedAll), newWaiting(maxGreeted, maxGreetedAll), maxQueued)
}

// frontOf is front with other places.
func frontOf(t *testing.T, sorted, greeted *waiting, queued int) *Front {
	t.Helper()
	return frontLogging(t, nil, sorted, greeted, queued)
}

// frontLogging is frontOf with a log.
func frontLogging(t *testing.T, log *slog.Logger, sorted, greeted *waiting, queued int) *Front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ensureSelfSigned(TLS{
		CertFile: filepath.Join(dir, selfSignedCert), KeyFile: filepath.Join(dir, selfSignedKey),
		SelfSignedDir: dir, Names: []string{"127.0.0.1"},
	}, time.Now()); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, selfSignedCert), filepath.Join(dir, selfSignedKey))
	if err != nil {
		t.Fatal(err)
	}
	var echoes sync.WaitGroup
	f := newFront(t.Context(), l, log, map[string]func(context.Context, net.Conn){
		testStream: func(ctx context.Context, raw net.Conn) {
			conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{testStream}})
			if err := conn.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				return
			}
			echoes.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		},
	}, sorted, greeted, queued)
	t.Cleanup(func() {
		_ = f.Close()
		echoes.Wait() // their clients are gone
	})
	return f
}

// echoes fails unless the stream of f answers.
func echoes(t *testing.T, f *Front) {
	t.Helper()
	conn, err := tls.Dial("tcp", f.Listener().Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{testStream}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Errorf("the stream says %q: %v", got, err)
	}
}

// The streams of a port work before anybody serves the rest, and after.
func TestFront_StreamsNeedNoGateway(t *testing.T) {
	f := front(t)
	waiting, err := net.Dial("tcp", f.Listener().Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if _, err := waiting.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	echoes(t, f)
	l := f.Listener()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	first := make([]byte, 14)
	if _, err := io.ReadFull(conn, first); err != nil || string(first) != "GET / HTTP/1.1" {
		t.Errorf("the gateway reads %q: %v", first, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	echoes(t, f)
}

// A gateway behind a front serves as one without, TURN and all.
func TestFront_GatewayServesBehindIt(t *testing.T) {
	s, cfg := serveTLSWith(t, func(c *Config) {
		f := NewFront(t.Context(), c.Public, nil, ShareOf(0), nil)
		t.Cleanup(func() { _ = f.Close() })
		c.Public = f.Listener()
	})
	for _, http2 := range []bool{true, false} {
		a := ask(t, httpClient(t, http2, "", cfg.Clone()), http.MethodGet, "https://"+s.public+"/healthz", "")
		if (a.ProtoMajor == 2) != http2 {
			t.Errorf("HTTP/2 %v: %s", http2, a.Proto)
		}
	}
}

func TestFront_TooLargeHelloIsRefused(t *testing.T) {
	f := front(t)
	conn, err := net.Dial("tcp", f.Listener().Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Records of a handshake message that is announced as longer than any.
	record := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...)
	copy(record[5:], []byte{1, 0, 0xff, 0xff})
	for range 2 {
		if _, err := conn.Write(record); err != nil {
			break // it was closed meanwhile
		}
		copy(record[5:], []byte{0, 0, 0, 0})
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) || err == nil {
		t.Errorf("read %d: %v", n, err)
	}
	if n := f.refused.Load(); n != 1 {
		t.Errorf("%d connections were counted as refused, want 1", n)
	}
}

// Who begins long hellos and ends none gets the memory of few, and keeps nobody
// out: the room is of all, and the one that has waited longest makes way.
func TestFront_LongHellosShareTheirRoom(t *testing.T) {
	places := newWaiting(maxSorted, maxSortedAll)
	places.room = 45 << 10
	f := frontOf(t, places, newWaiting(maxGreeted, maxGreetedAll), maxQueued)
	long := append([]byte{22, 3, 1, 0x3f, 0}, make([]byte, 15000)...) // of one record of 16128 bytes
	copy(long[5:], []byte{1, 0, 0x3e, 0xf0})
	fit := places.room / len(long)
	var open []net.Conn
	for i := range 2 * fit {
		conn, err := net.Dial("tcp", f.Listener().Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := conn.Write(long); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		poll(t, func() bool {
			places.mu.Lock()
			defer places.mu.Unlock()
			return places.held == min(i+1, fit)*len(long)
		})
		if i >= fit {
			closed(t, open[i-fit])
		}
	}
	echoes(t, f) // its hello needs some, too
	closed(t, open[fit])
	places.mu.Lock()
	defer places.mu.Unlock()
	if places.held > places.room {
		t.Errorf("%d bytes are held, at most %d may be", places.held, places.room)
	}
}

// A connection that is one too many is closed, and the streams go on.
func TestFront_MoreThanWaitAreRefused(t *testing.T) {
	f := front(t)
	for range maxQueued {
		f.queued <- struct{}{}
	}
	conn, err := net.Dial("tcp", f.Listener().Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || f.refused.Load() != 1 {
		t.Errorf("read %d, %v; refused %d", n, err, f.refused.Load())
	}
	echoes(t, f)
}

// strangers open n connections, one after the other, that say something and no
// more.
func strangers(t *testing.T, f *Front, places *waiting, n int, said []byte) []net.Conn {
	t.Helper()
	var list []net.Conn
	for range n {
		conn, err := net.Dial("tcp", f.Listener().Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := conn.Write(said); err != nil {
			t.Fatal(err)
		}
		list = append(list, conn)
		poll(t, func() bool {
			places.mu.Lock()
			defer places.mu.Unlock()
			return places.all.Len() == min(len(list), places.total)
		})
	}
	return list
}

// closed fails unless the other end closes conn.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is open still")
	}
}

// Who connects and keeps silent keeps nobody out, however many do: the one that
// has been silent longest makes way.
func TestFront_SilentConnectionsMakeWay(t *testing.T) {
	for name, places := range map[string]*waiting{"of one network": newWaiting(3, 4), "of all": newWaiting(9, 3)} {
		t.Run(name, func(t *testing.T) {
			f := frontOf(t, places, newWaiting(maxGreeted, maxGreetedAll), maxQueued)
			silent := strangers(t, f, places, 3, []byte{22})
			echoes(t, f)
			closed(t, silent[0])
			poll(t, func() bool { return f.refused.Load() == 1 })
			for _, conn := range silent[1:] { // they have their time still
				if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("one that makes way for nobody: %v", err)
				}
			}
		})
	}
}

// streamHello is what begins a connection to the stream.
func streamHello(t *testing.T) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(ours, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{testStream}}).HandshakeContext(t.Context())
	}()
	hello := make([]byte, maxHello)
	n, err := theirs.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	return hello[:n]
}

// Asking for a stream frees nobody from the limits: until the stream knows who is
// there, it holds a place, of which there are few.
func TestFront_StreamsKeepStrangersFew(t *testing.T) {
	hello := streamHello(t)
	places := newWaiting(9, 2)
	f := frontOf(t, newWaiting(maxSorted, maxSortedAll), places, maxQueued)
	open := strangers(t, f, places, 2, hello)
	echoes(t, f)
	closed(t, open[0])
	poll(t, func() bool { return f.refused.Load() == 1 })
	if err := open[1].Close(); err != nil {
		t.Fatal(err)
	}
	poll(t, func() bool {
		places.mu.Lock()
		defer places.mu.Unlock()
		return places.all.Len() == 0 && len(places.byKey) == 0
	})
}

func TestFront_CloseEndsWhoWaits(t *testing.T) {
	f := front(t)
	silent, err := net.Dial("tcp", f.Listener().Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := f.Listener().Accept()
		ended <- err
	}()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

// FuzzSniff: whatever a client says first, the one that serves it reads it whole.
func FuzzSniff(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, said []byte) {
		client, server := net.Pipe()
		go func() {
			_, _ = client.Write(said)
			_ = client.Close()
		}()
		_, again, err := sniff(t.Context(), func(int) {}, server)
		if err != nil {
			_ = server.Close()
			return
		}
		got, _ := io.ReadAll(again)
		_ = again.Close()
		if !bytes.Equal(got, said) {
			t.Errorf("read %x, want %x", got, said)
		}
	})
}
