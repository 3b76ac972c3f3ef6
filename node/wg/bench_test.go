// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// benchmarkStream measures the rate of one TCP stream.
func benchmarkStream(b *testing.B, client, server net.Conn) {
	const chunk = 1 << 20
	buf := make([]byte, chunk)
	b.SetBytes(chunk)
	b.ReportAllocs()
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, server, int64(chunk)*int64(b.N))
		done <- err
	}()
	b.ResetTimer()
	for range b.N {
		if _, err := client.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func BenchmarkStream_Direct(b *testing.B) {
	x, y := wgtest.Pair(b)
	client, server := connect(b, x, y, y.IPv4)
	benchmarkStream(b, client, server)
}

func BenchmarkStream_Path(b *testing.B) {
	for _, way := range []string{"direct", "relayed"} {
		b.Run(way, func(b *testing.B) {
			x, y := sides(b)
			for _, s := range []*side{x, y} {
				s.to(map[string]wg.Route{"direct": s.direct, "relayed": s.relayed}[way])
			}
			client, server := connect(b, x.Node, y.Node, y.IPv4)
			benchmarkStream(b, client, server)
		})
	}
}

func BenchmarkStream_ThroughHub(b *testing.B) {
	_, x, y := wgtest.Star(b, func(mesh.Packet) bool { return true })
	client, server := connect(b, x, y, y.IPv4)
	benchmarkStream(b, client, server)
}

func BenchmarkStream_Attached(b *testing.B) {
	x, y := wgtest.New(b, 1, wg.Options{}), wgtest.New(b, 2, wg.Options{})
	x.SetPeers(withoutEndpoint(y.Peer()))
	y.SetPeers(withoutEndpoint(x.Peer()))
	c, d := wgtest.Pipe()
	if _, err := x.AttachPeer(y.Key(), c); err != nil {
		b.Fatal(err)
	}
	if _, err := y.Attach(d); err != nil {
		b.Fatal(err)
	}
	client, server := connect(b, x, y, y.IPv4)
	benchmarkStream(b, client, server)
}

// BenchmarkDatagrams_Direct measures small UDP datagrams one way, in packets.
func BenchmarkDatagrams_Direct(b *testing.B) {
	x, y := wgtest.Pair(b)
	ping(b, x, y) // the handshake
	server, err := y.ListenPacket(timeout(b), "udp", netip.AddrPortFrom(y.IPv4, 0).String())
	if err != nil {
		b.Fatal(err)
	}
	client, err := x.DialContext(timeout(b), "udp", server.LocalAddr().String())
	if err != nil {
		b.Fatal(err)
	}
	var received atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 1500); ; received.Add(1) {
			if _, _, err := server.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	payload := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(payload); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := errors.Join(client.Close(), server.Close()); err != nil {
		b.Fatal(err)
	}
	<-done
	b.ReportMetric(float64(received.Load())/b.Elapsed().Seconds(), "received/s")
}

// BenchmarkSet changes one of ten thousand peers, or adds and removes one. All
// are in lists of 128.
func BenchmarkSet(b *testing.B) {
	const count = 10_000
	for _, change := range []string{"nothing", "one moves", "one more and one less"} {
		b.Run(change, func(b *testing.B) {
			n := wgtest.New(b, 1, wg.Options{})
			peers := make([]wg.Peer, count+1)
			for i := range peers {
				peers[i] = wg.Peer{
					Key:      mesh.WireGuardKey{1, byte(i), byte(i >> 8)},
					Name:     fmt.Sprint("leaf", i),
					Endpoint: "127.0.0.1:9",
					AllowedIPs: []netip.Prefix{
						netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)}), 32),
						netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 6: byte(i >> 8), 7: byte(i)}), 112),
					},
				}
			}
			lists := slices.Collect(slices.Chunk(peers[:count], 128))
			set := func(change int, list []wg.Peer) {
				n.Config.Lists = slices.Clone(lists)
				n.Config.Lists[change] = list
				n.Apply()
			}
			set(0, lists[0])
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				switch change {
				case "one moves":
					list := slices.Clone(lists[7])
					list[7].Endpoint = fmt.Sprint("127.0.0.1:", 1000+i%1000)
					set(7, list)
				case "one more and one less":
					last := len(lists) - 1
					set(last, append(slices.Clone(lists[last]), peers[count:count+i%2]...))
				default:
					set(0, lists[0])
				}
			}
		})
	}
}

// BenchmarkLazy_ThroughHub compares a hub with idle peers with one without, by
// one stream through each in turns.
func BenchmarkLazy_ThroughHub(b *testing.B) {
	var pairs [2]stream
	for i, resident := range []int{-1, 20_000} {
		hub, x, y := wgtest.New(b, 1, wg.Options{Resident: resident}), wgtest.New(b, 2, wg.Options{}), wgtest.New(b, 3, wg.Options{})
		hub.SetPeers(append(crowd(500), x.Peer(), y.Peer())...)
		x.SetPeers(hub.Peer(netip.MustParsePrefix("10.99.0.0/16")))
		y.SetPeers(hub.Peer(netip.MustParsePrefix("10.99.0.0/16")))
		pairs[i].client, pairs[i].server = connect(b, x, y, y.IPv4)
	}
	compareStreams(b, pairs[0], pairs[1], "of-eager")
}

// BenchmarkPath_OfNative compares a path over UDP with the same address as an
// endpoint, by one stream through each in turns.
func BenchmarkPath_OfNative(b *testing.B) {
	var onPath, native stream
	x, y := sides(b)
	x.to(x.direct)
	y.to(y.direct)
	onPath.client, onPath.server = connect(b, x.Node, y.Node, y.IPv4)
	v, w := wgtest.Pair(b)
	native.client, native.server = connect(b, v, w, w.IPv4)
	compareStreams(b, onPath, native, "of-native")
}

// stream is the two ends of a TCP connection.
type stream struct{ client, server net.Conn }

// compareStreams measures two streams in turns, and reports the rate of the
// first one, and how much of the second one's that is: medians of each round.
func compareStreams(b *testing.B, first, second stream, unit string) {
	b.Helper()
	const chunk = 8 << 20
	buf := make([]byte, 1<<20)
	for _, s := range []stream{first, second} {
		if err := errors.Join(s.client.SetDeadline(time.Time{}), s.server.SetDeadline(time.Time{})); err != nil {
			b.Fatal(err)
		}
	}
	once := func(s stream) float64 {
		start, done := time.Now(), make(chan error, 1)
		go func() {
			_, err := io.CopyN(io.Discard, s.server, chunk)
			done <- err
		}()
		for range chunk / len(buf) {
			if _, err := s.client.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		return chunk / 1e6 / time.Since(start).Seconds()
	}
	var ratios, rates []float64
	for b.Loop() {
		one, two := once(first), once(second)
		again, last := once(second), once(first)
		ratios = append(ratios, (one+last)/(two+again))
		rates = append(rates, (one+last)/2)
	}
	slices.Sort(ratios)
	slices.Sort(rates)
	b.ReportMetric(ratios[len(ratios)/2], unit)
	b.ReportMetric(rates[len(rates)/2], "MB/s")
}
