// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/wg/stock"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/client"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// dev starts a gateway on loopback with every port chosen by the host.
func dev(t testing.TB) *process {
	t.Helper()
	return start(t, "up", "--dev", "--listen", "127.0.0.1:0")
}

// stockPeer lets a stock WireGuard peer into the mesh by the printed
// configuration and runs it in the test's process.
func stockPeer(t testing.TB, gate *process, id string) *stock.Peer {
	t.Helper()
	p, err := stock.New(gate.tool("peer", "create", id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// public is the Go client of a gateway.
func public(t testing.TB, gate *process) *peer.Public {
	t.Helper()
	p, err := peer.NewPublic(gate.ready.URL, gate.ready.Token, peer.TLSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// session opens a peer connection to a node as the Go client does.
func session(ctx context.Context, public *peer.Public, node string) (*client.Conn, error) {
	// The call is over when Dial returns; until its context ends, what the
	// server said last would wait for a reader and hold the connection.
	calling, cancel := context.WithCancel(ctx)
	defer cancel()
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](public.WebRTC().StartDataChannel(calling))
	return client.Dial(ctx, call, client.Options{Node: node, RTC: rtc.Config{Loopback: true}})
}

// zeros serves an endless body.
func zeros(t testing.TB, p *stock.Peer) {
	t.Helper()
	l, err := p.Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		block := make([]byte, 64<<10)
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// A fast service and a reader of 1 MiB/s: what the gateway holds stays small.
func TestSlowReader_GatewayMemoryStaysFlat(t *testing.T) {
	t.Setenv("GOGC", "25") // what the gateway holds is to be seen, not its garbage
	gate := dev(t)
	zeros(t, stockPeer(t, gate, "fast"))
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	c, err := session(ctx, public(t, gate), "fast")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	idle := gate.rss()
	conn, err := c.DialContext(ctx, "tcp", "localhost:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: fast\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// WireGuard makes its packet buffers with the first traffic, and the heap
	// finds its size: what a reader costs that keeps up is not what one costs
	// that does not. It keeps up until nothing has grown for a while.
	var before int64
	for calm := 0; calm < 32; calm++ {
		if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
			t.Fatal(err)
		}
		now := gate.rss()
		if now > before+1<<20 {
			calm = 0
		}
		before = max(before, now)
	}
	const seconds, perTick = 15, 1 << 20 / 10
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var most int64
	for range seconds * 10 {
		<-tick.C
		if _, err := io.CopyN(io.Discard, conn, perTick); err != nil {
			t.Fatal(err)
		}
		most = max(most, gate.rss())
	}
	grown := most - before
	t.Logf("idle %.1f MiB, busy %.1f MiB, while the reader was slow at most %.1f MiB more",
		float64(idle)/(1<<20), float64(before)/(1<<20), float64(grown)/(1<<20))
	if grown > 16<<20 {
		t.Errorf("the gateway grew by %d bytes, want less than 16 MiB", grown)
	}
}

func TestTwoHundredPeerConnections_OpenAndLeaveNothing(t *testing.T) {
	gate := dev(t)
	p := stockPeer(t, gate, "echo")
	l, err := p.Listen(7)
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	api := public(t, gate)
	// One connection first: what is made once and kept is not a leak.
	if err := ping(ctx, api); err != nil {
		t.Fatal(err)
	}
	goroutines, fds := gate.goroutines(), gate.fds()
	var mu sync.Mutex // guards open
	var open []*client.Conn
	g := errgroup.Group{}
	g.SetLimit(16)
	for range 200 {
		g.Go(func() error {
			c, err := session(ctx, api, "echo")
			if err != nil {
				return err
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			return echoOnce(ctx, c)
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("with %d peer connections: %d fds, %d goroutines", len(open), gate.fds(), gate.goroutines())
	for _, c := range open {
		g.Go(c.Close)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	eventually(t, patience, func() (bool, string) {
		api.Close() // ends connections without calls, more of them each time
		// A client that ends while it allocates leaves a TURN allocation, which
		// its user's quota and its lifetime bound: a socket and two goroutines.
		relays := int(gate.metric("meshgate_turn_allocations"))
		f, n := gate.fds()-relays, gate.goroutines()-2*relays
		return f <= fds+2 && n <= goroutines+5, fmt.Sprintf("%d fds (before %d), %d goroutines (before %d)", f, fds, n, goroutines)
	})
}

func ping(ctx context.Context, api *peer.Public) error {
	c, err := session(ctx, api, "echo")
	if err != nil {
		return err
	}
	return errors.Join(echoOnce(ctx, c), c.Close())
}

func echoOnce(ctx context.Context, c *client.Conn) error {
	conn, err := c.DialContext(ctx, "tcp", "localhost:7")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		return fmt.Errorf("echo: %q %w", got, err)
	}
	return nil
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// What the gateway answers for must be reachable as far as policy says, and
// the refusal says why.
func TestDestinations_AreRefusedWithTheirReason(t *testing.T) {
	gate := dev(t)
	stockPeer(t, gate, "phone")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := session(ctx, public(t, gate), "gateway")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tc := range []struct{ at, want string }{
		{"localhost:22", "does not expose"},
		{"127.0.0.1:22", "does not expose"},
		{"[::1]:22", "does not expose"},
		{"[::ffff:127.0.0.1]:22", "does not expose"},
		{"172.16.0.1:8443", "does not expose"},
		{"169.254.169.254:80", "not reachable through"},
		{"[fd00:ec2::254]:80", "not reachable through"},
		{"10.0.0.1:80", "not reachable through"},
		{"0.0.0.0:80", "not reachable through"},
		{"[::]:80", "not reachable through"},
		{"[64:ff9b::7f00:1]:80", "not reachable through"},
		{"172.16.9.9:80", "not reachable through"},
		{"example.org:80", "neither an address nor a node"},
		{"2130706433:80", "neither an address nor a node"},
	} {
		conn, err := c.DialContext(ctx, "tcp", tc.at)
		if err == nil {
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.at, err, tc.want)
		}
	}
}
