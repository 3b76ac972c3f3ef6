// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchConn reads and writes several datagrams of a connected UDP socket with
// one system call. Reads belong to one goroutine; writes need a burst each.
type batchConn struct {
	raw        syscall.RawConn
	noSegments atomic.Bool // the kernel, or the device, does not cut messages into datagrams

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
	c.noSegments.Store(!cutsSegments(raw))
	c.reading.call.init(unix.SYS_RECVMMSG)
	return c
}

// cutsSegments says whether the kernel knows UDP_SEGMENT.
func cutsSegments(raw syscall.RawConn) bool {
	var err error
	if e := raw.Control(func(fd uintptr) {
		_, err = unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
	}); e != nil {
		return false
	}
	return err == nil
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

// maxSegments bounds what the kernel cuts out of one message: 64 segments, and
// 65507 bytes as in every UDP datagram.
const (
	maxSegments     = 64
	maxSegmentBytes = 65000
)

// burstSystem is what the system calls need of a burst.
type burstSystem struct {
	call     batchCall
	headers  [maxBurst]batchHeader
	first    [maxBurst]int // the frame that each header begins with
	controls [maxBurst]segmentControl
	vectors  [3 * maxBurst]unix.Iovec // head, data, padding
}

// segmentControl is a control message UDP_SEGMENT: the kernel cuts a message
// into datagrams of so many bytes, the last of which may be shorter.
type segmentControl struct {
	unix.Cmsghdr
	size uint16
	_    [6]byte
}

// refusalTries is how many errors of earlier datagrams one write passes over.
const refusalTries = 3

// write sends the packets of b. Runs of equal size are cut apart by the kernel
// as late as it can, where it can do that at all.
func (c *batchConn) write(b *burst) error {
	s := &b.system
	if s.call.try == nil {
		s.call.init(unix.SYS_SENDMMSG)
	}
	defer func() { clear(s.vectors[:3*b.n]) }() // the data is the caller's
	segments := !c.noSegments.Load()
	for from, refusals := 0, 0; from < b.n; {
		s.call.count = s.gather(b, from, segments)
		s.call.at = &s.headers[0]
		if err := c.raw.Write(s.call.try); err != nil {
			return err
		}
		switch errno := s.call.errno; {
		case errno == unix.ECONNREFUSED && refusals < refusalTries:
			refusals++ // the reader hears of it as well
		case errno == unix.ECONNREFUSED:
			return nil
		case segments && isUncut(errno):
			segments = false
			c.noSegments.Store(errno == unix.EIO)
		case errno != 0:
			return os.NewSyscallError("sendmmsg", errno)
		case s.call.done == s.call.count:
			return nil
		default:
			from = s.first[s.call.done]
		}
	}
	return nil
}

// isUncut says whether errno is the kernel's word that it does not cut a message
// into datagrams, which may leave one by one: EINVAL, or EMSGSIZE since Linux 6.14,
// means that they are larger than the path's MTU.
func isUncut(errno syscall.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE
}

// gather points headers at the parts of the packets of b from the given one on,
// which are not copied, and returns how many headers there are.
func (s *burstSystem) gather(b *burst, from int, segments bool) (headers int) {
	at := 0
	add := func(base *byte, n int) {
		if n > 0 {
			s.vectors[at].Base = base
			s.vectors[at].SetLen(n)
			at++
		}
	}
	for i := from; i < b.n; headers++ {
		n := 1
		if segments {
			n = b.run(i)
		}
		first := at
		for j := range b.frames[i : i+n] {
			f := &b.frames[i+j]
			add(&f.head[0], f.headLen)
			add(unsafe.SliceData(f.data), len(f.data))
			add(&b.zeros[0], f.padding)
		}
		s.first[headers] = i
		h := &s.headers[headers]
		*h = batchHeader{}
		h.Iov = &s.vectors[first]
		h.SetIovlen(at - first)
		if n > 1 {
			s.cut(h, &s.controls[headers], b.frames[i].size())
		}
		i += n
	}
	return headers
}

// cut has the kernel make datagrams of size bytes of h.
func (s *burstSystem) cut(h *batchHeader, c *segmentControl, size int) {
	c.Level, c.Type, c.size = unix.SOL_UDP, unix.UDP_SEGMENT, uint16(size)
	c.SetLen(unix.CmsgLen(2))
	h.Control = (*byte)(unsafe.Pointer(c))
	h.SetControllen(unix.CmsgSpace(2))
}

// run returns how many frames from the i-th on can leave as one message: all of
// one size, but for a last one that is smaller.
func (b *burst) run(i int) int {
	size := b.frames[i].size()
	n, total := 1, size
	for ; i+n < b.n && n < maxSegments; n++ {
		next := b.frames[i+n].size()
		if total += next; next > size || total > maxSegmentBytes {
			break
		}
		if next < size {
			return n + 1
		}
	}
	return n
}

func (f *frame) size() int { return f.headLen + len(f.data) + f.padding }
