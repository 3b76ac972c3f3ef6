// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/pion/stun"
)

func idOf(c *party) stun.Setter { return rawAttr(stun.AttrConnectionID, c.id) }

// linked is a client with a relay of TCP, and another one whose relay its relay may
// connect to.
func (c *party) linked() (other *party) {
	c.Helper()
	c.hold(transportTCP)
	other = c.stranger().hold(transportTCP)
	c.peerAt, other.peerAt = other.relays[0], c.relays[0]
	other.must(stun.MethodCreatePermission, peerAddress(other.peerAt))
	return other
}

// connects connects the relay to the other one.
func (c *party) connects() string {
	c.Helper()
	return c.ask(stun.MethodConnect, peerAddress(c.peerAt))
}

// tcpRows are about relays of TCP (RFC 6062).
func tcpRows() []requirement {
	allocate := func(attrs ...stun.Setter) func(*party) string {
		return fresh(stun.MethodAllocate, append(attrs, transportTCP)...)
	}
	relayed := func(method stun.Method, attrs ...stun.Setter) func(*party) string {
		return func(c *party) string { c.hold(transportTCP); return c.ask(method, attrs...) }
	}
	// binds binds the connection that a relay has made, on another stream.
	binds := func(change func(*party) *party) func(*party) string {
		return func(c *party) string {
			c.linked()
			return both(c.connects(), change(c).ask(stun.MethodConnectionBind, idOf(c)))
		}
	}
	peer := peerAddress(publicPeer)
	return []requirement{
		{"6062-5.1", "relay of TCP over UDP", "udp", "", allocate(), "400 signed"},
		{"6062-5.1", "relay of TCP", "stream", "", allocate(), made4},
		{"6062-5.1", "relay of TCP and IPv6", "stream", "", allocate(familyOf6), made6},
		{"6062-5.1", "EVEN-PORT", "stream", "", allocate(evenPort), "400 signed"},
		{"6062-5.1", "DONT-FRAGMENT", "stream", "", allocate(noFragments), "400 signed"},
		{"6062-5.1", "RESERVATION-TOKEN", "stream", "", allocate(rawAttr(stun.AttrReservationToken, make([]byte, 8))), "400 signed"},
		{"6062-5.2", "Connect at a relay of UDP", "", "", held(stun.MethodConnect, peer), "437 signed"},
		{"6062-5.2", "Connect to nobody", "stream", "", relayed(stun.MethodConnect), "400 signed"},
		{"6062-5.2", "Connect to port 0", "stream", "", relayed(stun.MethodConnect, peerOf("11.0.0.1:0")), "400 signed"},
		{"6062-5.2", "Connect to a peer of 4 bytes", "stream", "", relayed(stun.MethodConnect, peerBytes(0, familyIPv4, 0, 0)), "400 signed"},
		{"6062-5.2", "Connect to another family", "stream", "", relayed(stun.MethodConnect, peerAddress(publicPeer6)), "443 signed"},
		{"6062-5.2", "Connect to loopback", "stream", "", relayed(stun.MethodConnect, peerOf("127.0.0.1:22")), "403 signed"},
		{"6062-5.2", "Connect to a private network", "stream", "", relayed(stun.MethodConnect, peerOf("10.0.0.1:80")), "403 signed"},
		{"6062-5.2", "Connect to who takes mail", "stream", "", relayed(stun.MethodConnect, peerOf("11.0.0.1:25")), "403 signed"},
		{"6062-5.2", "Connect by another user", "stream", "", func(c *party) string {
			c.hold(transportTCP)
			return c.become("mallory").ask(stun.MethodConnect, peer)
		}, "441 signed"},
		{"6062-5.2", "Connect, and once more", "stream", "", func(c *party) string {
			c.linked()
			return both(c.connects(), c.connects())
		}, "ok id signed; 446 signed"},
		{"6062-5.3", "connection of a peer", "stream", "", func(c *party) string {
			other := c.linked()
			return both(c.connects(), other.next())
		}, "ok id signed; ConnectionAttempt id peer"},
		{"6062-5.4", "ConnectionBind", "stream", "", binds((*party).other), "ok id signed; ok signed"},
		{"6062-5.4", "ConnectionBind twice", "stream", "", func(c *party) string {
			c.linked()
			got := both(c.connects(), c.other().ask(stun.MethodConnectionBind, idOf(c)))
			return both(got, c.other().ask(stun.MethodConnectionBind, idOf(c)))
		}, "ok id signed; ok signed; 400 signed"},
		{"6062-5.4", "ConnectionBind by another user", "stream", "", binds((*party).stranger), "ok id signed; 441 signed"},
		{"6062-5.4", "ConnectionBind on the control connection", "stream", "", binds(func(c *party) *party { return c }), "ok id signed; 400 signed"},
		{"6062-5.4", "ConnectionBind over UDP", "stream", "", binds(func(c *party) *party { return c.server.party(c.TB, "udp4", c.user) }),
			"ok id signed; 400 signed"},
		{"6062-5.4", "no CONNECTION-ID", "stream", "", fresh(stun.MethodConnectionBind), "400 signed"},
		{"6062-5.4", "CONNECTION-ID of 2 bytes", "stream", "", fresh(stun.MethodConnectionBind, rawAttr(stun.AttrConnectionID, []byte{0, 1})), "400 signed"},
		{"6062-5.5", "data of both ends, as it is", "stream", "", func(c *party) string {
			other := c.linked()
			here, there := c.other(), c.server.party(c.TB, c.way, other.user)
			got := both(c.connects(), other.next())
			got = both(got, here.ask(stun.MethodConnectionBind, idOf(c)), there.ask(stun.MethodConnectionBind, idOf(other)))
			return both(got, pass(here, there, "\x00\x01 there"), pass(there, here, "\x40\x00 back"))
		}, `ok id signed; ConnectionAttempt id peer; ok signed; ok signed; "\x00\x01 there"; "@\x00 back"`},
		{"6062-3", "ChannelBind at a relay of TCP", "stream", "", relayed(stun.MethodChannelBind, channelNumber(0x4000), peer), "400 signed"},
		{"6062-3", "Send at a relay of TCP", "stream", "", func(c *party) string {
			c.meet().hold(transportTCP)
			return c.sendsInVain(c.sendTo(c.peerAt, []byte("hello")))
		}, "none; nothing"},
	}
}

