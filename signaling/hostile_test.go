// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/internal/v1client"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// stalledWorld gives every connection to a destination that takes and gives
// nothing, or gives for ever.
func stalledWorld(read func([]byte) (int, error)) *world {
	return &world{dial: func(context.Context, string, string) (net.Conn, error) {
		return &stalled{read: read, closed: make(chan struct{})}, nil
	}}
}

type stalled struct {
	net.Conn
	read   func([]byte) (int, error) // nil waits
	once   atomic.Bool
	closed chan struct{}
}

func (s *stalled) Read(p []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
	}
	if s.read != nil {
		return s.read(p)
	}
	<-s.closed
	return 0, net.ErrClosed
}

func (s *stalled) Write([]byte) (int, error) { <-s.closed; return 0, net.ErrClosed }
func (s *stalled) Close() error {
	if !s.once.Swap(true) {
		close(s.closed)
	}
	return nil
}
func (s *stalled) CloseWrite() error { return nil }
func (s *stalled) SetDeadline(t time.Time) error {
	if !t.IsZero() {
		return s.Close() // soon enough for a test
	}
	return nil
}
func (s *stalled) SetReadDeadline(t time.Time) error  { return s.SetDeadline(t) }
func (s *stalled) SetWriteDeadline(t time.Time) error { return s.SetDeadline(t) }

// A v1 client that reads nothing stops the destination: what is taken from it
// fits into the server's queue and the client's own receive buffer.
func TestV1_SlowClientHoldsOneWindow(t *testing.T) {
	var taken atomic.Int64
	w := stalledWorld(func(p []byte) (int, error) { taken.Add(int64(len(p))); return len(p), nil })
	c := dialV1(t, newService(t, w, self), v1client.Config{Request: ask("tcp", "127.0.0.1", 80)})
	mustOpen(t, c)
	last := int64(-1)
	eventually(t, "the destination stands still", func() bool {
		now := taken.Load()
		still := now == last && now >= bridge.Window
		last = now
		if !still {
			<-time.After(100 * time.Millisecond)
		}
		return still
	})
	if most := int64(2*bridge.Window + 64<<10); last > most {
		t.Fatalf("%d bytes were taken, at most %d have a place", last, most)
	}
}

// A client that opens all the channels it may, and fills every window, costs a
// bounded amount of memory.
func TestInBand_HostileClientCostsBoundedMemory(t *testing.T) {
	const limit = 4 << 20
	s := newService(t, stalledWorld(nil), self, func(c *signaling.Config) { c.Limits.Memory = limit })
	before := heap()
	call := start(t, s, "mallory")
	_ = call.Send(&v1.StartDataChannelRequest{NodeId: string(self), InBand: true})
	p := answerRTC(t, call)
	message := make([]byte, bridge.MessageSize)
	var channels []*rtc.Channel
	for id := uint16(2); len(channels) < 64; id += 2 {
		ch, err := p.Open(rtc.ChannelConfig{ID: id, Label: "tcp:127.0.0.1:80", Protocol: bridge.Protocol})
		if err != nil {
			t.Fatal(err)
		}
		channels = append(channels, ch)
	}
	for range 8 {
		for _, ch := range channels {
			_ = ch.WriteMessage(message, false)
		}
	}
	left := func() (n int) {
		for _, ch := range channels {
			n += ch.Buffered()
		}
		return n
	}
	eventually(t, "the server takes no more", func() bool {
		before := left()
		<-time.After(200 * time.Millisecond)
		return left() == before && before < 5<<20
	})
	// Of the 8 MiB that were sent, 4 wait in the server's streams, one message
	// of each is read and has no place there yet, and SCTP's receive buffer is
	// full. The rest is left here.
	if n, least := left(), 8<<20-limit-64*bridge.MessageSize-2<<20; n < least {
		t.Errorf("only %d bytes are left at the client, at least %d have no place", n, least)
	}
	// Both ends are in this process, and on a busy machine packets are on their way
	// for a while.
	eventually(t, "the heap has grown by no more than 24 MiB", func() bool { return heap()-before <= 24<<20 })
	_ = p.Close() // and all of it goes
	eventually(t, "the session is gone", func() bool { return len(s.Sessions()) == 0 })
}

// Many peer connections of one caller together hold what one caller may, and
// others are served meanwhile. What they held goes back to the system.
func TestInBand_HostileCallerCostsBoundedMemory(t *testing.T) {
	const limit, sessions, channels = 10 << 20, 4, 6
	registry := prometheus.NewRegistry()
	w := stalledWorld(nil)
	stall := w.dial
	open := listen(t, echo)
	w.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == open {
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		}
		return stall(ctx, network, address)
	}
	s := newService(t, w, self, func(c *signaling.Config) {
		c.Limits.MemoryPerCaller, c.Registerer = limit, registry
	})
	var peers []*rtc.Peer
	for range sessions {
		call := start(t, s, "mallory")
		_ = call.Send(&v1.StartDataChannelRequest{NodeId: string(self), InBand: true})
		p := answerRTC(t, call)
		peers = append(peers, p)
		for i := range uint16(channels) {
			ch, err := p.Open(rtc.ChannelConfig{ID: 2 + 2*i, Label: "tcp:127.0.0.1:80", Protocol: bridge.Protocol})
			if err != nil {
				t.Fatal(err)
			}
			for range bridge.Window / bridge.MessageSize {
				_ = ch.WriteMessage(make([]byte, bridge.MessageSize), false)
			}
		}
	}
	held := func() float64 { return gauge(t, registry, "meshgate_signaling_memory_bytes") }
	eventually(t, "the caller holds what it may", func() bool { return held() > limit-bridge.MessageSize })
	roundTrip(t, dialTCP(t, dial(t, s, self), open), "meanwhile")
	if n := held(); n > limit+sessions*(256<<10) {
		t.Errorf("%.0f bytes are held", n)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, p := range peers {
		_ = p.Close()
	}
	eventually(t, "all was given back", func() bool { return held() == 0 })
	eventually(t, "the memory was collected", func() bool {
		runtime.ReadMemStats(&after)
		return after.NumForcedGC >= before.NumForcedGC+2
	})
}

func gauge(t *testing.T, from prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
