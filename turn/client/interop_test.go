// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/logging"
	pion "github.com/pion/turn/v3"

	"github.com/meshgate/meshgate/turn"
)

var loopback6 = netip.MustParseAddr("::1")

// A client that has IPv6 alone, and an IPv4 relayed address, on pion's server.
func TestInterop_PionOverIPv6(t *testing.T) {
	socket, addr := listenUDP(t, loopback6)
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	relays := &pion.RelayAddressGeneratorStatic{RelayAddress: loopback.AsSlice(), Address: "127.0.0.1"}
	s, err := pion.NewServer(pion.ServerConfig{
		Realm: testRealm,
		AuthHandler: func(user, realm string, _ net.Addr) ([]byte, bool) {
			return pion.GenerateAuthKey(user, realm, testPassword), user == testUser
		},
		PacketConnConfigs: []pion.PacketConnConfig{{PacketConn: socket, RelayAddressGenerator: relays}},
		ListenerConfigs:   []pion.ListenerConfig{{Listener: l, RelayAddressGenerator: relays}},
		LoggerFactory:     &logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for _, uri := range []string{"turn:" + addr.String(), fmt.Sprintf("turn:%s?transport=tcp", l.Addr())} {
		t.Run(uri, func(t *testing.T) {
			c, peer := listenUDP(t, loopback)
			cfg := Config{Server: uri, Username: testUser, Password: testPassword}
			a := mustAllocate(t, cfg)
			if a.Mapped().Addr() != loopback6 || a.Relayed().Addr() != loopback {
				t.Errorf("mapped %s, relayed %s", a.Mapped(), a.Relayed())
			}
			exchangeSizes(t, a, c, peer, 5, 6, 7, 1200, 1499) // over TCP its server holds back channel data of less
			a.do(a.core.refresh)
			if err := a.WriteTo([]byte("after the refresh"), peer); err != nil {
				t.Fatal(err)
			}
			expect(t, c, []byte("after the refresh"))

			wrong := cfg
			wrong.Password = "wrong"
			if _, err := Allocate(t.Context(), wrong); err == nil { // this server says 400, which means anything
				t.Error("a wrong password is good enough")
			}
			other := cfg
			other.Family = IPv6 // of which this server takes no notice
			if _, err := Allocate(t.Context(), other); !errors.Is(err, ErrFamily) {
				t.Errorf("relay of the other family: %v", err)
			}
		})
	}
}

// Our own server, for clients that have IPv6 alone: two of them, with IPv4
// relayed addresses, meet, and one reaches an IPv4 peer.
func TestInterop_OwnServerOverIPv6(t *testing.T) {
	at := netip.AddrPortFrom(loopback6, 0)
	s := startServer(t, func(c *turn.Config) { c.UDP, c.TCP = []netip.AddrPort{at}, []netip.AddrPort{at} })
	for _, transport := range []Transport{UDP, TCP} {
		t.Run(string(transport), func(t *testing.T) {
			c, peer := listenUDP(t, loopback)
			a, b := mustAllocate(t, s.config(transport, "a")), mustAllocate(t, s.config(transport, "b"))
			if a.Mapped().Addr() != loopback6 || a.Relayed().Addr() != loopback {
				t.Fatalf("mapped %s, relayed %s", a.Mapped(), a.Relayed())
			}
			exchange(t, a, c, peer)
			meet(t, a, b)
		})
	}
}

// meet lets two allocations talk to each other.
func meet(t *testing.T, a, b *Allocation) {
	t.Helper()
	if err := errors.Join(a.Permit(b.Relayed()), b.Permit(a.Relayed())); err != nil {
		t.Fatal(err)
	}
	for x, y := range map[*Allocation]*Allocation{a: b, b: a} {
		eventually(t, "the permission stands", func() bool {
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.core.permissions[y.Relayed().Addr()].stands(time.Now())
		})
	}
	for i := range 3 * channelAfter {
		for _, way := range [][2]*Allocation{{a, b}, {b, a}} {
			want := fmt.Sprint("packet ", i)
			if err := way[0].WriteTo([]byte(want), way[1].Relayed()); err != nil {
				t.Fatal(err)
			}
			if got, from := readOne(t, way[1]); string(got) != want || from != way[0].Relayed() {
				t.Fatalf("got %q from %s, want %q from %s", got, from, want, way[0].Relayed())
			}
		}
	}
}
