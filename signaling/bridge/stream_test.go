// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"
)

// pair returns the two ends of a stream that the server has accepted.
func pair(t *testing.T) (client, server *Stream) {
	t.Helper()
	a, b := newPipe()
	client, server = NewStream(context.Background(), a, StreamConfig{}), NewStream(context.Background(), b, StreamConfig{Server: true})
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
		<-client.Done()
		<-server.Done()
	})
	if err := server.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := client.Opened(context.Background()); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestStream_CarriesBytesBothWaysAndHalfCloses(t *testing.T) {
	client, server := pair(t)
	data := make([]byte, 5<<20+7)
	_, _ = rand.Read(data)
	go func() {
		_, _ = io.Copy(server, server) // an echo
		_ = server.CloseWrite()
	}()
	go func() {
		_, _ = client.Write(data)
		_ = client.CloseWrite()
	}()
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
	<-client.Done() // the server closes the channel after both fins
	<-server.Done()
}

func TestStream_HalfCloseFromEitherSideLeavesTheOtherOpen(t *testing.T) {
	for _, name := range []string{"client first", "server first"} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			if name == "server first" {
				a, b = b, a
			}
			_, _ = a.Write([]byte("bye"))
			_ = a.CloseWrite()
			if got, err := io.ReadAll(b); err != nil || string(got) != "bye" {
				t.Fatalf("%q, %v", got, err)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Fatalf("write after CloseWrite: %v", err)
			}
			_, _ = b.Write([]byte("later"))
			_ = b.CloseWrite()
			if got, err := io.ReadAll(a); err != nil || string(got) != "later" {
				t.Fatalf("%q, %v", got, err)
			}
		})
	}
}

func TestStream_SenderStopsAtTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t)
		sent := make(chan int64, 1)
		source := &countingReader{}
		go func() {
			n, _ := server.ReadFrom(source)
			sent <- n
		}()
		synctest.Wait()
		if source.n != Window {
			t.Fatalf("%d bytes taken from the source, window %d", source.n, Window)
		}
		buf := make([]byte, updateSize)
		_, _ = io.ReadFull(client, buf)
		synctest.Wait()
		if source.n != Window+updateSize {
			t.Fatalf("%d bytes taken after %d were read", source.n, updateSize)
		}
		_ = client.Close()
		<-sent
	})
}

type countingReader struct{ n int64 }

func (r *countingReader) Read(p []byte) (int, error) {
	r.n += int64(len(p))
	return len(p), nil
}

func TestStream_Rejected(t *testing.T) {
	a, b := newPipe()
	client, server := NewStream(context.Background(), a, StreamConfig{}), NewStream(context.Background(), b, StreamConfig{Server: true})
	_, _ = client.Write([]byte("sent before the answer"))
	server.Reject("permission_denied", "no rule allows it")
	var got *Error
	if err := client.Opened(context.Background()); !errors.As(err, &got) || got.Code != "permission_denied" {
		t.Fatalf("got %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.As(err, &got) {
		t.Fatalf("read: %v", err)
	}
	<-client.Done()
	<-server.Done()
}

func TestStream_BreachesOfTheProtocolResetIt(t *testing.T) {
	big := make([]byte, MessageSize)
	for _, tc := range []struct {
		name  string
		wrong func(ch *pipeEnd)
		want  string
	}{
		{"more than the window", func(ch *pipeEnd) {
			for range Window/MessageSize + 1 {
				_ = ch.WriteMessage(big, false)
			}
		}, "window"},
		{"bytes after fin", func(ch *pipeEnd) {
			_ = ch.WriteMessage(Control{Type: TypeFin}.Encode(), true)
			_ = ch.WriteMessage([]byte("x"), false)
		}, "after fin"},
		{"text that is no JSON", func(ch *pipeEnd) { _ = ch.WriteMessage([]byte("hello"), true) }, "JSON"},
		{"control message too large", func(ch *pipeEnd) {
			_ = ch.WriteMessage([]byte(`{"type":"`+strings.Repeat("x", MaxControlSize)+`"}`), true)
		}, "at most"},
		{"negative window", func(ch *pipeEnd) { _ = ch.WriteMessage([]byte(`{"type":"window","bytes":-1}`), true) }, "negative"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ch, b := newPipe()
			server := NewStream(context.Background(), b, StreamConfig{Server: true})
			tc.wrong(ch)
			<-server.Failed()
			var last Control
			buf := make([]byte, maxMessage)
			for {
				n, text, err := ch.ReadMessage(buf)
				if err != nil {
					break
				}
				if text {
					last, _ = ParseControl(buf[:n])
				}
			}
			if last.Type != TypeReset || !strings.Contains(last.Message, tc.want) {
				t.Fatalf("last message %+v", last)
			}
			<-server.Done()
		})
	}
}

