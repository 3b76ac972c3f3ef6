// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/pion/stun"
)

// Attributes of Allocate requests.
var (
	family4     = rawAttr(stun.AttrRequestedAddressFamily, []byte{familyIPv4, 0, 0, 0})
	evenPort    = rawAttr(stun.AttrEvenPort, []byte{0})
	reserve     = rawAttr(stun.AttrEvenPort, []byte{0x80})
	noFragments = rawAttr(stun.AttrDontFragment, nil)
)

func tokenOf(c *party) stun.Setter { return rawAttr(stun.AttrReservationToken, c.token) }

// parity says whether the ports of the relays are even or odd.
func (c *party) parity() string {
	var list []string
	for _, at := range c.relays {
		list = append(list, []string{"even", "odd"}[at.Port()%2])
	}
	return strings.Join(list, " ")
}

// allocateRows are about Allocate requests.
func allocateRows() []requirement {
	allocate := func(attrs ...stun.Setter) func(*party) string {
		return fresh(stun.MethodAllocate, append(attrs, transportUDP)...)
	}
	even := func(attrs ...stun.Setter) func(*party) string {
		return func(c *party) string {
			got := c.ask(stun.MethodAllocate, append(attrs, transportUDP)...)
			return both(got, c.parity())
		}
	}
	lasting := func(seconds uint32) string { return fmt.Sprintf("ok relayed4 lifetime=%d mapped signed", seconds) }
	transport := func(v ...byte) stun.Setter { return rawAttr(stun.AttrRequestedTransport, v) }
	return []requirement{
		{"8656-7.2", "plain", "", "", allocate(), made4},
		{"8656-7.2", "no REQUESTED-TRANSPORT", "", "", fresh(stun.MethodAllocate), "400 signed"},
		{"8656-7.2", "REQUESTED-TRANSPORT of 3 bytes", "", "", fresh(stun.MethodAllocate, transport(protocolUDP, 0, 0)), "400 signed"},
		{"8656-7.2", "REQUESTED-TRANSPORT of neither", "", "", fresh(stun.MethodAllocate, transport(33, 0, 0, 0)), "442 signed"},
		{"8656-18.8", "reserved bytes of REQUESTED-TRANSPORT", "", "", fresh(stun.MethodAllocate, transport(protocolUDP, 1, 2, 3)), made4},
		{"8656-7.2", "relay of TCP that nobody offers", "", atIPv4, fresh(stun.MethodAllocate, transportTCP), "442 signed"},
		{"8656-5", "repeated alike", "", "", func(c *party) string {
			b := c.sign(stun.MethodAllocate, reserve, transportUDP)
			first, was := c.exchange(b), c.last
			return both(first, c.exchange(b), keep("same", bytes.Equal(was, c.last)))
		}, "ok relayed4 lifetime=600 token mapped signed; ok relayed4 lifetime=600 token mapped signed; same"},
		{"8656-7.2", "again with another transaction", "", "", held(stun.MethodAllocate, transportUDP), "437 signed"},
		{"8656-7.2", "again after its end", "", "", func(c *party) string {
			c.hold().must(stun.MethodRefresh, lifetimeSeconds(0))
			return c.ask(stun.MethodAllocate, transportUDP)
		}, made4},
		{"8656-7.2", "lifetime of 0", "", "", allocate(lifetimeSeconds(0)), lasting(600)},
		{"8656-7.2", "lifetime below the default", "", "", allocate(lifetimeSeconds(599)), lasting(600)},
		{"8656-7.2", "lifetime between", "", "", allocate(lifetimeSeconds(700)), lasting(700)},
		{"8656-7.2", "lifetime of 7200 seconds", "", "", allocate(lifetimeSeconds(7200)), lasting(3600)},
		{"8656-7.2", "lifetime of 136 years", "", "", allocate(lifetimeSeconds(1<<32 - 1)), lasting(3600)},
		{"8656-18.2", "LIFETIME of 2 bytes", "", "", allocate(rawAttr(stun.AttrLifetime, []byte{2, 0})), "400 signed"},
		{"8656-7.2", "unknown attribute", "", "", allocate(rawAttr(0x7ffe, []byte{1})), "420 unknown=7ffe signed"},
		{"8656-7.2", "unknown attribute that may be", "", "", allocate(rawAttr(0xfffe, []byte{1})), made4},
		{"8656-7.2", "attributes of other requests", "", "", allocate(channelNumber(0x4000), peerAddress(publicPeer), rawAttr(stun.AttrData, []byte("x"))), made4},

		{"8656-7.2", "IPv4 by name", "", "", allocate(family4), made4},
		{"8656-7.2", "IPv6", "", "", allocate(familyOf6), made6},
		{"8656-18.6", "reserved bytes of a family", "", "", allocate(rawAttr(stun.AttrRequestedAddressFamily, []byte{familyIPv6, 1, 2, 3})), made6},
		{"8656-7.2", "family 3", "", "", allocate(rawAttr(stun.AttrRequestedAddressFamily, []byte{3, 0, 0, 0})), "440 signed"},
		{"8656-18.6", "family of 1 byte", "", "", allocate(rawAttr(stun.AttrRequestedAddressFamily, []byte{familyIPv4})), "400 signed"},
		{"8656-7.2", "IPv6 that is not there", "", atIPv4, allocate(familyOf6), "440 signed"},
		{"8656-7.2", "IPv4 that is not there", "", atIPv6, allocate(), "440 signed"},
		{"8656-7.2", "IPv4 by name that is not there", "", atIPv6, allocate(family4), "440 signed"},
		{"8656-7.2", "IPv6 alone", "", atIPv6, allocate(familyOf6), made6},
		{"8656-7.2", "both families", "", "", allocate(bothFamilies), madeBoth},
		{"8656-7.2", "both families with even ports", "", "", even(bothFamilies, evenPort), both(madeBoth, "even even")},
		{"8656-7.2", "both families of which IPv6 is not there", "", atIPv4, allocate(bothFamilies), "ok relayed4 lifetime=600 mapped refused6=440 signed"},
		{"8656-7.2", "both families of which IPv4 is not there", "", atIPv6, allocate(bothFamilies), "ok relayed6 lifetime=600 mapped refused4=440 signed"},
		{"8656-7.2", "ADDITIONAL-ADDRESS-FAMILY of IPv4", "", "", allocate(rawAttr(stun.AttrType(attrAdditionalFamily), []byte{familyIPv4, 0, 0, 0})), "400 signed"},
		{"8656-7.2", "ADDITIONAL- and REQUESTED-ADDRESS-FAMILY", "", "", allocate(bothFamilies, family4), "400 signed"},
		{"8656-7.2", "ADDITIONAL-ADDRESS-FAMILY and a reservation", "", "", allocate(bothFamilies, reserve), "400 signed"},

		{"8656-7.2", "DONT-FRAGMENT", "", "", allocate(noFragments), made4},
		{"8656-18.9", "DONT-FRAGMENT of 4 bytes", "", "", allocate(rawAttr(stun.AttrDontFragment, make([]byte, 4))), "400 signed"},
		{"8656-7.2", "EVEN-PORT", "", "", even(evenPort), both(made4, "even")},
		{"8656-18.7", "reserved bits of EVEN-PORT", "", "", even(rawAttr(stun.AttrEvenPort, []byte{0x7f})), both(made4, "even")},
		{"8656-18.7", "EVEN-PORT of 2 bytes", "", "", allocate(rawAttr(stun.AttrEvenPort, []byte{0, 0})), "400 signed"},
		{"8656-7.2", "EVEN-PORT with a reservation", "", "", even(reserve), "ok relayed4 lifetime=600 token mapped signed; even"},
		{"8656-7.2", "EVEN-PORT of IPv6 with a reservation", "", "", even(reserve, familyOf6), "ok relayed6 lifetime=600 token mapped signed; even"},

		{"8656-7.2", "quota of the user", "", atFew, func(c *party) string {
			c.hold()
			got := c.other().ask(stun.MethodAllocate, transportUDP)
			c.must(stun.MethodRefresh, lifetimeSeconds(0))
			return both(got, c.other().once())
		}, both("486 signed", made4)},
		{"8656-7.2", "quota counts a reservation", "", atFew, fresh(stun.MethodAllocate, reserve, transportUDP), "486 signed"},
		{"8656-7.2", "quota of all", "", atFew, func(c *party) string {
			second, third := c.stranger(), c.other().become("third-"+c.user)
			c.hold()
			second.hold()
			got := third.ask(stun.MethodAllocate, transportUDP)
			second.must(stun.MethodRefresh, lifetimeSeconds(0))
			c.must(stun.MethodRefresh, lifetimeSeconds(0))
			return both(got, third.once())
		}, both("508 signed", made4)},
	}
}

