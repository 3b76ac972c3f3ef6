// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/webrtc/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/internal/v1client"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/client"
	"github.com/meshgate/meshgate/signaling/rtc"
)

func ask(proto, dst string, port uint32) *v1.StartDataChannelRequest {
	return &v1.StartDataChannelRequest{NodeId: string(self), Proto: proto, Dst: dst, Port: port}
}

func TestStartDataChannel_FirstMessage(t *testing.T) {
	w := &world{denied: map[string]error{"tcp 169.254.169.254:80": fmt.Errorf("link-local: %w", mesh.ErrDenied)}}
	s := newService(t, w, self)
	for _, tc := range []struct {
		name string
		req  *v1.StartDataChannelRequest
		want error
		says string
	}{
		{"no node", &v1.StartDataChannelRequest{}, mesh.ErrInvalid, ""},
		{"odd node", &v1.StartDataChannelRequest{NodeId: "../x"}, mesh.ErrInvalid, ""},
		{"reserved node", &v1.StartDataChannelRequest{NodeId: "*", InBand: true}, mesh.ErrInvalid, ""},
		{"unknown node", &v1.StartDataChannelRequest{NodeId: "nobody", InBand: true}, mesh.ErrNotFound, ""},
		{"unix", ask("unix", "/run/x", 1), mesh.ErrInvalid, `only "tcp" and "udp" are spoken`},
		{"raw icmp", ask("ip4:icmp", "10.0.0.1", 1), mesh.ErrInvalid, `only "tcp" and "udp"`},
		{"upper case", ask("TCP", "10.0.0.1", 1), mesh.ErrInvalid, `only "tcp" and "udp"`},
		{"port 65536", ask("tcp", "10.0.0.1", 65536), mesh.ErrInvalid, "the highest is 65535"},
		{"tcp port 0", ask("tcp", "10.0.0.1", 0), mesh.ErrInvalid, `needs protocol "udp"`},
		{"long dst", ask("tcp", strings.Repeat("a", 300), 1), mesh.ErrInvalid, "longer than 253"},
		{"unknown dst", ask("tcp", "evil.example", 80), mesh.ErrNotFound, ""},
		{"metadata service", ask("tcp", "169.254.169.254", 80), mesh.ErrDenied, "link-local"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			call := start(t, s, "alice")
			_ = call.Send(tc.req)
			_, err := call.Receive()
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.says) {
				t.Fatalf("got %v", err)
			}
		})
	}
	if n := len(s.Sessions()); n != 0 {
		t.Fatalf("%d sessions", n)
	}
}

func TestStartDataChannel_DefaultsAreAppliedBeforePolicy(t *testing.T) {
	w := &world{}
	call := start(t, newService(t, w, self), "alice")
	_ = call.Send(ask("", "", 8080))
	if _, err := call.Receive(); err != nil {
		t.Fatal(err)
	}
	if q := w.questions(); len(q) != 1 || q[0] != "alice gateway tcp 127.0.0.1:8080" {
		t.Fatalf("asked %q", q)
	}
}

// sdpOf returns a proper answer to offer, changed by a function.
func sdpOf(t *testing.T, offer string, change func(string) string) string {
	t.Helper()
	var d webrtc.SessionDescription
	if err := json.Unmarshal([]byte(answerTo(t, offer)), &d); err != nil {
		t.Fatal(err)
	}
	d.SDP = change(d.SDP)
	b, _ := json.Marshal(d)
	return string(b)
}

