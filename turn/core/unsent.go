// SPDX-License-Identifier: Apache-2.0

package core

import "encoding/binary"

// UnsentPeer takes back that a datagram with n bytes was relayed that a SendPeer
// action was for: the driver could not send it. What it took of a rate stays taken.
func (c *Core) UnsentPeer(id RelayID, n int) {
	u := Usage{SentPackets: 1, SentBytes: uint64(n)}
	c.stats.Relayed.take(u)
	if v := c.relay(id); v != nil && v.alloc != nil {
		v.alloc.usage.take(u)
	}
}

// UnsentClient is UnsentPeer for the message of a SendClient action. It returns how
// many bytes of a peer's datagram were in it; false: none, and it was never counted.
func (c *Core) UnsentClient(flow Flow, message []byte) (n int, ok bool) {
	if n, ok = payload(message); !ok {
		return 0, false
	}
	u := Usage{ReceivedPackets: 1, ReceivedBytes: uint64(n)}
	c.stats.Relayed.take(u)
	if a := c.flows[flow.key()]; a != nil {
		a.usage.take(u)
	}
	return n, true
}

// payload is how much of a peer's datagram is in a message to a client; false: it
// is none.
func payload(m []byte) (n int, ok bool) {
	word := func(at int) int { return int(binary.BigEndian.Uint16(m[at:])) }
	switch {
	case len(m) >= channelHeader && m[0] >= 0x40:
		return word(2), true
	case len(m) < headerLen+attrHeader || word(0) != int(messageType(methodData, classIndication)):
		return 0, false
	}
	data := headerLen + attrHeader + word(headerLen+2) // behind the peer's address
	if len(m) < data+attrHeader || word(data) != int(attrData) {
		return 0, false // of an ICMP message
	}
	return word(data + 2), true
}

// take is the reverse of add. An allocation may be the next one of its client, with
// less than that.
func (u *Usage) take(o Usage) {
	for _, v := range []struct {
		of *uint64
		n  uint64
	}{
		{&u.SentPackets, o.SentPackets}, {&u.SentBytes, o.SentBytes},
		{&u.ReceivedPackets, o.ReceivedPackets}, {&u.ReceivedBytes, o.ReceivedBytes},
	} {
		*v.of -= min(*v.of, v.n)
	}
}
