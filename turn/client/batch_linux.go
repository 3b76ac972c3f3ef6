// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchConn reads and writes several datagrams of a connected UDP socket with
// one system call. Reads belong to one goroutine; writes need a burst each.
type batchConn struct {
	raw syscall.RawConn

	reading struct { // by the one reader
		call    batchCall
		headers [readBurst]batchHeader
		vectors [readBurst]unix.Iovec
	}
}

// batchHeader is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type batchHeader struct {
	unix.Msghdr
	length uint32
}

// newBatchConn returns nil when conn is no UDP socket of the kernel's.
func newBatchConn(conn net.Conn) *batchConn {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil
	}
	c := &batchConn{raw: raw}
	c.reading.call.init(unix.SYS_RECVMMSG)
	return c
}

// batchCall is one of the two system calls in the form that RawConn takes, kept
// because a closure per call would be garbage per call.
type batchCall struct {
	try    func(fd uintptr) bool
	number uintptr
	at     *batchHeader
	count  int
	done   int
	errno  syscall.Errno
}

func (c *batchCall) init(number uintptr) { c.number, c.try = number, c.attempt }

// attempt makes the call without waiting; false means that the socket is not ready.
func (c *batchCall) attempt(fd uintptr) bool {
	for {
		n, _, errno := syscall.Syscall6(c.number, fd, uintptr(unsafe.Pointer(c.at)), uintptr(c.count), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			c.done, c.errno = int(n), 0
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			c.done, c.errno = 0, errno
			return true
		}
	}
}

// read reads up to len(burst) datagrams, at least one, and returns the whole
// ones first, with their number and that of the others.
func (c *batchConn) read(burst []*packet) (n, oversize int, err error) {
	r := &c.reading
	for i, p := range burst {
		r.vectors[i].Base = &p.buf[0]
		r.vectors[i].SetLen(len(p.buf))
		r.headers[i] = batchHeader{}
		r.headers[i].Iov = &r.vectors[i]
		r.headers[i].SetIovlen(1)
	}
	r.call.at, r.call.count = &r.headers[0], len(burst)
	if err := c.raw.Read(r.call.try); err != nil {
		return 0, 0, err
	}
	if r.call.errno != 0 {
		return 0, 0, os.NewSyscallError("recvmmsg", r.call.errno)
	}
	for i := range r.call.done {
		if r.headers[i].Flags&unix.MSG_TRUNC != 0 {
			oversize++
			continue
		}
		burst[i].n = int(r.headers[i].length)
		burst[n], burst[i] = burst[i], burst[n]
		n++
	}
	return n, oversize, nil
}

// burstSystem is what the system calls need of a burst.
type burstSystem struct {
	call    batchCall
	headers [maxBurst]batchHeader
	vectors [3 * maxBurst]unix.Iovec // head, data, padding
}

// refusalTries is how many errors of earlier datagrams one write passes over.
const refusalTries = 3

// write sends the packets of b.
func (c *batchConn) write(b *burst) error {
	s := &b.system
	if s.call.try == nil {
		s.call.init(unix.SYS_SENDMMSG)
	}
	s.gather(b)
	defer func() { clear(s.vectors[:3*b.n]) }() // the data is the caller's
	for sent, refusals := 0, 0; sent < b.n; sent += s.call.done {
		s.call.at, s.call.count = &s.headers[sent], b.n-sent
		if err := c.raw.Write(s.call.try); err != nil {
			return err
		}
		switch errno := s.call.errno; {
		case errno == unix.ECONNREFUSED && refusals < refusalTries:
			refusals++ // the reader hears of it as well
		case errno == unix.ECONNREFUSED:
			return nil
		case errno != 0:
			return os.NewSyscallError("sendmmsg", errno)
		}
	}
	return nil
}

// gather points the headers at the parts of the packets of b, which are not copied.
func (s *burstSystem) gather(b *burst) {
	at := 0
	add := func(base *byte, n int) {
		if n > 0 {
			s.vectors[at].Base = base
			s.vectors[at].SetLen(n)
			at++
		}
	}
	for i := range b.frames[:b.n] {
		f, first := &b.frames[i], at
		add(&f.head[0], f.headLen)
		add(unsafe.SliceData(f.data), len(f.data))
		add(&b.zeros[0], f.padding)
		s.headers[i] = batchHeader{}
		s.headers[i].Iov = &s.vectors[first]
		s.headers[i].SetIovlen(at - first)
	}
}
