// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/pion/stun"
)

// channelOf is ChannelData on channel 0x4000, padded.
func channelOf(data string) []byte { return channelData(0x4000, data) }

func channelData(channel uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, channel), uint16(len(data)))
	b = append(b, data...)
	return append(b, make([]byte, padded(len(data))-len(data))...)
}

// sends sends what is not answered, and tells what the peer gets, or that it gets nothing.
func (c *party) sends(packets ...[]byte) string {
	c.Helper()
	return both(c.silent(packets...), c.peerGets())
}

func (c *party) sendsInVain(packets ...[]byte) string {
	c.Helper()
	return both(c.silent(packets...), c.peerGetsNothing())
}

// meetAt goes on with another peer.
func (c *party) meetAt(host netip.Addr) *party {
	c.Helper()
	c.peer, c.peerAt = listenAt(c.TB, netip.AddrPortFrom(host, 0).String())
	return c
}

// sendRows are about Send indications.
func sendRows() []requirement {
	const arrived, lost = `none; "hello" from the relay`, "none; nothing"
	hello := rawAttr(stun.AttrData, []byte("hello"))
	// send has a client with a permission for its peer send an indication.
	send := func(attrs func(c *party) []stun.Setter, way func(*party, ...[]byte) string) func(*party) string {
		return func(c *party) string {
			c.permitted()
			return way(c, c.message(stun.MethodSend, stun.ClassIndication, attrs(c)...))
		}
	}
	with := func(attrs ...stun.Setter) func(c *party) []stun.Setter {
		return func(c *party) []stun.Setter { return append(slices.Clone(attrs), peerAddress(c.peerAt)) }
	}
	alone := func(attrs ...stun.Setter) func(c *party) []stun.Setter {
		return func(*party) []stun.Setter { return attrs }
	}
	return []requirement{
		{"8656-11.2", "plain", "", "", send(with(hello), (*party).sends), arrived},
		{"8656-11.2", "no bytes", "", "", send(with(rawAttr(stun.AttrData, nil)), (*party).sends), `none; "" from the relay`},
		{"8656-11.2", "9000 bytes", "", "", send(with(rawAttr(stun.AttrData, make([]byte, 9000))), (*party).sends), "none; 9000 bytes from the relay"},
		{"8656-11.2", "65400 bytes", "", "", send(with(rawAttr(stun.AttrData, make([]byte, 65400))), (*party).sends), "none; 65400 bytes from the relay"},
		{"8656-11.2", "DONT-FRAGMENT", "", "", send(with(hello, noFragments), (*party).sends), arrived},
		{"8656-11.2", "unknown attribute that may be", "", "", send(with(hello, rawAttr(0xfffe, nil)), (*party).sends), arrived},
		{"8656-11.2", "first of two peers", "", "", send(func(c *party) []stun.Setter {
			return []stun.Setter{peerAddress(c.peerAt), peerAddress(netip.AddrPortFrom(secondHost, 9)), hello}
		}, (*party).sends), arrived},
		{"8656-9", "other port of the peer's address", "", "", func(c *party) string {
			c.permitted().meet()
			return c.sends(c.sendTo(c.peerAt, []byte("hello")))
		}, arrived},
		{"8656-12.2", "channel is a permission", "", "", func(c *party) string {
			c.bound().meet()
			return c.sends(c.sendTo(c.peerAt, []byte("hello")))
		}, arrived},
		{"8656-11.2", "no permission", "", "", func(c *party) string {
			c.permitted().meetAt(secondHost)
			return c.sendsInVain(c.sendTo(c.peerAt, []byte("hello")))
		}, lost},
		{"8656-9", "permission of another allocation", "", "", func(c *party) string {
			c.permitted()
			other := c.other().hold()
			return both(other.silent(other.sendTo(c.peerAt, []byte("hello"))), c.peerGetsNothing())
		}, lost},
		{"8656-11.2", "unknown attribute", "", "", send(with(hello, rawAttr(0x7ffe, nil)), (*party).sendsInVain), lost},
		{"8656-11.2", "no DATA", "", "", send(with(), (*party).sendsInVain), lost},
		{"8656-11.2", "no peer", "", "", send(alone(hello), (*party).sendsInVain), lost},
		{"8656-11.2", "peer of 0 bytes", "", "", send(alone(hello, peerBytes()), (*party).sendsInVain), lost},
		{"8656-11.2", "peer of another family", "", "", send(alone(hello, peerAddress(publicPeer6)), (*party).sendsInVain), lost},
		{"8656-11.2", "port 0", "", "", send(func(c *party) []stun.Setter {
			return []stun.Setter{hello, peerAddress(netip.AddrPortFrom(peerHost, 0))}
		}, (*party).sendsInVain), lost},
	}
}

