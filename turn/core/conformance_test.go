// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const (
	peer4 = "198.51.100.77:7000"
	peer6 = "[2001:db8:77::7]:7000"
)

// row is one requirement: what a client does, and the answer that it must get.
type row struct {
	section string // of the RFC
	name    string
	do      func(*client) string
	want    string
}

// datagrams and streams keep a row to one kind of clients.
func datagrams(do func(*client) string) func(*client) string {
	return func(c *client) string {
		if c.flow.Conn != 0 {
			return "not for streams"
		}
		return do(c)
	}
}

func streams(do func(*client) string) func(*client) string {
	return func(c *client) string {
		if c.flow.Conn == 0 {
			return "not for datagrams"
		}
		return do(c)
	}
}

// after asks one thing of a client with an allocation, first one without.
func after(m method, attrs ...attr) func(*client) string {
	return func(c *client) string { c.allocate(); return c.ask(m, attrs...) }
}

func first(attrs ...attr) func(*client) string {
	return func(c *client) string { return c.ask(methodAllocate, attrs...) }
}

// run runs rows for clients on datagrams and streams, over IPv4 and IPv6.
func run(t *testing.T, rows []row) {
	t.Helper()
	for _, r := range rows {
		for listener, name := range []string{"udp4", "tcp4", "udp6", "tcp6"} {
			t.Run(fmt.Sprintf("%s/%s/%s", r.section, r.name, name), func(t *testing.T) {
				c := newWorld(t).client(uint16(listener), 1)
				got := r.do(c)
				if !strings.HasPrefix(got, "not for ") && got != r.want {
					t.Errorf("got  %s\nwant %s", got, r.want)
				}
			})
		}
	}
}

