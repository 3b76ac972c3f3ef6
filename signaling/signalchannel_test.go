// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/v1client"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

type signals = clientEnd[*v1.WebRTCSignal, *v1.WebRTCSignal]

// startSignals calls StartSignalChannel of s in memory.
func startSignals(t testing.TB, s *signaling.Service, id string) signals {
	t.Helper()
	c := newCall[*v1.WebRTCSignal, *v1.WebRTCSignal](context.Background())
	caller := signaling.Caller{ID: id, Addr: netip.MustParseAddrPort("192.0.2.7:4711")}
	c.serve(func(ctx context.Context, stream signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
		return s.StartSignalChannel(ctx, caller, stream)
	})
	t.Cleanup(func() {
		c.cancel()
		<-c.done
	})
	return signals{c}
}

// offerTo makes a peer connection through a signal channel.
func offerTo(t testing.TB, call signals, node mesh.NodeID) *rtc.Peer {
	t.Helper()
	e, err := rtc.New(rtc.Config{Loopback: true, Local: loopbackOnly})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	p, err := e.NewPeer(context.Background(), rtc.PeerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := call.Send(&v1.WebRTCSignal{NodeId: string(node), Caller: "root"}); err != nil {
		t.Fatal(err)
	}
	greeting, err := call.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if greeting.GetNodeId() != string(node) || greeting.GetDescription() != "" {
		t.Fatalf("first message %v", greeting)
	}
	offer, err := p.Offer()
	if err != nil {
		t.Fatal(err)
	}
	_ = call.Send(&v1.WebRTCSignal{NodeId: "somebody-else", Description: offer})
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for c := range p.Candidates() {
			_ = call.Send(&v1.WebRTCSignal{Candidate: c})
		}
		_ = call.Send(&v1.WebRTCSignal{}) // the end of candidates, as some say it
	})
	tasks.Go(func() {
		for {
			m, err := call.Receive()
			if err != nil {
				return
			}
			if m.GetNodeId() != string(node) {
				t.Errorf("message from %q", m.GetNodeId())
			}
			if d := m.GetDescription(); d != "" {
				if err := p.SetAnswer(d); err != nil {
					t.Error(err)
				}
			}
			_ = p.AddCandidate(m.GetCandidate())
		}
	})
	t.Cleanup(func() {
		call.cancel()
		tasks.Wait()
	})
	select {
	case <-p.Connected():
	case <-p.Closing():
		t.Fatal(p.Err())
	case <-time.After(time.Minute):
		t.Fatal("not connected")
	}
	return p
}

func TestSignalChannel_LocalAndRelayed(t *testing.T) {
	for _, node := range []mesh.NodeID{self, other} {
		t.Run(string(node), func(t *testing.T) {
			w, gateway := twoNodes(t, func(c *signaling.Config) {
				c.ICEServers = func(context.Context, string) []*v1.ICEServer {
					return []*v1.ICEServer{{Urls: []string{"stun:127.0.0.1:9"}}}
				}
			})
			p := offerTo(t, startSignals(t, gateway, "alice"), node)
			address := listen(t, echo)
			ch, err := p.Open(rtc.ChannelConfig{ID: p.FirstID() + 2, Label: "tcp:" + address, Protocol: bridge.Protocol})
			if err != nil {
				t.Fatal(err)
			}
			stream := bridge.NewStream(context.Background(), ch, bridge.StreamConfig{})
			roundTrip(t, stream, "hello")
			<-stream.Done()
			if q := w.questions(); len(q) != 1 || !strings.HasPrefix(q[0], fmt.Sprintf("alice %s tcp ", node)) {
				t.Fatalf("asked %q: the caller is who the gateway says", q)
			}
		})
	}
}

func TestSignalChannel_Errors(t *testing.T) {
	offer := func(sdp string) *v1.WebRTCSignal { return &v1.WebRTCSignal{NodeId: string(self), Description: sdp} }
	for _, tc := range []struct {
		name string
		send []*v1.WebRTCSignal
		want error
	}{
		{"no node", []*v1.WebRTCSignal{{}}, mesh.ErrInvalid},
		{"unknown node", []*v1.WebRTCSignal{{NodeId: "nobody"}}, mesh.ErrNotFound},
		{"no offer", []*v1.WebRTCSignal{{NodeId: string(self)}}, context.DeadlineExceeded},
		{"no message", nil, context.DeadlineExceeded},
		{"garbage for an offer", []*v1.WebRTCSignal{offer("v=0")}, mesh.ErrInvalid},
		{"an answer for an offer", []*v1.WebRTCSignal{offer(`{"type":"answer","sdp":""}`)}, mesh.ErrInvalid},
		{"garbage for a candidate", []*v1.WebRTCSignal{{NodeId: string(self), Candidate: "candidate:"}, {Candidate: "{"}}, mesh.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t, &world{}, self, func(c *signaling.Config) {
				if tc.want == context.DeadlineExceeded { // the others need their time on a busy machine
					c.Timeouts.Message = 100 * time.Millisecond
				}
			})
			call := startSignals(t, s, "alice")
			for _, m := range tc.send {
				_ = call.Send(m)
			}
			for {
				if _, err := call.Receive(); err != nil {
					if !errors.Is(err, tc.want) {
						t.Fatalf("got %v, want %v", err, tc.want)
					}
					break
				}
			}
			if n := len(s.Sessions()); n != 0 {
				t.Fatalf("%d sessions are left", n)
			}
		})
	}
}

