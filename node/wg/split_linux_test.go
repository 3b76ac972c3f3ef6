// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wg

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// vnet is p as Linux gives it: with a header that says how to cut it.
func vnet(kind, flags byte, segment, from, sum int, p []byte) []byte {
	b := make([]byte, vnetHeader, vnetHeader+len(p))
	b[0], b[vnetGSOType] = flags, kind
	for at, value := range map[int]int{vnetSegment: segment, vnetSumStart: from, vnetSumOffset: sum} {
		binary.NativeEndian.PutUint16(b[at:], uint16(value))
	}
	return append(b, p...)
}

// tcpSuper is a super-packet of TCP, and the packets that it has to become.
func tcpSuper(tb testing.TB, v6 bool, payload []byte) (super []byte, packets [][]byte) {
	tb.Helper()
	const flags = header.TCPFlagAck | header.TCPFlagPsh | header.TCPFlagFin | header.TCPFlagCwr
	kind, ip := byte(unix.VIRTIO_NET_HDR_GSO_TCPV4), ipv4HeaderLen
	if v6 {
		kind, ip = unix.VIRTIO_NET_HDR_GSO_TCPV6, ipv6HeaderLen
	}
	pkt := superSegment(v6, payload, flags)
	whole := pkt.ToView().AsSlice()
	super = vnet(kind, unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, testMSS, ip, tcpChecksum, whole)
	return super, cut(tb, pkt)
}

// udpSuper is a super-packet of UDP.
func udpSuper(v6 bool, segment int, payload []byte) []byte {
	udp := make([]byte, udpHeaderLen, udpHeaderLen+len(payload))
	binary.BigEndian.PutUint16(udp, 1000)
	binary.BigEndian.PutUint16(udp[2:], 2000)
	udp = append(udp, payload...)
	binary.BigEndian.PutUint16(udp[udpLength:], uint16(len(udp)))
	p := []byte{0: 0x45, 8: 64, 9: unix.IPPROTO_UDP, 12: 10, 15: 1, 16: 10, 19: 2}
	if v6 {
		p = append([]byte{0: 0x60, 6: unix.IPPROTO_UDP, 7: 64, 8: 0xfd, 23: 1, 24: 0xfd}, make([]byte, 15)...)
		p[39] = 2
	}
	ip := len(p)
	p = append(p, udp...)
	if v6 {
		binary.BigEndian.PutUint16(p[ipv6Length:], uint16(len(udp)))
	} else {
		binary.BigEndian.PutUint16(p[ipv4TotalLength:], uint16(len(p)))
	}
	return vnet(unix.VIRTIO_NET_HDR_GSO_UDP_L4, unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, segment, ip, udpChecksum, p)
}

// buffers are n for packets, of size bytes.
func buffers(n, size int) (bufs [][]byte, sizes []int) {
	for range n {
		bufs = append(bufs, make([]byte, size))
	}
	return bufs, make([]int, n)
}

// splitAll cuts b in batches of some packets.
func splitAll(b []byte, batch int) (packets [][]byte) {
	const offset = 16
	var s splitter
	for s.load(b); ; {
		bufs, sizes := buffers(batch, offset+2000)
		n := s.cut(bufs, sizes, offset)
		if n == 0 {
			return packets
		}
		for i, size := range sizes[:n] {
			packets = append(packets, bufs[i][offset:offset+size])
		}
	}
}

func TestSplitter_CutsTCPAsTheStackDoes(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, size := range []int{1, testMSS, testMSS + 1, 10 * testMSS, 64000} {
			super, want := tcpSuper(t, v6, randomBytes(size, uint64(size)))
			for _, batch := range []int{1, 7, 128} {
				got := splitAll(super, batch)
				if len(got) != len(want) {
					t.Fatalf("v6 %t, %d bytes in batches of %d: %d packets, want %d", v6, size, batch, len(got), len(want))
				}
				for i := range got {
					if !bytes.Equal(got[i], want[i]) {
						t.Errorf("v6 %t, %d bytes in batches of %d: packet %d is\n%x, want\n%x", v6, size, batch, i, got[i], want[i])
					}
				}
			}
		}
	}
}

func TestSplitter_CutsUDP(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		payload := randomBytes(3001, 1)
		var got []byte
		packets := splitAll(udpSuper(v6, 1000, payload), 128)
		for i, p := range packets {
			ip := ipv4HeaderLen
			if v6 {
				ip = ipv6HeaderLen
			}
			src, dst, _ := addresses(p)
			pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice()), uint16(len(p)-ip))
			if sum := checksum.Checksum(p[ip:], pseudo); sum != 0xffff {
				t.Errorf("v6 %t: checksum of packet %d is wrong", v6, i)
			}
			if !v6 && (!header.IPv4(p).IsChecksumValid() || header.IPv4(p).ID() != uint16(i) || int(header.IPv4(p).TotalLength()) != len(p)) {
				t.Errorf("IPv4 header of packet %d is wrong: %x", i, p[:ip])
			}
			if v6 && int(header.IPv6(p).PayloadLength()) != len(p)-ip {
				t.Errorf("IPv6 header of packet %d is wrong: %x", i, p[:ip])
			}
			if length := int(header.UDP(p[ip:]).Length()); length != len(p)-ip {
				t.Errorf("v6 %t: packet %d has a length of %d", v6, i, length)
			}
			got = append(got, p[ip+udpHeaderLen:]...)
		}
		if len(packets) != 4 || !bytes.Equal(got, payload) {
			t.Errorf("v6 %t: %d packets with %d bytes", v6, len(packets), len(got))
		}
	}
}