func TestStream_UnknownControlMessagesAreIgnored(t *testing.T) {
	ch, b := newPipe()
	server := NewStream(context.Background(), b, StreamConfig{Server: true})
	_ = ch.WriteMessage([]byte(`{"type":"new-in-2030","x":[1]}`), true)
	_ = ch.WriteMessage([]byte("data"), false)
	buf := make([]byte, 8)
	if n, err := server.Read(buf); err != nil || string(buf[:n]) != "data" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	_ = ch.Close()
	if _, err := server.Read(buf); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("a channel closed without fin: %v", err)
	}
	<-server.Done()
}

func TestStream_Deadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := pair(t)
		_ = client.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read: %v", err)
		}
		_ = client.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := client.Write(make([]byte, 2*Window))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n != Window {
			t.Fatalf("wrote %d, %v", n, err)
		}
		_ = client.SetDeadline(time.Time{})
		blocked := make(chan error, 1)
		go func() {
			_, err := client.Read(make([]byte, 1))
			blocked <- err
		}()
		synctest.Wait()
		_ = client.SetReadDeadline(time.Now())
		if err := <-blocked; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a read that waited already: %v", err)
		}
	})
}

func TestStream_CloseUnblocksAndDelivers(t *testing.T) {
	client, server := pair(t)
	_, _ = client.Write([]byte("last words"))
	blocked := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1))
		blocked <- err
	}()
	_ = client.Close()
	if err := <-blocked; !errors.Is(err, net.ErrClosed) {
		t.Fatalf("read: %v", err)
	}
	if got, err := io.ReadAll(server); err != nil || string(got) != "last words" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestStream_SharedMemoryIsGivenBack(t *testing.T) {
	memory := semaphore.NewWeighted(Window)
	a, b := newPipe()
	server := NewStream(context.Background(), b, StreamConfig{Server: true, Memory: memory})
	for range 3 {
		_ = a.WriteMessage(make([]byte, 1000), false)
	}
	buf := make([]byte, 1500)
	_, _ = io.ReadFull(server, buf)
	_ = server.Close()
	_ = a.Close()
	<-server.Done()
	if !memory.TryAcquire(Window) {
		t.Fatal("the memory of a closed stream is still taken")
	}
}

// A stream that waits for memory that others hold ends with its peer
// connection all the same.
func TestStream_WaitForMemoryEndsWithTheContext(t *testing.T) {
	memory := semaphore.NewWeighted(10)
	_ = memory.TryAcquire(10)
	ctx, cancel := context.WithCancel(context.Background())
	a, b := newPipe()
	s := NewStream(ctx, b, StreamConfig{Server: true, Memory: memory})
	_ = a.WriteMessage([]byte("x"), false)
	_ = a.Close()
	cancel()
	<-s.Done()
}

func TestStream_LargeAndEmptyMessages(t *testing.T) {
	ch, b := newPipe()
	server := NewStream(context.Background(), b, StreamConfig{Server: true})
	want := []byte{}
	for _, n := range []int{0, 1, MessageSize, MessageSize + 1, 65536, 65537, 0, maxMessage, 5} {
		p := make([]byte, n)
		_, _ = rand.Read(p)
		want = append(want, p...)
		_ = ch.WriteMessage(p, false)
	}
	_ = ch.WriteMessage(Control{Type: TypeFin}.Encode(), true)
	if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d, %v", len(got), len(want), err)
	}
	_ = server.Close()
	_ = ch.Close()
	<-server.Done()
}
