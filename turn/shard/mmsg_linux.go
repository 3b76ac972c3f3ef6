// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// header is the kernel's struct mmsghdr: a message, and how long it was.
type header struct {
	unix.Msghdr
	n uint32
}

// name is the address of a datagram, in the kernel's form: an IPv4 one uses the
// front of it.
type name unix.RawSockaddrInet6

// The calls do not tell the scheduler of Go: none of them waits.

func receiveBatch(fd int, first *header, n int) (int, unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(first)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(r), errno
}

func sendBatch(fd int, first *header, n int) (int, unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(first)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(r), errno
}

// sendOne sends a datagram without gathering it: the kernel has less to copy.
func sendOne(fd int, m *unix.Msghdr) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(m.Iov.Base)), uintptr(m.Iov.Len), unix.MSG_DONTWAIT,
		uintptr(unsafe.Pointer(m.Name)), uintptr(m.Namelen))
	return errno
}

// receiveError takes a message of a socket's queue of errors.
func receiveError(fd int, m *unix.Msghdr) (int, unix.Errno) {
	r, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT|unix.MSG_ERRQUEUE)
	return int(r), errno
}

// poll returns how many events there are at once.
func poll(epoll int, events []unix.EpollEvent) (int, unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	return int(r), errno
}

// wait is poll that waits for at most ms milliseconds, negative for ever, while
// other goroutines run.
func wait(epoll int, events []unix.EpollEvent, ms int) (int, unix.Errno) {
	r, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(ms), 0, 0)
	return int(r), errno
}

// doze sleeps. A signal ends it.
func doze(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
}

// set writes an address for a socket of a family, and returns how long it is.
func (s *name) set(addr netip.AddrPort, ipv6 bool) uint32 {
	port := (*[2]byte)(unsafe.Pointer(&s.Port)) // at the same place in both
	binary.BigEndian.PutUint16(port[:], addr.Port())
	if !ipv6 {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(s))
		v4.Family, v4.Addr = unix.AF_INET, addr.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	s.Family, s.Flowinfo, s.Addr, s.Scope_id = unix.AF_INET6, 0, addr.Addr().As16(), 0
	if addr.Addr().IsLinkLocalUnicast() {
		s.Scope_id = zone(addr.Addr())
	}
	return unix.SizeofSockaddrInet6
}

// get reads an address of n bytes; it is invalid when the kernel wrote none.
func (s *name) get(n uint32) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&s.Port))
	at := binary.BigEndian.Uint16(port[:])
	switch {
	case n >= unix.SizeofSockaddrInet4 && s.Family == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(s)).Addr), at)
	case n >= unix.SizeofSockaddrInet6 && s.Family == unix.AF_INET6:
		return netip.AddrPortFrom(zoned(netip.AddrFrom16(s.Addr).Unmap(), s.Scope_id), at)
	default:
		return netip.AddrPort{}
	}
}

// same reports whether two addresses are the same to the kernel.
func (s *name) same(o *name) bool {
	if s.Family == unix.AF_INET && o.Family == unix.AF_INET {
		return *(*[2]uint32)(unsafe.Pointer(s)) == *(*[2]uint32)(unsafe.Pointer(o)) // family, port and address
	}
	return *s == *o
}