// A packet that is whole has its checksum completed only where the kernel left
// that out, and one that would not fit is left out.
func TestSplitter_WholePackets(t *testing.T) {
	_, packets := tcpSuper(t, false, randomBytes(100, 2))
	want := packets[0]
	if got := splitAll(vnet(0, 0, 0, 0, 0, want), 4); len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Errorf("whole: %x", got)
	}
	open := bytes.Clone(want)
	binary.BigEndian.PutUint16(open[ipv4HeaderLen+tcpChecksum:], pseudoSum(open, ipv4HeaderLen))
	if got := splitAll(vnet(0, unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, ipv4HeaderLen, tcpChecksum, open), 4); len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Errorf("without a checksum: %x, want %x", got, want)
	}
	var s splitter
	s.load(vnet(0, 0, 0, 0, 0, want))
	bufs, sizes := buffers(2, len(want)-1)
	if s.cut(bufs, sizes, 0); sizes[0] != 0 || s.cut(bufs, sizes, 0) != 0 {
		t.Errorf("a packet without room has a size of %d", sizes[0])
	}
}

// A packet may be shorter than the header of the other version, and have no more room.
func TestSplitter_CutsIntoTheRoomThereIs(t *testing.T) {
	for v6, size := range map[bool]int{false: ipv4HeaderLen + udpHeaderLen + 1, true: ipv6HeaderLen + udpHeaderLen + 1} {
		var s splitter
		s.load(udpSuper(v6, 1, []byte{1, 2, 3}))
		bufs, sizes := buffers(4, size)
		if n := s.cut(bufs, sizes, 0); n != 3 || sizes[0] != size || sizes[2] != size {
			t.Errorf("IPv6 %v: %d packets of %v bytes, want 3 of %d", v6, n, sizes, size)
		}
	}
}

func TestSplitter_DropsWhatNoKernelGives(t *testing.T) {
	super, _ := tcpSuper(t, false, randomBytes(3*testMSS, 3))
	change := func(do func(b []byte)) []byte {
		b := bytes.Clone(super)
		do(b)
		return b
	}
	number := func(at, value int) []byte {
		return change(func(b []byte) { binary.NativeEndian.PutUint16(b[at:], uint16(value)) })
	}
	for name, b := range map[string][]byte{
		"nothing":                       nil,
		"no packet":                     super[:vnetHeader],
		"no whole IP header":            super[:vnetHeader+ipv4HeaderLen-1],
		"no whole TCP header":           super[:vnetHeader+ipv4HeaderLen+tcpHeaderLen-1],
		"no payload":                    super[:vnetHeader+ipv4HeaderLen+tcpHeaderLen+len(tcpOptions)],
		"segments of nothing":           number(vnetSegment, 0),
		"TCP before the end of IP":      number(vnetSumStart, ipv4HeaderLen-4),
		"TCP behind the packet":         number(vnetSumStart, 65535),
		"the checksum elsewhere":        number(vnetSumOffset, udpChecksum),
		"another version":               change(func(b []byte) { b[vnetGSOType] = unix.VIRTIO_NET_HDR_GSO_TCPV6 }),
		"an unknown kind":               change(func(b []byte) { b[vnetGSOType] = 77 }),
		"a short TCP header":            change(func(b []byte) { b[vnetHeader+ipv4HeaderLen+12] = 0x40 }),
		"whole, the checksum behind it": vnet(0, unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 20, 65000, super[vnetHeader:]),
		"whole, the checksum before it": vnet(0, unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 20, 0, super[vnetHeader:]),
	} {
		if got := splitAll(b, 128); len(got) != 0 {
			t.Errorf("%s: %d packets", name, len(got))
		}
	}
}

// Whatever is read, what comes out are packets that fit, in a number that has an end.
func FuzzSplitter(f *testing.F) {
	super, _ := tcpSuper(f, false, randomBytes(3*testMSS, 4))
	f.Add(super)
	super, _ = tcpSuper(f, true, randomBytes(2*testMSS, 5))
	f.Add(super)
	f.Add(udpSuper(true, 700, randomBytes(2000, 6)))
	f.Add(vnet(0, unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 20, 16, super[vnetHeader:]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > vnetHeader+maxPacketBytes {
			return // more than is read at a time
		}
		if packets := splitAll(bytes.Clone(b), 128); len(packets) > len(b) {
			t.Errorf("%d bytes became %d packets", len(b), len(packets))
		}
	})
}
