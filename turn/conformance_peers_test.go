// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun"
)

// publicPeer6 is what publicPeer is to IPv6: allowed, and never sent to.
var publicPeer6 = netip.MustParseAddrPort("[2a00::1]:4000")

func peerOf(s string) stun.Setter { return peerAddress(netip.MustParseAddrPort(s)) }

// peerBytes is an XOR-PEER-ADDRESS of any bytes.
func peerBytes(v ...byte) stun.Setter { return rawAttr(stun.AttrXORPeerAddress, v) }

// permissionRows are about CreatePermission requests.
func permissionRows() []requirement {
	permit := func(attrs ...stun.Setter) func(*party) string { return held(stun.MethodCreatePermission, attrs...) }
	many := func(n byte) (list []stun.Setter) {
		for i := range n {
			list = append(list, peerAddress(netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, 1, i}), 1)))
		}
		return list
	}
	// nobody has permissions asked for, and then data sent to a peer that was among them.
	nobody := func(attrs ...stun.Setter) func(*party) string {
		return func(c *party) string {
			c.meet().hold()
			got := c.ask(stun.MethodCreatePermission, append([]stun.Setter{peerAddress(c.peerAt)}, attrs...)...)
			return both(got, c.silent(c.sendTo(c.peerAt, []byte("hello"))), c.peerGetsNothing())
		}
	}
	peer := peerAddress(publicPeer)
	return []requirement{
		{"8656-10.2", "one peer", "", "", permit(peer), "ok signed"},
		{"8656-10.2", "several peers", "", "", permit(peer, peerOf("11.0.0.2:1"), peer), "ok signed"},
		{"8656-10.2", "port 0, which says nothing", "", "", permit(peerOf("11.0.0.1:0")), "ok signed"},
		{"8656-10.2", "peers of two families", "", "", func(c *party) string {
			c.hold(bothFamilies)
			return c.ask(stun.MethodCreatePermission, peer, peerAddress(publicPeer6))
		}, "ok signed"},
		{"8656-10.2", "no peer", "", "", permit(), "400 signed"},
		{"8656-10.2", "peer of 0 bytes", "", "", permit(peerBytes()), "400 signed"},
		{"8656-10.2", "IPv4 peer of 20 bytes", "", "", permit(peerBytes(append([]byte{0, familyIPv4}, make([]byte, 18)...)...)), "400 signed"},
		{"8656-10.2", "IPv6 peer of 8 bytes", "", "", permit(peerBytes(0, familyIPv6, 0, 0, 0, 0, 0, 0)), "400 signed"},
		{"8656-10.2", "peer of family 3", "", "", permit(peerBytes(0, 3, 0, 0, 0, 0, 0, 0)), "400 signed"},
		{"8489-14.1", "first byte of an address, which says nothing", "", "", func(c *party) string {
			c.meet().hold()
			return c.ask(stun.MethodCreatePermission, setter(func(m *stun.Message) error {
				v := xored(publicPeer, m.TransactionID[:])
				v[0] = 0xff
				m.Add(stun.AttrXORPeerAddress, v)
				return nil
			}))
		}, "ok signed"},
		{"8656-10.2", "second peer that is none", "", "", nobody(peerBytes(0, familyIPv4, 0, 0)), "400 signed; none; nothing"},
		{"8656-10.2", "second peer that is forbidden", "", "", nobody(peerOf("10.0.0.1:1")), "403 signed; none; nothing"},
		{"8656-10.2", "second peer of another family", "", "", nobody(peerAddress(publicPeer6)), "443 signed; none; nothing"},
		{"8656-10.2", "more peers than there is room for", "", "", nobody(many(16)...), "508 signed; none; nothing"},
		{"8656-10.2", "as many peers as there is room for", "", "", permit(many(16)...), "ok signed"},
		{"8656-10.2", "peer of another family", "", "", permit(peerAddress(publicPeer6)), "443 signed"},
		{"8656-10.2", "IPv4 peer of a relay of IPv6", "", "", func(c *party) string {
			c.hold(familyOf6)
			return c.ask(stun.MethodCreatePermission, peer)
		}, "443 signed"},
		{"8656-10.2", "unknown attribute", "", "", permit(peer, rawAttr(0x7ffe, nil)), "420 unknown=7ffe signed"},
		{"8656-10.2", "attributes of other requests", "", "", permit(peer, lifetimeSeconds(0), channelNumber(0x5000)), "ok signed"},
	}
}

