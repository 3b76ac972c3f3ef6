// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	tcpWindow = 14
	// tcpFlagsEnd are the flags after which a side's last window counts no more.
	tcpFlagsEnd = 0x01 | 0x02 | 0x04 // FIN, SYN, RST
	// maxZeroWindows bounds the connections that are known at the same time to
	// have their window shut, in one direction.
	maxZeroWindows = 4096
)

// zeroWindows keeps acknowledgements acceptable while a receive window is
// shut. It stands between the userspace stack and WireGuard.
//
// A receiver with a window of zero takes nothing whose sequence number is not
// the next one it expects (RFC 9293, 3.10.7.4), not even an acknowledgement.
// The window on the wire is rounded down to its scale, so a sender may have
// sent some bytes that the receiver, which has rounded down further since,
// refuses; its acknowledgements carry the sequence number after those bytes.
// The stack refuses them as well, and with them the news that its peer's
// window has opened. When both directions of a connection are full, as those
// of an echo are whose client reads late, both sides then wait for ever.
//
// So an acknowledgement without data that goes to a side whose window is shut
// is given the sequence number that this side expects, as Linux does
// (tcp_acceptable_seq). It is done in both directions because the other end
// may be the same stack without this.
type zeroWindows struct {
	// said is what our side said to its peers, heard what they said to us.
	said, heard shutWindows
}

// shutWindows are the connections whose last segment in one direction said
// that the sender's receive window is zero, with the sequence number that it
// expects next. The zero value is empty.
type shutWindows struct {
	count atomic.Int32 // of flows, to be asked without the lock
	mu    sync.Mutex   // guards flows
	flows map[tcpFlow]uint32
}

// tcpFlow names a connection, seen from our side.
type tcpFlow struct {
	local, remote netip.AddrPort
}

// note remembers what a segment says of its sender's window.
func (s *shutWindows) note(segment []byte, flow func() tcpFlow) {
	shut := binary.BigEndian.Uint16(segment[tcpWindow:]) == 0 && segment[tcpFlags]&tcpFlagsEnd == 0
	if !shut && s.count.Load() == 0 {
		return
	}
	key := flow()
	s.mu.Lock()
	defer s.mu.Unlock()
	if shut {
		if s.flows == nil {
			s.flows = make(map[tcpFlow]uint32)
		}
		for other := range s.flows {
			if len(s.flows) < maxZeroWindows {
				break
			}
			delete(s.flows, other) // a connection that died with its window shut, most likely
		}
		s.flows[key] = binary.BigEndian.Uint32(segment[tcpAck:])
	} else {
		delete(s.flows, key)
	}
	s.count.Store(int32(len(s.flows)))
}

// move gives an acknowledgement without data, that goes to a side whose window
// is shut, the sequence number that this side expects. Other segments stay.
func (s *shutWindows) move(segment []byte, flow func() tcpFlow) {
	if s.count.Load() == 0 || segment[tcpFlags] != tcpFlagAck {
		return
	}
	s.mu.Lock()
	next, shut := s.flows[flow()]
	s.mu.Unlock()
	if shut && int32(binary.BigEndian.Uint32(segment[tcpSequence:])-next) > 0 {
		setSequence(segment, next)
	}
}

// setSequence changes the sequence number of a segment, and its checksum by as
// much (RFC 1624): a wrong one stays wrong.
func setSequence(segment []byte, next uint32) {
	sum := ^binary.BigEndian.Uint16(segment[tcpChecksum:])
	for at, word := range [2]uint16{uint16(next >> 16), uint16(next)} {
		field := segment[tcpSequence+2*at:]
		sum = checksum.Combine(checksum.Combine(sum, ^binary.BigEndian.Uint16(field)), word)
		binary.BigEndian.PutUint16(field, word)
	}
	binary.BigEndian.PutUint16(segment[tcpChecksum:], ^sum)
}

// outbound looks at a packet of the stack that is about to leave, and may
// write into its headers.
func (z *zeroWindows) outbound(pkt *stack.PacketBuffer) {
	segment := pkt.TransportHeader().Slice()
	if pkt.TransportProtocolNumber != tcp.ProtocolNumber || len(segment) < tcpHeaderLen {
		return
	}
	flow := func() tcpFlow {
		src, dst, _ := addresses(pkt.NetworkHeader().Slice())
		return tcpFlow{local: withPort(src, segment), remote: withPort(dst, segment[2:])}
	}
	if pkt.Data().Size() == 0 {
		z.heard.move(segment, flow)
	}
	z.said.note(segment, flow)
}

// inbound looks at a packet of a peer before the stack does, and may write
// into it.
func (z *zeroWindows) inbound(p []byte) {
	segment, payload, ok := wholeTCP(p)
	if !ok {
		return
	}
	flow := func() tcpFlow {
		src, dst, _ := addresses(p)
		return tcpFlow{local: withPort(dst, segment[2:]), remote: withPort(src, segment)}
	}
	if payload == 0 {
		z.said.move(segment, flow)
	}
	z.heard.note(segment, flow)
}

// wholeTCP returns the TCP segment of a packet that has no IP options and is
// no fragment, and the length of its payload.
func wholeTCP(p []byte) (segment []byte, payload int, ok bool) {
	ip := 0
	switch ipVersion(p) {
	case 4:
		if ip = ipv4HeaderLen; len(p) < ip || p[0] != 0x45 || p[9] != protocolTCP ||
			binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return nil, 0, false
		}
	case 6:
		if ip = ipv6HeaderLen; len(p) < ip || p[6] != protocolTCP ||
			int(binary.BigEndian.Uint16(p[4:]))+ip != len(p) {
			return nil, 0, false
		}
	default:
		return nil, 0, false
	}
	if segment = p[ip:]; len(segment) < tcpHeaderLen {
		return nil, 0, false
	}
	payload = len(segment) - int(segment[12]>>4)*4
	return segment, payload, payload >= 0
}

// withPort adds the port in the first two bytes of b to an address.
func withPort(a netip.Addr, b []byte) netip.AddrPort {
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b))
}
