// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/meshgate/meshgate/turn/core"
)

const (
	// ownPorts is how many ports a user has of its own, as far as nobody else has them.
	ownPorts = 4
	// kernelTries is how often the kernel may choose a port: it does not know that
	// the port must be even, or that the next one must be free.
	kernelTries = 32
	// maxTries is how many ports are tried of which the server knows nothing, but
	// which others may hold: clients wait, and so do the packets of all others.
	maxTries = 256
)

// errCapacity says that no port could be opened; clients get 508.
var errCapacity = errors.New("insufficient capacity")

// relays keeps the books of the relays of all shards: which ports are open, which
// one a user gets, and how addresses look from inside. It is safe for concurrent use.
type relays struct {
	sides   [2]*relaySide // IPv4, IPv6; nil: no relays of that family
	here    []uint16      // of the host's own sockets at the public addresses
	ports   portRange
	secrets *Secrets // of which ports come
}

// relaySide is one family of relays.
type relaySide struct {
	public netip.Addr // advertised to clients
	bind   netip.Addr // bound to; may be unspecified
	open   [2]portSet // UDP, TCP
}

// portSet counts how often each port is open: between the moment in which a socket
// closes and the one in which its shard says so, another one may have the port.
type portSet [1 << 16]atomic.Int32

func newRelays(cfg Relay, secrets *Secrets) *relays {
	rs := &relays{here: slices.Clone(cfg.Here), ports: portRange{cfg.MinPort, cfg.MaxPort}, secrets: secrets}
	for i, side := range cfg.sides() {
		if side.public.IsValid() {
			rs.sides[i] = &relaySide{public: side.public, bind: side.bind}
		}
	}
	return rs
}

// of returns the side of an address; nil when there are no relays of its family.
func (rs *relays) of(addr netip.Addr) *relaySide {
	if addr.Is4() {
		return rs.sides[0]
	}
	return rs.sides[1]
}

// public are the addresses at which peers reach relays.
func (rs *relays) public() []netip.Addr {
	var list []netip.Addr
	for _, s := range rs.sides {
		if s != nil {
			list = append(list, s.public)
		}
	}
	return list
}

// isPublic says whether relays are at addr.
func (rs *relays) isPublic(addr netip.Addr) bool {
	s := rs.of(addr)
	return s != nil && s.public == addr
}

// isOpen says whether peer is a relay of this server.
func (rs *relays) isOpen(peer netip.AddrPort, tcp bool) bool {
	return rs.isPublic(peer.Addr()) && rs.of(peer.Addr()).set(tcp)[peer.Port()].Load() > 0
}

// mayOpen says whether peer may be a relay of this server at another time. Clients
// that know each other from before it started anew ask for permissions before both
// have their relays; packets go there when they do.
func (rs *relays) mayOpen(peer netip.AddrPort) bool {
	return rs.ports != (portRange{}) && rs.isPublic(peer.Addr()) && rs.ports.has(peer.Port())
}

func (s *relaySide) set(tcp bool) *portSet {
	if tcp {
		return &s.open[1]
	}
	return &s.open[0]
}

// closed notes that a relay has ended.
func (rs *relays) closed(addr netip.AddrPort, tcp bool) {
	if s := rs.of(addr.Addr()); s != nil {
		s.set(tcp)[addr.Port()].Add(-1)
	}
}

// inside returns where to send a packet for peer. Behind a one-to-one NAT the
// public address is not on this host: relays reach each other, and the sockets of
// the host, on the bound one.
func (rs *relays) inside(peer netip.AddrPort, tcp bool) netip.AddrPort {
	if s := rs.of(peer.Addr()); s != nil && s.public == peer.Addr() && rs.isHere(s, peer.Port(), tcp) {
		return netip.AddrPortFrom(s.local(), peer.Port())
	}
	return peer
}

// outside undoes inside for the source of a packet. Nobody else can hold a
// port of the bound address while the relay does.
func (rs *relays) outside(src netip.AddrPort, tcp bool) netip.AddrPort {
	if s := rs.of(src.Addr()); s != nil && s.local() == src.Addr() && rs.isHere(s, src.Port(), tcp) {
		return netip.AddrPortFrom(s.public, src.Port())
	}
	return src
}

