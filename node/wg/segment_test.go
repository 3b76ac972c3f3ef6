// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const testMSS = 1368

// tcpOptions is a timestamp option, as on every packet of a real connection.
var tcpOptions = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}

// superSegment makes what the stack hands to the link for payload.
func superSegment(v6 bool, payload []byte, flags header.TCPFlags) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv6MinimumSize + header.TCPMinimumSize + len(tcpOptions),
	})
	// Payload in several pieces, as writes of an application leave it.
	body := buffer.Buffer{}
	for part := payload; len(part) > 0; {
		n := min(len(part), 5000)
		if err := body.Append(buffer.NewViewWithData(part[:n])); err != nil {
			panic(err)
		}
		part = part[n:]
	}
	pkt.Data().MergeBuffer(&body)
	tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + len(tcpOptions)))
	tcp.Encode(&header.TCPFields{
		SrcPort: 1000, DstPort: 2000, SeqNum: 0xffff_f000, AckNum: 7, WindowSize: 512,
		DataOffset: uint8(header.TCPMinimumSize + len(tcpOptions)), Flags: flags,
	})
	copy(tcp[header.TCPMinimumSize:], tcpOptions)
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: testMSS}
	size := uint16(len(tcp) + len(payload))
	if v6 {
		pkt.GSOOptions.Type = stack.GSOTCPv6
		header.IPv6(pkt.NetworkHeader().Push(header.IPv6MinimumSize)).Encode(&header.IPv6Fields{
			PayloadLength: size, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16([16]byte{0: 0xfd, 15: 1}), DstAddr: tcpip.AddrFrom16([16]byte{0: 0xfd, 15: 2}),
		})
		return pkt
	}
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{
		TotalLength: header.IPv4MinimumSize + size, TTL: 64, Protocol: uint8(header.TCPProtocolNumber), ID: 0xffff,
		SrcAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return pkt
}

// cut returns the packets that the segmenter makes of pkt.
func cut(tb testing.TB, pkt *stack.PacketBuffer) [][]byte {
	tb.Helper()
	var s segmenter
	var packets [][]byte
	for s.load(pkt); !s.done(); {
		buf := make([]byte, 2000)
		packets = append(packets, buf[:s.next(buf)])
	}
	return packets
}

// tcpValid reports whether lengths and checksums of a TCP packet are right.
func tcpValid(p []byte) bool {
	ip := ipv4HeaderLen
	if ipVersion(p) == 6 {
		ip = ipv6HeaderLen
		if int(binary.BigEndian.Uint16(p[4:]))+ip != len(p) {
			return false
		}
	} else if int(binary.BigEndian.Uint16(p[2:])) != len(p) || !header.IPv4(p).IsChecksumValid() {
		return false
	}
	return checksum.Checksum(p[ip:], pseudoSum(p, ip)) == 0xffff
}

func randomBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{0: byte(seed), 1: byte(seed >> 8)})
	_, _ = source.Read(b) // never fails
	return b
}

func TestSegmenter_CutsSuperSegments(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, size := range []int{0, 1, testMSS - 1, testMSS, testMSS + 1, 10 * testMSS, 60000} {
			payload := randomBytes(size, uint64(size))
			packets := cut(t, superSegment(v6, payload, header.TCPFlagAck|header.TCPFlagPsh|header.TCPFlagFin|header.TCPFlagCwr))
			var got []byte
			seq := uint32(0xffff_f000)
			for i, p := range packets {
				if !tcpValid(p) {
					t.Fatalf("v6 %t, %d bytes: packet %d is not valid", v6, size, i)
				}
				ip := len(p) - len(p[ipv4HeaderLen:])
				if v6 {
					ip = ipv6HeaderLen
				}
				tcp := header.TCP(p[ip:])
				first, last := i == 0, i == len(packets)-1
				if tcp.Flags().Contains(header.TCPFlagPsh|header.TCPFlagFin) != last || tcp.Flags().Contains(header.TCPFlagCwr) != first {
					t.Errorf("v6 %t, %d bytes: packet %d of %d has flags %v", v6, size, i, len(packets), tcp.Flags())
				}
				if tcp.SequenceNumber() != seq || !bytes.Equal(tcp.Options(), tcpOptions) {
					t.Errorf("v6 %t, %d bytes: packet %d has sequence %d and options %v", v6, size, i, tcp.SequenceNumber(), tcp.Options())
				}
				if !v6 && header.IPv4(p).ID() != uint16(0xffff+i) {
					t.Errorf("packet %d has id %d", i, header.IPv4(p).ID())
				}
				seq += uint32(len(tcp.Payload()))
				got = append(got, tcp.Payload()...)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("v6 %t, %d bytes: payload differs", v6, size)
			}
		}
	}
}

