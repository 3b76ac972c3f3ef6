// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// addAddress gives the loopback interface of the thread's namespace one more address.
func addAddress(t *testing.T, a netip.Addr) {
	t.Helper()
	if a.Is4() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		alias, _ := unix.NewIfreq("lo:" + a.String()[len(a.String())-1:])
		if err := alias.SetInet4Addr(a.AsSlice()); err != nil {
			t.Error(err)
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, alias); err != nil {
			t.Errorf("add %v: %v", a, err)
		}
		return
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	request := struct { // struct in6_ifreq
		addr   [16]byte
		prefix uint32
		index  int32
	}{a.As16(), 128, 1}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Errorf("add %v: %v", a, errno)
		return
	}
	eventually(t, "the address can be used, which the kernel finds out by and by", func() bool {
		s, err := Listen(netip.AddrPortFrom(a, 0), false)
		if err != nil {
			return false
		}
		s.Close()
		return true
	})
}

// A host with several addresses answers from the one that was asked, one client after the
// other and each of them again, whatever the kernel would take.
func TestShard_AnswersFromEachAddressOfItsHost(t *testing.T) {
	for family, addrs := range map[string][]string{"IPv4": {"192.0.2.1", "192.0.2.2"}, "IPv6": {"fd00::1", "fd00::2"}} {
		t.Run(family, func(t *testing.T) {
			both(t, func(t *testing.T, engine func(*Config)) {
				any, from := netip.IPv4Unspecified(), loopback4
				if family == "IPv6" {
					any, from = netip.IPv6Unspecified(), loopback6
				}
				var listener *Socket
				var conns []*net.UDPConn
				inNamespace(t, func() {
					for _, a := range addrs {
						addAddress(t, netip.MustParseAddr(a))
					}
					listener = newBurst(t, any).port.socket
					for range addrs {
						conn, _ := socket(t, from)
						conns = append(conns, conn)
					}
				})
				if t.Failed() {
					return
				}
				newWorld(t, engine, func(cfg *Config) {
					for _, l := range cfg.Listeners {
						l.Close()
					}
					cfg.Listeners = map[uint16]*Socket{0: listener}
					cfg.Core.Listeners = []core.Listener{{Addr: netip.AddrPortFrom(from, listener.Addr().Port())}}
				})
				var clients []*client
				for i, a := range addrs {
					at := netip.AddrPortFrom(netip.MustParseAddr(a), listener.Addr().Port())
					clients = append(clients, &client{TB: t, UDPConn: conns[i], server: at, user: "ann"})
				}
				for range 3 {
					for _, c := range clients {
						c.do(stun.MustBuild(stun.TransactionID, stun.BindingRequest)) // packet looks at where it comes from
						if got := code(c.request(stun.MethodRefresh)); got != 437 {
							t.Errorf("%v: code %d, want 437", c.server, got)
						}
					}
				}
				// A client may change its mind.
				clients[0].server, clients[1].server = clients[1].server, clients[0].server
				for _, c := range clients {
					c.do(stun.MustBuild(stun.TransactionID, stun.BindingRequest))
				}
			})
		})
	}
}
