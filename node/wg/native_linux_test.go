// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// refusing is a UDP bind that refuses batches, as a kernel does whose link is too
// small for the packets.
type refusing struct {
	conn.Bind
	err   error
	calls []int
}

func (r *refusing) Send(packets [][]byte, _ conn.Endpoint) error {
	r.calls = append(r.calls, len(packets))
	if len(packets) > 1 {
		return r.err
	}
	return nil
}

func TestFragmenting_SendsOneByOneWhatIsRefusedTogether(t *testing.T) {
	r := &refusing{err: fmt.Errorf("sendmmsg: %w", unix.EMSGSIZE)}
	f := &fragmenting{Bind: r}
	batch := [][]byte{{1}, {2}, {3}}
	for range 2 {
		if err := f.Send(batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := fmt.Sprint(r.calls), "[3 1 1 1 1 1 1]"; got != want {
		t.Errorf("sent %s packets, want %s", got, want)
	}
	f.until.Store(time.Now().UnixNano())
	r.calls, r.err = nil, nil
	if err := f.Send(batch, nil); err != nil || fmt.Sprint(r.calls) != "[3]" {
		t.Errorf("a second later: %v, %v", r.calls, err)
	}
	// Kernels of before say EINVAL, which is not taken for the way's fault.
	r.calls, r.err = nil, unix.EINVAL
	if err := f.Send(batch, nil); err != nil || fmt.Sprint(r.calls) != "[3 1 1 1]" || f.until.Load() > time.Now().UnixNano() {
		t.Errorf("an older kernel: %v, %v", r.calls, err)
	}
	r.calls, r.err = nil, unix.EPERM
	if err := f.Send(batch, nil); !errors.Is(err, unix.EPERM) || fmt.Sprint(r.calls) != "[3]" {
		t.Errorf("another error: %v, %v", r.calls, err)
	}
}

// The sockets that the library opened let routers cut what is too large.
func TestFragmenting_FindsTheSockets(t *testing.T) {
	f := newNative()
	_, port, err := f.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]int{}
	err = eachSocket(port, func(fd, family int) error {
		seen[family]++
		option, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER)
		if family == unix.AF_INET {
			option, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
		}
		if option != unix.IP_PMTUDISC_DONT {
			t.Errorf("family %d: discovers MTUs (%d)", family, option)
		}
		return err
	})
	if err != nil || seen[unix.AF_INET] != 1 || seen[unix.AF_INET6] != 1 {
		t.Errorf("sockets %v, %v", seen, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// After packets were sent in small fragments, batches go out as before.
func TestFragmenting_SendsNarrowForOneCallOnly(t *testing.T) {
	f, ok := newNative().(*fragmenting)
	if !ok {
		t.Fatal("it is of another type")
	}
	if _, _, err := f.Open(0); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sink, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to, err := f.ParseEndpoint(sink.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	// The library makes one of both where the first has room for the second.
	pair := func(size int) [][]byte { return [][]byte{make([]byte, size, 2*size), make([]byte, size)} }
	found := 0
	f.Bind.(*families).control6(func(fd int) {
		found++
		setFragments(fd, minMTU)
		if err := f.Send(pair(1400), to); err != nil || f.until.Load() == 0 {
			t.Errorf("the kernel cuts batches into large packets meanwhile (%v): then there is no need to wait", err)
		}
		setFragments(fd, 0)
	})
	if found != 1 {
		t.Fatalf("%d IPv6 sockets", found)
	}
	f.until.Store(0)
	send := []func([][]byte, conn.Endpoint) error{f.SendNarrow, f.Send}
	buf := make([]byte, 2000)
	for range 2 { // what the test itself has sent
		if n, err := sink.Read(buf); n != 1400 || err != nil {
			t.Fatal(n, err)
		}
	}
	for i, do := range send {
		if err := do(pair(1400+i), to); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if n, err := sink.Read(buf); n != 1400+i || err != nil {
				t.Fatalf("call %d: %d bytes, %v", i, n, err)
			}
		}
	}
	if f.until.Load() != 0 {
		t.Error("a batch was refused after the fragments")
	}
}

func TestLinkMTU_IsThatOfTheHost(t *testing.T) {
	if got := linkMTU(netip.MustParseAddrPort("[::1]:9")); got <= largestMTU {
		t.Errorf("loopback: %d", got)
	}
}

// What the library may join fits a link that takes 64 KiB, with all headers; what is
// larger alone is sent as it is.
func TestFragmenting_LimitsBursts(t *testing.T) {
	const link, headers = 1 << 16, 14 + 40 + 8
	b := &capacities{}
	f := &fragmenting{Bind: b}
	packets := make([][]byte, 3)
	for i := range packets {
		packets[i] = make([]byte, 1424, 65535)
	}
	packets[1] = make([]byte, 65500, 65535)
	if err := f.Send(packets, nil); err != nil {
		t.Fatal(err)
	}
	if b.got[0] >= link-headers || b.got[0] < 45*1452 || b.got[1] != 65535 || b.got[2] != b.got[0] {
		t.Errorf("capacities are %v", b.got)
	}
}

// capacities is a bind that notes those of what it sends.
type capacities struct {
	conn.Bind
	got []int
}

func (c *capacities) Send(packets [][]byte, _ conn.Endpoint) error {
	for _, p := range packets {
		c.got = append(c.got, cap(p))
	}
	return nil
}