func TestConformance_Allocate(t *testing.T) {
	const made = "ok relayed=198.51.100.1:49152 lifetime=600 mapped=client"
	run(t, []row{
		{"8656-7.2", "no credentials", func(c *client) string {
			return c.exchange(c.unsigned(methodAllocate, classRequest, udp(), text(0x8022, "tests.")))
		}, "401 nonce algorithms"},
		{"8656-7.2", "plain", first(udp()), made},
		{"8656-7.2", "no REQUESTED-TRANSPORT", first(), "400"},
		{"8656-7.2", "REQUESTED-TRANSPORT 0", first(word(attrRequestedTransport, 0)), "442"},
		{"8656-7.2", "REQUESTED-TRANSPORT of 3 bytes", first(flag(attrRequestedTransport, 17, 0, 0)), "400"},
		{"8656-7.2", "repeated alike", func(c *client) string {
			b := c.signed(methodAllocate, udp())
			return c.exchange(b) + "; " + c.exchange(b)
		}, made + "; " + made},
		{"8656-7.2", "again with another transaction", func(c *client) string { c.allocate(); return c.ask(methodAllocate, udp()) }, "437"},
		{"8656-7.2", "again by another user", func(c *client) string {
			c.allocate()
			return c.as("bob", "builder").ask(methodAllocate, udp())
		}, "437"},
		{"8656-7.2", "after the end of the last", func(c *client) string {
			c.allocate()
			c.now = c.now.Add(601 * time.Second) // without a timer
			return c.ask(methodAllocate, udp())
		}, "ok relayed=198.51.100.1:49153 lifetime=600 mapped=client"},
		{"8656-7.2", "lifetime below the default", first(udp(), lifetime(30)), made},
		{"8656-7.2", "lifetime above the limit", first(udp(), lifetime(1<<32-1)), "ok relayed=198.51.100.1:49152 lifetime=3600 mapped=client"},
		{"8656-7.2", "lifetime between", first(udp(), lifetime(700)), "ok relayed=198.51.100.1:49152 lifetime=700 mapped=client"},
		{"8656-7.2", "lifetime ends with the credential", func(c *client) string {
			return c.as("ending", "x").ask(methodAllocate, udp(), lifetime(3600))
		}, "ok relayed=198.51.100.1:49152 lifetime=2400 mapped=client"},
		{"8656-7.2", "IPv4 by name", first(udp(), family(IPv4)), made},
		{"8656-7.2", "IPv6", first(udp(), family(IPv6)), "ok relayed=[2001:db8:1::1]:49152 lifetime=600 mapped=client"},
		{"8656-7.2", "family 3", first(udp(), family(3)), "440"},
		{"8656-7.2", "IPv6 that is not there", func(c *client) string {
			c.core.cfg.Offers.IPv6 = false
			return c.ask(methodAllocate, udp(), family(IPv6))
		}, "440"},
		{"8656-7.2", "both families", first(udp(), additional(IPv6)),
			"ok relayed=198.51.100.1:49152 relayed=[2001:db8:1::1]:49153 lifetime=600 mapped=client"},
		{"8656-7.2", "both families, one there", func(c *client) string {
			c.core.cfg.Offers.IPv6 = false
			return c.ask(methodAllocate, udp(), additional(IPv6))
		}, made + " refused=2:440"},
		{"8656-7.2", "both families, one fails", func(c *client) string {
			c.refuse[IPv4] = true
			return c.ask(methodAllocate, udp(), additional(IPv6))
		}, "ok relayed=[2001:db8:1::1]:49152 lifetime=600 mapped=client refused=1:508"},
		{"8656-7.2", "both families, both fail", func(c *client) string {
			c.refuse[IPv4], c.refuse[IPv6] = true, true
			return c.ask(methodAllocate, udp(), additional(IPv6))
		}, "508"},
		{"8656-7.2", "ADDITIONAL-ADDRESS-FAMILY of IPv4", first(udp(), additional(IPv4)), "400"},
		{"8656-7.2", "ADDITIONAL- and REQUESTED-ADDRESS-FAMILY", first(udp(), additional(IPv6), family(IPv4)), "400"},
		{"8656-7.2", "ADDITIONAL-ADDRESS-FAMILY and a reservation", first(udp(), additional(IPv6), flag(attrEvenPort, 0x80)), "400"},
		{"8656-7.2", "DONT-FRAGMENT", first(udp(), flag(attrDontFragment)), made},
		{"8656-7.2", "DONT-FRAGMENT that is not there", func(c *client) string {
			c.core.cfg.Offers.DontFragment = false
			return c.ask(methodAllocate, udp(), flag(attrDontFragment))
		}, "420 unknown=001a"},
		{"8656-7.2", "EVEN-PORT", func(c *client) string { c.port++; return c.ask(methodAllocate, udp(), flag(attrEvenPort, 0)) },
			"ok relayed=198.51.100.1:49154 lifetime=600 mapped=client"},
		{"8656-7.2", "EVEN-PORT of 2 bytes", first(udp(), flag(attrEvenPort, 0, 0)), "400"},
		{"8656-7.2", "EVEN-PORT with a reservation", first(udp(), flag(attrEvenPort, 0x80)),
			"ok relayed=198.51.100.1:49152 lifetime=600 token mapped=client"},
		{"8656-7.2", "RESERVATION-TOKEN", func(c *client) string {
			c.allocate(udp(), flag(attrEvenPort, 0x80))
			return c.client(c.flow.Listener, 2).ask(methodAllocate, udp(), c.token())
		}, "ok relayed=198.51.100.1:49153 lifetime=600 mapped=client"},
		{"8656-7.2", "RESERVATION-TOKEN twice", func(c *client) string {
			c.allocate(udp(), flag(attrEvenPort, 0x80))
			token := c.token()
			c.client(c.flow.Listener, 2).allocate(udp(), token)
			return c.client(c.flow.Listener, 3).ask(methodAllocate, udp(), token)
		}, "508"},
		{"8656-7.2", "RESERVATION-TOKEN of another user", func(c *client) string {
			c.allocate(udp(), flag(attrEvenPort, 0x80))
			return c.client(c.flow.Listener, 2).as("bob", "builder").ask(methodAllocate, udp(), c.token())
		}, "508"},
		{"8656-7.2", "RESERVATION-TOKEN just before 30 seconds", func(c *client) string {
			c.allocate(udp(), flag(attrEvenPort, 0x80))
			token := c.token()
			c.pass(30*time.Second - 1)
			return c.client(c.flow.Listener, 2).ask(methodAllocate, udp(), token)
		}, "ok relayed=198.51.100.1:49153 lifetime=600 mapped=client"},
		{"8656-7.2", "RESERVATION-TOKEN after 30 seconds", func(c *client) string {
			c.allocate(udp(), flag(attrEvenPort, 0x80))
			token := c.token()
			c.now = c.now.Add(31 * time.Second)
			return c.client(c.flow.Listener, 2).ask(methodAllocate, udp(), token)
		}, "508"},
		{"8656-7.2", "RESERVATION-TOKEN that is none", first(udp(), text(attrReservationToken, "12345678")), "508"},
		{"8656-7.2", "RESERVATION-TOKEN of 7 bytes", first(udp(), text(attrReservationToken, "1234567")), "400"},
		{"8656-7.2", "RESERVATION-TOKEN and EVEN-PORT", first(udp(), text(attrReservationToken, "12345678"), flag(attrEvenPort, 0)), "400"},
		{"8656-7.2", "RESERVATION-TOKEN and a family", first(udp(), text(attrReservationToken, "12345678"), family(IPv4)), "400"},
		{"8656-7.2", "quota of the user", func(c *client) string {
			for n := range 4 {
				c.client(c.flow.Listener, 2+n).allocate()
			}
			return c.ask(methodAllocate, udp())
		}, "486"},
		{"8656-7.2", "quota counts reservations", func(c *client) string {
			c.client(c.flow.Listener, 2).allocate(udp(), flag(attrEvenPort, 0x80))
			c.client(c.flow.Listener, 3).allocate(udp(), flag(attrEvenPort, 0x80))
			return c.ask(methodAllocate, udp())
		}, "486"},
		{"8656-7.2", "quota of all", func(c *client) string {
			for n := range 4 {
				c.client(c.flow.Listener, 2+n).allocate()
			}
			c.client(c.flow.Listener, 6).as("bob", "builder").allocate(udp(), additional(IPv6))
			return c.as("bob", "builder").ask(methodAllocate, udp())
		}, "508"},
		{"8656-7.2", "no port left", func(c *client) string { c.refuse[IPv4] = true; return c.ask(methodAllocate, udp()) }, "508"},
		{"8489-10", "draining with another server", func(c *client) string {
			c.drainTo()
			return strings.Replace(c.ask(methodAllocate, udp()), "[2001:db8::9]", "203.0.113.9", 1)
		}, "300 alternate=203.0.113.9:3478 domain=b.example"},
		{"8489-10", "draining, over TLS", func(c *client) string {
			c.core.cfg.Listeners[c.flow.Listener].Secure = true
			c.drainTo()
			return strings.Replace(c.ask(methodAllocate, udp()), "[2001:db8::9]", "203.0.113.9", 1)
		}, "300 alternate=203.0.113.9:443 domain=tls.example"},
		{"8489-10", "draining without", func(c *client) string { c.core.Drain(true, nil, &c.out); return c.ask(methodAllocate, udp()) }, "508"},
		{"8489-10", "draining keeps what is there", func(c *client) string {
			c.allocate()
			c.drainTo()
			return strings.Replace(c.ask(methodRefresh), "[2001:db8::9]", "203.0.113.9", 1)
		}, "ok lifetime=600 alternate=203.0.113.9:3478 domain=b.example"},
		{"8489-10", "what is given back while draining", func(c *client) string {
			c.allocate()
			c.drainTo()
			return c.ask(methodRefresh, lifetime(0))
		}, "ok lifetime=0"},
		{"8489-10", "draining tells strangers nothing", func(c *client) string {
			c.drainTo()
			return c.exchange(c.unsigned(methodAllocate, classRequest, udp(), text(0x8022, "tests.")))
		}, "401 nonce algorithms"},
	})
}