func TestStartDataChannel_SecondMessage(t *testing.T) {
	keep := func(s string) string { return s }
	replace := func(old, new string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				t.Fatalf("no %q in the answer", old)
			}
			return strings.Replace(s, old, new, 1)
		}
	}
	video := "m=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\n"
	for _, tc := range []struct {
		name string
		send func(call clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], offer string)
		want error
	}{
		{"nothing", func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], _ string) {}, context.DeadlineExceeded},
		{"half-close", func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], _ string) { _ = c.CloseSend() }, context.Canceled},
		{"empty answer", answers(""), mesh.ErrInvalid},
		{"candidate first", func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], _ string) {
			_ = c.Send(&v1.StartDataChannelRequest{Candidate: "candidate:1 1 udp 1 127.0.0.1 1 typ host"})
		}, mesh.ErrInvalid},
		{"no JSON", answers("v=0"), mesh.ErrInvalid},
		{"offer", answers(`{"type":"offer","sdp":"v=0"}`), mesh.ErrInvalid},
		{"no SDP", answers(`{"type":"answer","sdp":"hello"}`), mesh.ErrInvalid},
		{"1 MiB", answers(`{"type":"answer","sdp":"` + strings.Repeat("x", 1<<20) + `"}`), mesh.ErrInvalid},
		{"two sections", changed(t, func(s string) string { return s + video }), mesh.ErrInvalid},
		{"media", changed(t, replace("m=application", "m=video")), mesh.ErrInvalid},
		{"no fingerprint", changed(t, replace("a=fingerprint", "a=x-fingerprint")), mesh.ErrInvalid},
		{"no ufrag", changed(t, replace("a=ice-ufrag", "a=x-ufrag")), mesh.ErrInvalid},
		{"actpass", changed(t, replace("a=setup:active", "a=setup:actpass")), mesh.ErrInvalid},
		{"other port", changed(t, replace("a=sctp-port:5000", "a=sctp-port:5001")), mesh.ErrInvalid},
		{"two answers", func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], offer string) {
			a := sdpOf(t, offer, keep)
			_ = c.Send(&v1.StartDataChannelRequest{Answer: a})
			_ = c.Send(&v1.StartDataChannelRequest{Answer: a})
		}, mesh.ErrInvalid},
		{"nobody behind the answer", changed(t, keep), mesh.ErrUnavailable},
		{"1000 candidates", func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], offer string) {
			_ = c.Send(&v1.StartDataChannelRequest{Answer: sdpOf(t, offer, keep)})
			for i := range 1000 {
				if c.Send(&v1.StartDataChannelRequest{Candidate: fmt.Sprintf("candidate:1 1 udp 1 127.0.0.1 %d typ host", i+1)}) != nil {
					return
				}
			}
		}, mesh.ErrExhausted},
		{"malformed candidate", func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], offer string) {
			_ = c.Send(&v1.StartDataChannelRequest{Answer: sdpOf(t, offer, keep)})
			_ = c.Send(&v1.StartDataChannelRequest{Candidate: "candidate:1 1 udp x"})
		}, mesh.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t, &world{}, self, func(c *signaling.Config) {
				// What has to end by itself ends soon; the others need their time
				// on a busy machine, to be refused and not to be late.
				c.RTC.Disconnected, c.RTC.Failed = time.Second, time.Second
				switch tc.want {
				case context.DeadlineExceeded:
					c.Timeouts.Message = 100 * time.Millisecond
				case mesh.ErrUnavailable:
					c.RTC.Disconnected, c.RTC.Failed = 200*time.Millisecond, 200*time.Millisecond
				}
			})
			call := start(t, s, "alice")
			_ = call.Send(ask("tcp", "127.0.0.1", 80))
			offer, err := call.Receive()
			if err != nil {
				t.Fatal(err)
			}
			tc.send(call, offer.GetOffer())
			for err == nil {
				_, err = call.Receive()
			}
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			eventually(t, "nothing is left", func() bool { return len(s.Sessions()) == 0 })
		})
	}
}

func answers(text string) func(clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], string) {
	return func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], _ string) {
		_ = c.Send(&v1.StartDataChannelRequest{Answer: text})
	}
}

func changed(t *testing.T, change func(string) string) func(clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], string) {
	return func(c clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], offer string) {
		_ = c.Send(&v1.StartDataChannelRequest{Answer: sdpOf(t, offer, change)})
	}
}

func TestStartDataChannel_NoFirstMessage(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) { c.Timeouts.Message = 50 * time.Millisecond })
	_, err := start(t, s, "alice").Receive()
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "timed out waiting for initial request") {
		t.Fatalf("got %v", err)
	}
}

func TestLimits_HalfOpenNegotiations(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) {
		c.Limits.HalfOpenPerCaller, c.Limits.HalfOpen = 2, 3
	})
	begin := func(caller string) (clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer], error) {
		call := start(t, s, caller)
		_ = call.Send(ask("tcp", "127.0.0.1", 80))
		_, err := call.Receive()
		return call, err
	}
	a, err := begin("alice")
	_, err2 := begin("alice")
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if _, err := begin("alice"); !errors.Is(err, mesh.ErrExhausted) {
		t.Fatalf("the third of alice: %v", err)
	}
	if _, err := begin("bob"); err != nil {
		t.Fatalf("the first of bob: %v", err)
	}
	if _, err := begin("carol"); !errors.Is(err, mesh.ErrExhausted) {
		t.Fatalf("the fourth of all: %v", err)
	}
	a.cancel()
	<-a.done
	if _, err := begin("carol"); err != nil {
		t.Fatalf("after one gave up: %v", err)
	}
}

func TestLimits_SessionsPerCaller(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) { c.Limits.SessionsPerCaller = 1 })
	c := dial(t, s, self)
	if _, err := tryDial(t, s, self); !errors.Is(err, mesh.ErrExhausted) {
		t.Fatalf("the second: %v", err)
	}
	_ = c.Close()
	eventually(t, "the first is gone", func() bool { return len(s.Sessions()) == 0 })
	dial(t, s, self)
}

