// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/v1client"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/client"
)

// A client that is gone without a word must not leave anything behind: not the
// peer connection, and not the connections to destinations.
func TestVanishedClientsLeaveNothing(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) {
		c.RTC.Disconnected, c.RTC.Failed, c.RTC.Keepalive = 2*time.Second, 2*time.Second, 500*time.Millisecond
	})
	var open atomic.Int64
	address := listen(t, func(c *net.TCPConn) {
		open.Add(1)
		_, _ = io.Copy(io.Discard, c)
		open.Add(-1)
	})
	var sockets []net.PacketConn
	for range 6 {
		socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, socket)
		c := dialV1(t, s, v1client.Config{Request: request(t, "tcp", address), Socket: socket})
		for range 3 {
			if _, err := mustOpen(t, c).Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "all connections stand", func() bool { return open.Load() == 18 })
	for _, socket := range sockets {
		_ = socket.Close()
	}
	eventually(t, "all connections are closed", func() bool { return open.Load() == 0 })
	eventually(t, "all sessions are gone", func() bool { return len(s.Sessions()) == 0 })
}

func TestManyPeerConnectionsLeaveNothing(t *testing.T) {
	// No more than so many connect at a time: their checks are work for this very
	// process, and a slow machine that gets behind with them takes all for lost.
	const rounds, clients, together = 4, 50, 8
	s := newService(t, &world{}, self)
	address := listen(t, echo)
	run := func() {
		var wg sync.WaitGroup
		slots := make(chan struct{}, together)
		for i := range clients {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				call := start(t, s, fmt.Sprint("client ", i))
				c, err := client.Dial(ctx, call, clientOptions())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				conn, err := c.DialContext(ctx, "tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Write([]byte("x"))
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		eventually(t, "all sessions are gone", func() bool { return len(s.Sessions()) == 0 })
	}
	run() // pools and the like
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range rounds - 1 {
		run()
	}
	eventually(t, "goroutines and files are back", func() bool {
		return runtime.NumGoroutine() <= goroutines+5 && openFiles(t) <= files+5
	})
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err) // leaked files cannot be counted without it
	}
	return len(list)
}
