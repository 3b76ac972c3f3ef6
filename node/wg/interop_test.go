// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// stock is a WireGuard peer that has nothing of ours: the library with its own
// bind and its own network stack.
type stock struct {
	net        *netstack.Net
	key        mesh.WireGuardPrivateKey
	ipv4, ipv6 netip.Addr
	port       uint16
}

// newStock makes a stock peer of n.
func newStock(tb testing.TB, n *wgtest.Node) *stock {
	tb.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		tb.Fatal(err)
	}
	s := &stock{key: key.WireGuard(), ipv4: netip.MustParseAddr("10.99.0.50"), ipv6: netip.MustParseAddr("fd99::50:0")}
	tunDevice, stack, err := netstack.CreateNetTUN([]netip.Addr{s.ipv4, s.ipv6}, nil, 1420)
	if err != nil {
		tb.Fatal(err)
	}
	dev := device.NewDevice(tunDevice, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	tb.Cleanup(dev.Close)
	peer := n.Peer()
	err = dev.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=10.99.0.0/16\nallowed_ip=fd99::/32\n",
		hex.EncodeToString(s.key[:]), hex.EncodeToString(peer.Key[:]), peer.Endpoint))
	if err := errors.Join(err, dev.Up()); err != nil {
		tb.Fatal(err)
	}
	state, err := dev.IpcGet()
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(state, "listen_port=")
	port, _, _ := strings.Cut(rest, "\n")
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		tb.Fatal(err)
	}
	s.net, s.port = stack, uint16(number)
	return s
}

// peer returns the stock peer as others configure it.
func (s *stock) peer() wg.Peer {
	return wg.Peer{
		Key:        s.key.Public(),
		Endpoint:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.port).String(),
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(s.ipv4, 32), netip.PrefixFrom(s.ipv6, 128)},
	}
}

// ping sends an ICMP echo request from the stock peer and waits for the answer.
func (s *stock) ping(tb testing.TB, addr netip.Addr) {
	tb.Helper()
	kind, reply := byte(8), byte(0)
	if addr.Is6() {
		kind, reply = 128, 129
	}
	c, err := s.net.Dial("ping", addr.String())
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	request := append([]byte{kind, 0, 0, 0, 0, 1, 0, 1}, "are you there?"...)
	answers := make(chan []byte, 1)
	go func() {
		buf := make([]byte, 1000)
		if n, err := c.Read(buf); err == nil {
			answers <- buf[:n]
		}
		close(answers)
	}()
	if _, err := c.Write(request); err != nil {
		tb.Fatal(err)
	}
	select {
	case got := <-answers:
		if len(got) < 8 || got[0] != reply || string(got[8:]) != "are you there?" {
			tb.Errorf("ping %v: answer %q", addr, got)
		}
	case <-time.After(patience):
		tb.Errorf("ping %v: no answer", addr)
	}
}

func TestInterop_StockWireGuardPeer(t *testing.T) {
	n, other := wgtest.New(t, 1, wg.Options{}), wgtest.New(t, 2, wg.Options{})
	s := newStock(t, n)
	n.SetPeers(s.peer(), other.Peer())
	other.SetPeers(n.Peer(netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/32")))
	for _, addr := range []netip.Addr{n.IPv4, n.IPv6, other.IPv4, other.IPv6} {
		s.ping(t, addr) // the last two through n as a hub
	}
	for _, to := range []*wgtest.Node{n, other} {
		for _, addr := range []netip.Addr{to.IPv4, to.IPv6} {
			l, err := to.Listen(timeout(t), "tcp", netip.AddrPortFrom(addr, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			client, err := s.net.DialContextTCPAddrPort(timeout(t), netip.AddrPortFrom(addr, 80))
			if err != nil {
				t.Fatal(err)
			}
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			transfer(t, client, server, 1<<17)
			transfer(t, server, client, 1<<17)
			client.Close()
			server.Close()
			l.Close()
		}
	}
	// And from us to it.
	l, err := s.net.ListenTCP(&net.TCPAddr{IP: s.ipv4.AsSlice(), Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := other.DialContext(timeout(t), "tcp", netip.AddrPortFrom(s.ipv4, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	transfer(t, client, server, 1<<17)
	transfer(t, server, client, 1<<17)
}
