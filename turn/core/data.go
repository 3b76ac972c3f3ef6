// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Headroom is how many bytes in front of a datagram from a peer FromPeer uses
// to write its header in place: a Data indication for an IPv6 peer. ChannelData
// needs 4 of them. Tailroom is the capacity that it uses behind the datagram.
const (
	Headroom = headerLen + attrHeader + 20 + attrHeader
	Tailroom = 3
)

// channelData relays ChannelData of a client to the peer of its channel (RFC
// 8656 section 12.6).
func (c *Core) channelData(now int64, flow *Flow, packet []byte, out *Output) {
	n := int(binary.BigEndian.Uint16(packet[2:]))
	a := c.flows[flow.key()]
	switch {
	case channelHeader+n > len(packet):
		c.drop(DropJunk)
		return
	case a == nil:
		c.drop(DropNoAllocation)
		c.hint(now, flow, len(packet), out)
		return
	}
	p := a.channels[binary.BigEndian.Uint16(packet)]
	if p == nil || p.deadline <= now {
		c.drop(DropNoChannel)
		return
	}
	c.toPeer(now, a, p, packet[channelHeader:channelHeader+n], false, out)
}

// send relays the data of a Send indication (RFC 8656 section 11.2).
func (c *Core) send(r *request) {
	m := &r.msg
	if m.malformed || m.unknowns > 0 || m.has&hasPeer == 0 || m.has&hasData == 0 || m.peer.Port() == 0 ||
		m.has&hasDontFragment != 0 && !c.cfg.Offers.DontFragment {
		c.drop(DropJunk)
		return
	}
	a := c.flows[r.flow.key()]
	if a == nil || a.transport != UDP {
		c.drop(DropNoAllocation)
		if a == nil {
			c.hint(r.now, &r.flow, len(m.raw), r.out)
		}
		return
	}
	p := c.peer(a, m.peer)
	if p == nil || p.permission.deadline <= r.now {
		c.drop(DropNoPermission)
		return
	}
	c.toPeer(r.now, a, p, m.data, m.has&hasDontFragment != 0, r.out)
}

// hint tells a client that has sent data of a size without an allocation so.
func (c *Core) hint(now int64, flow *Flow, size int, out *Output) {
	if !c.cfg.Hint || size < headerLen+attrHeader+4 || c.cfg.Listeners[flow.Listener].Stream ||
		c.cfg.Answer != nil && !c.cfg.Answer(c.time(now), flow.Client.Addr()) {
		return
	}
	c.stats.count(codeMismatch)
	c.sendHint(*flow, out)
}

// sendHint sends a client what makes it ask for its allocation, if it knows that.
func (c *Core) sendHint(flow Flow, out *Output) {
	w := out.build(methodRefresh, classError, [12]byte{})
	w.errorCode(codeMismatch, "")
	c.sendClient(flow, w.finish(signer{}, false), out)
}

// toPeer relays a datagram to a peer that has a channel or a permission.
func (c *Core) toPeer(now int64, a *allocation, p *peer, data []byte, whole bool, out *Output) {
	v := a.relayOf(p.addr.Addr())
	switch {
	case v == nil || v.deadline <= now:
		c.drop(DropNoAllocation)
	case !c.allowed(a, p):
		c.drop(DropForbidden)
	case len(data) > maxDatagram(p.addr.Addr()):
		c.drop(DropOversize)
	case !c.passes(a, now, len(data), false):
		c.drop(DropRate)
	default:
		a.usage.SentPackets++
		a.usage.SentBytes += uint64(len(data))
		c.stats.Relayed.SentPackets++
		c.stats.Relayed.SentBytes += uint64(len(data))
		out.add(Action{Kind: SendPeer, Relay: v.id, Peer: p.addr, Data: data, DontFragment: whole})
	}
}

// FromPeer handles the datagram buf[off:] that came to a relay from a peer.
// With Headroom bytes before off and Tailroom bytes of capacity behind its end
// the message to the client is written around it, in buf; with less it is copied.
func (c *Core) FromPeer(now time.Time, id RelayID, from netip.AddrPort, buf []byte, off int, out *Output) {
	at, v := c.at(now), c.relay(id)
	if v == nil || v.alloc == nil || v.deadline <= at {
		c.drop(DropNoAllocation)
		return
	}
	a, n := v.alloc, len(buf)-off
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	p := c.peer(a, from)
	switch {
	case p == nil || p.permission.deadline <= at:
		c.drop(DropNoPermission)
		return
	case !c.allowed(a, p):
		c.drop(DropForbidden)
		return
	}
	header := headerLen + attrHeader + addressLen(from.Addr()) + attrHeader
	channel := p.channel != 0 && p.deadline > at
	if channel {
		header = channelHeader
	}
	stream := c.cfg.Listeners[a.flow.Listener].Stream
	tail := padded(n) - n
	if channel && !stream {
		tail = 0
	}
	switch {
	case !stream && header+n+tail > maxDatagram(a.flow.Client.Addr()), !channel && header-headerLen+n+tail > maxBody, n > 1<<16-1:
		c.drop(DropOversize)
		return
	case !c.passes(a, at, n, true):
		c.drop(DropRate)
		return
	}
	a.usage.ReceivedPackets++
	a.usage.ReceivedBytes += uint64(n)
	c.stats.Relayed.ReceivedPackets++
	c.stats.Relayed.ReceivedBytes += uint64(n)
	frame := around(buf, off, header, tail, out)
	if channel {
		binary.BigEndian.PutUint16(frame, p.channel)
		binary.BigEndian.PutUint16(frame[2:], uint16(n))
	} else {
		c.dataHeader(frame, from, n)
	}
	c.sendClient(a.flow, frame, out)
}