// policyRows are about peers that no server on the Internet should reach, each by
// permission and by channel. More spellings of them are in the tests of the policy.
func policyRows() []requirement {
	var rows []requirement
	for _, at := range []struct{ name, peer string }{
		{"loopback", "127.0.0.1:22"},
		{"no address", "0.0.0.0:22"},
		{"metadata of clouds", "169.254.169.254:80"},
		{"private network", "10.0.0.1:80"},
		{"carrier's network", "100.64.0.1:80"},
		{"multicast", "224.0.0.1:80"},
		{"broadcast", "255.255.255.255:80"},
		{"loopback of IPv6", "[::1]:22"},
		{"mapped loopback", "[::ffff:127.0.0.1]:22"},
		{"mapped public address", "[::ffff:11.0.0.1]:22"},
		{"loopback by NAT64", "[64:ff9b::127.0.0.1]:22"},
		{"loopback by 6to4", "[2002:7f00:1::]:22"},
		{"link-local of IPv6", "[fe80::1]:22"},
		{"unique local", "[fd00::1]:22"},
		{"multicast of IPv6", "[ff02::1]:22"},
	} {
		peer := netip.MustParseAddrPort(at.peer)
		ask := func(c *party) string {
			return both(c.ask(stun.MethodCreatePermission, peerAddress(peer)), c.ask(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(peer)))
		}
		rows = append(rows, requirement{"8656-10.2", "permission and channel for " + at.name, "", "", func(c *party) string {
			return ask(c.hold(bothFamilies))
		}, "403 signed; 403 signed"})
		if peer.Addr().Is6() {
			rows = append(rows, requirement{"8656-10.2", "permission and channel of a relay of IPv4 for " + at.name, "", "", func(c *party) string {
				return ask(c.hold())
			}, "443 signed; 443 signed"})
		}
	}
	return append(rows, requirement{"8656-21", "the server itself", "", "", func(c *party) string {
		c.hold(bothFamilies)
		at := peerAddress(netip.MustParseAddrPort(c.RemoteAddr().String()))
		return both(c.ask(stun.MethodCreatePermission, at), c.ask(stun.MethodChannelBind, channelNumber(0x4000), at))
	}, "403 signed; 403 signed"})
}

// channelRows are about ChannelBind requests.
func channelRows() []requirement {
	bind := func(attrs ...stun.Setter) func(*party) string { return held(stun.MethodChannelBind, attrs...) }
	// second binds one channel, and then another one.
	second := func(attrs ...stun.Setter) func(*party) string {
		return func(c *party) string {
			c.hold().must(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
			return c.ask(stun.MethodChannelBind, attrs...)
		}
	}
	number, peer, another := channelNumber(0x4000), peerAddress(publicPeer), peerOf("11.0.0.2:4000")
	return []requirement{
		{"8656-12.2", "first number", "", "", bind(number, peer), "ok signed"},
		{"8656-12.2", "last number", "", "", bind(channelNumber(0x4fff), peer), "ok signed"},
		{"8656-12.2", "number below", "", "", bind(channelNumber(0x3fff), peer), "400 signed"},
		{"8656-12.2", "number above", "", "", bind(channelNumber(0x5000), peer), "400 signed"},
		{"8656-12.2", "number of RFC 5766", "", "", bind(channelNumber(0x5001), peer), "400 signed"},
		{"8656-12.2", "last number of RFC 5766", "", "", bind(channelNumber(0x7fff), peer), "400 signed"},
		{"8656-18.1", "reserved bytes of CHANNEL-NUMBER", "", "",
			bind(rawAttr(stun.AttrChannelNumber, binary.BigEndian.AppendUint32(nil, 0x4000ffff)), peer), "ok signed"},
		{"8656-18.1", "CHANNEL-NUMBER of 2 bytes", "", "", bind(rawAttr(stun.AttrChannelNumber, []byte{0x40, 0}), peer), "400 signed"},
		{"8656-12.2", "no CHANNEL-NUMBER", "", "", bind(peer), "400 signed"},
		{"8656-12.2", "channel to no peer", "", "", bind(number), "400 signed"},
		{"8656-12.2", "channel to port 0", "", "", bind(number, peerOf("11.0.0.1:0")), "400 signed"},
		{"8656-12.2", "channel to two peers, the first of which counts", "", "", bind(number, peer, peerOf("10.0.0.2:1")), "ok signed"},
		{"8656-12.2", "channel to another family", "", "", bind(number, peerAddress(publicPeer6)), "443 signed"},
		{"8656-12.2", "channel to IPv6", "", "", func(c *party) string {
			c.hold(familyOf6)
			return c.ask(stun.MethodChannelBind, number, peerAddress(publicPeer6))
		}, "ok signed"},
		{"8656-12.2", "same pair again", "", "", second(number, peer), "ok signed"},
		{"8656-12.2", "number of another peer", "", "", second(number, another), "400 signed"},
		{"8656-12.2", "peer of another number", "", "", second(channelNumber(0x4001), peer), "400 signed"},
		{"8656-12.2", "another port of a peer", "", "", second(channelNumber(0x4001), peerOf("11.0.0.1:4001")), "ok signed"},
		{"8656-12", "number and peer of another allocation", "", "", func(c *party) string {
			c.hold().must(stun.MethodChannelBind, number, peer)
			return c.other().hold().ask(stun.MethodChannelBind, number, another)
		}, "ok signed"},
		{"8656-12.2", "more channels than there is room for", "", "", func(c *party) string {
			c.hold()
			for i := range uint16(16) {
				c.must(stun.MethodChannelBind, channelNumber(0x4000+i), peerAddress(netip.AddrPortFrom(publicPeer.Addr(), 1+i)))
			}
			return both(c.ask(stun.MethodChannelBind, channelNumber(0x4010), peer), c.ask(stun.MethodChannelBind, number, peerOf("11.0.0.1:1")))
		}, "508 signed; ok signed"},
		{"8656-12.2", "channel with an unknown attribute", "", "", bind(number, peer, rawAttr(0x7ffe, nil)), "420 unknown=7ffe signed"},
	}
}