// once makes an allocation and ends it.
func (c *party) once() string {
	c.Helper()
	got := c.ask(stun.MethodAllocate, transportUDP)
	c.must(stun.MethodRefresh, lifetimeSeconds(0))
	return got
}

// reservationRows are about the port beside an even one.
func reservationRows() []requirement {
	// claim has one client reserve a port and another one ask for it.
	claim := func(by func(*party) *party, attrs ...stun.Setter) func(*party) string {
		return func(c *party) string {
			c.hold(reserve)
			other := by(c)
			got := other.ask(stun.MethodAllocate, append(attrs, tokenOf(c), transportUDP)...)
			if len(other.relays) == 1 && (other.relays[0].Addr() != c.relays[0].Addr() || other.relays[0].Port() != c.relays[0].Port()+1) {
				got += fmt.Sprintf(" at %v beside %v", other.relays[0], c.relays[0])
			}
			return got
		}
	}
	over := func(way string) func(*party) *party {
		return func(c *party) *party { return c.server.party(c.TB, way, c.user) }
	}
	bogus := func(attrs ...stun.Setter) func(*party) string {
		return fresh(stun.MethodAllocate, append(attrs, rawAttr(stun.AttrReservationToken, []byte("12345678")), transportUDP)...)
	}
	return []requirement{
		{"8656-7.2", "RESERVATION-TOKEN", "", "", claim((*party).other), made4},
		{"8656-7.2", "RESERVATION-TOKEN over UDP", "", "", claim(over("udp4")), made4},
		{"8656-7.2", "RESERVATION-TOKEN over UDP and IPv6", "", "", claim(over("udp6")), made4},
		{"8656-7.2", "RESERVATION-TOKEN over TCP", "", "", claim(over("tcp4")), made4},
		{"8656-7.2", "RESERVATION-TOKEN over TLS", "", "", claim(over("tls6")), made4},
		{"8656-7.2", "RESERVATION-TOKEN with DONT-FRAGMENT and a lifetime", "", "", claim((*party).other, noFragments, lifetimeSeconds(900)),
			"ok relayed4 lifetime=900 mapped signed"},
		{"8656-7.2", "RESERVATION-TOKEN of another user", "", "", claim((*party).stranger), "508 signed"},
		{"8656-7.2", "RESERVATION-TOKEN twice", "", "", func(c *party) string {
			c.hold(reserve)
			first := c.other().ask(stun.MethodAllocate, tokenOf(c), transportUDP)
			return both(first, c.other().ask(stun.MethodAllocate, tokenOf(c), transportUDP))
		}, both(made4, "508 signed")},
		{"8656-7.2", "RESERVATION-TOKEN after the end of who reserved", "", "", func(c *party) string {
			c.hold(reserve)
			other, relays := c.other(), slices.Clone(c.relays)
			c.must(stun.MethodRefresh, lifetimeSeconds(0))
			got := other.ask(stun.MethodAllocate, tokenOf(c), transportUDP)
			return both(got, keep("beside", len(other.relays) == 1 && other.relays[0].Port() == relays[0].Port()+1))
		}, both(made4, "beside")},
		{"8656-7.2", "RESERVATION-TOKEN that is none", "", "", bogus(), "508 signed"},
		{"8656-18.10", "RESERVATION-TOKEN of 7 bytes", "", "", fresh(stun.MethodAllocate, rawAttr(stun.AttrReservationToken, make([]byte, 7)), transportUDP), "400 signed"},
		{"8656-7.2", "RESERVATION-TOKEN and EVEN-PORT", "", "", bogus(evenPort), "400 signed"},
		{"8656-7.2", "RESERVATION-TOKEN and REQUESTED-ADDRESS-FAMILY", "", "", bogus(family4), "400 signed"},
		{"8656-7.2", "RESERVATION-TOKEN and ADDITIONAL-ADDRESS-FAMILY", "", "", bogus(bothFamilies), "400 signed"},
	}
}

