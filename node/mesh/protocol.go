// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Protocol is an IP protocol number. Zero is unknown: no protocol that carries
// data has that number.
type Protocol uint8

// The protocols that something here depends on.
const (
	ProtocolICMP    Protocol = 1
	ProtocolTCP     Protocol = 6
	ProtocolUDP     Protocol = 17
	protocolDCCP    Protocol = 33
	ProtocolICMPv6  Protocol = 58
	ProtocolSCTP    Protocol = 132
	protocolUDPLite Protocol = 136
)

// icmpText is ICMP of both IP versions: who writes it in an ACL means both.
const icmpText = "icmp"

// protocolNumber returns the protocol that name means, or zero.
func protocolNumber(name string) Protocol {
	switch strings.ToLower(name) {
	case "icmpv4":
		return ProtocolICMP
	case "igmp":
		return 2
	case "ipip", "ipv4":
		return 4
	case "tcp":
		return ProtocolTCP
	case "udp":
		return ProtocolUDP
	case "dccp":
		return protocolDCCP
	case "ipv6":
		return 41
	case "gre":
		return 47
	case "esp":
		return 50
	case "ah":
		return 51
	case "icmpv6", "ipv6-icmp":
		return ProtocolICMPv6
	case "ospf":
		return 89
	case "sctp":
		return ProtocolSCTP
	case "udplite":
		return protocolUDPLite
	}
	return 0
}

// ParseProtocol reads an IP protocol by name, in any case, or by number.
func ParseProtocol(s string) (Protocol, error) {
	if p := protocolNumber(s); p != 0 {
		return p, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no IP protocol; want tcp, udp, icmp, sctp or another name, or a number from 1 to 255: %w", s, ErrInvalid)
	}
	return Protocol(n), nil
}

// String returns the protocol's name if the data path knows it, else its number.
func (p Protocol) String() string {
	switch p {
	case ProtocolICMP:
		return "icmpv4"
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolICMPv6:
		return "icmpv6"
	case ProtocolSCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// HasPorts reports whether the protocol's header begins with two ports.
func (p Protocol) HasPorts() bool {
	switch p {
	case ProtocolTCP, ProtocolUDP, ProtocolSCTP, protocolDCCP, protocolUDPLite:
		return true
	}
	return false
}

// ParseProtocols reads a list of protocols. "icmp" is that of both IP versions;
// a list with "*" is that of every protocol, which is the empty one. The result
// is sorted, each protocol once.
func ParseProtocols(ss []string) ([]Protocol, error) {
	var list []Protocol
	for i, s := range ss {
		if strings.ToLower(s) == icmpText {
			list = append(list, ProtocolICMP, ProtocolICMPv6)
			continue
		}
		if s == Everyone {
			continue
		}
		p, err := ParseProtocol(s)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		list = append(list, p)
	}
	if slices.Contains(ss, Everyone) {
		return nil, nil
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// protocolsToProto writes a list that ParseProtocols reads.
func protocolsToProto(list []Protocol) []string {
	both := slices.Contains(list, ProtocolICMP) && slices.Contains(list, ProtocolICMPv6)
	var ss []string
	for _, p := range list {
		switch {
		case both && p == ProtocolICMP:
			ss = append(ss, icmpText)
		case both && p == ProtocolICMPv6:
		default:
			ss = append(ss, p.String())
		}
	}
	return ss
}

// parsePorts reads ports that an ACL names. The result is sorted, each port once.
func parsePorts(ports []uint32) ([]uint16, error) {
	list, err := parse(ports, func(port uint32) (uint16, error) {
		if port == 0 || port > 65535 {
			return 0, fmt.Errorf("port %d is not in 1..65535: %w", port, ErrInvalid)
		}
		return uint16(port), nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// PacketKind says how a packet can begin or go on with a conversation.
type PacketKind uint8

const (
	// PacketUnclear may be the first of a conversation or a reply: nothing in
	// the packet tells. It is the zero value.
	PacketUnclear PacketKind = iota
	// PacketOpens only the side sends that begins: TCP's SYN, ICMP's echo request.
	PacketOpens
	// PacketContinues is of a conversation that had to be opened before: any
	// other TCP segment, an ICMP echo reply.
	PacketContinues
	// PacketFragment is a later piece of a packet; it has no ports.
	PacketFragment
	// PacketReports is an ICMP error about a packet that was sent the other
	// way. Ports and Protocol of the Packet are those of the packet it is
	// about, seen from the sender of the report.
	PacketReports
	// PacketBroken has a header that nobody should trust, such as a fragment
	// that ends within its ports.
	PacketBroken
)

// Packet is what decides about an IP packet.
type Packet struct {
	Src, Dst netip.Addr
	// Protocol is what the packet carries behind all extension headers; zero
	// when that cannot be told.
	Protocol Protocol
	Kind     PacketKind
	// SrcPort and DstPort are zero for protocols and packets without ports.
	SrcPort, DstPort uint16
}
