// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// behind is a machine on a link of the host: a namespace of its own with a TCP
// listener on port 7 of each address.
type behind struct {
	namespace *os.File
	listeners []net.Listener
}

// newBehind connects a machine to the host's new interface with the given
// addresses on both ends. It knows no way to the mesh.
func (h *host) newBehind(name string, here, there []netip.Prefix) *behind {
	h.tb.Helper()
	b, made := &behind{}, make(chan error, 1)
	connected, ready := make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			b.namespace, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
		<-connected
		ready <- func() error {
			nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer nl.Close()
			if err := plug(nl, "eth0", there); err != nil {
				return err
			}
			b.listeners, err = listen(there, 7) // in this thread's namespace
			return err
		}()
	}()
	if err := <-made; err != nil {
		h.tb.Fatal(err)
	}
	h.tb.Cleanup(func() { _ = b.namespace.Close() })
	err := h.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(b.namespace.Fd())})
	if err == nil {
		err = plug(h.nl, name, here)
	}
	close(connected)
	if err := errors.Join(err, <-ready); err != nil {
		h.tb.Fatal(err)
	}
	closeAll(h.tb, b.listeners)
	return b
}

// listen listens on a port of each address. One socket for all would depend on
// what the process has found out about IPv6 in another namespace.
func listen(at []netip.Prefix, port uint16) (list []net.Listener, err error) {
	for _, p := range at {
		l, e := net.Listen("tcp", netip.AddrPortFrom(p.Addr(), port).String())
		list, err = append(list, l), errors.Join(err, e)
	}
	return list, err
}

func closeAll(tb testing.TB, list []net.Listener) {
	tb.Cleanup(func() {
		for _, l := range list {
			_ = l.Close()
		}
	})
}

// plug brings an interface up with addresses.
func plug(nl *netlink.Handle, name string, addrs []netip.Prefix) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		err = errors.Join(err, nl.AddrAdd(link, addr))
	}
	return errors.Join(err, nl.LinkSetUp(link))
}

// syn is the first packet of a connection with a segment size of 1460.
func syn(src, dst netip.Addr, sport, port uint16) []byte {
	var options [4]byte
	header.EncodeMSSOption(1460, options[:])
	segment := make(header.TCP, header.TCPMinimumSize+len(options))
	segment.Encode(&header.TCPFields{
		SrcPort: sport, DstPort: port, SeqNum: 1, DataOffset: uint8(len(segment)), Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	copy(segment[header.TCPMinimumSize:], options[:])
	from, to := tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice())
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, from, to, uint16(len(segment)))
	segment.SetChecksum(^segment.CalculateChecksum(checksum.Checksum(nil, sum)))
	if src.Is6() {
		p := make(header.IPv6, header.IPv6MinimumSize)
		p.Encode(&header.IPv6Fields{PayloadLength: uint16(len(segment)), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: from, DstAddr: to})
		return append(p, segment...)
	}
	p := make(header.IPv4, header.IPv4MinimumSize)
	p.Encode(&header.IPv4Fields{TotalLength: uint16(len(p) + len(segment)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: from, DstAddr: to})
	p.SetChecksum(^p.CalculateChecksum())
	return append(p, segment...)
}

// answer reads packets until one of TCP to a port comes, or until patience ends.
func answer(tb testing.TB, tun *os.File, port uint16, patience time.Duration) header.TCP {
	tb.Helper()
	if err := tun.SetReadDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	for buf := make([]byte, 2000); ; {
		n, err := tun.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			tb.Fatal(err)
		}
		var segment header.TCP
		switch p := buf[:n]; {
		case header.IPVersion(p) == 4 && header.IPv4(p).Protocol() == uint8(header.TCPProtocolNumber):
			segment = header.IPv4(p).Payload()
		case header.IPVersion(p) == 6 && header.IPv6(p).TransportProtocol() == header.TCPProtocolNumber:
			segment = header.IPv6(p).Payload()
		}
		if segment != nil && segment.DestinationPort() == port {
			return segment
		}
	}
}

