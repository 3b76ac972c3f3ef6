// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestConformance_Channels(t *testing.T) {
	run(t, []row{
		{"8656-12.2", "no allocation", func(c *client) string { return c.ask(methodChannelBind, channel(0x4000), peerAt(peer4)) }, "437"},
		{"8656-12.2", "another user", func(c *client) string {
			c.allocate()
			return c.as("bob", "builder").ask(methodChannelBind, channel(0x4000), peerAt(peer4))
		}, "441"},
		{"8656-12.2", "first number", after(methodChannelBind, channel(0x4000), peerAt(peer4)), "ok"},
		{"8656-12.2", "last number", after(methodChannelBind, channel(0x4FFF), peerAt(peer4)), "ok"},
		{"8656-12.2", "number below", after(methodChannelBind, channel(0x3FFF), peerAt(peer4)), "400"},
		{"8656-12.2", "number above", after(methodChannelBind, channel(0x5000), peerAt(peer4)), "400"},
		{"8656-12.2", "number 0x5001", after(methodChannelBind, channel(0x5001), peerAt(peer4)), "400"},
		{"8656-12.2", "no number", after(methodChannelBind, peerAt(peer4)), "400"},
		{"8656-12.2", "number of 2 bytes", after(methodChannelBind, flag(attrChannelNumber, 0x40, 0), peerAt(peer4)), "400"},
		{"8656-12.2", "no peer", after(methodChannelBind, channel(0x4000)), "400"},
		{"8656-12.2", "port 0", after(methodChannelBind, channel(0x4000), peerAt("198.51.100.77:0")), "400"},
		{"8656-12.2", "same pair again", func(c *client) string {
			c.allocate()
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			return c.ask(methodChannelBind, channel(0x4000), peerAt(peer4))
		}, "ok"},
		{"8656-12.2", "number of another peer", func(c *client) string {
			c.allocate()
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			return c.ask(methodChannelBind, channel(0x4000), peerAt("198.51.100.78:1"))
		}, "400"},
		{"8656-12.2", "peer of another number", func(c *client) string {
			c.allocate()
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			return c.ask(methodChannelBind, channel(0x4001), peerAt(peer4))
		}, "400"},
		{"8656-12.2", "other port of a peer", func(c *client) string {
			c.allocate()
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			return c.ask(methodChannelBind, channel(0x4001), peerAt("198.51.100.77:1"))
		}, "ok"},
		{"8656-12.2", "another family", after(methodChannelBind, channel(0x4000), peerAt(peer6)), "443"},
		{"8656-12.2", "forbidden peer", func(c *client) string {
			c.forbid("169.254.0.0/16")
			c.allocate()
			return c.ask(methodChannelBind, channel(0x4000), peerAt("169.254.169.254:80"))
		}, "403"},
		{"8656-12.2", "more than there is room for", func(c *client) string {
			c.allocate()
			for i := range uint16(4) {
				c.must(methodChannelBind, channel(0x4000+i), peerAt(fmt.Sprintf("198.51.100.77:%d", 1+i)))
			}
			return c.ask(methodChannelBind, channel(0x4004), peerAt(peer4))
		}, "508"},
		{"8656-12.2", "after the end of the last", func(c *client) string {
			c.allocate(udp(), lifetime(3600))
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			c.pass(10 * time.Minute)
			return c.ask(methodChannelBind, channel(0x4000), peerAt("198.51.100.78:1"))
		}, "ok"},
		{"8656-12.6", "data", func(c *client) string { c.bound(); return c.emit(channelData(0x4000, "hello")) }, `"hello" to ` + peer4},
		{"8656-12.6", "no data", func(c *client) string { c.bound(); return c.emit(channelData(0x4000, "")) }, `"" to ` + peer4},
		{"8656-12.6", "padded", func(c *client) string { c.bound(); return c.emit(append(channelData(0x4000, "hello"), 1, 2, 3)) }, `"hello" to ` + peer4},
		{"8656-12.6", "shorter than it says", func(c *client) string { c.bound(); return c.emit(channelData(0x4000, "hello")[:8]) }, "none"},
		{"8656-12.6", "another channel", func(c *client) string { c.bound(); return c.emit(channelData(0x4001, "hello")) }, "none"},
		{"8656-12.6", "channel 0x5000", func(c *client) string { c.bound(); return c.emit(channelData(0x5000, "hello")) }, "none"},
		{"8656-12.6", "after the end of the channel", func(c *client) string {
			c.bound()
			c.must(methodRefresh, lifetime(3600))
			c.now = c.now.Add(10 * time.Minute)
			return c.emit(channelData(0x4000, "hello"))
		}, "none"},
		{"8656-12.6", "after the end of the allocation", func(c *client) string {
			c.bound()
			c.pass(5 * time.Minute)
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			c.now = c.now.Add(5 * time.Minute) // without a timer
			return c.emit(channelData(0x4000, "hello")) + fmt.Sprint(c.receive(peer4, "x"))
		}, "none[]"},
		{"8656-12", "binding again renews the channel", func(c *client) string {
			c.bound()
			c.must(methodRefresh, lifetime(3600))
			c.pass(9 * time.Minute)
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			c.pass(9 * time.Minute)
			return c.emit(channelData(0x4000, "hello"))
		}, `"hello" to ` + peer4},
		{"8656-12.6", "data renews no channel", func(c *client) string {
			c.bound()
			c.must(methodRefresh, lifetime(3600))
			c.pass(9 * time.Minute)
			got := c.emit(channelData(0x4000, "hello"))
			c.now = c.now.Add(time.Minute)
			return got + "; " + c.emit(channelData(0x4000, "hello"))
		}, `"hello" to ` + peer4 + "; none"},
		{"8656-12.2", "binding again renews the permission", func(c *client) string {
			c.bound()
			c.pass(4 * time.Minute)
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			c.pass(4 * time.Minute)
			return fmt.Sprintf("%x", c.receive(peer4, "four"))
		}, "40000004666f7572"},
		{"8656-6", "data renews no allocation", func(c *client) string {
			c.bound()
			c.pass(10*time.Minute - 1)
			got := c.emit(channelData(0x4000, "hello"))
			c.pass(1)
			return got + "; " + c.ask(methodRefresh)
		}, `"hello" to ` + peer4 + "; 437"},
		{"8656-12.7", "from the peer", func(c *client) string { c.bound(); return fmt.Sprintf("%x", c.receive(peer4, "four")) }, "40000004666f7572"},
		{"8656-12.7", "from the peer without permission", func(c *client) string {
			c.bound()
			c.now = c.now.Add(5 * time.Minute) // the channel lasts for 10
			return fmt.Sprintf("%x", c.receive(peer4, "four"))
		}, ""},
		{"8656-12.5", "padding to streams", streams(func(c *client) string { c.bound(); return fmt.Sprintf("%x", c.receive(peer4, "hello")) }), "4000000568656c6c6f000000"},
		{"8656-12.5", "no padding to datagrams", datagrams(func(c *client) string { c.bound(); return fmt.Sprintf("%x", c.receive(peer4, "hello")) }), "4000000568656c6c6f"},
		{"8656-12.6", "65507 bytes to a peer", streams(func(c *client) string {
			c.bound()
			return fmt.Sprint(len(c.emit(channelData(0x4000, strings.Repeat("x", 65507)))), c.emit(channelData(0x4000, strings.Repeat("x", 65508))))
		}), fmt.Sprint(65507+len(`"" to `+peer4), "none")},
		{"8656-12.7", "65503 bytes to a client", datagrams(func(c *client) string {
			c.bound()
			return fmt.Sprint(len(c.receive(peer4, strings.Repeat("x", 65503))))
		}), "65507"},
		{"8656-12.7", "65507 bytes to a stream", streams(func(c *client) string {
			c.bound()
			return fmt.Sprint(len(c.receive(peer4, strings.Repeat("x", 65507))))
		}), "65512"},
	})
}