func TestSegmenter_CopiesOtherPackets(t *testing.T) {
	want := ipPacket("10.0.0.1", "10.0.0.2", 64)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(want)})
	if got := cut(t, pkt); len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// joinAll runs packets through a run as netstack does.
func joinAll(packets [][]byte) (joined [][]byte) {
	var r run
	flush := func() {
		if len(r.parts) > 0 {
			dst := make([]byte, r.size)
			r.join(dst)
			r.reset()
			joined = append(joined, dst)
		}
	}
	for _, p := range packets {
		if r.add(p) {
			continue
		}
		if flush(); !r.start(p) {
			joined = append(joined, p)
		}
	}
	flush()
	return joined
}

func TestRun_JoinsWhatWasCut(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, size := range []int{1, 2, testMSS, testMSS + 1, 10*testMSS + 9, 60001} {
			payload := randomBytes(size, uint64(size))
			got := joinAll(cut(t, superSegment(v6, payload, header.TCPFlagAck|header.TCPFlagPsh)))
			if len(got) != 1 || !tcpValid(got[0]) {
				t.Fatalf("v6 %t, %d bytes: %d packets, want one that is valid", v6, size, len(got))
			}
			p := got[0]
			if !bytes.Equal(p[len(p)-size:], payload) {
				t.Errorf("v6 %t, %d bytes: payload differs", v6, size)
			}
		}
	}
}

func TestRun_DamageStaysVisible(t *testing.T) {
	packets := cut(t, superSegment(false, randomBytes(10*testMSS, 1), header.TCPFlagAck))
	packets[4][900] ^= 0x10
	got := joinAll(packets)
	if len(got) != 1 || tcpValid(got[0]) {
		t.Errorf("%d packets, valid %t; want one that the stack refuses", len(got), tcpValid(got[0]))
	}
}

func TestRun_KeepsApartWhatDiffers(t *testing.T) {
	tcp := ipv4HeaderLen
	for name, change := range map[string]func(p []byte){
		"flags":           func(p []byte) { p[tcp+tcpFlags] |= 0x40 },
		"syn":             func(p []byte) { p[tcp+tcpFlags] |= 0x02 },
		"ports":           func(p []byte) { p[tcp+1]++ },
		"ack":             func(p []byte) { p[tcp+tcpAck+3]++ },
		"window":          func(p []byte) { p[tcp+15]++ },
		"options":         func(p []byte) { p[tcp+tcpHeaderLen+7]++ },
		"sequence":        func(p []byte) { p[tcp+tcpSequence+3]++ },
		"source":          func(p []byte) { p[15]++ },
		"ttl":             func(p []byte) { p[ipv4TTL]-- },
		"tos":             func(p []byte) { p[1] ^= 1 },
		"fragment":        func(p []byte) { p[7]++ },
		"header checksum": func(p []byte) { p[ipv4Checksum]++ },
		"data offset":     func(p []byte) { p[tcp+12] = 0xf0 },
		"no header":       func(p []byte) { p[tcp+12] = 0x40 },
	} {
		t.Run(name, func(t *testing.T) {
			packets := cut(t, superSegment(false, randomBytes(2*testMSS, 1), header.TCPFlagAck))
			change(packets[1])
			if name != "header checksum" {
				binary.BigEndian.PutUint16(packets[1][ipv4Checksum:], 0)
				binary.BigEndian.PutUint16(packets[1][ipv4Checksum:], ^checksum.Checksum(packets[1][:ipv4HeaderLen], 0))
			}
			want := bytes.Clone(packets[1])
			got := joinAll(packets)
			if len(got) != 2 || !bytes.Equal(got[1], want) {
				t.Errorf("%d packets, want 2, the second untouched", len(got))
			}
		})
	}
}

