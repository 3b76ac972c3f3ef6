// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// The library is as it was when families was written: else that is silently of no
// use, and IPv6 packets go nowhere.
func TestFamilies_KnowTheLibrary(t *testing.T) {
	b, ok := withFamilies(conn.NewStdNetBind()).(*families)
	if !ok {
		t.Fatal("the library's bind is of another type now")
	}
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	if b.six.Load() == nil {
		t.Error("the library keeps its sockets elsewhere now")
	}
	if err := b.Close(); err != nil || b.six.Load() != nil {
		t.Errorf("after Close: %v, %v", err, b.six.Load())
	}
	if _, _, err := b.Open(0); err != nil || b.six.Load() == nil {
		t.Errorf("opened again: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Packets of both families arrive in turns, from the one port.
func TestFamilies_SendInTurns(t *testing.T) {
	b := withFamilies(conn.NewStdNetBind())
	_, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	type sink struct {
		*net.UDPConn
		ep conn.Endpoint
	}
	var sinks []sink
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ep, err := b.ParseEndpoint(c.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		sinks = append(sinks, sink{c, ep})
	}
	buf := make([]byte, 16)
	for i := range 20 {
		s := sinks[i%2]
		if err := b.Send([][]byte{{byte(i)}, {byte(i), 1}}, s.ep); err != nil {
			t.Fatal(err)
		}
		for want := 1; want <= 2; want++ {
			if err := s.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, from, err := s.ReadFromUDPAddrPort(buf)
			if err != nil || n != want || buf[0] != byte(i) || from.Port() != port {
				t.Fatalf("packet %d: %v from %v: %v", i, buf[:n], from, err)
			}
		}
	}
}