// around returns buf[off:] with header bytes before it and tail zero bytes
// behind it, in place if there is room and in the arena if not.
func around(buf []byte, off, header, tail int, out *Output) []byte {
	end := len(buf) + tail
	if off < header || cap(buf) < end {
		var zero [Headroom]byte
		start := len(out.arena)
		out.arena = append(out.arena, zero[:header]...)
		out.arena = append(out.arena, buf[off:]...)
		out.arena = append(out.arena, zero[:tail]...)
		return out.arena[start:len(out.arena):len(out.arena)]
	}
	frame := buf[off-header : end : end]
	clear(frame[len(frame)-tail:])
	return frame
}

// dataHeader writes the header of a Data indication with n bytes (RFC 8656
// section 11.3) in front of the data in frame.
func (c *Core) dataHeader(frame []byte, from netip.AddrPort, n int) {
	binary.BigEndian.PutUint16(frame, messageType(methodData, classIndication))
	binary.BigEndian.PutUint16(frame[2:], uint16(len(frame)-headerLen))
	binary.BigEndian.PutUint32(frame[4:], magicCookie)
	binary.BigEndian.PutUint64(frame[8:], c.indicate.Uint64())
	binary.BigEndian.PutUint32(frame[16:], uint32(c.indicate.Uint64()))
	size := addressLen(from.Addr())
	at := headerLen
	binary.BigEndian.PutUint16(frame[at:], attrXORPeerAddress)
	binary.BigEndian.PutUint16(frame[at+2:], uint16(size))
	at += attrHeader
	appendXORAddress(frame[at:at], from, [headerLen]byte(frame))
	at += size
	binary.BigEndian.PutUint16(frame[at:], attrData)
	binary.BigEndian.PutUint16(frame[at+2:], uint16(n))
}

// transaction draws a transaction id for an indication.
func (c *Core) transaction() (id [12]byte) {
	binary.BigEndian.PutUint64(id[:], c.indicate.Uint64())
	binary.BigEndian.PutUint32(id[8:], uint32(c.indicate.Uint64()))
	return id
}

// PeerError tells that an ICMP error came for a datagram to a peer (RFC 8656
// section 11.5): kind and code are those of ICMP for an IPv4 peer, of ICMPv6 for
// another, mtu is what a packet that was too big should have had. The client
// learns of it if the peer has a permission and the error says that packets do
// not arrive.
func (c *Core) PeerError(now time.Time, id RelayID, to netip.AddrPort, kind, code uint8, mtu uint32, out *Output) {
	at, v := c.at(now), c.relay(id)
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	lost, tooBig := icmp(to.Addr().Is4(), kind, code)
	if v == nil || v.alloc == nil || v.deadline <= at || !lost {
		return
	}
	p := c.peer(v.alloc, to)
	if p == nil || p.permission.deadline <= at || !c.allowed(v.alloc, p) {
		return
	}
	if !tooBig {
		mtu = 0
	}
	w := out.build(methodData, classIndication, c.transaction())
	w.address(attrXORPeerAddress, to)
	w.begin(attrICMP, 8)
	out.arena = binary.BigEndian.AppendUint32(out.arena, uint32(kind)<<9|uint32(code)) // 7 and 9 bits
	out.arena = binary.BigEndian.AppendUint32(out.arena, mtu)
	c.sendClient(v.alloc.flow, w.finish(signer{}, false), out)
}

// icmp says whether an ICMP message tells of a packet that was lost, and
// whether because it was too big.
func icmp(ipv4 bool, kind, code uint8) (lost, tooBig bool) {
	if ipv4 {
		return kind == 3 || kind == 11, kind == 3 && code == 4 // unreachable, time exceeded; fragmentation needed
	}
	return kind >= 1 && kind <= 3, kind == 2 // unreachable, packet too big, time exceeded
}
