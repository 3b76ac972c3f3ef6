// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"encoding/binary"
	"net/netip"
)

// fromClient, fromPeer and way are the structs of these names in maps.h: bytes
// as they are on the wire, but for the indices.
type (
	fromClient [40]byte
	fromPeer   [36]byte
	way        [48]byte
)

func newFromClient(client, server netip.AddrPort, channel uint16) (k fromClient) {
	putAddress(k[0:], client.Addr())
	putAddress(k[16:], server.Addr())
	binary.BigEndian.PutUint16(k[32:], client.Port())
	binary.BigEndian.PutUint16(k[34:], server.Port())
	binary.BigEndian.PutUint16(k[36:], channel)
	return k
}

func newFromPeer(peer, relay netip.AddrPort) (k fromPeer) {
	putAddress(k[0:], peer.Addr())
	putAddress(k[16:], relay.Addr())
	binary.BigEndian.PutUint16(k[32:], peer.Port())
	binary.BigEndian.PutUint16(k[34:], relay.Port())
	return k
}

// relay is the address of the relay in the key.
func (k *fromPeer) relay() netip.AddrPort {
	addr := netip.AddrFrom16([16]byte(k[16:])).Unmap()
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(k[34:]))
}

func newWay(from, to netip.AddrPort, channel uint16, slot, meter uint32) (w way) {
	putAddress(w[0:], from.Addr())
	putAddress(w[16:], to.Addr())
	binary.BigEndian.PutUint16(w[32:], from.Port())
	binary.BigEndian.PutUint16(w[34:], to.Port())
	binary.BigEndian.PutUint16(w[36:], channel)
	if to.Addr().Is6() {
		w[38] = 1
	}
	binary.NativeEndian.PutUint32(w[40:], slot)
	binary.NativeEndian.PutUint32(w[44:], meter)
	return w
}

func putAddress(to []byte, a netip.Addr) {
	b := a.As16()
	copy(to, b[:])
}
