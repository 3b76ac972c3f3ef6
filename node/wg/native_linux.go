// SPDX-License-Identifier: Apache-2.0

//go:build linux && !android

package wg

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// oneByOne is for how long batches that the kernel refused to cut are sent
// packet by packet, before the faster way is tried again.
const oneByOne = time.Second

// maxBurst is how many bytes the kernel is given at a time to cut into datagrams.
// The library gives it as many as IP can hold. With the headers of IP and of the
// link that can be more than a link takes whole (64 KiB), and then the kernel cuts
// it before, and all that it passes costs as much as if it had come one by one.
const maxBurst = 1<<16 - 128

// fragmenting is the library's UDP bind for ways on which packets do not fit
// whole: they go in fragments, as those of WireGuard in the kernel do. The
// library leaves its sockets as they come, which forbids routers to cut IPv4
// packets; where ICMP is filtered, nobody tells that they are too large.
type fragmenting struct {
	conn.Bind
	// cutting is held by whoever has fragments of all that is sent over IPv6 be
	// small, and read by all who send.
	cutting sync.RWMutex
	// gather sends bursts; nil while it is closed.
	gather atomic.Pointer[gatherer]
	// until is when batches are tried again, in ns since 1970.
	until atomic.Int64
}

// newNative returns the UDP bind.
func newNative() conn.Bind { return &fragmenting{Bind: withFamilies(conn.NewDefaultBind())} }

// newLean returns the UDP bind of a lean device, which sends as newNative's does
// what does not fit whole. It has no batches that small fragments would hinder.
func newLean() conn.Bind {
	return &lean{control: func(fd int, six bool) {
		family := unix.AF_INET
		if six {
			family = unix.AF_INET6
		}
		_ = allow(fd, family) // without, only ways with a small MTU suffer
		if six {
			setFragments(fd, minMTU)
		}
	}}
}

// Open implements conn.Bind.
func (f *fragmenting) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := f.Bind.Open(port)
	if err == nil {
		// Without, only ways with a small MTU suffer.
		_ = eachSocket(actual, allow)
		if std, ok := f.Bind.(*families); ok {
			f.gather.Store(newGatherer(std.StdNetBind))
		}
	}
	return fns, actual, err
}

// Close implements conn.Bind.
func (f *fragmenting) Close() error {
	f.gather.Store(nil)
	return f.Bind.Close()
}

// Send implements conn.Bind. The kernel cuts a batch into packets or a packet
// into fragments, not both: a batch of packets that do not fit is refused.
func (f *fragmenting) Send(packets [][]byte, ep conn.Endpoint) error {
	limitBursts(packets)
	f.cutting.RLock()
	defer f.cutting.RUnlock()
	if len(packets) == 1 || time.Now().UnixNano() >= f.until.Load() {
		if g := f.gather.Load(); g != nil && len(packets) > 1 {
			if packets = packets[g.send(packets, ep):]; len(packets) == 0 {
				return nil
			}
		}
		err := f.Bind.Send(packets, ep)
		// Before Linux 6.13 it was EINVAL, which has other causes, too.
		if err == nil || len(packets) == 1 || !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		if errors.Is(err, unix.EMSGSIZE) {
			f.until.Store(time.Now().Add(oneByOne).UnixNano())
		}
	}
	for i := range packets {
		if err := f.Bind.Send(packets[i:i+1], ep); err != nil {
			return err
		}
	}
	return nil
}

// limitBursts has the library join no more than maxBurst bytes: it appends to the first
// of the packets, as far as that has room.
func limitBursts(packets [][]byte) {
	for i, p := range packets {
		if len(p) <= maxBurst && cap(p) > maxBurst {
			packets[i] = p[:len(p):maxBurst]
		}
	}
}

// SendNarrow implements narrowSender. The kernel has one size of fragments for a
// socket, and refuses to cut batches into packets that are larger: others wait.
func (f *fragmenting) SendNarrow(packets [][]byte, ep conn.Endpoint) error {
	six, ok := f.Bind.(*families)
	if !ok || !tooLarge(packets) {
		return f.Send(packets, ep)
	}
	f.cutting.Lock()
	defer f.cutting.Unlock()
	six.control6(func(fd int) { setFragments(fd, minMTU) })
	defer six.control6(func(fd int) { setFragments(fd, 0) })
	for i := range packets {
		if err := f.Bind.Send(packets[i:i+1], ep); err != nil {
			return err
		}
	}
	return nil
}

// setFragments sets how large the fragments may be of what is sent on an IPv6
// socket and does not fit the host's link; 0 means as large as fits there. Without,
// only narrow ways suffer.
func setFragments(fd, size int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU, size) }

// linkMTU is the MTU of the link on which the host sends to an IPv6 address, in
// bytes; usualMTU when it does not say.
func linkMTU(to netip.AddrPort) int {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return usualMTU
	}
	defer unix.Close(fd)
	// It sends nothing.
	if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}); err != nil {
		return usualMTU
	}
	mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
	if err != nil {
		return usualMTU
	}
	return mtu
}

// allow lets routers, and the kernel, cut what is sent on a socket.
func allow(fd, family int) error {
	if family == unix.AF_INET {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
}

// eachSocket calls do for the UDP sockets of this process with a local port. The
// library keeps them to itself, but for their number.
func eachSocket(port uint16, do func(fd, family int) error) error {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	var errs []error
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		fd, numErr := strconv.Atoi(e.Name())
		if err != nil || numErr != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		// A number may be another file's at any time; a copy stays what it is.
		own, err := unix.FcntlInt(uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue // closed since
		}
		if family, ok := boundTo(own, port); ok {
			errs = append(errs, do(own, family))
		}
		errs = append(errs, unix.Close(own))
	}
	return errors.Join(errs...)
}

// boundTo reports whether fd is a UDP socket at a port, and of which family.
func boundTo(fd int, port uint16) (family int, ok bool) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_DGRAM {
		return 0, false
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return 0, false
	}
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return unix.AF_INET, at.Port == int(port)
	case *unix.SockaddrInet6:
		return unix.AF_INET6, at.Port == int(port)
	}
	return 0, false
}
