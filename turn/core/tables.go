// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// flowKey is a Flow as a map key that hashes as plain memory.
type flowKey struct{ hi, lo, conn, port uint64 }

func (f *Flow) key() flowKey {
	b := f.Client.Addr().As16()
	return flowKey{
		hi:   binary.BigEndian.Uint64(b[:]),
		lo:   binary.BigEndian.Uint64(b[8:]),
		conn: f.Conn,
		port: uint64(f.Client.Port())<<16 | uint64(f.Listener),
	}
}

// addrKey is an address as a map key. IPv4 and IPv4-mapped are the same.
type addrKey struct{ hi, lo uint64 }

func keyOfAddr(a netip.Addr) addrKey {
	b := a.As16()
	return addrKey{hi: binary.BigEndian.Uint64(b[:]), lo: binary.BigEndian.Uint64(b[8:])}
}

// socketKey is an address with a port as a map key.
type socketKey struct {
	addr addrKey
	port uint64
}

func keyOfSocket(a netip.AddrPort) socketKey {
	return socketKey{addr: keyOfAddr(a.Addr()), port: uint64(a.Port())}
}

// token is a RESERVATION-TOKEN.
type token [8]byte

// relay is one relay socket.
type relay struct {
	id       RelayID
	family   Family
	open     bool // the driver has opened it, at addr
	addr     netip.AddrPort
	alloc    *allocation // nil while it is reserved
	deadline int64
}

// relays are all relay sockets of a core, open ones and those to come.
type relays struct {
	all    []*relay // by index of RelayID; 0 is none
	spare  []uint32 // free indices
	byAddr map[socketKey]RelayID
	held   int // counted for users, reservations included
}

// newRelay takes an index for a relay that is to be opened.
func (c *Core) newRelay(f Family) *relay {
	if n := len(c.relays.spare); n > 0 {
		r := c.relays.all[c.relays.spare[n-1]]
		c.relays.spare = c.relays.spare[:n-1]
		*r = relay{id: r.id + 1<<32, family: f}
		return r
	}
	r := &relay{id: RelayID(len(c.relays.all)) | 1<<32, family: f}
	c.relays.all = append(c.relays.all, r)
	return r
}

// relay returns the relay with an id, nil when it is closed.
func (c *Core) relay(id RelayID) *relay {
	index := uint32(id)
	if int(index) >= len(c.relays.all) {
		return nil
	}
	if r := c.relays.all[index]; r != nil && r.id == id && r.family != 0 {
		return r
	}
	return nil
}

// closeRelay gives a relay back.
func (c *Core) closeRelay(r *relay, out *Output) {
	out.add(Action{Kind: CloseRelay, Relay: r.id})
	c.forgetRelay(r)
}

// forgetRelay is closeRelay for a relay that the driver has closed already.
func (c *Core) forgetRelay(r *relay) {
	if r.open {
		delete(c.relays.byAddr, keyOfSocket(r.addr))
	}
	*r = relay{id: r.id}
	c.relays.spare = append(c.relays.spare, uint32(r.id))
}

// RelayAt returns the relay that this core has open at addr: a driver can hand
// a datagram that one relay sends to another over as FromPeer, without a socket.
func (c *Core) RelayAt(addr netip.AddrPort) (RelayID, bool) {
	id, ok := c.relays.byAddr[keyOfSocket(addr)]
	return id, ok
}

// permission lets packets of one address come in (RFC 8656 section 9).
type permission struct {
	deadline int64
	channels int // bound to sockets of the address: they keep the permission's place
}

// peer is one socket of a peer that has a channel or whose verdict is kept.
type peer struct {
	addr       netip.AddrPort
	permission *permission
	deadline   int64 // of the channel
	policy     uint32
	channel    uint16 // 0: none
	allowed    bool   // by the policy of that generation
	fleeting   bool   // that may change at any time
}

// maxVerdicts is how many sockets without a channel an allocation remembers.
// What is beyond is asked about with every packet.
const maxVerdicts = 64

// allocation is what one client holds: one or two relays, permissions, channels.
type allocation struct {
	id        uint64
	since     time.Time
	flow      Flow
	user      string
	transport Transport
	relays    [2]*relay // IPv4, IPv6; nil where there is none
	opening   *opening  // until all relays are open

	ended [2]netip.AddrPort // addresses of relays that it has no more

	transaction [12]byte  // of the Allocate request
	token       token     // of the reservation that came with it; zero: none
	refused     [2]uint16 // error code by family of relays that could not be opened, 0: none

	permissions map[addrKey]*permission
	peers       map[socketKey]*peer
	channels    map[uint16]*peer
	connections map[socketKey]*connection
	verdicts    int  // peers without a channel
	told        bool // the driver knows of channels

	answered int64 // up to when answers without a credential are spent

	rate  *Rate // most likely with others; nil: none
	usage Usage
	timer timer
}

// relayOf returns the allocation's relay of the family of a, nil when it has none.
func (a *allocation) relayOf(addr netip.Addr) *relay {
	if addr.Is4() {
		return a.relays[0]
	}
	return a.relays[1]
}

// relayFor is relayOf by the number of the family.
func (a *allocation) relayFor(f Family) *relay {
	switch f {
	case IPv4:
		return a.relays[0]
	case IPv6:
		return a.relays[1]
	default:
		return nil
	}
}

// slot is the place of a family in allocation.relays.
func slot(f Family) int { return int(f - IPv4) }