// refreshRows are about Refresh requests.
func refreshRows() []requirement {
	ends := lifetimeSeconds(0)
	peer6 := peerAddress(publicPeer6)
	return []requirement{
		{"8656-8.2", "to end what is not there", "", "", fresh(stun.MethodRefresh, ends), "437 signed"},
		{"8656-8.2", "plain", "", "", held(stun.MethodRefresh), "ok lifetime=600 signed"},
		{"8656-8.2", "1 second", "", "", held(stun.MethodRefresh, lifetimeSeconds(1)), "ok lifetime=600 signed"},
		{"8656-8.2", "1200 seconds", "", "", held(stun.MethodRefresh, lifetimeSeconds(1200)), "ok lifetime=1200 signed"},
		{"8656-8.2", "7200 seconds", "", "", held(stun.MethodRefresh, lifetimeSeconds(7200)), "ok lifetime=3600 signed"},
		{"8656-18.2", "LIFETIME of 8 bytes", "", "", held(stun.MethodRefresh, rawAttr(stun.AttrLifetime, make([]byte, 8))), "400 signed"},
		{"8656-8.2", "unknown attribute", "", "", held(stun.MethodRefresh, ends, rawAttr(0x7ffe, nil)), "420 unknown=7ffe signed"},
		{"8656-8.2", "to end it", "", "", func(c *party) string {
			c.hold()
			return both(c.ask(stun.MethodRefresh, ends), c.ask(stun.MethodRefresh), c.ask(stun.MethodRefresh, ends))
		}, "ok lifetime=0 signed; 437 signed; 437 signed"},
		{"8656-8.2", "its family", "", "", held(stun.MethodRefresh, family4), "ok lifetime=600 signed"},
		{"8656-8.2", "another family", "", "", held(stun.MethodRefresh, familyOf6), "443 signed"},
		{"8656-8.2", "to end another family", "", "", func(c *party) string {
			c.hold()
			return both(c.ask(stun.MethodRefresh, ends, familyOf6), c.ask(stun.MethodRefresh))
		}, "443 signed; ok lifetime=600 signed"},
		{"8656-8.2", "one family of two to an end", "", "", func(c *party) string {
			c.hold(bothFamilies)
			return both(c.ask(stun.MethodRefresh, ends, family4), c.ask(stun.MethodCreatePermission, peerAddress(publicPeer)),
				c.ask(stun.MethodCreatePermission, peer6), c.ask(stun.MethodRefresh, ends, familyOf6), c.ask(stun.MethodRefresh))
		}, "ok lifetime=0 signed; 443 signed; ok signed; ok lifetime=0 signed; 437 signed"},
		{"8656-8.2", "both families to an end", "", "", func(c *party) string {
			c.hold(bothFamilies)
			return both(c.ask(stun.MethodRefresh, ends), c.ask(stun.MethodRefresh))
		}, "ok lifetime=0 signed; 437 signed"},
		{"8656-9", "an allocation has no permissions of the last one", "", "", func(c *party) string {
			c.permitted().must(stun.MethodRefresh, ends)
			c.must(stun.MethodAllocate, transportUDP)
			return both(c.silent(c.sendTo(c.peerAt, []byte("hello"))), c.peerGetsNothing())
		}, "none; nothing"},
		{"8656-12", "an allocation has no channels of the last one", "", "", func(c *party) string {
			c.bound().must(stun.MethodRefresh, ends)
			c.must(stun.MethodAllocate, transportUDP)
			return both(c.silent(channelOf("hello")), c.peerGetsNothing())
		}, "none; nothing"},
	}
}