// pass sends bytes at one end of a connection and returns what comes at the other.
func pass(from, to *party, data string) string {
	_, _ = from.Write([]byte(data))
	got := make([]byte, len(data))
	_ = to.SetReadDeadline(time.Now().Add(rowPatience))
	if _, err := io.ReadFull(to, got); err != nil {
		return missing(err)
	}
	return brief(got)
}

// alternateRows are about a server that sends new clients on.
func alternateRows() []requirement {
	rows := []requirement{
		{"8489-10", "draining, without credentials", "", atDrain, func(c *party) string {
			return c.exchange(c.unsigned(stun.MethodAllocate, transportUDP))
		}, challenged},
		{"8489-10", "draining, a wrong password", "", atDrain, func(c *party) string {
			c.cred.Password += "x"
			return c.ask(stun.MethodAllocate, transportUDP)
		}, challenged},
		{"8489-10", "draining, Refresh", "", atDrain, fresh(stun.MethodRefresh), "437 signed"},
		{"8489-10", "draining, Binding", "", atDrain, func(c *party) string {
			return c.exchange(c.message(stun.MethodBinding, stun.ClassRequest))
		}, "ok mapped"},
	}
	for way, a := range alternates() {
		want := "300 alternate=" + a.Addr.String()
		if a.Domain != "" {
			want += " domain=" + a.Domain
		}
		rows = append(rows, requirement{"8489-10", "draining", way, atDrain, fresh(stun.MethodAllocate, transportUDP), want + " signed"})
	}
	return rows
}

// discoveryRows are about NAT behaviour discovery (RFC 5780).
func discoveryRows() []requirement {
	change := func(flags byte) stun.Setter { return rawAttr(stun.AttrChangeRequest, []byte{0, 0, 0, flags}) }
	refused := func(attr stun.Setter) func(*party) string {
		return func(c *party) string { return c.exchange(c.message(stun.MethodBinding, stun.ClassRequest, attr)) }
	}
	rows := []requirement{
		{"5780-6.1", "CHANGE-REQUEST where there is one address", "", "", refused(change(6)), "420 unknown=0003"},
		{"5780-6.1", "CHANGE-REQUEST over streams", "stream", atCorner, refused(change(6)), "420 unknown=0003"},
		{"5780-7.6", "PADDING", "", "", refused(rawAttr(0x0026, make([]byte, 4))), "420 unknown=0026"},
		{"5780-7.5", "RESPONSE-PORT", "", "", refused(rawAttr(0x0027, make([]byte, 4))), "420 unknown=0027"},
		{"5780-7.2", "CHANGE-REQUEST of 1 byte", "udp4", atCorner, func(c *party) string {
			return c.corner(0, rawAttr(stun.AttrChangeRequest, []byte{0}))
		}, "400, from corner 0"},
	}
	for to := range 4 {
		for flags := range byte(4) {
			name := fmt.Sprintf("CHANGE-REQUEST %d at corner %d", 2*flags, to)
			from := to ^ int(flags)
			rows = append(rows, requirement{"5780-6.1", name, "udp4", atCorner, func(c *party) string { return c.corner(to, change(2*flags)) },
				fmt.Sprintf("ok mapped other=corner %d origin=corner %d, from corner %d", to^3, from, from)})
		}
	}
	return rows
}

// corner sends a Binding request to one of the four addresses, and says from which
// one it is answered.
func (c *party) corner(to int, attr stun.Setter) string {
	c.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		c.Fatal(err)
	}
	defer conn.Close()
	c.rawClient = &rawClient{TB: c.TB, Conn: conn}
	corners := c.server.UDPAddrs()[2:]
	if _, err := conn.WriteToUDPAddrPort(c.message(stun.MethodBinding, stun.ClassRequest, attr), corners[to]); err != nil {
		c.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(rowPatience))
	b := make([]byte, 1500)
	n, from, err := conn.ReadFromUDPAddrPort(b)
	if err != nil {
		return missing(err)
	}
	got := fmt.Sprintf("%s, from %v", c.render(b[:n]), from)
	for i, at := range corners {
		got = strings.ReplaceAll(got, at.String(), fmt.Sprintf("corner %d", i))
	}
	return got
}
