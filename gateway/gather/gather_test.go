// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// one is a listener that accepts one connection.
type one struct {
	net.Listener
	conn net.Conn
}

func (l one) Accept() (net.Conn, error) { return l.conn, nil }

// pair is a connection whose writes are gathered, and its other end. A write
// waits until the other end reads.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	inner, far := net.Pipe()
	near, err := Listener(one{conn: inner}).Accept()
	if err != nil {
		t.Fatal(err)
	}
	Start(near)
	t.Cleanup(func() {
		_ = near.Close()
		_ = far.Close()
	})
	return near, far
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if n, err := c.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("wrote %d bytes of %d: %v", n, len(text), err)
	}
}

// reads fails unless the next read of c gives a text.
func reads(t *testing.T, c net.Conn, want string) {
	t.Helper()
	buf := make([]byte, 2*maxHeld)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("read %d bytes, %v, want %d bytes", n, err, len(want))
	}
}

func TestWrite_JoinsWhatComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t)
		write(t, near, "a")
		synctest.Wait() // it is on its way
		write(t, near, "b")
		write(t, near, "c")
		reads(t, far, "a")
		reads(t, far, "bc")
		write(t, near, "d")
		reads(t, far, "d")
	})
}

func TestWrite_LargeOnesGoByThemselvesAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t)
		parts := []int{1, large, 3 * maxHeld, 10, maxHeld - 10, large, 5, 2 * maxHeld}
		var want bytes.Buffer
		var wg sync.WaitGroup
		for i, n := range parts {
			want.Write(bytes.Repeat([]byte{byte('a' + i)}, n))
		}
		wg.Go(func() {
			for i, n := range parts {
				write(t, near, string(bytes.Repeat([]byte{byte('a' + i)}, n)))
			}
			_ = near.Close()
		})
		got, err := io.ReadAll(far)
		wg.Wait()
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("read %d bytes, %v, want %d", len(got), err, want.Len())
		}
	})
}

func TestWrite_WaitsForRoomUntilItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t)
		write(t, near, "a")
		synctest.Wait()
		held := string(make([]byte, maxHeld))
		write(t, near, held)
		start := time.Now()
		_ = near.SetWriteDeadline(start.Add(time.Second))
		if _, err := near.Write([]byte("b")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v, want the deadline", time.Since(start), err)
		}
		_ = near.SetWriteDeadline(time.Time{})
		done := make(chan error, 1)
		go func() {
			_, err := near.Write([]byte("c"))
			done <- err
		}()
		synctest.Wait()
		reads(t, far, "a")
		if err := <-done; err != nil {
			t.Errorf("with room: %v", err)
		}
		reads(t, far, held)
		reads(t, far, "c")
	})
}

func TestWrite_DeadlineEndsALargeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := pair(t)
		time.AfterFunc(time.Second, func() { _ = near.SetDeadline(time.Now()) })
		if _, err := near.Write(make([]byte, large)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
	})
}

// TestStall_ClosesTheConnection has a client that reads nothing.
func TestStall_ClosesTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := pair(t)
		start := time.Now()
		write(t, near, "a")
		_ = near.SetWriteDeadline(start.Add(-time.Hour)) // crypto/tls does, before it closes
		if _, err := near.Read(make([]byte, 1)); err == nil || time.Since(start) != stall {
			t.Errorf("a reader was told %v after %v, want an error after %v", err, time.Since(start), stall)
		}
		if _, err := near.Write([]byte("b")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a later write: %v, want why", err)
		}
		if err := near.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func TestClose_SendsWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t)
		write(t, near, "last words")
		if err := near.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := near.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write after Close: %v", err)
		}
		if err := near.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second Close: %v", err)
		}
		if got, err := io.ReadAll(far); err != nil || string(got) != "last words" {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

func TestClose_WaitsForNobody(t *testing.T) {
	for name, size := range map[string]int{"gathered": 1, "large": large} {
		synctest.Test(t, func(t *testing.T) {
			near, far := pair(t)
			go func() { _, _ = near.Write(make([]byte, size)) }()
			read := make(chan error, 1)
			go func() {
				_, err := near.Read(make([]byte, 1))
				read <- err
			}()
			synctest.Wait()
			start := time.Now()
			if err := near.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-read; err == nil || time.Since(start) > 0 {
				t.Errorf("%s: a reader was told %v after %v", name, err, time.Since(start))
			}
			time.Sleep(2 * lastWords) // nobody reads
			if _, err := far.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%s: the connection is still open: %v", name, err)
			}
		})
	}
}

func TestStart_LeavesOthersAlone(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	Start(near)
	Start(nil)
	c, err := Listener(one{conn: near}).Accept()
	if err != nil {
		t.Fatal(err)
	}
	// Without Start a write is one.
	go func() { _, _ = c.Write([]byte("a")) }()
	reads(t, far, "a")
	if err := errors.Join(c.SetDeadline(time.Now()), c.SetWriteDeadline(time.Now())); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("b")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

// TestListener_ServesHTTP answers over TLS, in both versions of HTTP, what fits
// and what does not.
func TestListener_ServesHTTP(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(name, func(t *testing.T) {
			body := bytes.Repeat([]byte("0123456789"), 100_000)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				part := body
				if r.URL.Path == "/small" {
					part = body[:10]
				}
				_, _ = w.Write(part)
			}))
			s.EnableHTTP2 = http2
			s.Listener = Listener(s.Listener)
			started := 0
			s.Config.ConnState = func(c net.Conn, state http.ConnState) {
				if state == http.StateNew {
					started++
					Start(c)
				}
			}
			s.StartTLS()
			defer s.Close()
			for _, path := range []string{"/small", "/large", "/small"} {
				res, err := s.Client().Get(s.URL + path)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				want := body
				if path == "/small" {
					want = body[:10]
				}
				if err != nil || !bytes.Equal(got, want) || res.Proto != name {
					t.Errorf("%s: %d bytes over %s, %v, want %d", path, len(got), res.Proto, err, len(want))
				}
			}
			if started == 0 {
				t.Error("no connection was started")
			}
		})
	}
}

var _ interface{ NetConn() net.Conn } = (*tls.Conn)(nil) // Start relies on it
