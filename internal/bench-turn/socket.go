// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many datagrams are received with one system call.
	batch = 64
	// seen is how much of a datagram is looked at; its length is known whatever
	// it is.
	seen = 64
	// socketBuffer is asked of the kernel for each socket of the load, in bytes.
	socketBuffer = 4 << 20
	// drops is the index of the drops of a socket in what SO_MEMINFO tells.
	drops = 8
)

// mmsghdr is the kernel's struct of that name.
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// openUDP opens a socket at a port that the kernel chooses.
func openUDP() (fd int, port uint16, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EMFILE) {
		return 0, 0, fmt.Errorf("open a socket: %w (raise the hard limit of open files, ulimit -Hn, to 20000)", err)
	}
	if err != nil {
		return 0, 0, os.NewSyscallError("socket", err)
	}
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer) // what the host allows
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		unix.Close(fd)
		return 0, 0, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return 0, 0, os.NewSyscallError("getsockname", err)
	}
	return fd, uint16(name.(*unix.SockaddrInet4).Port), nil // it is an IPv4 socket
}

// sockaddr is an address as the kernel reads it.
func sockaddr(a netip.AddrPort) (raw unix.RawSockaddrInet4) {
	raw.Family, raw.Addr = unix.AF_INET, a.Addr().As4()
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&raw.Port))[:], a.Port())
	return raw
}

// receiver receives batches of datagrams and keeps their first bytes.
type receiver struct {
	headers [batch]mmsghdr
	vectors [batch]unix.Iovec
	buffers [batch][seen]byte
}

func newReceiver() *receiver {
	r := &receiver{}
	for i := range r.headers {
		r.vectors[i].Base = &r.buffers[i][0]
		r.vectors[i].SetLen(seen)
		r.headers[i].Iov = &r.vectors[i]
		r.headers[i].SetIovlen(1)
	}
	return r
}

// receive takes what a socket has and returns how many datagrams that are;
// errors of a socket are those of datagrams that it sent, and count as none.
func (r *receiver) receive(fd int) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.headers)), batch,
		unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// datagram is the i-th that was received: its length and its first bytes.
func (r *receiver) datagram(i int) (length int, begin []byte) {
	length = int(r.headers[i].n)
	return length, r.buffers[i][:min(length, seen)]
}

// sender sends the same datagram several times with one system call, which the
// kernel cuts into pieces (UDP GSO).
type sender struct {
	header  unix.Msghdr
	vector  unix.Iovec
	control []byte
	data    []byte
	one     int // bytes of a datagram
}

// newSender copies a datagram for bursts of so many.
func newSender(datagram []byte, burst int) (*sender, error) {
	const most = 65_000 // bytes, so that headers fit too
	if len(datagram)*burst > most {
		return nil, fmt.Errorf("a burst of %d datagrams of %d bytes is too large for one system call", burst, len(datagram))
	}
	s := &sender{one: len(datagram)}
	for range burst {
		s.data = append(s.data, datagram...)
	}
	s.vector.Base = &s.data[0]
	s.header.Iov = &s.vector
	s.header.SetIovlen(1)
	if burst == 1 {
		return s, nil
	}
	s.control = make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&s.control[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(s.control[unix.CmsgLen(0):], uint16(s.one))
	s.header.Control = &s.control[0]
	s.header.SetControllen(len(s.control))
	return s, nil
}

// send sends the burst, to an address unless the socket is connected.
func (s *sender) send(fd int, to *unix.RawSockaddrInet4) error {
	s.vector.SetLen(len(s.data))
	if to != nil {
		s.header.Name, s.header.Namelen = (*byte)(unsafe.Pointer(to)), uint32(unsafe.Sizeof(*to))
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.header)), unix.MSG_DONTWAIT)
	if errno != 0 {
		return errno
	}
	return nil
}

// discard has a socket throw away all that it receives, which its drops then
// count: a peer that takes no CPU time of its own.
func discard(fd int) error {
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	return os.NewSyscallError("attach a filter", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: 1, Filter: &nothing}))
}

// keep ends discard.
func keep(fd int) error {
	return os.NewSyscallError("detach a filter", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0))
}

// discarded tells how many datagrams a socket has thrown away. It wraps.
func discarded(fd int) (uint32, error) {
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("read the drops of a socket", errno)
	}
	return info[drops], nil
}
