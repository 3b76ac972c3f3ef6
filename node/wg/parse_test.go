// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/meshgate/meshgate/node/mesh"
)

// carrying is an IP packet of a protocol with a payload.
func carrying(src, dst string, protocol uint8, payload []byte) []byte {
	p := append(ipPacket(src, dst, 64), payload...)
	if p[0]>>4 == 4 {
		p[9] = protocol
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	} else {
		p[6] = protocol
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-header.IPv6MinimumSize))
	}
	return p
}

// tcpSegment is a TCP header from port 1000 to 443.
func tcpSegment(flags byte) []byte {
	b := make([]byte, tcpHeaderLen)
	copy(b, []byte{0x03, 0xe8, 0x01, 0xbb})
	b[12], b[13] = 5<<4, flags
	return b
}

// udpDatagram is a UDP header from port 1000 to 53.
func udpDatagram() []byte { return []byte{0x03, 0xe8, 0, 53, 0, 8, 0, 0} }

// icmpMessage is an ICMP message about a packet.
func icmpMessage(kind byte, about ...byte) []byte {
	return append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, about...)
}

// fragmentOf marks an IPv4 packet as a fragment.
func fragmentOf(p []byte, offset int, more bool) []byte {
	v := uint16(offset / 8)
	if more {
		v |= 0x2000
	}
	binary.BigEndian.PutUint16(p[6:], v)
	return p
}

// fragment6 is an IPv6 fragment header before payload.
func fragment6(next uint8, offset int, payload []byte) []byte {
	b := []byte{next, 0, 0, 1, 0, 0, 0, 9}
	binary.BigEndian.PutUint16(b[2:], uint16(offset)|1)
	return append(b, payload...)
}