// A peer reaches a machine that knows no way back to the mesh, by IPv4 and IPv6,
// and gets a segment size that fits the tunnel. It reaches no other address of
// the host than that in the mesh, and without masquerading no machine answers.
func TestServe_Packets(t *testing.T) {
	k, h := newHost(t), New(nil)
	if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
		t.Fatal(err)
	}
	tun, err := openTUN("mesh0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	k.newBehind("site0", prefixes("198.51.100.1/24", "fd55::1/64"), prefixes("198.51.100.2/24", "fd55::2/64"))
	c := router()
	set(t, h, c)
	own, err := listen(append(prefixes("198.51.100.1/24", "fd55::1/64", "192.0.2.1/24"), c.Addresses...), 8)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(t, own)
	c.Serve = prefixes("198.51.100.0/24", "fd55::/64")
	port := uint16(4000) // of the peer, another one each time
	for _, masquerade := range []bool{true, false} {
		if !masquerade {
			c.Masquerade = nil
		}
		set(t, h, c)
		for _, tt := range []struct {
			name     string
			src, dst string
			port     uint16
			answers  bool
			size     uint16
		}{
			{"IPv4", "172.16.0.9", "198.51.100.2", 7, masquerade, 1360},
			{"IPv6", "fd00::9:0", "fd55::2", 7, masquerade, 1340},
			{"own mesh address", "172.16.0.9", "172.16.0.1", 8, true, 1360},
			{"own IPv6 mesh address", "fd00::9:0", "fd00::1:0", 8, true, 1340},
			{"own address there", "172.16.0.9", "198.51.100.1", 8, false, 0},
			{"own IPv6 address there", "fd00::9:0", "fd55::1", 8, false, 0},
			{"own address elsewhere", "172.16.0.9", "192.0.2.1", 8, false, 0},
		} {
			port++
			if _, err := tun.Write(syn(netip.MustParseAddr(tt.src), netip.MustParseAddr(tt.dst), port, tt.port)); err != nil {
				t.Fatal(err)
			}
			patience := time.Minute
			if !tt.answers {
				patience = 300 * time.Millisecond
			}
			got := answer(t, tun, port, patience)
			if (got != nil) != tt.answers {
				t.Errorf("masquerade %v, %s: answer %x", masquerade, tt.name, []byte(got))
			}
			if got == nil {
				continue
			}
			if size := header.ParseSynOptions(got.Options(), true).MSS; got.SourcePort() != tt.port || !got.Flags().Contains(header.TCPFlagSyn|header.TCPFlagAck) || size != tt.size {
				t.Errorf("masquerade %v, %s: from port %d, flags %v, segment size %d", masquerade, tt.name, got.SourcePort(), got.Flags(), size)
			}
		}
	}
}

