// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"

	"github.com/meshgate/meshgate/node/mesh"
)

// Header layouts that the packet filter needs.
const (
	udpHeaderLen   = 8
	icmpHeaderLen  = 8
	portsLen       = 4
	tcpSYN, tcpACK = 0x02, 0x10

	// ipv6HeadersMax bounds the extension headers that are walked. Honest
	// packets have one or two.
	ipv6HeadersMax = 8
)

// IPv6 next header values that are no transport protocol.
const (
	nextHopByHop    = 0
	nextRouting     = 43
	nextFragment    = 44
	nextAuth        = 51
	nextDestOptions = 60
)

// describe reads what a packet filter wants to know of an IP packet whose
// addresses are readable.
func describe(packet []byte) mesh.Packet {
	var p mesh.Packet
	p.Src, p.Dst, _ = addresses(packet)
	var payload []byte
	if packet[0]>>4 == 4 {
		payload = describeIPv4(packet, &p)
	} else {
		payload = describeIPv6(packet, &p)
	}
	if p.Kind == mesh.PacketUnclear {
		describeTransport(payload, &p)
	}
	return p
}

// describeIPv4 reads an IPv4 header and returns what is behind it.
func describeIPv4(packet []byte, p *mesh.Packet) []byte {
	length := int(packet[0]&15) * 4
	if len(packet) < length {
		p.Kind = mesh.PacketBroken
		return nil
	}
	p.Protocol = mesh.Protocol(packet[9])
	if offset := int(binary.BigEndian.Uint16(packet[6:])&0x1fff) * 8; offset > 0 {
		describeFragment(offset, p)
	}
	return packet[length:]
}

// describeIPv6 reads an IPv6 header with its extensions and returns what is
// behind them.
func describeIPv6(packet []byte, p *mesh.Packet) []byte {
	next, rest := packet[6], packet[ipv6HeaderLen:]
	for range ipv6HeadersMax {
		length := 8
		switch next {
		case nextHopByHop, nextRouting, nextDestOptions:
			if len(rest) >= 2 {
				length = (int(rest[1]) + 1) * 8
			}
		case nextAuth:
			if len(rest) >= 2 {
				length = (int(rest[1]) + 2) * 4
			}
		case nextFragment:
			if len(rest) < length {
				break
			}
			if offset := int(binary.BigEndian.Uint16(rest[2:]) &^ 7); offset > 0 {
				p.Protocol = mesh.Protocol(rest[0])
				describeFragment(offset, p)
				return nil
			}
		default:
			p.Protocol = mesh.Protocol(next)
			return rest
		}
		if len(rest) < length {
			break
		}
		next, rest = rest[0], rest[length:]
	}
	p.Kind = mesh.PacketBroken
	return nil
}

// describeFragment judges a later fragment. One that would lie over a TCP
// header could turn a reply into a request when the pieces are put together
// (RFC 3128).
func describeFragment(offset int, p *mesh.Packet) {
	p.Kind = mesh.PacketFragment
	if p.Protocol == mesh.ProtocolTCP && offset < tcpHeaderLen {
		p.Kind = mesh.PacketBroken
	}
}

// describeTransport reads the header behind the IP header, which must be whole:
// what a first fragment leaves to the next one, nobody can judge.
func describeTransport(b []byte, p *mesh.Packet) {
	least := 0
	switch {
	case p.Protocol == mesh.ProtocolTCP:
		least = tcpHeaderLen
	case p.Protocol == mesh.ProtocolUDP:
		least = udpHeaderLen
	case p.Protocol.HasPorts():
		least = portsLen
	case p.Protocol == icmpOf(p):
		least = icmpHeaderLen
	}
	if len(b) < least {
		p.Kind = mesh.PacketBroken
		return
	}
	if p.Protocol.HasPorts() {
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	switch p.Protocol {
	case mesh.ProtocolTCP:
		p.Kind = mesh.PacketContinues
		if b[tcpFlags]&(tcpSYN|tcpACK) == tcpSYN {
			p.Kind = mesh.PacketOpens
		}
	case icmpOf(p):
		describeICMP(b, p)
	}
}

// icmpOf returns the ICMP protocol of the packet's IP version.
func icmpOf(p *mesh.Packet) mesh.Protocol {
	if p.Src.Is4() {
		return mesh.ProtocolICMP
	}
	return mesh.ProtocolICMPv6
}

// describeICMP reads an ICMP or ICMPv6 message.
func describeICMP(b []byte, p *mesh.Packet) {
	kind := b[0]
	if p.Src.Is4() {
		switch kind {
		case 8: // echo request
			p.Kind = mesh.PacketOpens
		case 0: // echo reply
			p.Kind = mesh.PacketContinues
		case 3, 11, 12: // unreachable, time exceeded, parameter problem
			describeReport(b[icmpHeaderLen:], p)
		}
		return
	}
	switch kind {
	case 128:
		p.Kind = mesh.PacketOpens
	case 129:
		p.Kind = mesh.PacketContinues
	case 1, 2, 3, 4: // unreachable, too big, time exceeded, parameter problem
		describeReport(b[icmpHeaderLen:], p)
	}
}

// describeReport reads the packet that an ICMP error is about. It counts only
// if it went from the receiver of the report to its sender: errors about
// conversations of others would let a node disturb those.
func describeReport(inner []byte, p *mesh.Packet) {
	src, dst, ok := addresses(inner)
	if !ok || src != p.Dst || dst != p.Src {
		return
	}
	about := mesh.Packet{Src: src, Dst: dst}
	var payload []byte
	if inner[0]>>4 == 4 {
		payload = describeIPv4(inner, &about)
	} else {
		payload = describeIPv6(inner, &about)
	}
	if about.Kind != mesh.PacketUnclear {
		return
	}
	if about.Protocol.HasPorts() {
		if len(payload) < portsLen {
			return
		}
		about.SrcPort, about.DstPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	}
	p.Kind, p.Protocol = mesh.PacketReports, about.Protocol
	p.SrcPort, p.DstPort = about.DstPort, about.SrcPort
}