// device is a WireGuard device that sends every packet back.
type device struct {
	mu       sync.Mutex
	attached int
	detached int
	tasks    sync.WaitGroup
}

func (d *device) Attach(conn signaling.PacketConn) (func(), error) {
	d.mu.Lock()
	d.attached++
	d.mu.Unlock()
	d.tasks.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, err := conn.ReadPacket(buf)
			if err != nil {
				return
			}
			_ = conn.WritePacket(buf[:n])
		}
	})
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.detached++
	}, nil
}

func (d *device) counts() (int, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attached, d.detached
}

// wireGuardPacket is a transport data message of n bytes.
func wireGuardPacket(n int) []byte {
	b := make([]byte, n)
	b[0] = 4
	return b
}

func TestWireGuard_V1Client(t *testing.T) {
	d := &device{}
	w := &world{}
	s := newService(t, w, self, func(c *signaling.Config) { c.WireGuard = d })
	c := dialV1(t, s, v1client.Config{Request: &v1.StartDataChannelRequest{NodeId: string(self), Proto: "udp", Dst: "0.0.0.0"}})
	buf := make([]byte, 2048)
	for _, n := range []int{32, 148, 1452} {
		// What is no WireGuard message does not reach the device.
		for _, junk := range [][]byte{{}, []byte("hello"), make([]byte, 200), {5, 0, 0, 0, 31: 0}, {4, 1, 0, 0, 31: 0}} {
			_, _ = c.Control().Write(junk)
		}
		if _, err := c.Control().Write(wireGuardPacket(n)); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Control().Read(buf); err != nil || got != n {
			t.Fatalf("a packet of %d bytes came back with %d, %v", n, got, err)
		}
	}
	if q := w.questions(); len(q) == 0 || q[0] != "alice gateway udp localhost:0" {
		t.Fatalf("asked %q", q)
	}
	_ = c.Close()
	eventually(t, "the device was detached", func() bool { a, b := d.counts(); return a == 1 && b == 1 })
	d.tasks.Wait()
}

func TestWireGuard_InBandChannel(t *testing.T) {
	d := &device{}
	s := newService(t, &world{}, self, func(c *signaling.Config) { c.WireGuard = d })
	p := offerTo(t, startSignals(t, s, "alice"), self)
	ch, err := p.Open(rtc.ChannelConfig{ID: p.FirstID() + 2, Label: "wireguard-proxy", Unordered: true, Unreliable: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.WriteMessage(wireGuardPacket(80), false); err != nil {
		t.Fatal(err)
	}
	if n, _, err := ch.ReadMessage(make([]byte, 2048)); err != nil || n != 80 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	_ = ch.Close()
	if _, _, err := ch.ReadMessage(make([]byte, 2048)); !errors.Is(err, io.EOF) {
		t.Fatalf("after close: %v", err)
	}
	eventually(t, "the device was detached", func() bool { a, b := d.counts(); return a == 1 && b == 1 })
	d.tasks.Wait()
}

// A peer connection that policy lets in is no way into the device by itself.
func TestWireGuard_InBandChannelNeedsLeave(t *testing.T) {
	d := &device{}
	w := &world{denied: map[string]error{"udp localhost:0": fmt.Errorf("no: %w", mesh.ErrDenied)}}
	s := newService(t, w, self, func(c *signaling.Config) { c.WireGuard = d })
	p := offerTo(t, startSignals(t, s, "alice"), self)
	ch, err := p.Open(rtc.ChannelConfig{ID: p.FirstID() + 2, Label: "wireguard-proxy", Unordered: true, Unreliable: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = ch.WriteMessage(wireGuardPacket(80), false)
	if n, _, err := ch.ReadMessage(make([]byte, 2048)); !errors.Is(err, io.EOF) {
		t.Fatalf("%d bytes came back, %v", n, err)
	}
	if attached, _ := d.counts(); attached != 0 {
		t.Error("the device was attached to")
	}
}

func TestWireGuard_Refusals(t *testing.T) {
	ask := &v1.StartDataChannelRequest{NodeId: string(self), Proto: "udp"}
	for _, tc := range []struct {
		name   string
		device signaling.WireGuard
		denied map[string]error
		want   error
	}{
		{"no device", nil, nil, mesh.ErrUnsupported},
		{"denied", &device{}, map[string]error{"udp localhost:0": fmt.Errorf("no: %w", mesh.ErrDenied)}, mesh.ErrDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t, &world{denied: tc.denied}, self, func(c *signaling.Config) { c.WireGuard = tc.device })
			call := start(t, s, "alice")
			_ = call.Send(ask)
			if _, err := call.Receive(); !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// The node of the first message is the one that the gateway has authorized: a
// later message cannot name another, nor be the first to name one.
func TestSignalChannel_OnlyTheFirstMessageNamesTheNode(t *testing.T) {
	for _, first := range []*v1.WebRTCSignal{
		{}, {Candidate: "candidate:1 1 udp 1 127.0.0.1 9 typ host"}, {Caller: "root"},
	} {
		w, gateway := twoNodes(t)
		call := startSignals(t, gateway, "alice")
		_ = call.Send(first)
		_ = call.Send(&v1.WebRTCSignal{NodeId: string(other)})
		_, err := call.Receive()
		if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), "node_id of the first signal is empty") {
			t.Errorf("%v: got %v", first, err)
		}
		if n := len(w.nodes[other].Sessions()) + len(gateway.Sessions()); n != 0 {
			t.Errorf("%v: %d sessions", first, n)
		}
	}
}