// bound makes an allocation with channel 0x4000 to peer4.
func (c *client) bound() {
	c.Helper()
	c.allocate()
	c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
}

// permitted makes an allocation with a permission for peer4.
func (c *client) permitted() {
	c.Helper()
	c.allocate()
	c.must(methodCreatePermission, peerAt(peer4))
}

func TestConformance_Indications(t *testing.T) {
	run(t, []row{
		{"8656-11.2", "plain", func(c *client) string { c.permitted(); return c.indication(peerAt(peer4), data("hello")) }, `"hello" to ` + peer4},
		{"8656-11.2", "no data in it", func(c *client) string { c.permitted(); return c.indication(peerAt(peer4), data("")) }, `"" to ` + peer4},
		{"8656-11.2", "other port of a permitted address", func(c *client) string {
			c.permitted()
			return c.indication(peerAt("198.51.100.77:9"), data("hello"))
		}, `"hello" to 198.51.100.77:9`},
		{"8656-11.2", "no permission", func(c *client) string { c.permitted(); return c.indication(peerAt("198.51.100.78:1"), data("x")) }, "none"},
		{"8656-11.2", "no DATA", func(c *client) string { c.permitted(); return c.indication(peerAt(peer4)) }, "none"},
		{"8656-11.2", "no peer", func(c *client) string { c.permitted(); return c.indication(data("x")) }, "none"},
		{"8656-11.2", "peer of 0 bytes", func(c *client) string { c.permitted(); return c.indication(data("x"), flag(attrXORPeerAddress)) }, "none"},
		{"8656-11.2", "unknown attribute", func(c *client) string { c.permitted(); return c.indication(peerAt(peer4), data("x"), flag(0x7000)) }, "none"},
		{"8656-11.2", "no allocation", func(c *client) string { return c.indication(peerAt(peer4), data("x")) }, "none"},
		{"8656-11.2", "DONT-FRAGMENT", func(c *client) string {
			c.permitted()
			return c.indication(peerAt(peer4), flag(attrDontFragment), data("x"))
		}, `"x" to ` + peer4 + " whole"},
		{"8656-11.2", "DONT-FRAGMENT that is not there", func(c *client) string {
			c.core.cfg.Offers.DontFragment = false
			c.permitted()
			return c.indication(peerAt(peer4), flag(attrDontFragment), data("x"))
		}, "none"},
		{"8656-9", "permission of 5 minutes", func(c *client) string {
			c.permitted()
			c.now = c.now.Add(5*time.Minute - 1)
			got := c.indication(peerAt(peer4), data("x"))
			c.now = c.now.Add(1)
			return got + "; " + c.indication(peerAt(peer4), data("x"))
		}, `"x" to ` + peer4 + "; none"},
		{"8656-9", "permission refreshed", func(c *client) string {
			c.permitted()
			c.pass(4 * time.Minute)
			c.must(methodCreatePermission, peerAt(peer4))
			c.pass(4 * time.Minute)
			return c.indication(peerAt(peer4), data("x"))
		}, `"x" to ` + peer4},
		{"8656-9", "data renews no permission", func(c *client) string {
			c.permitted()
			c.pass(5*time.Minute - 1)
			got := c.indication(peerAt(peer4), data("x")) + "; " + c.render(c.receive(peer4, "x"))
			c.pass(1)
			return got + "; " + c.indication(peerAt(peer4), data("x")) + fmt.Sprintf("; %x", c.receive(peer4, "x"))
		}, `"x" to ` + peer4 + "; data peer=" + peer4 + ` "x"; none; `},
		{"8656-9", "Refresh renews no permission", func(c *client) string {
			c.permitted()
			c.pass(4 * time.Minute)
			c.must(methodRefresh)
			c.pass(time.Minute)
			return c.indication(peerAt(peer4), data("x"))
		}, "none"},
		{"8656-9", "permission by channel", func(c *client) string { c.bound(); return c.indication(peerAt("198.51.100.77:9"), data("x")) }, `"x" to 198.51.100.77:9`},
		{"8656-11.3", "from a peer", func(c *client) string { c.permitted(); return c.render(c.receive(peer4, "hello")) }, "data peer=" + peer4 + ` "hello"`},
		{"8656-11.3", "from an IPv6 peer", func(c *client) string {
			c.allocate(udp(), family(IPv6))
			c.must(methodCreatePermission, peerAt(peer6))
			return c.render(c.receive(peer6, "hello"))
		}, "data peer=" + peer6 + ` "hello"`},
		{"8656-11.3", "from a peer that is IPv4-mapped", func(c *client) string {
			c.permitted()
			return c.render(c.receive("[::ffff:198.51.100.77]:7000", "hello"))
		}, "data peer=" + peer4 + ` "hello"`},
		{"8656-11.3", "from other addresses", func(c *client) string { c.permitted(); return fmt.Sprintf("%x", c.receive("198.51.100.78:7000", "x")) }, ""},
		{"8656-11.3", "from a peer after the end", func(c *client) string {
			c.permitted()
			c.must(methodCreatePermission, peerAt(peer4))
			c.now = c.now.Add(10 * time.Minute)
			return fmt.Sprintf("%x", c.receive(peer4, "x"))
		}, ""},
		{"8656-11.3", "more than fits a datagram", datagrams(func(c *client) string {
			c.permitted()
			return fmt.Sprint(len(c.receive(peer4, strings.Repeat("x", 65468))), len(c.receive(peer4, strings.Repeat("x", 65500))))
		}), "65504 0"},
		{"8656-11.5", "ICMP: too big", func(c *client) string { c.permitted(); return c.icmp(peer4, 3, 4) }, "data peer=" + peer4 + " icmp=0000060400000500"},
		{"8656-11.5", "ICMP: no port", func(c *client) string { c.permitted(); return c.icmp(peer4, 3, 3) }, "data peer=" + peer4 + " icmp=0000060300000000"},
		{"8656-11.5", "ICMP: redirect", func(c *client) string { c.permitted(); return c.icmp(peer4, 5, 0) }, "none"},
		{"8656-11.5", "ICMP without permission", func(c *client) string { c.permitted(); return c.icmp("198.51.100.78:1", 3, 3) }, "none"},
		{"8656-11.5", "ICMPv6: too big", func(c *client) string {
			c.allocate(udp(), family(IPv6))
			c.must(methodCreatePermission, peerAt(peer6))
			return c.icmp(peer6, 2, 0) + "; " + c.icmp(peer6, 128, 0)
		}, "data peer=" + peer6 + " icmp=0000040000000500; none"},
	})
}