// dataRows are about what peers send.
func dataRows() []requirement {
	// gets has a peer send datagrams, and renders what comes of them.
	gets := func(begin func(*party) *party, sizes ...int) func(*party) string {
		return func(c *party) string {
			begin(c)
			var list []string
			for _, n := range sizes {
				c.fromPeer(bytes.Repeat([]byte("x"), n))
				list = append(list, c.next())
			}
			return both(list...)
		}
	}
	// only has somebody else send, then the peer, of whom alone the client hears.
	only := func(begin func(*party) *party) func(*party) string {
		return func(c *party) string {
			begin(c)
			stranger, _ := listenAt(c.TB, netip.AddrPortFrom(secondHost, 0).String())
			if _, err := stranger.WriteToUDPAddrPort([]byte("stranger"), c.relays[0]); err != nil {
				c.Fatal(err)
			}
			c.fromPeer([]byte("peer"))
			return c.next()
		}
	}
	return []requirement{
		{"8656-11.3", "datagrams of 0 to 5 bytes", "", "", gets((*party).permitted, 0, 1, 2, 3, 4, 5),
			`data peer ""; data peer "x"; data peer "xx"; data peer "xxx"; data peer "xxxx"; data peer "xxxxx"`},
		{"8656-11.3", "large datagrams", "", "", gets((*party).permitted, 1600, 9000, 65400), "data peer 1600 bytes; data peer 9000 bytes; data peer 65400 bytes"},
		{"8656-12.7", "datagrams of 0 to 5 bytes to a channel", "", "", gets((*party).bound, 0, 1, 2, 3, 4, 5),
			`channel 4000 ""; channel 4000 "x"; channel 4000 "xx"; channel 4000 "xxx"; channel 4000 "xxxx"; channel 4000 "xxxxx"`},
		{"8656-12.7", "large datagrams to a channel", "", "", gets((*party).bound, 1600, 9000, 65503),
			"channel 4000 1600 bytes; channel 4000 9000 bytes; channel 4000 65503 bytes"},
		{"8656-12.7", "largest datagram to a channel", "stream", "", gets((*party).bound, 65507), "channel 4000 65507 bytes"},
		{"8656-12.7", "largest datagram to a channel", "udp6", "", gets((*party).bound, 65507), "channel 4000 65507 bytes"},
		{"8656-12.7", "datagram that does not fit with its header", "udp4", "", func(c *party) string {
			c.bound().fromPeer(make([]byte, 65507))
			c.fromPeer([]byte("next"))
			return c.next()
		}, `channel 4000 "next"`},
		{"8656-9", "stranger without permission", "", "", only((*party).permitted), `data peer "peer"`},
		{"8656-9", "stranger beside a channel", "", "", only((*party).bound), `channel 4000 "peer"`},
		{"8656-9", "other port of a permitted address", "", "", func(c *party) string {
			c.permitted().meet().fromPeer([]byte("hello"))
			return c.next()
		}, `data peer "hello"`},
		{"8656-11.3", "other port of an address with a channel", "", "", func(c *party) string {
			c.bound().meet().fromPeer([]byte("hello"))
			return c.next()
		}, `data peer "hello"`},
		{"8656-12.5", "channel, once there is one", "", "", func(c *party) string {
			c.permitted().fromPeer([]byte("hello"))
			first := c.next()
			c.must(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(c.peerAt))
			c.fromPeer([]byte("hello"))
			return both(first, c.next())
		}, `data peer "hello"; channel 4000 "hello"`},
		{"8656-11.5", "ICMP", "native", "", func(c *party) string {
			c.permitted().peer.Close()
			_, _ = c.Write(c.sendTo(c.peerAt, []byte("hello")))
			return c.next()
		}, "data peer icmp=0000060300000000"},
		{"8656-13", "relays of IPv6 meet", "", "", func(c *party) string { return meeting(c, familyOf6) },
			`none; data peer "there"; channel 4000 "back"`},
		{"8656-11.3", "relays of IPv4 meet", "", "", func(c *party) string { return meeting(c, family4) },
			`none; data peer "there"; channel 4000 "back"`},
	}
}

// meeting has the relays of two clients exchange data.
func meeting(c *party, family stun.Setter) string {
	c.Helper()
	c.hold(family)
	other := c.stranger().hold(family)
	c.peerAt, other.peerAt = other.relays[0], c.relays[0]
	c.must(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(c.peerAt))
	other.must(stun.MethodCreatePermission, peerAddress(other.peerAt))
	there := both(c.silent(channelOf("there")), other.next())
	_, _ = other.Write(other.sendTo(other.peerAt, []byte("back")))
	return both(there, c.next())
}

