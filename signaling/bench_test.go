// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/webrtc/v3"

	"github.com/meshgate/meshgate/internal/v1client"
)

const benchMessage = 16 << 10

// rawPair is a pair of detached data channels of plain pion/webrtc.
func rawPair(b *testing.B) (near, far datachannel.ReadWriteCloser) {
	b.Helper()
	var s webrtc.SettingEngine
	s.DetachDataChannels()
	s.SetIncludeLoopbackCandidate(true)
	s.SetIPFilter(func(ip net.IP) bool { return ip.IsLoopback() && ip.To4() != nil })
	s.SetSrflxAcceptanceMinWait(0)
	api := webrtc.NewAPI(webrtc.WithSettingEngine(s))
	p, err := api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		b.Fatal(err)
	}
	q, err := api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.GracefulClose(); _ = q.GracefulClose() })
	ends := [2]chan datachannel.ReadWriteCloser{make(chan datachannel.ReadWriteCloser, 1), make(chan datachannel.ReadWriteCloser, 1)}
	id, negotiated := uint16(1), true
	for i, pc := range []*webrtc.PeerConnection{p, q} {
		dc, err := pc.CreateDataChannel("raw", &webrtc.DataChannelInit{ID: &id, Negotiated: &negotiated})
		if err != nil {
			b.Fatal(err)
		}
		dc.OnOpen(func() {
			d, _ := dc.Detach()
			ends[i] <- d
		})
	}
	offer, _ := p.CreateOffer(nil)
	gathered := webrtc.GatheringCompletePromise(p)
	_ = p.SetLocalDescription(offer)
	<-gathered
	_ = q.SetRemoteDescription(*p.LocalDescription())
	answer, _ := q.CreateAnswer(nil)
	gathered = webrtc.GatheringCompletePromise(q)
	_ = q.SetLocalDescription(answer)
	<-gathered
	if err := p.SetRemoteDescription(*q.LocalDescription()); err != nil {
		b.Fatal(err)
	}
	return <-ends[0], <-ends[1]
}

// BenchmarkRawPion is what pion's own data channel carries, with the usual
// bound on its send queue.
func BenchmarkRawPion(b *testing.B) {
	near, far := rawPair(b)
	dc := near.(*datachannel.DataChannel)
	low := make(chan struct{}, 1)
	dc.SetBufferedAmountLowThreshold(512 << 10)
	dc.OnBufferedAmountLow(func() {
		select {
		case low <- struct{}{}:
		default:
		}
	})
	p := make([]byte, benchMessage)
	b.SetBytes(benchMessage)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, benchMessage)
		for range b.N {
			if _, err := far.Read(buf); err != nil {
				return
			}
		}
	}()
	b.ResetTimer()
	for range b.N {
		for dc.BufferedAmount() > 1<<20 {
			<-low
		}
		if _, err := near.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	<-done
}

// source and sink are destinations that send, or take, without end.
func source(c *net.TCPConn) {
	p := make([]byte, 64<<10)
	for {
		if _, err := c.Write(p); err != nil {
			return
		}
	}
}

func BenchmarkInBandDown(b *testing.B) {
	c := dial(b, newService(b, &world{}, self), self)
	conn, err := c.DialContext(context.Background(), "tcp", listen(b, source))
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, benchMessage)
	b.SetBytes(benchMessage)
	b.ResetTimer()
	for range b.N {
		if _, err := io.ReadFull(conn, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = conn.Close()
}

func BenchmarkInBandUp(b *testing.B) {
	c := dial(b, newService(b, &world{}, self), self)
	got := make(chan int64, 1)
	conn, err := c.DialContext(context.Background(), "tcp", listen(b, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}))
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, benchMessage)
	b.SetBytes(benchMessage)
	b.ResetTimer()
	for range b.N {
		if _, err := conn.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	if n := <-got; n != int64(b.N)*benchMessage {
		b.Fatalf("%d bytes arrived", n)
	}
	b.StopTimer()
	_ = conn.Close()
}

func BenchmarkV1Down(b *testing.B) {
	c := dialV1(b, newService(b, &world{}, self), v1client.Config{Request: request(b, "tcp", listen(b, source))})
	ch := mustOpen(b, c)
	buf := make([]byte, 64<<10)
	b.SetBytes(benchMessage)
	b.ResetTimer()
	for n := 0; n < b.N*benchMessage; {
		m, err := ch.Read(buf)
		if err != nil {
			b.Fatal(err)
		}
		n += m
	}
	b.StopTimer()
	_ = ch.Close()
}

// BenchmarkOpen is the time from the request to a peer connection, and to the
// first byte through it.
func BenchmarkOpen(b *testing.B) {
	s := newService(b, &world{}, self)
	address := listen(b, echo)
	var open, first time.Duration
	for range b.N {
		begin := time.Now()
		c, err := tryDial(b, s, self)
		if err != nil {
			b.Fatal(err)
		}
		open += time.Since(begin)
		conn, err := c.DialContext(context.Background(), "tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = conn.Write([]byte("x"))
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		first += time.Since(begin)
		_ = c.Close()
	}
	b.ReportMetric(float64(open.Milliseconds())/float64(b.N), "ms/open")
	b.ReportMetric(float64(first.Milliseconds())/float64(b.N), "ms/first-byte")
}

// BenchmarkConnections is connections after each other in one peer connection.
func BenchmarkConnections(b *testing.B) {
	c := dial(b, newService(b, &world{}, self), self)
	address := listen(b, echo)
	for range b.N {
		conn, err := c.DialContext(context.Background(), "tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = conn.Write([]byte("x"))
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "x" {
			b.Fatalf("%q, %v", got, err)
		}
		_ = conn.Close()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
}