// icmp has an ICMP error with an MTU of 1280 come for a packet to a peer.
func (c *client) icmp(to string, kind, code uint8) string {
	c.Helper()
	before := len(c.toClient)
	for id := range c.relays {
		c.core.PeerError(c.now, id, netip.MustParseAddrPort(to), kind, code, 1280, &c.out)
	}
	c.drive()
	if len(c.toClient) == before {
		return "none"
	}
	return c.said()
}

func TestConformance_Messages(t *testing.T) {
	binding := func(attrs ...attr) func(*client) string {
		return func(c *client) string { return c.exchange(c.unsigned(methodBinding, classRequest, attrs...)) }
	}
	run(t, []row{
		{"8489-12", "Binding", binding(), "ok mapped=client"},
		{"8489-6.3", "unknown attribute", binding(flag(0x7FFF, 1), flag(0x0025)), "420 unknown=7fff0025"},
		{"8489-6.3", "unknown attribute that may be", binding(flag(0xFFFF, 1)), "ok mapped=client"},
		{"8489-6.3", "unexpected attribute", binding(text(attrXORMappedAddress, "12345678")), "ok mapped=client"},
		{"8489-6.3", "unknown attribute with credentials", first(udp(), flag(0x7FFF, 1)), "420 unknown=7fff"},
		{"8489-6.3", "unknown attributes beyond count", func(c *client) string {
			attrs := []attr{udp()}
			for range 40 {
				attrs = append(attrs, flag(0x7FFF))
			}
			return fmt.Sprint(len(c.ask(methodAllocate, attrs...)))
		}, fmt.Sprint(len("420 unknown=") + 4*maxUnknown)},
		{"8489-6.3", "unknown method", func(c *client) string { return c.exchange(c.unsigned(0x0F0, classRequest)) }, "none"},
		{"8489-6.3", "response", func(c *client) string { return c.exchange(c.unsigned(methodBinding, classSuccess)) }, "none"},
		{"8489-6.3", "indication", func(c *client) string { return c.exchange(c.unsigned(methodBinding, classIndication)) }, "none"},
		{"8489-6.3", "Data indication", func(c *client) string { return c.exchange(c.unsigned(methodData, classIndication)) }, "none"},
		{"8489-7.3", "FINGERPRINT", func(c *client) string { return c.exchange(c.fingerprinted(0)) }, "ok mapped=client"},
		{"8489-7.3", "FINGERPRINT that is wrong", func(c *client) string { return c.exchange(c.fingerprinted(1)) }, "none"},
		{"8489-5", "other cookie", func(c *client) string { return c.exchange(c.changed(4, 0x22)) }, "none"},
		{"8489-5", "length that is not a multiple of 4", func(c *client) string { return c.exchange(c.changed(3, 1)) }, "none"},
		{"8489-5", "longer than its length", func(c *client) string { return c.exchange(append(c.changed(3, 0), 0, 0, 0, 0)) }, "none"},
		{"8489-14", "attribute beyond the end", func(c *client) string {
			b := c.unsigned(methodBinding, classRequest, flag(0xFFFF))
			b[len(b)-1] = 4
			return c.exchange(b)
		}, "none"},
		{"8489-14", "first of two counts", first(udp(), lifetime(800), lifetime(900)), "ok relayed=198.51.100.1:49152 lifetime=800 mapped=client"},
		{"8489-14.5", "behind MESSAGE-INTEGRITY nothing counts", func(c *client) string {
			c.allocate()
			b := c.signed(methodRefresh)
			b = append(b, 0, 0x0D, 0, 4, 0, 0, 0, 0, 0x7F, 0xFF, 0, 0) // LIFETIME 0 and an unknown attribute
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerLen))
			return c.exchange(b)
		}, "ok lifetime=600"},
		{"8489-14.5", "nor peers", func(c *client) string {
			c.allocate()
			b := c.signed(methodCreatePermission, peerAt(peer4))
			header := [headerLen]byte(b)
			b = append(b, 0, 0x12, 0, 8)
			b = appendXORAddress(b, netip.MustParseAddrPort("198.51.100.78:1"), header)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerLen))
			return c.exchange(b) + "; " + c.indication(peerAt("198.51.100.78:1"), data("x"))
		}, "ok; none"},
	})
}

// fingerprinted is a Binding request with FINGERPRINT off by delta.
func (c *client) fingerprinted(delta byte) []byte {
	var out Output
	b := c.write(&out, methodBinding, classRequest, nil).finish(signer{}, true)
	b[len(b)-1] += delta
	return b
}

// changed is a Binding request with one byte of another value.
func (c *client) changed(at int, value byte) []byte {
	b := c.unsigned(methodBinding, classRequest)
	b[at] = value
	return b
}
