// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	xdplink "github.com/cilium/ebpf/link"
	"github.com/pion/stun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// late is how long something may take that takes microseconds.
const late = 30 * time.Second

// outside is the network of the clients and peers, at the other end of the cable.
type outside struct {
	testing.TB
	file *os.File
}

// newOutside joins the host of the test, which gets the interface near, to a
// network with clients and peers. The cable ends the way a mode needs it: behind a
// native program the other end must have one too, and the generic one wants
// whole checksums.
func newOutside(tb testing.TB, mode Mode) *outside {
	tb.Helper()
	newNamespace(tb)
	o := &outside{TB: tb}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("0"), 0)
		}
		if err == nil {
			o.file, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	must(tb, <-made)
	tb.Cleanup(func() { o.file.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "near"
	must(tb, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "end", PeerNamespace: netlink.NsFd(int(o.file.Fd()))}))
	dress(tb, "near", "192.0.2.1/24", "2001:db8::1/64")
	o.enter(func() error {
		dress(tb, "end", "192.0.2.10/24", "192.0.2.20/24", "2001:db8::10/64", "2001:db8::20/64")
		if mode == Native {
			return o.answerable()
		}
		return feature("end", unix.ETHTOOL_STXCSUM, false)
	})
	return o
}

// dress gives an interface addresses, and raises it.
func dress(tb testing.TB, name string, addrs ...string) {
	tb.Helper()
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		must(tb, err)
		addr.Flags = unix.IFA_F_NODAD
		must(tb, netlink.AddrAdd(linkOf(tb, name), addr))
	}
	must(tb, netlink.LinkSetUp(linkOf(tb, name)))
}

// enter runs f on a thread that is in the network, which then ends.
func (o *outside) enter(f func() error) {
	o.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(o.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	must(o, <-done)
}

// answerable gives the end of the cable a program that lets everything pass.
func (o *outside) answerable() error {
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, actionPass), asm.Return()},
	})
	if err != nil {
		return err
	}
	l, err := xdplink.AttachXDP(xdplink.XDPOptions{Program: pass, Interface: linkOf(o, "end").Attrs().Index, Flags: xdplink.XDPDriverMode})
	if err != nil {
		return err
	}
	o.Cleanup(func() { l.Close(); pass.Close() })
	return nil
}

// feature switches an offload of an interface by its number in ethtool's interface.
func feature(name string, command uint32, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := &struct{ command, data uint32 }{command: command}
	if on {
		value.data = 1
	}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		rest [16]byte
	}{data: unsafe.Pointer(value)}
	copy(request.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("ethtool %#x at %s: %w", command, name, errno)
	}
	return nil
}

// listen opens a socket outside.
func (o *outside) listen(at netip.AddrPort) *net.UDPConn {
	o.Helper()
	var c *net.UDPConn
	o.enter(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	o.Cleanup(func() { c.Close() })
	must(o, c.SetDeadline(time.Now().Add(late)))
	return c
}

// live is the least that makes a server of a core and an engine: plain sockets,
// one reader for each, and a lock. It counts what it relays itself.
type live struct {
	testing.TB
	engine *Engine

	mu        sync.Mutex // guards the fields below
	core      *core.Core
	out       core.Output
	listeners []*net.UDPConn
	spare     map[core.Family][]*net.UDPConn // opened by the test, whose thread is in the network
	relays    map[core.RelayID]*net.UDPConn
	ended     bool
	readers   sync.WaitGroup
	up, down  int
}

func newLive(tb testing.TB, mode Mode) *live {
	tb.Helper()
	s := &live{TB: tb, relays: make(map[core.RelayID]*net.UDPConn), spare: make(map[core.Family][]*net.UDPConn)}
	at := map[uint16]netip.AddrPort{0: server4, 1: server6}
	var err error
	s.engine, err = Open(Config{Mode: mode, Listeners: at})
	must(tb, err)
	s.core, err = core.New(time.Now(), core.Config{
		Realm: "meshgate", Listeners: []core.Listener{{Addr: server4}, {Addr: server6}},
		Offers: core.Offers{IPv4: true, IPv6: true}, Authenticator: &world{}, Offload: true,
		Permit: func(string, core.Peer) bool { return true },
	})
	must(tb, err)
	for family, addr := range map[core.Family]netip.Addr{core.IPv4: server4.Addr(), core.IPv6: server6.Addr()} {
		for range len(clients()) * len(peers()) {
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
			must(tb, err)
			s.spare[family] = append(s.spare[family], c)
		}
	}
	for i := range uint16(2) {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at[i]))
		must(tb, err)
		s.listeners = append(s.listeners, c)
	}
	for i, c := range s.listeners {
		s.readers.Go(func() {
			s.read(c, func(from netip.AddrPort, b []byte) {
				s.core.FromClient(time.Now(), core.Flow{Client: from, Listener: uint16(i)}, b, &s.out)
			})
		})
	}
	tb.Cleanup(s.close)
	return s
}

