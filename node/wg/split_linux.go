// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wg

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// The header that Linux puts before the packets of an interface with offloads
// (struct virtio_net_hdr), in the byte order of the host.
const (
	vnetHeader      = 10
	vnetGSOType     = 1
	vnetHeaders     = 2
	vnetSegment     = 4 // payload bytes of each packet but the last
	vnetSumStart    = 6
	vnetSumOffset   = 8
	udpLength       = 4
	udpChecksum     = 6
	tcpFlagFin      = 0x01
	tcpFlagCwr      = 0x80
	ipv4ID          = 4
	ipv4TotalLength = 2
	ipv6Length      = 4
)

// splitter cuts a packet of the kernel into IP packets that fit the interface, and
// computes the checksums that the kernel left out. The zero value has nothing left.
type splitter struct {
	// packet begins with the IP header; payload is where begins what is left of it,
	// 0 when the packet is whole. Nothing is left when packet is nil.
	packet  []byte
	payload int
	// headers is the length of all headers, transport that of those before the last.
	headers, transport int
	// sum is where the checksum is that has to be computed.
	sum int
	// segment is how many bytes of payload go into one packet.
	segment int
	// protocol is that of a super-packet: TCP or UDP.
	protocol byte
	// partial is true for a whole packet whose checksum is to be completed.
	partial bool
	// count is how many packets were cut.
	count int
}

// load takes what one read of the interface gave, and keeps it until all is cut.
// What no kernel would give is dropped.
func (s *splitter) load(b []byte) {
	*s = splitter{}
	if len(b) < vnetHeader {
		return
	}
	vnet, p := b[:vnetHeader], b[vnetHeader:]
	version := ipVersion(p)
	if version == 0 {
		return
	}
	s.transport = int(binary.NativeEndian.Uint16(vnet[vnetSumStart:]))
	s.sum = s.transport + int(binary.NativeEndian.Uint16(vnet[vnetSumOffset:]))
	s.partial = vnet[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
	kind := vnet[vnetGSOType]
	if kind == unix.VIRTIO_NET_HDR_GSO_NONE {
		if !s.partial || s.transport < s.sum && s.sum+1 < len(p) {
			s.packet = p
		}
		return
	}
	s.segment = int(binary.NativeEndian.Uint16(vnet[vnetSegment:]))
	if s.series(p, version, kind) {
		s.packet, s.payload = p, s.headers
	}
}

// series finds the headers of a super-packet, and reports whether it is one.
func (s *splitter) series(p []byte, version int, kind byte) bool {
	ip := ipv6HeaderLen
	if version == 4 {
		ip = int(p[0]&15) * 4
	}
	switch {
	case kind == unix.VIRTIO_NET_HDR_GSO_TCPV4 && version == 4, kind == unix.VIRTIO_NET_HDR_GSO_TCPV6 && version == 6:
		if s.sum != s.transport+tcpChecksum || len(p) < s.transport+tcpHeaderLen {
			return false
		}
		own := int(p[s.transport+12]>>4) * 4
		s.protocol, s.headers = protocolTCP, s.transport+own
		if own < tcpHeaderLen {
			return false
		}
	case kind == unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		if s.sum != s.transport+udpChecksum {
			return false
		}
		s.protocol, s.headers = unix.IPPROTO_UDP, s.transport+udpHeaderLen
	default:
		return false
	}
	// IPv6 may have headers in between.
	return (s.transport == ip || version == 6 && s.transport > ip) && s.headers < len(p) && s.segment > 0
}

// cut writes the next packets into bufs, each from offset on, and returns how many.
func (s *splitter) cut(bufs [][]byte, sizes []int, offset int) (n int) {
	for ; n < len(bufs) && s.packet != nil; n++ {
		sizes[n] = s.next(bufs[n][offset:])
	}
	return n
}

// next writes the next packet and returns its length, which is 0 when dst has no
// room for it.
func (s *splitter) next(dst []byte) int {
	if s.payload == 0 {
		p := s.packet
		s.packet = nil
		if len(p) > len(dst) {
			return 0
		}
		if s.partial {
			s.complete(p)
		}
		return copy(dst, p)
	}
	rest := s.packet[s.payload:]
	last := len(rest) <= s.segment
	data := rest[:min(len(rest), s.segment)]
	size := s.headers + len(data)
	if size > len(dst) {
		s.packet = nil
		return 0
	}
	copy(dst, s.packet[:s.headers])
	copy(dst[s.headers:], data)
	s.finish(dst[:size], last)
	s.payload += len(data)
	s.count++
	if last {
		s.packet = nil
	}
	return size
}

// complete computes the checksum of a whole packet, in whose place is the sum over
// what is not from transport on.
func (s *splitter) complete(p []byte) {
	before := binary.BigEndian.Uint16(p[s.sum:])
	binary.BigEndian.PutUint16(p[s.sum:], 0)
	sum := ^checksum.Checksum(p[s.transport:], before)
	if sum == 0 {
		sum = 0xffff // the same, but 0 says that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(p[s.sum:], sum)
}

// finish makes the headers of p those of a packet of its own.
func (s *splitter) finish(p []byte, last bool) {
	before := s.count * s.segment // payload bytes in packets before
	if ipVersion(p) == 4 {
		binary.BigEndian.PutUint16(p[ipv4TotalLength:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[ipv4ID:], binary.BigEndian.Uint16(p[ipv4ID:])+uint16(s.count))
		binary.BigEndian.PutUint16(p[ipv4Checksum:], 0)
		binary.BigEndian.PutUint16(p[ipv4Checksum:], ^checksum.Checksum(p[:s.transport], 0))
	} else {
		binary.BigEndian.PutUint16(p[ipv6Length:], uint16(len(p)-ipv6HeaderLen))
	}
	if t := p[s.transport:]; s.protocol == protocolTCP {
		binary.BigEndian.PutUint32(t[tcpSequence:], binary.BigEndian.Uint32(t[tcpSequence:])+uint32(before))
		if !last {
			t[tcpFlags] &^= tcpFlagFin | tcpFlagPush
		}
		if s.count > 0 {
			t[tcpFlags] &^= tcpFlagCwr
		}
	} else {
		binary.BigEndian.PutUint16(t[udpLength:], uint16(len(t)))
	}
	binary.BigEndian.PutUint16(p[s.sum:], s.pseudo(p))
	s.complete(p)
}

// pseudo is the sum over the pseudo header of a packet (RFC 9293, 3.1).
func (s *splitter) pseudo(p []byte) uint16 {
	var addrs []byte
	switch ipVersion(p) { // which has looked at the length, too
	case 4:
		addrs = p[12:ipv4HeaderLen]
	case 6:
		addrs = p[8:ipv6HeaderLen]
	}
	return checksum.Checksum(addrs, checksum.Combine(uint16(len(p)-s.transport), uint16(s.protocol)))
}