// isHere says whether who sends to port at the public address means a socket of
// this host: a relay, or one of its own.
func (rs *relays) isHere(s *relaySide, port uint16, tcp bool) bool {
	return s.set(tcp)[port].Load() > 0 || !tcp && slices.Contains(rs.here, port)
}

// boundAt is the address on this host of a relay that peers see at relayed.
func (rs *relays) boundAt(relayed netip.AddrPort) netip.AddrPort {
	if s := rs.of(relayed.Addr()); s != nil {
		return netip.AddrPortFrom(s.bind, relayed.Port())
	}
	return relayed
}

func (s *relaySide) local() netip.Addr {
	switch {
	case !s.bind.IsUnspecified():
		return s.bind
	case s.bind.Is4():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	default:
		return netip.IPv6Loopback()
	}
}

// socket is what a relay is opened as.
type socket interface{ Close() error }

// openRelay opens the socket of an OpenRelay action, and of its Second, with
// listen, which returns the port beside the socket.
//
// The first ports that are tried are the user's own: whoever allocates anew after
// a server has started anew is where its peers know it to be, without a word to
// them. To all others these ports are as good as random.
func openRelay[S socket](rs *relays, a core.Action, listen func(netip.AddrPort) (S, uint16, error)) (first, second S, addr netip.AddrPort, err error) {
	s := rs.sides[a.Family-core.IPv4]
	set := s.set(a.Transport == core.TCP)
	tries := 0
	for port := range rs.choices(a.User) {
		if port != 0 && !rs.fits(set, port, a) {
			continue
		}
		if tries++; tries > maxTries {
			break
		}
		var got uint16
		if first, got, err = listen(netip.AddrPortFrom(s.bind, port)); err != nil {
			continue // taken
		}
		if a.Second == 0 && (!a.Even || got%2 == 0) {
			set[got].Add(1)
			return first, second, netip.AddrPortFrom(s.public, got), nil
		}
		if got%2 == 0 {
			if second, _, err = listen(netip.AddrPortFrom(s.bind, got+1)); err == nil {
				set[got].Add(1)
				set[got+1].Add(1)
				return first, second, netip.AddrPortFrom(s.public, got), nil
			}
		}
		_ = first.Close() // it was nobody's yet
	}
	var none S
	return none, none, addr, errors.Join(fmt.Errorf("relay port of %s: %w", s.bind, errCapacity), err)
}

// fits says whether port, of the range, is one that a may get.
func (rs *relays) fits(set *portSet, port uint16, a core.Action) bool {
	switch {
	case set[port].Load() > 0, (a.Even || a.Second != 0) && port%2 != 0:
		return false
	default:
		return a.Second == 0 || rs.ports.has(port+1) && set[port+1].Load() == 0
	}
}

// choices yields the ports for a relay of user, from the one that it is to have on.
func (rs *relays) choices(user string) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		if rs.ports != (portRange{}) {
			for n := range ownPorts {
				if !yield(rs.ports.first + uint16(rs.secrets.draw(user, n)%uint32(rs.ports.size()))) {
					return
				}
			}
		}
		rs.ports.random()(yield)
	}
}

// portRange is an inclusive range of ports; {0, 0} leaves the choice to the kernel.
type portRange struct{ first, last uint16 }

func (r portRange) size() int { return int(r.last) - int(r.first) + 1 }

func (r portRange) has(port uint16) bool { return r.first <= port && port <= r.last }

// random yields each port of r once, from an unpredictable one on and in
// strides, so that relay ports tell nothing about their neighbours.
func (r portRange) random() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		if r == (portRange{}) {
			for i := 0; i < kernelTries && yield(0); i++ {
			}
			return
		}
		var seed [8]byte
		rand.Read(seed[:]) // never fails (crypto/rand)
		n := uint32(r.size())
		at, stride := binary.BigEndian.Uint32(seed[:])%n, binary.BigEndian.Uint32(seed[4:])%n
		for gcd(stride, n) != 1 { // a stride that shares no factor with n visits every port once
			stride = (stride + 1) % n
		}
		for range n {
			if !yield(r.first + uint16(at)) {
				return
			}
			at = (at + stride) % n
		}
	}
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
