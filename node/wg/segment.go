// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segmenter cuts a packet of the stack into IP packets that fit the link. The
// stack hands TCP data over in super-segments of up to 64 KiB (host GSO), so
// that its own cost is paid per super-segment. The zero value is done.
type segmenter struct {
	pkt *stack.PacketBuffer
	// view and offset are where the unsent payload starts.
	view   *buffer.View
	offset int
	// payload is how many bytes of it are left, mss how many go into one packet.
	payload, mss int
	// header is the IP and TCP header of the next packet; ip is the length of
	// the former. Only super-segments use it.
	header [header.IPv6MinimumSize + header.TCPHeaderMaximumSize]byte
	ip     int
	tcp    int
	v6     bool
}

// done reports whether there is nothing left to cut.
func (s *segmenter) done() bool { return s.pkt == nil }

// load takes over pkt; s must be done.
func (s *segmenter) load(pkt *stack.PacketBuffer) {
	views, offset := pkt.AsViewList()
	s.pkt, s.view, s.offset = pkt, views.Front(), offset
	s.payload, s.mss, s.ip, s.tcp = pkt.Size(), pkt.Size(), 0, 0
	if t := pkt.GSOOptions.Type; t != stack.GSOTCPv4 && t != stack.GSOTCPv6 {
		return
	}
	s.v6 = pkt.GSOOptions.Type == stack.GSOTCPv6
	s.ip, s.tcp = len(pkt.NetworkHeader().Slice()), len(pkt.TransportHeader().Slice())
	s.read(s.header[:s.ip+s.tcp])
	s.payload -= s.ip + s.tcp
	if s.mss = int(pkt.GSOOptions.MSS); s.mss == 0 {
		s.mss = s.payload
	}
}

// next writes the next packet into dst, which must have room for the link's
// MTU, and returns its length. After the last one s is done.
func (s *segmenter) next(dst []byte) int {
	headers, n := s.ip+s.tcp, min(s.payload, s.mss)
	last := n == s.payload
	if headers > 0 {
		s.finish(dst[:headers], n, last)
	}
	s.read(dst[headers : headers+n])
	if headers > 0 {
		s.seal(dst[:headers+n])
	}
	s.payload -= n
	if last {
		s.pkt.DecRef()
		s.pkt, s.view = nil, nil
	}
	return headers + n
}

// read copies len(dst) bytes from the cursor on, and moves it.
func (s *segmenter) read(dst []byte) {
	for len(dst) > 0 {
		b := s.view.AsSlice()[s.offset:]
		n := copy(dst, b)
		dst = dst[n:]
		if s.offset += n; n == len(b) {
			s.view, s.offset = s.view.Next(), 0
		}
	}
}

// finish writes the headers of a packet with n bytes of payload to dst, and
// moves those kept in s on to the packet after it.
func (s *segmenter) finish(dst []byte, n int, last bool) {
	tcp := header.TCP(s.header[s.ip : s.ip+s.tcp])
	flags := tcp.Flags()
	if !last {
		tcp.SetFlags(uint8(flags &^ (header.TCPFlagFin | header.TCPFlagPsh)))
	}
	if s.v6 {
		header.IPv6(s.header[:s.ip]).SetPayloadLength(uint16(s.ip - header.IPv6MinimumSize + s.tcp + n))
	} else {
		ip := header.IPv4(s.header[:s.ip])
		ip.SetTotalLength(uint16(s.ip + s.tcp + n))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	copy(dst, s.header[:s.ip+s.tcp])
	tcp.SetFlags(uint8(flags &^ header.TCPFlagCwr))
	tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(n))
	if !s.v6 {
		ip := header.IPv4(s.header[:s.ip])
		ip.SetID(ip.ID() + 1)
	}
}

// seal fills in the TCP checksum of a whole packet.
func (s *segmenter) seal(packet []byte) {
	var src, dst tcpip.Address
	if s.v6 {
		src, dst = header.IPv6(packet).SourceAddress(), header.IPv6(packet).DestinationAddress()
	} else {
		src, dst = header.IPv4(packet).SourceAddress(), header.IPv4(packet).DestinationAddress()
	}
	tcp := header.TCP(packet[s.ip:])
	tcp.SetChecksum(0)
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, sum))
}
