// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// BenchmarkIdleConnection measures what a connection costs that has an allocation
// and waits: its server's end, the core's state and, alike, the client's end, but
// not what the kernel has.
func BenchmarkIdleConnection(b *testing.B) {
	for name, start := range dials() {
		b.Run(name, func(b *testing.B) {
			const n = 200
			s := newServer(b, func(cfg *Config) { cfg.Limits.ConnectionsPerSource = n })
			newShards(b, s, 1, nil)
			dial := start(b, s)
			var clients []net.Conn // both ends are counted
			for range n {
				c := dial()
				c.binding()
				c.allocate(17)
				clients = append(clients, c.Conn)
				c.r = nil
			}
			before := held()
			for _, c := range clients {
				c.Close()
			}
			eventually(b, "all have gone", func() bool { return s.Stats().Connections == 0 })
			after := held()
			b.ReportMetric(float64(before.HeapAlloc-after.HeapAlloc)/n, "heap-B/conn")
			b.ReportMetric(float64(before.StackInuse-after.StackInuse)/n, "stack-B/conn")
		})
	}
}

// held is the memory that is in use.
func held() (m runtime.MemStats) {
	for range 3 { // what pools hold goes with the second collection
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m
}

// BenchmarkToPeer measures frames of a client on their way to the core.
func BenchmarkToPeer(b *testing.B) {
	for name, start := range dials() {
		b.Run(name, func(b *testing.B) {
			s := newServer(b, nil)
			f := newShards(b, s, 1, nil)[0]
			c := start(b, s)().channel()
			f.mute()
			const burst = 64
			var frames []byte
			for range burst {
				frames = append(frames, channelData(pattern(1200))...)
			}
			b.SetBytes(1200)
			b.ReportAllocs()
			for i := 0; i < b.N; i += burst {
				c.send(frames)
			}
			c.binding()
		})
	}
}

// BenchmarkToClient measures frames on their way to a client that reads.
func BenchmarkToClient(b *testing.B) {
	for name, start := range dials() {
		b.Run(name, func(b *testing.B) {
			s := newServer(b, nil)
			f := newShards(b, s, 1, nil)[0]
			c := start(b, s)().channel()
			const burst = 64
			data := make([]byte, core.Headroom+1200, core.Headroom+1200+core.Tailroom)
			var relay core.RelayID
			f.see(b, func(v *core.Core, _ *core.Output) {
				for i := range v.Allocations() {
					relay, _ = v.RelayAt(i.Relayed[0])
				}
			})
			got := make([]byte, burst*len(channelData(data[core.Headroom:])))
			c.SetReadDeadline(time.Time{})
			b.SetBytes(1200)
			b.ReportAllocs()
			for i := 0; i < b.N; i += burst {
				f.Do(func(now time.Time, v *core.Core, out *core.Output) {
					for range burst {
						v.FromPeer(now, relay, somebody, data, core.Headroom, out)
					}
				})
				if _, err := io.ReadFull(c.r, got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSplice measures a connection of RFC 6062, one way.
func BenchmarkSplice(b *testing.B) {
	for name := range dials() {
		b.Run(name, func(b *testing.B) {
			w := newTCPWorld(b, name, nil)
			data, peer := w.connect()
			block := pattern(64 << 10)
			b.SetBytes(int64(len(block)))
			done := make(chan struct{})
			go func() {
				defer close(done)
				for n, buf := 0, make([]byte, 128<<10); n < b.N*len(block); {
					m, err := peer.Read(buf)
					if n += m; err != nil {
						b.Error(err)
						return
					}
				}
			}()
			for range b.N {
				data.send(block)
			}
			<-done
		})
	}
}
