// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Permit asks for the permission for peer ahead of need, so that packets from
// there pass and the first one to it is not delayed. It has to be called again
// after ten minutes in which nothing was sent there. Permissions are by address
// (RFC 8656 section 9), but the policy of a server may look at the port.
//
// It does not wait for the server. An error means that there will be no
// permission, and is one of those of WriteBatch: a refusal that is not known yet
// is returned by the next call.
func (a *Allocation) Permit(peer netip.AddrPort) error {
	peer, err := a.reachable(peer)
	if err != nil {
		return err
	}
	a.do(func(now time.Time) { err = a.core.allow(peer, now) })
	if err != nil {
		return fmt.Errorf("permission for %s: %w", peer, err)
	}
	return nil
}

// reachable returns peer in the form that the core knows, or why no packet can go there.
func (a *Allocation) reachable(peer netip.AddrPort) (netip.AddrPort, error) {
	if peer.Addr().Is4In6() || peer.Addr().Zone() != "" {
		peer = netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())
	}
	switch {
	case !peer.IsValid() || peer.Port() == 0 || peer.Addr().IsUnspecified():
		return peer, fmt.Errorf("packet to %s: no peer can have that address", peer)
	case peer.Addr().Is4() != a.relayed.Addr().Is4():
		return peer, fmt.Errorf("packet to %s: %w", peer, ErrOtherFamily)
	default:
		return peer, nil
	}
}

// WriteTo sends b from the relayed address to a peer. See WriteBatch.
func (a *Allocation) WriteTo(b []byte, to netip.AddrPort) error {
	burst := bursts.Get().(*burst)
	defer bursts.Put(burst)
	burst.single[0] = b
	err := a.writeBurst(burst, burst.single[:], to)
	burst.single[0] = nil
	return err
}

// WriteBatch sends packets from the relayed address to one peer, with as few
// system calls as the platform and the transport allow. The packets are not kept.
//
// It does not wait for the server: what comes before the peer's permission
// stands is kept in a queue of 16 packets, what a slow TCP connection cannot
// take in one of 128 KiB, and beyond that packets are dropped without an error,
// as on every network. An error means that nothing to this peer leaves: a
// refused permission (ErrForbidden, ErrCapacity), an end of the allocation
// (the error of Err), a packet above MaxPacket, the other address family.
func (a *Allocation) WriteBatch(packets [][]byte, to netip.AddrPort) error {
	burst := bursts.Get().(*burst)
	defer bursts.Put(burst)
	for len(packets) > 0 {
		n := min(len(packets), maxBurst)
		if err := a.writeBurst(burst, packets[:n], to); err != nil {
			return err
		}
		packets = packets[n:]
	}
	return nil
}

// writeBurst sends packets, at most maxBurst, with b as its scratch.
func (a *Allocation) writeBurst(b *burst, packets [][]byte, to netip.AddrPort) error {
	to, err := a.reachable(to)
	if err != nil {
		return err
	}
	for _, p := range packets {
		if len(p) > MaxPacket {
			return fmt.Errorf("packet of %d bytes: %w, which is %d bytes at most", len(p), ErrPacket, MaxPacket)
		}
	}
	a.mu.Lock()
	p, route, err := a.core.prepare(to, len(packets), a.now())
	channel := uint16(0)
	switch {
	case err != nil:
	case route == queued:
		for _, packet := range packets {
			a.core.enqueue(p, packet)
		}
	case route == channeled:
		channel = p.channel
	}
	mine := a.takeLocked()
	a.mu.Unlock()
	a.flush(mine)
	if err != nil {
		return fmt.Errorf("packet to %s: %w", to, err)
	}
	if route == queued {
		return nil
	}
	b.frame(packets, to, channel)
	err = a.link.send(b)
	b.clear()
	return err
}

// burst is a number of packets on their way to the link. It is scratch memory
// that is used again.
type burst struct {
	frames [maxBurst]frame
	n      int
	single [1][]byte
	zeros  [4]byte          // padding
	whole  [packetSize]byte // for links that take no parts
	system burstSystem
}

// frame is one packet with TURN around it; the padding is up to the link.
type frame struct {
	head    [sendHead]byte
	headLen int
	data    []byte
	padding int // that a datagram has, too
}

var bursts = sync.Pool{New: func() any { return new(burst) }}

// frame puts packets into ChannelData, or without a channel into Send indications.
func (b *burst) frame(packets [][]byte, to netip.AddrPort, channel uint16) {
	b.n = len(packets)
	var id txID
	if channel == 0 {
		id = newTxID() // nobody answers an indication: they may share one
	}
	for i, p := range packets {
		f := &b.frames[i]
		f.data = p
		if channel != 0 {
			putChannelHead(f.head[:], channel, len(p))
			f.headLen, f.padding = channelHead, 0
			continue
		}
		f.headLen = putSendHead(&f.head, to, id, len(p))
		f.padding = padded(len(p)) - len(p)
	}
}

// clear forgets the packets, which belong to the caller.
func (b *burst) clear() {
	for i := range b.frames[:b.n] {
		b.frames[i].data = nil
	}
	b.n = 0
}