// do runs f in the machine's namespace and returns its error.
func (b *behind) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(int(b.namespace.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// send sends a packet as it is to the host, whose end of the link is at to.
func (b *behind) send(to net.HardwareAddr, packet []byte) error {
	return b.do(func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		kind := uint16(unix.ETH_P_IP)
		if header.IPVersion(packet) == 6 {
			kind = unix.ETH_P_IPV6
		}
		at := &unix.SockaddrLinklayer{Protocol: kind<<8 | kind>>8, Ifindex: eth.Index, Halen: uint8(len(to))}
		copy(at.Addr[:], to)
		return unix.Sendto(fd, packet, 0, at)
	})
}

// A machine in a network that is served does not speak with an address of the
// mesh, neither to the host nor into the mesh.
func TestServe_DropsDisguises(t *testing.T) {
	k, h := newHost(t), New(nil)
	if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
		t.Fatal(err)
	}
	tun, err := openTUN("mesh0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	b := k.newBehind("site0", prefixes("198.51.100.1/24", "fd55::1/64", "172.20.0.1/24"), prefixes("198.51.100.2/24", "fd55::2/64", "172.20.0.2/24"))
	for _, name := range []string{"all", "site0"} { // hosts may be set up so, and IPv6 knows no such thing
		if err := os.WriteFile(settingsDir+"ipv4/conf/"+name+"/rp_filter", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	c := router()
	c.Serve = prefixes("198.51.100.0/24", "fd55::/64")
	set(t, h, c)
	own, err := listen(c.Addresses, 8)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(t, own)
	for i, tt := range []struct {
		name     string
		src, dst string
		passes   bool
	}{
		{"into the mesh", "198.51.100.2", "172.16.0.9", true},
		{"IPv6 into the mesh", "fd55::2", "fd00::9:0", true},
		{"network in that of the mesh", "172.20.0.2", "172.16.0.9", true},
		{"as a node into the mesh", "172.16.0.8", "172.16.0.9", false},
		{"as an IPv6 node into the mesh", "fd00::8:0", "fd00::9:0", false},
		{"as the router into the mesh", "172.16.0.1", "172.16.0.9", false},
		{"as the IPv6 router into the mesh", "fd00::1:0", "fd00::9:0", false},
		{"as a node to the router", "172.16.0.8", "172.16.0.1", false},
		{"as an IPv6 node to the router", "fd00::8:0", "fd00::1:0", false},
	} {
		// What is forwarded comes out with its own port, an answer with that of the asker.
		asker, port, patience := uint16(5000+i), uint16(6000+i), 300*time.Millisecond
		if tt.passes {
			patience = time.Minute
		}
		if tt.dst == c.Addresses[0].Addr().String() || tt.dst == c.Addresses[1].Addr().String() {
			asker, port = port, 8
		}
		if err := b.send(k.link("site0").Attrs().HardwareAddr, syn(netip.MustParseAddr(tt.src), netip.MustParseAddr(tt.dst), asker, port)); err != nil {
			t.Fatal(err)
		}
		if got := answer(t, tun, uint16(6000+i), patience); (got != nil) != tt.passes {
			t.Errorf("%s: got %x", tt.name, []byte(got))
		}
	}
}

// A host that serves two networks does not join them, unless it did so before.
func TestServe_JoinsNoNetworks(t *testing.T) {
	k, h := newHost(t), New(nil)
	machines := []*behind{
		k.newBehind("site0", prefixes("198.51.100.1/24", "fd55::1/64"), prefixes("198.51.100.2/24", "fd55::2/64")),
		k.newBehind("site1", prefixes("203.0.113.1/24", "fd66::1/64"), prefixes("203.0.113.2/24", "fd66::2/64")),
	}
	for i, ways := range [][]string{{"198.51.100.1", "fd55::1"}, {"203.0.113.1", "fd66::1"}} {
		for _, via := range ways {
			if err := machines[i].do(func() error { return exec.Command("ip", "route", "add", "default", "via", via).Run() }); err != nil {
				t.Fatal(err)
			}
		}
	}
	reaches := func(from int, to string, want bool) {
		t.Helper()
		patience := 300 * time.Millisecond
		if want {
			patience = time.Minute
		}
		err := machines[from].do(func() error {
			conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), 7).String(), patience)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
		if (err == nil) != want {
			t.Errorf("machine %d to %s: %v", from, to, err)
		}
	}
	both := func(first, second bool) {
		t.Helper()
		reaches(0, "203.0.113.2", first)
		reaches(0, "fd66::2", first)
		reaches(1, "198.51.100.2", second)
		reaches(1, "fd55::2", second)
	}
	c := router()
	c.Serve = prefixes("198.51.100.0/24", "203.0.113.0/24", "fd55::/64", "fd66::/64")
	set(t, h, c)
	both(false, false)
	// Whoever makes a router of the host means it.
	if err := os.WriteFile(settingsDir+allForwarding4, []byte(on), 0); err != nil {
		t.Fatal(err)
	}
	set(t, h, c)
	reaches(0, "203.0.113.2", true)
	reaches(0, "fd66::2", false)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	// That also switches all interfaces; the first one is to forward before us.
	if err := os.WriteFile(settingsDir+allForwarding4, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"ipv4/conf/site0/forwarding", "ipv6/conf/site0/force_forwarding"} {
		if err := os.WriteFile(settingsDir+path, []byte(on), 0); err != nil {
			t.Fatal(err)
		}
	}
	set(t, h, c)
	both(true, false)
}