func (s *live) close() {
	s.mu.Lock()
	s.ended = true
	for _, c := range s.listeners {
		c.Close()
	}
	for _, c := range s.relays {
		c.Close()
	}
	for _, c := range slices.Concat(s.spare[core.IPv4], s.spare[core.IPv6]) {
		c.Close()
	}
	s.mu.Unlock()
	s.readers.Wait()
	must(s, s.engine.Close())
}

// read makes events of what comes to a socket.
func (s *live) read(c *net.UDPConn, event func(from netip.AddrPort, b []byte)) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		s.mu.Lock()
		event(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), b[:n])
		s.execute()
		s.mu.Unlock()
	}
}

func (s *live) execute() {
	for i := 0; i < len(s.out.Actions); i++ { // answers append more
		switch a := s.out.Actions[i]; a.Kind {
		case core.SendClient:
			if a.Data[0] >= 0x40 {
				s.down++
			}
			s.listeners[a.Flow.Listener].WriteToUDPAddrPort(a.Data, a.Flow.Client)
		case core.SendPeer:
			s.up++
			s.relays[a.Relay].WriteToUDPAddrPort(a.Data, a.Peer)
		case core.OpenRelay:
			s.open(a)
		case core.ChannelsChanged:
			s.engine.Changed(a.Flow, s.core.Bindings(time.Now(), a.Flow))
			s.core.Credit(time.Now(), a.Flow, s.engine.Counters(a.Flow))
		default:
			s.Errorf("action %+v", a)
		}
	}
	s.out.Reset()
}

func (s *live) open(a core.Action) {
	if s.ended {
		return
	}
	c := s.spare[a.Family][0]
	s.spare[a.Family] = s.spare[a.Family][1:]
	s.relays[a.Relay] = c
	s.core.RelayOpened(time.Now(), a.Relay, c.LocalAddr().(*net.UDPAddr).AddrPort(), &s.out)
	s.readers.Go(func() {
		s.read(c, func(from netip.AddrPort, b []byte) {
			s.core.FromPeer(time.Now(), a.Relay, from, b, 0, &s.out)
		})
	})
}

// relayed returns what the server has relayed itself since it was asked last,
// and all that a client was credited.
func (s *live) relayed(flow core.Flow) (up, down int, all core.Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	up, down = s.up, s.down
	s.up, s.down = 0, 0
	s.core.Credit(time.Now(), flow, s.engine.Counters(flow))
	for a := range s.core.Allocations() {
		if a.Flow == flow {
			all = a.Usage
		}
	}
	return up, down, all
}

// caller is a client with a socket.
type caller struct {
	testing.TB
	*net.UDPConn
	server netip.AddrPort
}

func (c *caller) send(b []byte) {
	c.Helper()
	_, err := c.WriteToUDPAddrPort(b, c.server)
	must(c, err)
}

func (c *caller) receive() []byte {
	c.Helper()
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	must(c, err)
	return b[:n]
}

// allocate gets relays of both families and the channel 0x4000 to a peer.
func (c *caller) allocate(peer netip.AddrPort) {
	c.Helper()
	exchange := func(request []byte) []byte { c.send(request); return c.receive() }
	requestBy(c, exchange, stun.MethodAllocate, number(stun.AttrRequestedTransport, 17, 0, 0, 0), number(0x8000, 2, 0, 0, 0))
	requestBy(c, exchange, stun.MethodChannelBind, number(stun.AttrChannelNumber, 0x40, 0, 0, 0), peerAt(peer))
}