// token is the token of the client's reservation.
func (c *client) token() attr {
	t := c.core.flows[c.flow.key()].token
	return attr{attrReservationToken, t[:]}
}

// drainTo drains the core with an alternate for each kind of client.
func (c *client) drainTo() {
	stream := c.core.cfg.Listeners[c.flow.Listener].Stream
	c.core.Drain(true, []Alternate{
		{Addr: netip.MustParseAddrPort("203.0.113.9:1"), Stream: !stream, Domain: "no.example"},
		{Addr: netip.MustParseAddrPort("[2001:db8::9]:1"), Stream: !stream, Domain: "no.example"},
		{Addr: netip.MustParseAddrPort("203.0.113.9:443"), Stream: stream, Secure: true, Domain: "tls.example"},
		{Addr: netip.MustParseAddrPort("[2001:db8::9]:443"), Stream: stream, Secure: true, Domain: "tls.example"},
		{Addr: netip.MustParseAddrPort("203.0.113.9:3478"), Stream: stream, Domain: "b.example"},
		{Addr: netip.MustParseAddrPort("[2001:db8::9]:3478"), Stream: stream, Domain: "b.example"},
	}, &c.out)
}

func TestConformance_RefreshAndPermissions(t *testing.T) {
	run(t, []row{
		{"8656-8.2", "no allocation", func(c *client) string { return c.ask(methodRefresh) }, "437"},
		{"8656-8.2", "no allocation, to end it", func(c *client) string { return c.ask(methodRefresh, lifetime(0)) }, "437"},
		{"8656-8.2", "plain", after(methodRefresh), "ok lifetime=600"},
		{"8656-8.2", "7200 seconds", after(methodRefresh, lifetime(7200)), "ok lifetime=3600"},
		{"8656-8.2", "1 second", after(methodRefresh, lifetime(1)), "ok lifetime=600"},
		{"8656-8.2", "LIFETIME of 8 bytes", after(methodRefresh, text(attrLifetime, "12345678")), "400"},
		{"8656-8.2", "to end it", func(c *client) string {
			c.allocate()
			return c.ask(methodRefresh, lifetime(0)) + "; " + c.ask(methodRefresh)
		}, "ok lifetime=0; 437"},
		{"8656-8.2", "another user", func(c *client) string { c.allocate(); return c.as("bob", "builder").ask(methodRefresh) }, "441"},
		{"8656-8.2", "same user by a newer credential", func(c *client) string {
			c.as("1:carol", "old").allocate()
			return c.as("2:carol", "old").ask(methodRefresh)
		}, "ok lifetime=600"},
		{"8656-8.2", "family that is not there", after(methodRefresh, family(IPv6)), "443"},
		{"8656-8.2", "one family of two to an end", func(c *client) string {
			c.allocate(udp(), additional(IPv6))
			return c.ask(methodRefresh, family(IPv4), lifetime(0)) + "; " + c.ask(methodCreatePermission, peerAt(peer4)) + "; " +
				c.ask(methodCreatePermission, peerAt(peer6))
		}, "ok lifetime=0; 443; ok"},
		{"8656-8.2", "one family of two for longer", func(c *client) string {
			c.allocate(udp(), additional(IPv6))
			got := c.ask(methodRefresh, family(IPv6), lifetime(1200))
			c.pass(601 * time.Second)
			return got + "; " + c.ask(methodCreatePermission, peerAt(peer4)) + "; " + c.ask(methodCreatePermission, peerAt(peer6))
		}, "ok lifetime=1200; 443; ok"},
		{"8656-8.2", "after its end", func(c *client) string {
			c.allocate()
			c.now = c.now.Add(601 * time.Second)
			return c.ask(methodRefresh)
		}, "437"},
		{"8656-8.2", "just before its end", func(c *client) string {
			c.allocate()
			c.pass(599 * time.Second)
			return c.ask(methodRefresh)
		}, "ok lifetime=600"},

		{"8656-10.2", "no allocation", func(c *client) string { return c.ask(methodCreatePermission, peerAt(peer4)) }, "437"},
		{"8656-10.2", "no credentials", func(c *client) string {
			c.allocate()
			return c.exchange(c.unsigned(methodCreatePermission, classRequest, peerAt(peer4), text(0x8022, "tests.....")))
		}, "401 nonce algorithms"},
		{"8656-10.2", "no credentials and no allocation", func(c *client) string {
			return c.exchange(c.unsigned(methodCreatePermission, classRequest, peerAt(peer4), text(0x8022, "tests.....")))
		}, "401 nonce algorithms"},
		{"8656-10.2", "another user", func(c *client) string {
			c.allocate()
			return c.as("bob", "builder").ask(methodCreatePermission, peerAt(peer4))
		}, "441"},
		{"8656-10.2", "one peer", after(methodCreatePermission, peerAt(peer4)), "ok"},
		{"8656-10.2", "several peers", after(methodCreatePermission, peerAt(peer4), peerAt("198.51.100.78:1"), peerAt(peer4)), "ok"},
		{"8656-10.2", "no peer", after(methodCreatePermission), "400"},
		{"8656-10.2", "peer of 0 bytes", after(methodCreatePermission, flag(attrXORPeerAddress)), "400"},
		{"8656-10.2", "second peer of 4 bytes", after(methodCreatePermission, peerAt(peer4), flag(attrXORPeerAddress, 0, 1, 0, 0)), "400"},
		{"8656-10.2", "IPv4 peer of 20 bytes", after(methodCreatePermission, attr{attrXORPeerAddress, append([]byte{0, 1}, make([]byte, 18)...)}), "400"},
		{"8656-10.2", "peer of family 3", after(methodCreatePermission, flag(attrXORPeerAddress, 0, 3, 0, 0, 0, 0, 0, 0)), "400"},
		{"8656-10.2", "peer of another family", after(methodCreatePermission, peerAt("[::1]:1")), "443"},
		{"8656-10.2", "forbidden peer", func(c *client) string {
			c.forbid("10.0.0.0/8")
			c.allocate()
			return c.ask(methodCreatePermission, peerAt("10.1.2.3:1"))
		}, "403"},
		{"8656-10.2", "one forbidden peer forbids all", func(c *client) string {
			c.forbid("10.0.0.0/8")
			c.allocate()
			got := c.ask(methodCreatePermission, peerAt(peer4), peerAt("10.1.2.3:1"))
			return got + "; " + c.indication(peerAt(peer4), data("x"))
		}, "403; none"},
		{"8656-10.2", "more than there is room for", func(c *client) string {
			c.allocate()
			attrs := make([]attr, 9)
			for i := range attrs {
				attrs[i] = peerAt(fmt.Sprintf("198.51.100.%d:1", i))
			}
			return c.ask(methodCreatePermission, attrs...) + "; " + c.ask(methodCreatePermission, attrs[:8]...) + "; " +
				c.ask(methodCreatePermission, attrs[8]) + "; " + c.ask(methodCreatePermission, attrs[7])
		}, "508; ok; 508; ok"},
		{"8656-10.2", "ten thousand peers", func(c *client) string {
			c.allocate()
			attrs := make([]attr, 5000)
			for i := range attrs {
				attrs[i] = peerAt(fmt.Sprintf("198.51.%d.%d:1", i/256, i%256))
			}
			return c.ask(methodCreatePermission, attrs...)
		}, "508"},
		{"8656-10.2", "ended permissions make room", func(c *client) string {
			c.allocate()
			for i := range 8 {
				c.must(methodCreatePermission, peerAt(fmt.Sprintf("198.51.100.%d:1", i)))
			}
			c.now = c.now.Add(5 * time.Minute)
			return c.ask(methodCreatePermission, peerAt(peer4))
		}, "ok"},
	})
}

// forbid makes the policy deny a network, by canonical address.
func (w *world) forbid(network string) {
	p := netip.MustParsePrefix(network)
	w.forbidden = func(a netip.AddrPort) bool { return p.Contains(a.Addr()) }
}
