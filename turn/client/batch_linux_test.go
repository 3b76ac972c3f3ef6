// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"net"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBurst_Runs(t *testing.T) {
	tests := map[string]struct {
		sizes []int
		want  []int
	}{
		"one":             {[]int{100}, []int{1}},
		"equal":           {[]int{100, 100, 100}, []int{3}},
		"shorter last":    {[]int{100, 100, 60}, []int{3}},
		"shorter between": {[]int{100, 60, 100, 100}, []int{2, 2}},
		"longer":          {[]int{60, 100, 100}, []int{1, 2}},
		"falling":         {[]int{100, 60, 40}, []int{2, 1}},
		"empty":           {[]int{0, 0, 1}, []int{2, 1}},
		"many bytes":      {slices.Repeat([]int{1996}, 40), []int{32, 8}},
		"many":            {slices.Repeat([]int{1}, 64), []int{64}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var b burst
			var packets [][]byte
			for _, n := range tc.sizes {
				packets = append(packets, make([]byte, n))
			}
			b.frame(packets, testPeer, minChannel)
			var got []int
			for i := 0; i < b.n; i += got[len(got)-1] {
				got = append(got, b.run(i))
			}
			if !slices.Equal(got, tc.want) {
				t.Fatalf("runs of %v, want %v", got, tc.want)
			}
		})
	}
}

// A datagram that does not fit is left out and counted, never cut.
func TestBatchConn_LeavesOutWhatDoesNotFit(t *testing.T) {
	c, addr := listenUDP(t, loopback)
	out, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, n := range []int{packetSize + 1, packetSize, 9000, 1} {
		if _, err := out.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	batch := newBatchConn(c)
	burst := []*packet{new(packet), new(packet), new(packet)}
	var whole []int
	oversize := 0
	for len(whole)+oversize < 4 {
		n, more, err := batch.read(burst)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range burst[:n] {
			whole = append(whole, p.n)
		}
		oversize += more
	}
	if !slices.Equal(whole, []int{packetSize, 1}) || oversize != 2 {
		t.Errorf("datagrams of %v bytes, %d too large", whole, oversize)
	}
}

// Whether the kernel cuts runs apart or not, the same datagrams arrive.
func TestBatchConn_KeepsDatagramsApart(t *testing.T) {
	s := startServer(t, nil)
	c, peer := listenUDP(t, loopback)
	a := mustAllocate(t, s.config(UDP, "u"))
	openChannel(t, a, peer)
	batch := a.link.(*datagrams).batch
	able := !batch.noSegments.Load()
	for _, segments := range []bool{false, able} {
		batch.noSegments.Store(!segments)
		var packets [][]byte
		for i, n := range []int{1200, 1200, 1200, 700, 1200, 0, 0, 1, 1300, 1300, 1996, 1996, 1996} {
			packets = append(packets, bytes.Repeat([]byte{byte(100 + i)}, n))
		}
		marker := []byte("begin")
		if err := a.WriteTo(marker, peer); err != nil {
			t.Fatal(err)
		}
		skipTo(t, c, marker)
		// The relay drops more than 1599 bytes; what is above shows that it came whole.
		if err := a.WriteBatch(packets, peer); err != nil {
			t.Fatal(err)
		}
		for _, p := range packets {
			if len(p) < 1600 {
				expect(t, c, p)
			}
		}
		if batch.noSegments.Load() == segments {
			t.Error("the kernel has refused to cut")
		}
	}
}

// Whatever a kernel says of datagrams that are larger than the path's MTU, they
// leave one by one.
func TestBatch_Uncut(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{
		unix.EIO: true, unix.EINVAL: true, unix.EMSGSIZE: true, 0: false, unix.ECONNREFUSED: false, unix.EPERM: false,
	} {
		if got := isUncut(errno); got != want {
			t.Errorf("%v: %t", errno, got)
		}
	}
}
