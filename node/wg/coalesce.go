// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// TCP header layout that coalescing needs.
const (
	protocolTCP    = 6
	tcpHeaderLen   = 20
	tcpSequence    = 4
	tcpAck         = 8
	tcpFlags       = 13
	tcpChecksum    = 16
	tcpFlagPush    = 0x08
	tcpFlagAck     = 0x10
	maxPacketBytes = 1<<16 - 1
)

// run is a series of TCP data packets that continue each other, so that the
// stack can take them in as one (receive offload). The zero value is empty.
//
// No payload is read: a correct TCP checksum tells the sum over its payload,
// so the checksum of the joined packet follows from the headers alone. If one
// of the parts was damaged, the joined checksum is wrong too, and the stack
// drops the packet.
type run struct {
	// parts are the packets, of which all but the first add their payload only.
	parts [][]byte
	// headers is the length of the IP and TCP headers, equal in all parts; ip
	// is the length of the former.
	headers, ip int
	// size is the length of the joined packet, next the sequence number after it.
	size int
	next uint32
	// payloadSum is the one's complement sum over the joined payload.
	payloadSum uint16
	closed     bool
}

// start makes p the first part of an empty run. It reports false for packets
// that are never joined.
func (r *run) start(p []byte) bool {
	ip, headers, ok := tcpData(p)
	if !ok {
		return false
	}
	*r = run{parts: append(r.parts[:0], p), ip: ip, headers: headers, size: len(p)}
	payload := len(p) - headers
	r.next = binary.BigEndian.Uint32(p[ip+tcpSequence:]) + uint32(payload)
	r.payloadSum = payloadSum(p, ip, headers)
	r.closed = p[ip+tcpFlags]&tcpFlagPush != 0 || payload%2 != 0
	return true
}

// add makes p the next part. It reports false when p does not continue the run.
func (r *run) add(p []byte) bool {
	if len(r.parts) == 0 || r.closed {
		return false
	}
	ip, headers, ok := tcpData(p)
	first := r.parts[0]
	if !ok || ip != r.ip || headers != r.headers || len(p) > len(first) ||
		r.size+len(p)-headers > maxPacketBytes || !sameFlow(first, p, ip, headers) ||
		binary.BigEndian.Uint32(p[ip+tcpSequence:]) != r.next {
		return false
	}
	payload := len(p) - headers
	r.parts = append(r.parts, p)
	r.size += payload
	r.next += uint32(payload)
	r.payloadSum = checksum.Combine(r.payloadSum, payloadSum(p, ip, headers))
	r.closed = p[ip+tcpFlags]&tcpFlagPush != 0 || len(p) != len(first)
	return true
}

// reset empties the run.
func (r *run) reset() {
	clear(r.parts)
	r.parts = r.parts[:0]
}

// join writes the joined packet, of r.size bytes, to dst.
func (r *run) join(dst []byte) {
	n := copy(dst, r.parts[0])
	if len(r.parts) == 1 {
		return
	}
	for _, p := range r.parts[1:] {
		n += copy(dst[n:], p[r.headers:])
	}
	if r.ip == ipv4HeaderLen {
		binary.BigEndian.PutUint16(dst[2:], uint16(n))
		binary.BigEndian.PutUint16(dst[ipv4Checksum:], 0)
		binary.BigEndian.PutUint16(dst[ipv4Checksum:], ^checksum.Checksum(dst[:ipv4HeaderLen], 0))
	} else {
		binary.BigEndian.PutUint16(dst[4:], uint16(n-ipv6HeaderLen))
	}
	last := r.parts[len(r.parts)-1]
	dst[r.ip+tcpFlags] |= last[r.ip+tcpFlags] & tcpFlagPush
	tcp := dst[r.ip:r.headers]
	binary.BigEndian.PutUint16(tcp[tcpChecksum:], 0)
	sum := checksum.Checksum(tcp, checksum.Combine(pseudoSum(dst, r.ip), r.payloadSum))
	binary.BigEndian.PutUint16(tcp[tcpChecksum:], ^sum)
}

// tcpData returns the header lengths of a whole TCP packet that carries data
// and nothing unusual: no fragments, no IP options, no flags but ACK and PSH.
func tcpData(p []byte) (ip, headers int, ok bool) {
	switch ipVersion(p) {
	case 4:
		ip = ipv4HeaderLen
		if p[0] != 0x45 || p[9] != protocolTCP || int(binary.BigEndian.Uint16(p[2:])) != len(p) ||
			binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || checksum.Checksum(p[:ip], 0) != 0xffff {
			return 0, 0, false
		}
	case 6:
		ip = ipv6HeaderLen
		if p[6] != protocolTCP || int(binary.BigEndian.Uint16(p[4:]))+ip != len(p) {
			return 0, 0, false
		}
	default:
		return 0, 0, false
	}
	if len(p) < ip+tcpHeaderLen {
		return 0, 0, false
	}
	headers = ip + int(p[ip+12]>>4)*4
	if headers < ip+tcpHeaderLen || headers >= len(p) || p[ip+tcpFlags]&^tcpFlagPush != tcpFlagAck {
		return 0, 0, false
	}
	return ip, headers, true
}

// sameFlow reports whether the headers of a and b differ in nothing but
// length, IP identification, sequence number, PSH and checksums.
func sameFlow(a, b []byte, ip, headers int) bool {
	if ip == ipv4HeaderLen {
		// Version to TOS; flags to protocol; addresses.
		if !bytes.Equal(a[:2], b[:2]) || !bytes.Equal(a[6:10], b[6:10]) || !bytes.Equal(a[12:ip], b[12:ip]) {
			return false
		}
	} else if !bytes.Equal(a[:4], b[:4]) || !bytes.Equal(a[6:ip], b[6:ip]) {
		return false
	}
	// Ports; acknowledgement and header length; window; urgent pointer and options.
	ta, tb := a[ip:headers], b[ip:headers]
	return bytes.Equal(ta[:tcpSequence], tb[:tcpSequence]) && bytes.Equal(ta[tcpAck:tcpFlags], tb[tcpAck:tcpFlags]) &&
		bytes.Equal(ta[14:tcpChecksum], tb[14:tcpChecksum]) && bytes.Equal(ta[18:], tb[18:])
}

// payloadSum returns the sum over the payload that the TCP checksum claims.
func payloadSum(p []byte, ip, headers int) uint16 {
	return ^checksum.Checksum(p[ip:headers], pseudoSum(p, ip))
}

// pseudoSum returns the sum over the TCP pseudo header of a whole packet.
func pseudoSum(p []byte, ip int) uint16 {
	addrs := p[8:ip]
	if ip == ipv4HeaderLen {
		addrs = p[12:ip]
	}
	length := len(p) - ip
	return checksum.Checksum(addrs, checksum.Combine(uint16(length), protocolTCP))
}
