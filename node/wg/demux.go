// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// content says what a datagram that came in is. Each is exactly one of three.
type content uint8

const (
	contentGarbage content = iota
	// contentWireGuard: it has a type of WireGuard and its shortest length. The
	// library checks the rest.
	contentWireGuard
	// contentSTUN: it has the header of a STUN message, of its own length.
	contentSTUN
)

// The header of a STUN message (RFC 8489, 5).
const (
	stunHeader = 20
	stunMagic  = 0x2112a442
)

// contentOf tells datagrams apart by their first bytes. STUN that begins like
// WireGuard, with a type below 256 and no length, has no more than its header,
// which is too short for WireGuard.
func contentOf(b []byte) content {
	switch {
	case isWireGuard(b):
		return contentWireGuard
	case isSTUN(b):
		return contentSTUN
	}
	return contentGarbage
}

// isWireGuard reports whether b can be a message of WireGuard.
func isWireGuard(b []byte) bool {
	if len(b) < device.MinMessageSize {
		return false
	}
	kind := binary.LittleEndian.Uint32(b)
	return kind >= device.MessageInitiationType && kind <= device.MessageTransportType
}

// isSTUN reports whether b has the header of a STUN message, and as many bytes
// behind it as that says.
func isSTUN(b []byte) bool {
	return len(b) >= stunHeader && b[0] < 0x40 && len(b)%4 == 0 &&
		binary.BigEndian.Uint32(b[4:]) == stunMagic &&
		int(binary.BigEndian.Uint16(b[2:])) == len(b)-stunHeader
}

// finder finds the paths that the datagrams of one receiver belong to. They
// come in batches from few, so the last answer is kept.
type finder struct {
	socket Socket
	table  *sourceTable
	from   netip.AddrPort
	hit    *source
}

// find returns the source of a path that datagrams from an address are of, or
// nil.
func (f *finder) find(table *sourceTable, from netip.AddrPort) *source {
	if f.table != table || f.from != from {
		f.look(table, from)
	}
	return f.hit
}

// look is find for another sender than the last one.
func (f *finder) look(table *sourceTable, from netip.AddrPort) {
	f.table, f.from = table, from
	f.hit = (*table)[Route{f.socket, unmapped(from)}]
}

// nativeDemux sorts what one receive function of the native bind has received.
type nativeDemux struct {
	bind   *bind
	finder finder
}

// sift takes STUN out of a batch and gives what is of a path that path as its
// endpoint. What is left of a datagram taken out is a size of 0, which the
// library ignores. It returns how many it took out.
func (m *nativeDemux) sift(packets [][]byte, sizes []int, eps []conn.Endpoint) (taken int) {
	if m.bind.stun != nil {
		taken = m.takeSTUN(packets, sizes, eps)
	}
	if table := m.bind.paths.table.Load(); table != nil {
		m.assign(table, packets, sizes, eps)
	}
	return taken
}

// takeSTUN hands the STUN messages of a batch on, and returns how many.
func (m *nativeDemux) takeSTUN(packets [][]byte, sizes []int, eps []conn.Endpoint) (taken int) {
	for i, size := range sizes {
		b := packets[i][:size]
		if contentOf(b) != contentSTUN {
			continue
		}
		m.bind.stun(NativeSocket, unmapped(addressOf(eps[i])), b)
		sizes[i] = 0
		taken++
	}
	if taken > 0 {
		m.bind.metrics.stunIn[kindNative].Add(float64(taken))
	}
	return taken
}

// assign makes paths the endpoints of what came on them.
func (m *nativeDemux) assign(table *sourceTable, packets [][]byte, sizes []int, eps []conn.Endpoint) {
	var told *source
	for i, size := range sizes {
		if size == 0 {
			continue
		}
		s := m.finder.find(table, addressOf(eps[i]))
		if s == nil || !isWireGuard(packets[i][:size]) {
			continue
		}
		eps[i] = s.path
		if s != told { // once a batch
			s.heard.Store(m.bind.paths.now())
			told = s
		}
	}
}

// addressOf returns where an endpoint of the native bind is.
func addressOf(ep conn.Endpoint) netip.AddrPort {
	if std, ok := ep.(*conn.StdNetEndpoint); ok {
		return std.AddrPort
	}
	addr, err := netip.ParseAddrPort(ep.DstToString())
	if err != nil {
		return netip.AddrPort{} // of no path
	}
	return addr
}

// unmapped returns a without the wrapping that makes IPv4 look like IPv6.
func unmapped(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4In6() {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return a
}
