// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlRoom is enough for all control messages that come with a datagram:
// segment size, overflow, and the address it came to.
const controlRoom = 128

// controlBuffer is memory for control messages, aligned as the kernel wants it.
type controlBuffer struct {
	_ [0]uint64
	b [controlRoom]byte
}

// control is what the kernel tells with a datagram.
type control struct {
	segment    int    // size of each of several datagrams (UDP_GRO); 0: there is one
	overflowed uint32 // datagrams that the socket has dropped so far; 0: not told
	local      local  // where it came to, on a socket of all addresses
}

// each calls f for each control message of b: its level, type and data. It stops
// at what is no message.
func each(b []byte, f func(level, kind int32, data []byte)) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := uint64(h.Len)
		if n < unix.SizeofCmsghdr || n > uint64(len(b)) {
			return
		}
		f(h.Level, h.Type, b[unix.CmsgLen(0):n])
		next := unix.CmsgSpace(int(n) - unix.CmsgLen(0))
		if next >= len(b) {
			return
		}
		b = b[next:]
	}
}

// parseControl reads the control messages of a datagram.
func parseControl(b []byte) (c control) {
	each(b, func(level, kind int32, data []byte) {
		switch {
		case level == unix.SOL_UDP && kind == unix.UDP_GRO && len(data) >= 4:
			c.segment = int(binary.NativeEndian.Uint32(data))
		case level == unix.SOL_SOCKET && kind == unix.SO_RXQ_OVFL && len(data) >= 4:
			c.overflowed = binary.NativeEndian.Uint32(data)
		case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			c.local = local{addr: netip.AddrFrom4([4]byte(data[4:]))} // ipi_spec_dst: never a broadcast address
		case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			c.local = local{addr: netip.AddrFrom16([16]byte(data))}
			if c.local.addr.IsLinkLocalUnicast() {
				c.local.index = binary.NativeEndian.Uint32(data[16:])
			}
		}
	})
	return c
}

// icmp is an error that came for a datagram: by ICMP, or from this host, which
// knows a path that is too narrow.
type icmp struct {
	kind, code uint8
	mtu        uint32
}

// parseError reads the control messages of an error. ok is false for errors that
// tell nothing about a packet on its way.
func parseError(b []byte) (e icmp, ok bool) {
	each(b, func(level, kind int32, data []byte) {
		ipv6 := level == unix.IPPROTO_IPV6 && kind == unix.IPV6_RECVERR
		if !ipv6 && (level != unix.IPPROTO_IP || kind != unix.IP_RECVERR) || len(data) < 16 {
			return
		}
		// struct sock_extended_err: errno, origin, type, code, padding, info, data
		errno, info := unix.Errno(binary.NativeEndian.Uint32(data)), binary.NativeEndian.Uint32(data[8:])
		switch origin := data[4]; {
		case origin == unix.SO_EE_ORIGIN_ICMP && !ipv6, origin == unix.SO_EE_ORIGIN_ICMP6 && ipv6:
			e, ok = icmp{kind: data[5], code: data[6], mtu: info}, true
		case origin == unix.SO_EE_ORIGIN_LOCAL && errno == unix.EMSGSIZE && !ipv6:
			e, ok = icmp{kind: 3, code: 4, mtu: info}, true // fragmentation needed
		case origin == unix.SO_EE_ORIGIN_LOCAL && errno == unix.EMSGSIZE:
			e, ok = icmp{kind: 2, mtu: info}, true // packet too big
		}
	})
	return e, ok
}

// controlWriter writes control messages for sending.
type controlWriter struct {
	to *controlBuffer
	n  int
}

// begin starts a message with n bytes of data, and returns those.
func (w *controlWriter) begin(level, kind int32, n int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&w.to.b[w.n]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	data := w.to.b[w.n+unix.CmsgLen(0) : w.n+unix.CmsgLen(n)]
	w.n += unix.CmsgSpace(n)
	return data
}

// segments says that a packet is to be cut into datagrams of size bytes.
func (w *controlWriter) segments(size int) {
	binary.NativeEndian.PutUint16(w.begin(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2), uint16(size))
}

// from says from which address of the host a packet leaves.
func (w *controlWriter) from(l local) {
	if l.addr.Is4() {
		data := w.begin(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		clear(data)
		*(*[4]byte)(data[4:]) = l.addr.As4()
		return
	}
	data := w.begin(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
	*(*[16]byte)(data) = l.addr.As16()
	binary.NativeEndian.PutUint32(data[16:], l.index)
}