// TestEngine_RelaysPastUserSpace: of what a client and its peer say to each other
// the server's sockets see next to nothing, and its core is told of all.
func TestEngine_RelaysPastUserSpace(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		t.Run(string(mode), func(t *testing.T) {
			o := newOutside(t, mode)
			s := newLive(t, mode)
			for _, client := range clients() {
				for i, peer := range peers()[:2] {
					client := netip.AddrPortFrom(client.Addr(), client.Port()+uint16(i))
					testPastUserSpace(t, o, s, client, peer)
				}
			}
		})
	}
}

func testPastUserSpace(t *testing.T, o *outside, s *live, client, peer netip.AddrPort) {
	t.Helper()
	c := &caller{TB: t, UDPConn: o.listen(client), server: serverOf(client)}
	p := o.listen(netip.AddrPortFrom(peer.Addr(), 0))
	defer p.Close()
	peer = p.LocalAddr().(*net.UDPAddr).AddrPort()
	c.allocate(peer)
	const rounds = 100
	b := make([]byte, 2000)
	total := 0
	for i := range rounds {
		data := random(i * 7 % 1300)
		total += len(data)
		c.send(frame(0x4000, data))
		n, from, err := p.ReadFromUDPAddrPort(b)
		if err != nil || !bytes.Equal(b[:n], data) {
			t.Fatalf("round %d: the peer got %d bytes of %d: %v", i, n, len(data), err)
		}
		if _, err := p.WriteToUDPAddrPort(data, from); err != nil {
			t.Fatal(err)
		}
		if got := c.receive(); !bytes.Equal(got, frame(0x4000, data)) {
			t.Fatalf("round %d: the client got %d bytes of %d", i, len(got), len(data)+4)
		}
	}
	// While a neighbour is being asked for, packets take the other way.
	const few = 3
	up, down, all := s.relayed(flowOf(client))
	if up > few || down > few {
		t.Errorf("%v and %v: user space has relayed %d and %d of %d packets: %+v", client, peer, up, down, rounds, s.engine.Stats())
	}
	want := core.Usage{SentPackets: rounds, SentBytes: uint64(total), ReceivedPackets: rounds, ReceivedBytes: uint64(total)}
	if all != want {
		t.Errorf("%v and %v: the core has counted %+v, want %+v", client, peer, all, want)
	}
}

// TestEngine_TakesBurstsApart: a packet that the kernel has put together of
// several arrives as several.
func TestEngine_TakesBurstsApart(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		t.Run(string(mode), func(t *testing.T) {
			o := newOutside(t, mode)
			o.enter(func() error { return feature("end", unix.ETHTOOL_STXCSUM, true) }) // no segmentation without checksums
			newLive(t, mode)
			c := &caller{TB: t, UDPConn: o.listen(client4), server: server4}
			p := o.listen(peer4)
			c.allocate(peer4)
			const segments, size = 5, 100
			var sent [][]byte
			for range segments {
				sent = append(sent, random(size))
			}
			segment(t, c.UDPConn, size+4)
			var burst []byte
			for _, data := range sent {
				burst = append(burst, frame(0x4000, data)...)
			}
			c.send(burst)
			b := make([]byte, 2000)
			var relay netip.AddrPort
			for i := range sent {
				n, from, err := p.ReadFromUDPAddrPort(b)
				if err != nil || !bytes.Equal(b[:n], sent[i]) {
					t.Fatalf("the peer got %d bytes for segment %d: %v", n, i, err)
				}
				relay = from
			}
			segment(t, p, size)
			if _, err := p.WriteToUDPAddrPort(bytes.Join(sent, nil), relay); err != nil {
				t.Fatal(err)
			}
			for i := range sent {
				if got := c.receive(); !bytes.Equal(got, frame(0x4000, sent[i])) {
					t.Fatalf("the client got %d bytes for segment %d", len(got), i)
				}
			}
		})
	}
}

// segment has the kernel take what a socket sends apart, as late as it can.
func segment(tb testing.TB, c *net.UDPConn, size int) {
	tb.Helper()
	raw, err := c.SyscallConn()
	must(tb, err)
	var set error
	must(tb, raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }))
	must(tb, set)
}
