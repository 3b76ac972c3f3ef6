// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
	"github.com/prometheus/client_golang/prometheus"
)

// stunMessage is one without attributes.
func stunMessage(kind uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, kind)
	binary.BigEndian.PutUint32(b[4:], 0x2112a442)
	return b
}

// STUN goes to Options.STUN from all sockets, and answers leave through them.
func TestSTUN_OnAllSockets(t *testing.T) {
	var (
		n     *wgtest.Node
		ready = make(chan struct{})
		reg   = prometheus.NewRegistry()
	)
	n = wgtest.New(t, 1, wg.Options{Registerer: reg, STUN: func(s wg.Socket, from netip.AddrPort, b []byte) {
		<-ready
		if err := n.SendSTUN(s, from, stunMessage(0x0101)); err != nil || len(b) != 20 {
			t.Errorf("asked by %v with %x, answer: %v", from, b, err)
		}
	}})
	close(ready)
	network := wgtest.NewSwitch()
	relay, asker := network.Socket("192.0.2.1:1001"), network.Socket("[2001:db8::2]:1002")
	if _, _, err := n.AddSocket(relay); err != nil {
		t.Fatal(err)
	}
	if err := asker.WriteBatch([][]byte{stunMessage(1)}, relay.Addr); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	var sizes [1]int
	var from [1]netip.AddrPort
	if _, err := asker.ReadBatch([][]byte{buf}, sizes[:], from[:]); err != nil || sizes[0] != 20 || from[0] != relay.Addr {
		t.Errorf("%d bytes from %v, %v", sizes[0], from[0], err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		want := netip.AddrPortFrom(netip.MustParseAddr(host), n.ListenPort())
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteToUDPAddrPort(stunMessage(1), want); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		size, at, err := c.ReadFromUDPAddrPort(buf)
		if got := netip.AddrPortFrom(at.Addr().Unmap(), at.Port()); err != nil || size != 20 || got != want {
			t.Errorf("%d bytes from %v, want the answer of %v: %v", size, got, want, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := metric(t, reg, "meshgate_wg_stun_datagrams_total", "received"); got == 0 {
		t.Error("no message is counted")
	}
}

func TestSendSTUN_RefusesWhatItCannotSend(t *testing.T) {
	n := wgtest.New(t, 1, wg.Options{})
	to := netip.MustParseAddrPort("127.0.0.1:9")
	for _, bad := range []struct {
		name   string
		socket wg.Socket
		to     netip.AddrPort
		b      []byte
		want   error
		text   string
	}{
		{"wireguard", 0, to, message(4, 32), mesh.ErrInvalid, "32 bytes is not stun"},
		{"a length that is wrong", 0, to, append(stunMessage(1), 0), mesh.ErrInvalid, "21 bytes is not stun"},
		{"no address", 0, netip.AddrPort{}, stunMessage(1), mesh.ErrInvalid, "not an address"},
		{"no port", 0, netip.MustParseAddrPort("127.0.0.1:0"), stunMessage(1), mesh.ErrInvalid, "not an address"},
		{"no socket", 5, to, stunMessage(1), mesh.ErrNotFound, "on socket 5"},
	} {
		if err := n.SendSTUN(bad.socket, bad.to, bad.b); !errors.Is(err, bad.want) || !strings.Contains(err.Error(), bad.text) {
			t.Errorf("%s: %v, want %q", bad.name, err, bad.text)
		}
	}
	fresh, err := wg.New(wg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.SendSTUN(0, to, stunMessage(1)); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("before the first configuration: %v, want ErrUnavailable", err)
	}
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fresh.SendSTUN(0, to, stunMessage(1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
}

// message makes a WireGuard message of n bytes.
func message(kind uint32, n int) []byte {
	b := make([]byte, n)
	binary.LittleEndian.PutUint32(b, kind)
	return b
}

func TestAddSocket_Bounds(t *testing.T) {
	n := wgtest.New(t, 1, wg.Options{})
	network := wgtest.NewSwitch()
	seen := make(map[wg.Socket]bool)
	var removes []func()
	for range wg.MaxSockets {
		id, remove, err := n.AddSocket(network.Socket("192.0.2.1:1"))
		if err != nil || id == wg.NativeSocket || seen[id] {
			t.Fatalf("socket %d, %v", id, err)
		}
		seen[id] = true
		removes = append(removes, remove)
	}
	one := network.Socket("192.0.2.1:2")
	if _, _, err := n.AddSocket(one); !errors.Is(err, mesh.ErrExhausted) {
		t.Errorf("one more: %v, want ErrExhausted", err)
	}
	if err := one.WriteBatch(nil, one.Addr); !errors.Is(err, net.ErrClosed) {
		t.Error("the one that was refused is still open")
	}
	removes[3]()
	removes[3]()
	id, _, err := n.AddSocket(network.Socket("192.0.2.1:3"))
	if err != nil || seen[id] {
		t.Errorf("socket %d in place of another, %v", id, err)
	}
}

// broken is a packet socket that says it read more than it may.
type broken struct {
	*wgtest.Socket
	n int
}

func (b *broken) ReadBatch(bufs [][]byte, sizes []int, _ []netip.AddrPort) (int, error) {
	for i := range sizes {
		sizes[i] = len(bufs[i]) + 1
	}
	return b.n, nil
}

func TestAddSocket_EndsWithItsErrors(t *testing.T) {
	for _, n := range []int{-1, 1000} {
		reg := prometheus.NewRegistry()
		node, s := wgtest.New(t, 1, wg.Options{Registerer: reg}), wgtest.NewSwitch().Socket("192.0.2.1:1")
		if _, _, err := node.AddSocket(&broken{s, n}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the socket to end", func() bool { return errors.Is(s.WriteBatch(nil, s.Addr), net.ErrClosed) })
		eventually(t, "it to be counted", func() bool { return metric(t, reg, "meshgate_wg_packet_sockets", "") == 0 })
		if err := node.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What strangers send to a relay, and what a peer sends on its path beyond
// measure, hurts nobody else.
func TestAddSocket_GarbageAndFloodsHurtNobody(t *testing.T) {
	reg := prometheus.NewRegistry()
	hub := wgtest.New(t, 1, wg.Options{Registerer: reg, STUN: func(wg.Socket, netip.AddrPort, []byte) {}})
	n, evil := wgtest.New(t, 2, wg.Options{}), wgtest.New(t, 3, wg.Options{})
	hub.SetPeers(n.Peer(), withoutEndpoint(evil.Peer()))
	n.SetPeers(hub.Peer())
	network := wgtest.NewSwitch()
	relay := network.Socket("192.0.2.1:1")
	id, _, err := hub.AddSocket(relay)
	if err != nil {
		t.Fatal(err)
	}
	stranger, peer := network.Socket("192.0.2.2:2"), network.Socket("192.0.2.3:3")
	p, err := hub.OpenPath(evil.Key())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Accept([]wg.Route{{Socket: id, To: peer.Addr}}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var floods sync.WaitGroup
	for i, s := range []*wgtest.Socket{stranger, peer} {
		floods.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := s.WriteBatch([][]byte{garbage(random), message(1, 148), message(4, 1400), stunMessage(1)}, relay.Addr); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	client, server := connect(t, hub, n, n.IPv4)
	transfer(t, client, server, 4<<20)
	transfer(t, server, client, 4<<20)
	ping(t, n, hub)
	for _, reason := range []string{"socket_garbage", "socket_stranger", "socket_handshake_rate"} {
		eventually(t, reason+" to be counted", func() bool { return dropped(t, reg, reason) > 100 })
	}
	close(done)
	floods.Wait()
	if got := only2(t, hub, n.Key()).Endpoint; got != n.Peer().Endpoint {
		t.Errorf("a peer's endpoint became %q", got)
	}
}

// Initiations of idle peers come in on their paths, too.
func TestAddSocket_DoormanSeesHandshakes(t *testing.T) {
	hub, reg := lazyHub(t)
	n := wgtest.New(t, 2, wg.Options{})
	hub.SetPeers(append(crowd(3), withoutEndpoint(n.Peer()))...)
	network := wgtest.NewSwitch()
	relay, forger := network.Socket("192.0.2.1:1"), network.Socket("192.0.2.2:2")
	id, _, err := hub.AddSocket(relay)
	if err != nil {
		t.Fatal(err)
	}
	p, err := hub.OpenPath(n.Key())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Accept([]wg.Route{{Socket: id, To: forger.Addr}}); err != nil {
		t.Fatal(err)
	}
	who := wg.NewInitiator(t, hub.Key())
	if err := forger.WriteBatch([][]byte{who.Initiation(t, time.Now())}, relay.Addr); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stranger to be refused", func() bool { return dropped(t, reg, "handshake_stranger") == 1 })
}

func TestSeek_TellsEachDestinationOnceASecond(t *testing.T) {
	a, b := wgtest.Pair(t)
	var mu sync.Mutex
	told := make(map[netip.Addr]int)
	start := time.Now()
	a.Config.Seek = func(dst netip.Addr) {
		mu.Lock()
		defer mu.Unlock()
		told[dst]++
	}
	a.Apply()
	client, server := connect(t, a, b, b.IPv4)
	transfer(t, client, server, 4<<20)
	ping(t, a, b)
	mu.Lock()
	defer mu.Unlock()
	if most := 1 + int(time.Since(start)/time.Second); told[b.IPv4] < 1 || told[b.IPv4] > most || len(told) > 2 {
		t.Errorf("told %v, want %v 1 to %d times", told, b.IPv4, most)
	}
}
