// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/webrtc/v3"

	"github.com/meshgate/meshgate/internal/v1client"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
)

// twoNodes returns a gateway and another node that it relays to.
func twoNodes(t testing.TB, change ...func(*signaling.Config)) (*world, *signaling.Service) {
	t.Helper()
	w := &world{}
	gateway := newService(t, w, self, change...)
	w.nodes = map[mesh.NodeID]*signaling.Service{other: newService(t, w, other)}
	return w, gateway
}

func TestRelay_InBand(t *testing.T) {
	w, gateway := twoNodes(t, func(c *signaling.Config) {
		c.ICEServers = func(_ context.Context, caller string) []*v1.ICEServer {
			return []*v1.ICEServer{{Urls: []string{"stun:127.0.0.1:9"}, Username: "for " + caller, Credential: "c"}}
		}
	})
	c := dial(t, gateway, other)
	roundTrip(t, dialTCP(t, c, listen(t, echo)), "through the relay")
	if len(gateway.Sessions()) != 0 || len(w.nodes[other].Sessions()) != 1 {
		t.Fatal("the peer connection is not that of the node")
	}
	first := w.seen[0]
	if first.GetCaller() != "alice" || !first.GetInBand() || first.GetSrc() != "192.0.2.7:4711" ||
		len(first.GetIceServers()) != 1 || first.GetIceServers()[0].GetUsername() != "for node-b" ||
		len(first.GetStunServers()) != 1 {
		t.Fatalf("the node was asked %v", first)
	}
	if q := w.questions(); len(q) != 1 || !strings.HasPrefix(q[0], "alice node-b tcp ") {
		t.Fatalf("asked %q", q)
	}
}

func TestRelay_V1ClientAndEncodings(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  v1client.Config
		raw  bool // the node sends bare lines, as v1 nodes do
	}{
		{name: "as we do"}, {name: "raw from the client", cfg: v1client.Config{RawCandidates: true}},
		{name: "raw from the node", raw: true}, {name: "vanilla", cfg: v1client.Config{Vanilla: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, gateway := twoNodes(t)
			if tc.raw {
				w.tamper = func(m *v1.DataChannelNegotiation) *v1.DataChannelNegotiation {
					var init webrtc.ICECandidateInit
					if json.Unmarshal([]byte(m.GetCandidate()), &init) == nil {
						return &v1.DataChannelNegotiation{Candidate: init.Candidate}
					}
					return m
				}
			}
			tc.cfg.Request = request(t, "tcp", listen(t, echo))
			tc.cfg.Request.NodeId = string(other)
			exchange(t, mustOpen(t, dialV1(t, gateway, tc.cfg)), "hello")
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, m := range w.seen[1:] {
				if c := m.GetCandidate(); c != "" && !json.Valid([]byte(c)) {
					t.Fatalf("the node got candidate %q", c)
				}
				if m.GetCandidate() == "" && m.GetAnswer() == "" {
					t.Fatal("an empty message was relayed to the node")
				}
			}
		})
	}
}

func TestRelay_EmptyCandidatesAreToleratedAndNotPassedOn(t *testing.T) {
	var answered atomic.Bool
	w, gateway := twoNodes(t)
	call := start(t, gateway, "alice")
	_ = call.Send(&v1.StartDataChannelRequest{NodeId: string(other), InBand: true})
	offer, err := call.Receive()
	if err != nil {
		t.Fatal(err)
	}
	_ = call.Send(&v1.StartDataChannelRequest{Answer: answerTo(t, offer.GetOffer())})
	for _, c := range []string{"", "null", `{"candidate":""}`, "candidate:1 1 udp 1 127.0.0.1 1 typ host"} {
		if err := call.Send(&v1.StartDataChannelRequest{Candidate: c}); err != nil {
			t.Fatalf("%q: %v", c, err)
		}
	}
	eventually(t, "the last one arrived", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := len(w.seen)
		answered.Store(n > 1 && w.seen[1].GetAnswer() != "")
		return n == 3 && strings.Contains(w.seen[2].GetCandidate(), "127.0.0.1 1 typ host")
	})
	if !answered.Load() {
		t.Fatal("no answer arrived")
	}
	_ = call.CloseSend()
}