// frameRows are about ChannelData of clients.
func frameRows() []requirement {
	const arrived, lost = `none; "hello" from the relay`, "none; nothing"
	sends := func(frame []byte) func(*party) string {
		return func(c *party) string { return c.bound().sends(frame) }
	}
	vain := func(frame []byte) func(*party) string {
		return func(c *party) string { return c.bound().sendsInVain(frame) }
	}
	large := func(n int) []byte { return channelOf(string(make([]byte, n))) }
	var small [][]byte
	for _, s := range []string{"", "x", "xx", "xxx", "xxxx", "xxxxx"} {
		small = append(small, channelOf(s))
	}
	const smallOnes = `none; "" "x" "xx" "xxx" "xxxx" "xxxxx"`
	// frames has a client send frames in pieces of some size.
	frames := func(size int) func(*party) string {
		return func(c *party) string {
			c.bound()
			all := slices.Concat(small...)
			got := c.silent(slices.Collect(slices.Chunk(all, min(size, len(all))))...) + ";"
			for range small {
				got += " " + c.peerGetsData()
			}
			return got
		}
	}
	return []requirement{
		{"8656-12.6", "padded", "", "", sends(channelOf("hello")), arrived},
		{"8656-12.5", "not padded", "udp", "", sends(channelOf("hello")[:9]), arrived},
		{"8656-12.6", "no data in a channel", "", "", sends(channelOf("")), `none; "" from the relay`},
		{"8656-12.6", "Send at a peer with a channel", "", "", func(c *party) string {
			c.bound()
			return c.sends(c.sendTo(c.peerAt, []byte("hello")))
		}, arrived},
		{"8656-12.6", "shorter than it says", "udp", "", vain(channelOf("hello")[:8]), lost},
		{"8656-12.6", "channel that is not bound", "", "", vain(channelData(0x4001, "hello")), lost},
		{"8656-12.6", "channel of RFC 5766", "udp", "", vain(channelData(0x5000, "hello")), lost},
		// Where the next message of a stream begins nobody knows.
		{"8656-12.6", "channel of RFC 5766", "stream", "", vain(channelData(0x5000, "hello")), "closed; nothing"},
		{"8656-12", "first byte of something else", "udp", "", vain([]byte("\x80 what RTP begins with")), lost},
		{"8656-12", "first byte of something else", "stream", "", vain([]byte("\x80 what RTP begins with")), "closed; nothing"},
		{"8656-12", "channel of another allocation", "", "", func(c *party) string {
			c.bound()
			return both(c.other().hold().silent(channelOf("hello")), c.peerGetsNothing())
		}, lost},
		{"8656-5", "ChannelData without an allocation", "udp", "", func(c *party) string { return c.silent(channelOf("hello")) }, "none"},
		// HTTP begins like it.
		{"8656-5", "ChannelData without an allocation", "stream", "", func(c *party) string { return c.silent(channelOf("hello")) }, "closed"},
		{"8656-5", "ChannelData after the end of an allocation", "", "", func(c *party) string {
			c.bound().must(stun.MethodRefresh, lifetimeSeconds(0))
			return c.sendsInVain(channelOf("hello"))
		}, lost},
		{"8656-12.6", "1600 bytes", "", "", sends(large(1600)), "none; 1600 bytes from the relay"},
		{"8656-12.6", "9000 bytes", "", "", sends(large(9000)), "none; 9000 bytes from the relay"},
		{"8656-12.6", "65500 bytes", "", "", sends(large(65500)), "none; 65500 bytes from the relay"},
		{"8656-12.6", "65503 bytes", "udp", "", sends(large(65503)[:65507]), "none; 65503 bytes from the relay"},
		{"8656-12.6", "65507 bytes", "stream", "", sends(large(65507)), "none; 65507 bytes from the relay"},
		{"8656-12.6", "65535 bytes, which fit no datagram, then a few", "stream", "", func(c *party) string {
			return c.bound().sends(large(65535), channelOf("hello"))
		}, arrived},
		{"8656-12.5", "small frames one by one", "", "", func(c *party) string {
			got := c.bound().silent(small...) + ";"
			for range small {
				got += " " + c.peerGetsData()
			}
			return got
		}, smallOnes},
		{"8656-12.5", "small frames in one piece", "stream", "", frames(1 << 10), smallOnes},
		{"8656-12.5", "small frames in sevens", "stream", "", frames(7), smallOnes},
		{"8656-12.5", "small frames byte by byte", "stream", "", frames(1), smallOnes},
		{"8656-12.5", "smallest frame with nothing behind it", "stream", "", func(c *party) string {
			_, _ = c.bound().Write(channelOf(""))
			return c.peerGets()
		}, `"" from the relay`},
	}
}

// peerGetsData is peerGets without the source.
func (c *party) peerGetsData() string {
	c.Helper()
	s := c.peerGets()
	for _, tail := range []string{" from the relay", " from elsewhere"} {
		if len(s) > len(tail) && s[len(s)-len(tail):] == tail {
			return s[:len(s)-len(tail)]
		}
	}
	return s
}
