// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/shard"
)

// openUDP opens relays of UDP on loopback.
type openUDP struct{}

func (openUDP) Open(core.Action) (first, second shard.Opened, err error) {
	socket, err := shard.Listen(netip.AddrPortFrom(loopback, 0), false)
	if err != nil {
		return first, second, err
	}
	return shard.Opened{Socket: socket, Addr: socket.Addr()}, second, nil
}

func (openUDP) Closed(netip.AddrPort)                        {}
func (openUDP) Inside(a netip.AddrPort) netip.AddrPort       { return a }
func (openUDP) Outside(source netip.AddrPort) netip.AddrPort { return source }

// realShards attaches n shards that are none of this package's making.
func realShards(t testing.TB, s *Server, n int, portable bool) {
	t.Helper()
	key := make([]byte, 32)
	var attach []Shard
	for i := range n {
		v, err := shard.New(shard.Config{
			Core: core.Config{
				Realm: "meshgate", Shard: uint8(i), NonceKey: key,
				Listeners:     []core.Listener{{Addr: netip.MustParseAddrPort("127.0.0.1:3478"), Stream: true}},
				Offers:        core.Offers{IPv4: true, TCP: true},
				Authenticator: people{"alice": "wonder"},
				Permit:        func(string, core.Peer) bool { return true },
			},
			Relays: openUDP{}, Streams: s.For(i), Portable: portable,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { v.Close() })
		attach = append(attach, v)
	}
	if err := s.Attach(attach...); err != nil {
		t.Fatal(err)
	}
}

// TestServe_OnRealShards sends bursts through sockets and back, whose data lies in
// the readers' chunks until it has left, and carries a connection of a peer.
func TestServe_OnRealShards(t *testing.T) {
	for name, portable := range map[string]bool{"thread": false, "portable": true} {
		for way, start := range dials() {
			t.Run(name+"_"+way, func(t *testing.T) {
				s := newServer(t, func(cfg *Config) { cfg.Shards = 2 })
				realShards(t, s, 2, portable)
				dial := start(t, s)
				echo, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
				if err != nil {
					t.Fatal(err)
				}
				defer echo.Close()
				go func() {
					buf := make([]byte, 1<<16)
					for {
						n, from, err := echo.ReadFromUDPAddrPort(buf)
						if err != nil {
							return
						}
						echo.WriteToUDPAddrPort(buf[:n], from)
					}
				}()
				c := dial()
				c.allocate(17)
				c.must(stun.MethodChannelBind, raw(stun.AttrChannelNumber, 0x40, 0, 0, 0), peerAt(echo.LocalAddr().(*net.UDPAddr).AddrPort()))
				for round := range 15 {
					sizes := []int{0, 1, 2, 3, 4, 100, 100, 100, 1200, 1200, 40, 9000}
					var burst []byte
					for i, n := range sizes {
						burst = append(burst, channelData(bytes.Repeat([]byte{byte(round*16 + i)}, n))...)
					}
					c.send(burst)
					for i, n := range sizes {
						if got := c.frame(); !bytes.Equal(got, channelData(bytes.Repeat([]byte{byte(round*16 + i)}, n))) {
							t.Fatalf("round %d: datagram %d of %d bytes came as %d bytes", round, i, n, len(got))
						}
					}
				}
				c.send(channelData(pattern(65507)))
				if got := c.frame(); !bytes.Equal(got, channelData(pattern(65507))) {
					t.Errorf("the largest datagram came as %d bytes", len(got))
				}

				w := &tcpWorld{TB: t, server: s, dial: dial, control: dial(), peer: listen(t)}
				defer w.peer.Close()
				w.relayed = w.control.allocate(6)
				data, peer := w.connect()
				go func() { io.Copy(peer, peer); peer.(*net.TCPConn).CloseWrite() }()
				want := pattern(1 << 18)
				go func() { data.Write(want); data.Conn.(interface{ CloseWrite() error }).CloseWrite() }()
				if got, err := io.ReadAll(data.r); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes came back, want %d: %v", len(got), len(want), err)
				}
				eventually(t, "the connection ends", func() bool { return s.Stats().Peers == 0 })
			})
		}
	}
}