// answerTo is an answer to which nobody stands.
func answerTo(t testing.TB, offer string) string {
	t.Helper()
	pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose()
	var d webrtc.SessionDescription
	if err := json.Unmarshal([]byte(offer), &d); err != nil {
		t.Fatal(err)
	}
	if err := pc.SetRemoteDescription(d); err != nil {
		t.Fatal(err)
	}
	a, err := pc.CreateAnswer(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(a)
	return string(b)
}

func TestRelay_Failures(t *testing.T) {
	for _, tc := range []struct {
		name  string
		node  mesh.NodeID
		setup func(*world)
		want  error
	}{
		{"unknown node", "nobody", func(*world) {}, mesh.ErrNotFound},
		{"node that cannot be called", other, func(w *world) { w.refusal = errors.New("connection refused") }, mesh.ErrPrecondition},
		{"node that refuses", other, func(w *world) {
			w.denied = map[string]error{"tcp 10.0.0.1:80": fmt.Errorf("no: %w", mesh.ErrDenied)}
		}, mesh.ErrDenied},
		{"node without a word", other, func(w *world) {
			w.tamper = func(*v1.DataChannelNegotiation) *v1.DataChannelNegotiation { return nil }
		}, context.DeadlineExceeded},
		{"node with a hostile candidate", other, func(w *world) {
			w.tamper = func(*v1.DataChannelNegotiation) *v1.DataChannelNegotiation {
				return &v1.DataChannelNegotiation{Candidate: "candidate:x"}
			}
		}, mesh.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, gateway := twoNodes(t, func(c *signaling.Config) {
				if tc.want == context.DeadlineExceeded { // the others need their time on a busy machine
					c.Timeouts.Message = 300 * time.Millisecond
				}
			})
			tc.setup(w)
			call := start(t, gateway, "alice")
			_ = call.Send(&v1.StartDataChannelRequest{NodeId: string(tc.node), Dst: "10.0.0.1", Port: 80})
			if _, err := call.Receive(); !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestRelay_StockPeerIsAnsweredHere(t *testing.T) {
	w := &world{stock: map[mesh.NodeID]bool{"printer": true}}
	gateway := newService(t, w, self)
	roundTrip(t, dialTCP(t, dial(t, gateway, "printer"), listen(t, echo)), "hello")
	if q := w.questions(); len(q) != 1 || !strings.HasPrefix(q[0], "alice printer tcp ") {
		t.Fatalf("asked %q", q)
	}
}

func TestNegotiate_ForeignICEServersAreNotAsked(t *testing.T) {
	// A server that the peer asked would be seen by its packets.
	hostile := udpCounter(t)
	ours := udpCounter(t)
	w := &world{}
	s := newService(t, w, other, func(c *signaling.Config) {
		c.RTC.Local = nil
		c.OurICEHost = func(host string) bool { return host == "localhost" }
	})
	call := newCall[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation](context.Background())
	call.serve(func(ctx context.Context, st signaling.Stream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]) error {
		return s.NegotiateDataChannel(ctx, self, st)
	})
	client := clientEnd[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]{call}
	_ = client.Send(&v1.DataChannelNegotiation{InBand: true, IceServers: []*v1.ICEServer{
		{Urls: []string{fmt.Sprintf("stun:127.0.0.1:%d", hostile.port), fmt.Sprintf("stun:localhost:%d", ours.port)}},
	}})
	if _, err := client.Receive(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "our server is asked", func() bool { return ours.packets.Load() > 0 })
	if hostile.packets.Load() != 0 {
		t.Fatal("a foreign server was asked")
	}
	call.cancel()
	<-call.done
}
