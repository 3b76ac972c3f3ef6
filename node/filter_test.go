// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// TestForwarding_HonoursPorts joins the packet filter and the device: through a
// hub whose ACLs accept a web and a DNS server on b, a reaches those and nothing
// else, and b reaches nothing.
func TestForwarding_HonoursPorts(t *testing.T) {
	s := &mesh.Snapshot{ACLs: []mesh.ACL{
		{
			Name: "dns", Accept: true, SourceNodes: []string{"a"}, DestinationNodes: []string{"b"},
			Protocols: []mesh.Protocol{mesh.ProtocolUDP}, Ports: []uint16{53},
		},
		{
			Name: "web", Accept: true, SourceNodes: []string{"a"}, DestinationNodes: []string{"b"},
			Protocols: []mesh.Protocol{mesh.ProtocolTCP}, Ports: []uint16{443},
		},
	}}
	var filter *policy.Filter
	hub, a, b := wgtest.Star(t, func(p mesh.Packet) bool { return filter.Allow(p) })
	for id, n := range map[mesh.NodeID]*wgtest.Node{"hub": hub, "a": a, "b": b} {
		s.Nodes = s.Nodes.With(&mesh.Node{ID: id, IPv4: netip.PrefixFrom(n.IPv4, 32), IPv6: netip.PrefixFrom(n.IPv6, 112)})
	}
	filter = policy.ForwardFilter(s, policy.NewFlows())
	hub.Apply()

	for _, c := range []struct {
		name     string
		from, to *wgtest.Node
		addr     netip.Addr
		port     uint16
		reached  bool
	}{
		{"web", a, b, b.IPv4, 443, true},
		{"web over IPv6", a, b, b.IPv6, 443, true},
		{"another port", a, b, b.IPv4, 22, false},
		{"the other direction", b, a, a.IPv4, 443, false},
	} {
		wait := patience
		if !c.reached {
			wait = 2 * time.Second
		}
		if err := exchangeTCP(t, c.from, c.to, netip.AddrPortFrom(c.addr, c.port), wait); (err == nil) != c.reached {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for addr, back := range map[netip.Addr]netip.Addr{b.IPv4: a.IPv4, b.IPv6: a.IPv6} {
		server := listenUDP(t, b, netip.AddrPortFrom(addr, 53))
		client, err := a.DialContext(t.Context(), "udp", netip.AddrPortFrom(addr, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		// The second is too large for one packet: it comes in fragments.
		for _, size := range []int{100, 4000} {
			if err := exchangeUDP(client, server, make([]byte, size)); err != nil {
				t.Errorf("%d bytes to %v: %v", size, addr, err)
			}
		}
		// From the port of an answer, but to one that asked nothing.
		other := netip.AddrPortFrom(back, 5000)
		victim := listenUDP(t, a, other)
		if _, err := server.WriteTo([]byte("unasked"), net.UDPAddrFromAddrPort(other)); err != nil {
			t.Fatal(err)
		}
		if n, err := read(victim, time.Second); !errors.Is(err, errSilence) {
			t.Errorf("an unasked datagram of %d bytes came through to %v: %v", n, other, err)
		}
	}
}

// exchangeTCP connects, within wait, and sends a byte each way.
func exchangeTCP(t *testing.T, from, to *wgtest.Node, at netip.AddrPort, wait time.Duration) error {
	t.Helper()
	l, err := to.Listen(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	echoed := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			buf := make([]byte, 1)
			if _, err = c.Read(buf); err == nil {
				_, err = c.Write(buf)
			}
		}
		echoed <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp", at.String())
	if err != nil {
		_ = l.Close() // ends the goroutine
		<-echoed
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return errors.Join(err, <-echoed)
}

func listenUDP(t *testing.T, n *wgtest.Node, at netip.AddrPort) net.PacketConn {
	t.Helper()
	c, err := n.ListenPacket(t.Context(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// exchangeUDP sends payload to the server and back.
func exchangeUDP(client net.Conn, server net.PacketConn, payload []byte) error {
	if _, err := client.Write(payload); err != nil {
		return err
	}
	buf := make([]byte, 65535)
	_ = server.SetReadDeadline(time.Now().Add(patience))
	n, from, err := server.ReadFrom(buf)
	if err != nil {
		return err
	}
	if _, err := server.WriteTo(buf[:n], from); err != nil {
		return err
	}
	_ = client.SetReadDeadline(time.Now().Add(patience))
	if got, err := client.Read(buf); err != nil || got != len(payload) {
		return errors.Join(errors.New("the answer is not what was sent"), err)
	}
	return nil
}

// errSilence says that nothing came in time.
var errSilence = errors.New("silence")

func read(c net.PacketConn, wait time.Duration) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(wait))
	n, _, err := c.ReadFrom(make([]byte, 65535))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return 0, errSilence
	}
	return n, err
}