func TestRenew_ClientIsAskedAndTheOldOneEnds(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := newService(t, &world{}, self, func(c *signaling.Config) {
		c.RTC.RenewRecords, c.RTC.MaxRecords = 300, 100_000
		c.Registerer = registry
	})
	asked := make(chan struct{})
	c := dial(t, s, self, func(o *client.Options) { o.OnRenew = func() { close(asked) } })
	conn := dialTCP(t, c, listen(t, echo))
	go func() { _, _ = io.Copy(conn, zeros{}) }()
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	<-asked
	select {
	case <-c.Done():
		t.Fatal("the old one ended with a connection in it")
	default:
	}
	next := dial(t, s, self)
	roundTrip(t, dialTCP(t, next, listen(t, echo)), "through the new one")
	_ = conn.Close()
	<-c.Done()
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "renewed") {
		t.Fatalf("reason %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestRenew_TheAssociationEndsAtItsLimit(t *testing.T) {
	s := newService(t, &world{}, self, func(c *signaling.Config) { c.RTC.RenewRecords, c.RTC.MaxRecords = 100, 500 })
	c := dialV1(t, s, v1client.Config{Request: request(t, "tcp", listen(t, source))})
	ch := mustOpen(t, c)
	var n atomic.Int64
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			m, err := ch.Read(buf)
			if err != nil {
				return
			}
			n.Add(int64(m))
		}
	})
	eventually(t, "the session is gone", func() bool { return len(s.Sessions()) == 0 })
	_ = c.Close() // the last packet, which says so, may have been lost
	reader.Wait()
	if n.Load() == 0 || n.Load() > 600*1200 {
		t.Fatalf("%d bytes passed", n.Load())
	}
}

// A v1 client that is not pion may send larger messages than pion's 64 KiB.
func TestV1_MessagesBeyond64KiB(t *testing.T) {
	s := newService(t, &world{}, self)
	var got atomic.Int64
	address := listen(t, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		got.Add(n)
	})
	call := start(t, s, "alice")
	_ = call.Send(request(t, "tcp", address))
	p := answerRTC(t, call)
	control, err := p.Negotiated(rtc.ChannelConfig{ID: 0, Label: "CHANNELS", Protocol: "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	if p.MaxMessage() != 256<<10 {
		t.Fatalf("the offer announces %d bytes", p.MaxMessage())
	}
	ch, err := p.Negotiated(rtc.ChannelConfig{ID: 1, Label: "CONNECTIONS", Protocol: "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, n := range []int{65536, 65537, 1, 256 << 10, 70000} {
		if err := ch.WriteMessage(make([]byte, n), false); err != nil {
			t.Fatal(err)
		}
		total += int64(n)
	}
	_ = control.WriteMessage(binary.BigEndian.AppendUint32(nil, 1), false)
	_ = ch.Close()
	eventually(t, "all bytes arrived", func() bool { return got.Load() == total })
}

func TestInBand_MessagesBeyond64KiB(t *testing.T) {
	s := newService(t, &world{}, self)
	call := start(t, s, "alice")
	_ = call.Send(&v1.StartDataChannelRequest{NodeId: string(self), InBand: true})
	p := answerRTC(t, call)
	ch, err := p.Open(rtc.ChannelConfig{ID: 2, Label: "tcp:" + listen(t, echo), Protocol: bridge.Protocol})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range []int{65536, 65537, 1, 256 << 10} {
		if err := ch.WriteMessage(make([]byte, n), false); err != nil {
			t.Fatal(err)
		}
		total += n
	}
	stream := bridge.NewStream(context.Background(), ch, bridge.StreamConfig{})
	_ = stream.CloseWrite()
	n, err := io.Copy(io.Discard, stream)
	if err != nil || n != int64(total) {
		t.Fatalf("%d of %d bytes came back, %v", n, total, err)
	}
	<-stream.Done()
}

// answerRTC answers an offer with a peer of package rtc.
func answerRTC(t *testing.T, call clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) *rtc.Peer {
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
	offer, err := call.Receive()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := p.Answer(offer.GetOffer())
	if err != nil {
		t.Fatal(err)
	}
	_ = call.Send(&v1.StartDataChannelRequest{Answer: answer})
	for c := range p.Candidates() {
		_ = call.Send(&v1.StartDataChannelRequest{Candidate: c})
	}
	for done := false; !done; {
		select {
		case m := <-call.down:
			_ = p.AddCandidate(m.GetCandidate())
		case <-p.Connected():
			done = true
		case <-p.Closing():
			t.Fatal(p.Err())
		}
	}
	return p
}

func TestClose_EndsCallsThatWait(t *testing.T) {
	w, gateway := twoNodes(t)
	waiting := start(t, gateway, "alice") // for its first message
	answering := start(t, gateway, "alice")
	_ = answering.Send(ask("tcp", "127.0.0.1", 80))
	relayed := start(t, gateway, "alice")
	_ = relayed.Send(&v1.StartDataChannelRequest{NodeId: string(other), InBand: true})
	for _, call := range []clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer]{answering, relayed} {
		if _, err := call.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	if err := gateway.Close(); err != nil {
		t.Fatal(err)
	}
	for _, call := range []clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer]{waiting, answering, relayed} {
		if <-call.done; !errors.Is(call.err, mesh.ErrUnavailable) {
			t.Errorf("a call ended with %v", call.err)
		}
	}
	eventually(t, "the node gave up too", func() bool { return len(w.nodes[other].Sessions()) == 0 })
	late := start(t, gateway, "alice")
	if _, err := late.Receive(); !errors.Is(err, signaling.ErrClosed) {
		t.Fatalf("a call after Close: %v", err)
	}
}