func TestDescribe(t *testing.T) {
	const a, b, a6, b6 = "10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3"
	const opens, continues, unclear = mesh.PacketOpens, mesh.PacketContinues, mesh.PacketUnclear
	const fragment, reports, broken = mesh.PacketFragment, mesh.PacketReports, mesh.PacketBroken
	withOptions := append([]byte{0x46}, carrying(a, b, 6, append(make([]byte, 4), tcpSegment(tcpSYN)...))[1:]...)
	ext := func(next byte, payload []byte) []byte { return append([]byte{next, 0, 0, 0, 0, 0, 0, 0}, payload...) }
	auth := append([]byte{6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, tcpSegment(tcpSYN)...)
	deep := tcpSegment(tcpSYN)
	for i := range ipv6HeadersMax {
		next := byte(nextDestOptions)
		if i == 0 {
			next = 6
		}
		deep = ext(next, deep)
	}
	lostTCP := carrying(a, b, 6, tcpSegment(tcpSYN)[:8])
	for _, c := range []struct {
		name     string
		packet   []byte
		kind     mesh.PacketKind
		protocol mesh.Protocol
		ports    [2]uint16
	}{
		{"SYN", carrying(a, b, 6, tcpSegment(tcpSYN)), opens, 6, [2]uint16{1000, 443}},
		{"SYN with odd flags", carrying(a, b, 6, tcpSegment(tcpSYN|0xc9)), opens, 6, [2]uint16{1000, 443}},
		{"SYN and ACK", carrying(a, b, 6, tcpSegment(tcpSYN|tcpACK)), continues, 6, [2]uint16{1000, 443}},
		{"ACK", carrying(a, b, 6, tcpSegment(tcpACK)), continues, 6, [2]uint16{1000, 443}},
		{"RST", carrying(a, b, 6, tcpSegment(4)), continues, 6, [2]uint16{1000, 443}},
		{"SYN v6", carrying(a6, b6, 6, tcpSegment(tcpSYN)), opens, 6, [2]uint16{1000, 443}},
		{"IPv4 options", withOptions, opens, 6, [2]uint16{1000, 443}},
		{"IPv4 options cut off", withOptions[:22], broken, 0, [2]uint16{}},
		{"TCP cut off", carrying(a, b, 6, tcpSegment(tcpSYN)[:19]), broken, 6, [2]uint16{}},
		{"UDP", carrying(a, b, 17, udpDatagram()), unclear, 17, [2]uint16{1000, 53}},
		{"UDP cut off", carrying(a, b, 17, udpDatagram()[:7]), broken, 17, [2]uint16{}},
		{"SCTP", carrying(a, b, 132, udpDatagram()), unclear, 132, [2]uint16{1000, 53}},
		{"SCTP cut off", carrying(a, b, 132, udpDatagram()[:3]), broken, 132, [2]uint16{}},
		{"GRE", carrying(a, b, 47, nil), unclear, 47, [2]uint16{}},
		{"first fragment", fragmentOf(carrying(a, b, 17, udpDatagram()), 0, true), unclear, 17, [2]uint16{1000, 53}},
		{"tiny first fragment", fragmentOf(carrying(a, b, 6, tcpSegment(tcpACK)[:8]), 0, true), broken, 6, [2]uint16{}},
		{"later fragment", fragmentOf(carrying(a, b, 17, udpDatagram()), 8, false), fragment, 17, [2]uint16{}},
		{"fragment over TCP's flags", fragmentOf(carrying(a, b, 6, tcpSegment(tcpSYN)), 8, false), broken, 6, [2]uint16{}},
		{"fragment over TCP's last bytes", fragmentOf(carrying(a, b, 6, tcpSegment(tcpSYN)), 16, false), broken, 6, [2]uint16{}},
		{"fragment behind TCP's header", fragmentOf(carrying(a, b, 6, nil), 24, true), fragment, 6, [2]uint16{}},
		{"first fragment v6", carrying(a6, b6, 44, fragment6(17, 0, udpDatagram())), unclear, 17, [2]uint16{1000, 53}},
		{"later fragment v6", carrying(a6, b6, 44, fragment6(17, 8, udpDatagram())), fragment, 17, [2]uint16{}},
		{"fragment over TCP's flags v6", carrying(a6, b6, 44, fragment6(6, 8, nil)), broken, 6, [2]uint16{}},
		{"fragment cut off v6", carrying(a6, b6, 44, make([]byte, 7)), broken, 0, [2]uint16{}},
		{"hop by hop, routing, options", carrying(a6, b6, 0, ext(43, ext(60, ext(6, tcpSegment(tcpSYN))))), opens, 6, [2]uint16{1000, 443}},
		{"authentication", carrying(a6, b6, 51, auth), opens, 6, [2]uint16{1000, 443}},
		{"extension longer than the packet", carrying(a6, b6, 60, []byte{6, 9, 0, 0, 0, 0, 0, 0}), broken, 0, [2]uint16{}},
		{"extension cut off", carrying(a6, b6, 60, []byte{6}), broken, 0, [2]uint16{}},
		{"too many extensions", carrying(a6, b6, 60, deep), broken, 0, [2]uint16{}},
		{"no next header", carrying(a6, b6, 59, nil), unclear, 59, [2]uint16{}},
		{"ping", carrying(a, b, 1, icmpMessage(8)), opens, 1, [2]uint16{}},
		{"pong", carrying(a, b, 1, icmpMessage(0)), continues, 1, [2]uint16{}},
		{"ping v6", carrying(a6, b6, 58, icmpMessage(128)), opens, 58, [2]uint16{}},
		{"pong v6", carrying(a6, b6, 58, icmpMessage(129)), continues, 58, [2]uint16{}},
		{"ICMP cut off", carrying(a, b, 1, icmpMessage(8)[:7]), broken, 1, [2]uint16{}},
		{"ICMP redirect", carrying(a, b, 1, icmpMessage(5)), unclear, 1, [2]uint16{}},
		{"ICMPv6 over IPv4", carrying(a, b, 58, icmpMessage(128)), unclear, 58, [2]uint16{}},
		{"unreachable", carrying(b, a, 1, icmpMessage(3, lostTCP...)), reports, 6, [2]uint16{443, 1000}},
		{"unreachable of another", carrying("10.0.0.9", a, 1, icmpMessage(3, lostTCP...)), unclear, 1, [2]uint16{}},
		{"unreachable to another", carrying(b, "10.0.0.9", 1, icmpMessage(3, lostTCP...)), unclear, 1, [2]uint16{}},
		{"unreachable about too little", carrying(b, a, 1, icmpMessage(3, lostTCP[:22]...)), unclear, 1, [2]uint16{}},
		{"unreachable about nothing", carrying(b, a, 1, icmpMessage(3)), unclear, 1, [2]uint16{}},
		{"unreachable about a fragment", carrying(b, a, 1, icmpMessage(3, fragmentOf(carrying(a, b, 17, udpDatagram()), 8, false)...)), unclear, 1, [2]uint16{}},
		{"too big v6", carrying(b6, a6, 58, icmpMessage(2, carrying(a6, b6, 17, udpDatagram())...)), reports, 17, [2]uint16{53, 1000}},
		{"unreachable about a ping", carrying(b, a, 1, icmpMessage(3, carrying(a, b, 1, icmpMessage(8))...)), reports, 1, [2]uint16{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := describe(c.packet)
			if got.Kind != c.kind || got.Protocol != c.protocol || got.SrcPort != c.ports[0] || got.DstPort != c.ports[1] {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// FuzzDescribe checks that no packet panics, and that whatever has ports has
// them from a header that was there.
func FuzzDescribe(f *testing.F) {
	f.Add(carrying("10.0.0.2", "10.0.0.3", 6, tcpSegment(tcpSYN)))
	f.Add(carrying("fd00::2", "fd00::3", 44, fragment6(17, 0, udpDatagram())))
	f.Add(carrying("10.0.0.3", "10.0.0.2", 1, icmpMessage(3, carrying("10.0.0.2", "10.0.0.3", 17, udpDatagram())...)))
	f.Add(carrying("fd00::2", "fd00::3", 0, []byte{60, 0, 0, 0, 0, 0, 0, 0, 58, 0}))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if ipVersion(packet) == 0 {
			return
		}
		p := describe(packet)
		src, dst, _ := addresses(packet)
		if p.Src != src || p.Dst != dst {
			t.Fatalf("addresses %v, %v became %v, %v", src, dst, p.Src, p.Dst)
		}
		ported := p.SrcPort != 0 || p.DstPort != 0
		if ported && (!p.Protocol.HasPorts() || p.Kind == mesh.PacketFragment || p.Kind == mesh.PacketBroken) {
			t.Fatalf("ports without a header: %+v", p)
		}
		if p.Protocol == mesh.ProtocolTCP && p.Kind == mesh.PacketUnclear {
			t.Fatalf("TCP does not tell who opens: %+v", p)
		}
	})
}

func BenchmarkDescribe(b *testing.B) {
	for name, p := range map[string][]byte{
		"TCP":           carrying("10.0.0.2", "10.0.0.3", 6, tcpSegment(tcpACK)),
		"UDP over IPv6": carrying("fd00::2", "fd00::3", 17, udpDatagram()),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if describe(p).SrcPort != 1000 {
					b.Fatal("ports are lost")
				}
			}
		})
	}
}
