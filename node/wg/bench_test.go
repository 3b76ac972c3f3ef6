// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"io"
	"net"
	"net/netip"
	"testing"

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

func BenchmarkStream_ThroughHub(b *testing.B) {
	_, x, y := wgtest.Star(b, func(_, _ netip.Addr) bool { return true })
	client, server := connect(b, x, y, y.IPv4)
	benchmarkStream(b, client, server)
}
