// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A service that neither takes nor gives anything must not keep its connection
// when the client is gone: nothing that happens on the connection would tell.
func TestPump_SilentServiceEndsAfterTheClient(t *testing.T) {
	for name, client := range map[string]func(*Stream){
		"in the middle of a transfer": func(s *Stream) { _, _ = s.Write(make([]byte, Window)) },
		"after the end of its bytes":  func(s *Stream) { _ = s.CloseWrite() },
		"idle":                        func(*Stream) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := pair(t)
				conn, service := net.Pipe()
				defer service.Close()
				done := make(chan error, 1)
				go func() { done <- Pump(far, halfConn{conn}, Counter{Up: func(int) {}, Down: func(int) {}}) }()
				client(near)
				synctest.Wait() // now each direction is blocked
				_ = near.ch.Close()
				<-done // or the test deadlocks
			})
		})
	}
}

// halfConn can end its writing direction, of which the other side does not hear.
type halfConn struct{ net.Conn }

func (halfConn) CloseWrite() error { return nil }

// What a client sent before it left properly still arrives, however slowly,
// even if it left before the connection stood.
func TestPump_SlowServiceGetsAllThatAClientLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t)
		conn, service := net.Pipe()
		_, _ = near.Write(make([]byte, Window))
		_ = near.Close()
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- Pump(far, halfConn{conn}, Counter{Up: func(int) {}, Down: func(int) {}}) }()
		buf := make([]byte, blockSize)
		for got := 0; got < Window; {
			// Each read comes late, but before the deadline of one write.
			<-time.After(closeWait - 1)
			n, err := service.Read(buf)
			if err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			got += n
		}
		_ = service.Close()
		<-done
	})
}

// A client that leaves in the middle of a download must not have it go on.
func TestPump_EndlessServiceIsLeftAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t)
		conn, service := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- Pump(far, halfConn{conn}, Counter{Up: func(int) {}, Down: func(int) {}}) }()
		sent := make(chan int)
		go func() {
			n := 0
			for block := make([]byte, MessageSize); ; n += len(block) {
				if _, err := service.Write(block); err != nil {
					sent <- n
					return
				}
			}
		}()
		synctest.Wait() // the window is full
		begin := time.Now()
		_ = near.Close()
		if n := <-sent; n > 3*Window {
			t.Errorf("the service sent %d bytes", n)
		}
		<-done
		if d := time.Since(begin); d != 0 {
			t.Errorf("it took %s", d)
		}
	})
}

// A v1 client with an echo that both wait for each other, and is killed.
func TestRaw_BlockedBothWaysEndsWithThePeerConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, ch := newPipe()
		conn, service := net.Pipe()
		go func() {
			defer service.Close()
			_, _ = io.Copy(service, service)
		}()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			Raw(ctx, ch, conn, func() int { return MessageSize }, Counter{Up: func(int) {}, Down: func(int) {}})
		}()
		for range 64 {
			_ = client.WriteMessage(make([]byte, MessageSize), false)
		}
		synctest.Wait()
		_ = client.Close()
		cancel()
		<-done
	})
}

// A service that has ended its direction and takes nothing.
func TestRaw_EndOfTheServiceEndsABlockedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, ch := newPipe()
		conn, service := net.Pipe()
		defer service.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			Raw(t.Context(), ch, endedConn{conn}, func() int { return Window }, Counter{Up: func(int) {}, Down: func(int) {}})
		}()
		_ = client.WriteMessage([]byte("x"), false)
		<-done
		_ = client.Close()
	})
}

// endedConn gives nothing more.
type endedConn struct{ net.Conn }

func (endedConn) Read([]byte) (int, error) { return 0, io.EOF }
