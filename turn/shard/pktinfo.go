// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// whereRoom is enough for what the system tells of where a datagram came in.
const whereRoom = 128

// askWhere has the system tell of each datagram at which address of this host it came in. It
// is false where the system cannot; answers then leave from where the system likes.
func (p *port) askWhere() bool {
	if p.socket.addr.Addr().Is4() {
		return ipv4.NewPacketConn(p.conn).SetControlMessage(ipv4.FlagDst, true) == nil
	}
	return ipv6.NewPacketConn(p.conn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true) == nil
}

// where reads what the system has told; the address is invalid if that is nothing.
func (p *port) where(told []byte) local {
	if p.socket.addr.Addr().Is4() {
		var m ipv4.ControlMessage
		if m.Parse(told) != nil {
			return local{}
		}
		addr, _ := netip.AddrFromSlice(m.Dst)
		return local{addr: addr.Unmap()}
	}
	var m ipv6.ControlMessage
	if m.Parse(told) != nil {
		return local{}
	}
	addr, _ := netip.AddrFromSlice(m.Dst)
	if l := (local{addr: addr}); !addr.IsLinkLocalUnicast() {
		return l
	}
	return local{addr: addr, index: uint32(m.IfIndex)}
}

// fromHere is what has the system send a datagram from an address of this host.
func (p *port) fromHere(l local) []byte {
	if !l.addr.IsValid() {
		return nil
	}
	if p.socket.addr.Addr().Is4() {
		return (&ipv4.ControlMessage{Src: net.IP(l.addr.AsSlice())}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: net.IP(l.addr.AsSlice()), IfIndex: int(l.index)}).Marshal()
}
