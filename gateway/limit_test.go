// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func TestBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuckets(2, 3)
		count := func(key string) (n int) {
			for b.take(key) {
				n++
			}
			return n
		}
		if n := count("a"); n != 3 {
			t.Errorf("%d at once", n)
		}
		pass(2 * time.Second)
		if n := count("a"); n != 3 { // no more than the burst
			t.Errorf("%d later", n)
		}
		pass(500 * time.Millisecond)
		if n := count("a"); n != 1 {
			t.Errorf("%d after half a second", n)
		}
		b.giveBack("a")
		b.giveBack("b")
		if n, m := count("a"), count("b"); n != 1 || m != 3 {
			t.Errorf("%d and %d after giving back", n, m)
		}
		for i := range maxBuckets * 2 {
			b.take(fmt.Sprint(i))
		}
		if len(b.byKey) != maxBuckets || b.used.Len() != maxBuckets {
			t.Errorf("%d keys remembered", len(b.byKey))
		}
	})
}

func TestSlots(t *testing.T) {
	s := newSlots(2)
	first, ok1 := s.acquire("a")
	_, ok2 := s.acquire("a")
	_, ok3 := s.acquire("a")
	_, ok4 := s.acquire("b")
	if !ok1 || !ok2 || ok3 || !ok4 {
		t.Error(ok1, ok2, ok3, ok4)
	}
	first()
	release, ok := s.acquire("a")
	if !ok {
		t.Error("a place that was given back is not free")
	}
	release()
	if s.held["a"] != 1 {
		t.Error(s.held)
	}
}

func TestTracker(t *testing.T) {
	tr := newTracker()
	if first, second := tr.enter(), tr.enter(); !first || !second {
		t.Fatal("nobody may enter")
	}
	idle := tr.close()
	if tr.enter() {
		t.Error("somebody entered after close")
	}
	tr.leave()
	select {
	case <-idle:
		t.Error("idle too early")
	default:
	}
	tr.leave()
	<-idle
	<-newTracker().close()
}

func TestNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1":            "192.0.2.1",
		"::ffff:192.0.2.1":     "192.0.2.1",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"2001:db8:1:2::1":      "2001:db8:1:2::/64",
		"fe80::1%eth0":         "fe80::/64",
		"2001:db8:1:3::1":      "2001:db8:1:3::/64",
	} {
		if got := network(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %s", addr, got)
		}
	}
	_ = network(netip.Addr{}) // an unknown address is one network
}

// watchAs begins to watch the mesh and takes the first message.
func watchAs(t *testing.T, ctx context.Context, c *http.Client, base string) (*connect.ServerStreamForClient[meshgatev1.WatchMeshResponse], error) {
	t.Helper()
	stream, err := meshgatev1connect.NewWatchClient(c, base).WatchMesh(ctx, connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = stream.Close() })
	if !stream.Receive() {
		return nil, stream.Err()
	}
	return stream, nil
}

func TestStreams_LimitPerCaller(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.Streams = 2 })
	base := "http://" + s.public
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	leaving, leave := context.WithCancel(ctx)
	viewer := bearer(httpClient(t, true, "", nil), "viewer")
	for _, ctx := range []context.Context{leaving, ctx} {
		if _, err := watchAs(t, ctx, viewer, base); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := watchAs(t, ctx, viewer, base); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	if _, err := watchAs(t, ctx, bearer(httpClient(t, true, "", nil), "admin"), base); err != nil {
		t.Errorf("another caller: %v", err)
	}
	leave()
	poll(t, func() bool { _, err := watchAs(t, ctx, viewer, base); return err == nil })
}

// A stream does not outlive the right to it.
func TestStreams_EndWithTheRight(t *testing.T) {
	s := serve(t, nil)
	user, err := watchAs(t, testContext(t), bearer(httpClient(t, true, "", nil), "viewer"), "http://"+s.public)
	if err != nil {
		t.Fatal(err)
	}
	member, err := watchAs(t, testContext(t), httpClient(t, true, "127.0.0.2", nil), "http://"+s.mesh)
	if err != nil {
		t.Fatal(err)
	}
	s.node.set(changed(8, func(s *mesh.Snapshot) {
		s.Bindings = nil
		s.Nodes = s.Nodes.Without("laptop")
	}))
	if user.Receive() || connect.CodeOf(user.Err()) != connect.CodePermissionDenied {
		t.Errorf("a user without the role: %v", user.Err())
	}
	if member.Receive() || connect.CodeOf(member.Err()) != connect.CodeUnauthenticated {
		t.Errorf("a removed member: %v", member.Err())
	}
}

// When a listener fails, the gateway says so and ends.
func TestRun_FailsWithAListener(t *testing.T) {
	inside, public := listen(t), listen(t)
	g, err := New(Config{Node: newFakeNode(testSnapshot()), Signaling: &fakeSignaling{}, Public: public, Mesh: []net.Listener{inside}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Run(testContext(t)) }()
	if err := inside.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), inside.Addr().String()) {
		t.Errorf("got %v", err)
	}
	if _, err := public.Accept(); err == nil {
		t.Error("the other listener is open")
	}
}

// Who has many calls wait for their messages makes no more of them.
func TestUnary_LimitPerCaller(t *testing.T) {
	s := serve(t, nil)
	s.unary = newSlots(2)
	base := "http://" + s.public
	var answered []chan int
	var messages []*io.PipeWriter
	for range 2 {
		body, message := io.Pipe()
		t.Cleanup(func() { _ = message.Close() })
		r, err := http.NewRequestWithContext(testContext(t), http.MethodPost, base+v1connect.MeshGetNodeProcedure, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/proto")
		done := make(chan int, 1)
		go func() {
			resp, err := bearer(httpClient(t, true, "", nil), "viewer").Do(r)
			if err != nil {
				done <- 0
				return
			}
			_ = resp.Body.Close()
			done <- resp.StatusCode
		}()
		answered, messages = append(answered, done), append(messages, message)
	}
	poll(t, func() bool {
		s.unary.mu.Lock()
		defer s.unary.mu.Unlock()
		return s.unary.held["viewer"] == 2
	})
	if err := getNode(t, bearer(httpClient(t, true, "", nil), "viewer"), base); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	if err := getNode(t, bearer(httpClient(t, true, "", nil), "admin"), base); err != nil {
		t.Errorf("another caller: %v", err)
	}
	for i := range messages {
		_ = messages[i].Close()
		<-answered[i]
	}
	poll(t, func() bool { return getNode(t, bearer(httpClient(t, true, "", nil), "viewer"), base) == nil }) // after they ended
}

// A call in a WebSocket gives back what it held.
func TestUnary_InWebSockets(t *testing.T) {
	s := serve(t, nil)
	s.unary = newSlots(1)
	for range 3 {
		c := dialWS(t, testContext(t), s.public, v1connect.MeshGetNodeProcedure, "viewer")
		c.send(t, &v1.GetNodeRequest{Id: "web-1"})
		c.closeSend(t)
		if err := c.receive(&v1.MeshNode{}); err != nil {
			t.Fatal(err)
		}
		if err := c.receive(&v1.MeshNode{}); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		poll(t, func() bool {
			s.unary.mu.Lock()
			defer s.unary.mu.Unlock()
			return len(s.unary.held) == 0
		})
	}
}