func TestRun_PushEndsARun(t *testing.T) {
	one := cut(t, superSegment(false, randomBytes(2*testMSS, 1), header.TCPFlagAck|header.TCPFlagPsh))
	more := bytes.Clone(one[1])
	binary.BigEndian.PutUint32(more[ipv4HeaderLen+tcpSequence:], 0xffff_f000+2*testMSS)
	if got := joinAll(append(one, more)); len(got) != 2 {
		t.Errorf("%d packets, want 2", len(got))
	}
}

func TestRun_StopsBelow64KiB(t *testing.T) {
	var packets [][]byte
	seq := uint32(1)
	for range 100 {
		p := cut(t, superSegment(false, randomBytes(testMSS, 1), header.TCPFlagAck))[0]
		binary.BigEndian.PutUint32(p[ipv4HeaderLen+tcpSequence:], seq)
		seq += testMSS
		packets = append(packets, p)
	}
	total := 0
	for _, p := range joinAll(packets) {
		if len(p) > maxPacketBytes || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			t.Fatalf("packet of %d bytes", len(p))
		}
		total += len(p) - ipv4HeaderLen - tcpHeaderLen - len(tcpOptions)
	}
	if total != 100*testMSS {
		t.Errorf("%d bytes, want %d", total, 100*testMSS)
	}
}

// FuzzRun checks that no packet panics, and that joining neither hides damage
// nor makes any.
func FuzzRun(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		packets := cut(f, superSegment(v6, randomBytes(3*64, 1), header.TCPFlagAck))
		f.Add(packets[0], uint16(40), uint16(0), byte(0))
		f.Add(packets[0], uint16(41), uint16(0), byte(0))
		f.Add(packets[0], uint16(40), uint16(100), byte(1))
	}
	f.Fuzz(func(t *testing.T, p []byte, split, at uint16, flip byte) {
		ip, headers, ok := tcpData(p)
		if !ok || len(p) > 9000 {
			return
		}
		first := headers + 1 + int(split)%(len(p)-headers)
		parts := [][]byte{bytes.Clone(p[:first]), append(bytes.Clone(p[:headers]), p[first:]...)}
		binary.BigEndian.PutUint32(parts[1][ip+tcpSequence:], binary.BigEndian.Uint32(p[ip+tcpSequence:])+uint32(first-headers))
		valid := true
		for i, part := range parts {
			resum(part, ip)
			part[(headers+int(at))%len(part)] ^= flip * byte(i)
			valid = valid && tcpValid(part)
		}
		for _, got := range joinAll(parts) {
			if len(got) > len(parts[0]) && len(got) > len(parts[1]) && tcpValid(got) != valid {
				t.Errorf("joined packet valid %t, parts %t", !valid, valid)
			}
		}
	})
}

// resum puts right lengths and checksums into a TCP packet.
func resum(p []byte, ip int) {
	if ip == ipv4HeaderLen {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[ipv4Checksum:], 0)
		binary.BigEndian.PutUint16(p[ipv4Checksum:], ^checksum.Checksum(p[:ip], 0))
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip))
	}
	binary.BigEndian.PutUint16(p[ip+tcpChecksum:], 0)
	binary.BigEndian.PutUint16(p[ip+tcpChecksum:], ^checksum.Checksum(p[ip:], pseudoSum(p, ip)))
}

func BenchmarkRun(b *testing.B) {
	packets := cut(b, superSegment(false, randomBytes(40*testMSS, 1), header.TCPFlagAck))
	var r run
	dst := make([]byte, maxPacketBytes)
	b.ReportAllocs()
	b.SetBytes(40 * testMSS)
	for range b.N {
		r.start(packets[0])
		for _, p := range packets[1:] {
			r.add(p)
		}
		r.join(dst[:r.size])
		r.reset()
	}
}
