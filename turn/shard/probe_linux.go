// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// abilities are what the kernel does for UDP beyond the ordinary.
type abilities struct {
	batch bool // many datagrams with a call (recvmmsg and sendmmsg, Linux 3.0)
	cut   bool // packets into datagrams (UDP_SEGMENT, Linux 4.18)
	merge bool // datagrams into packets (UDP_GRO, Linux 5.0)
}

// probe finds out what the kernel can do. It tries what it may say and not do.
func probe() abilities {
	s, err := Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), false)
	if err != nil {
		return abilities{} // there is no loopback: a host where nothing is as usual
	}
	defer s.Close()
	var h header
	_, receive := receiveBatch(s.fd, &h, 1)
	_, send := sendBatch(s.fd, &h, 0)
	return abilities{
		batch: receive == unix.EAGAIN && send == 0,
		cut:   unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0) == nil && sendsSegments(s),
		merge: unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil,
	}
}

// sendsSegments sends a packet of two datagrams from a socket to itself.
func sendsSegments(s *Socket) bool {
	var (
		data = []byte("segments")
		to   name
		ctl  controlBuffer
		iov  = unix.Iovec{Base: &data[0]}
		h    header
	)
	iov.SetLen(len(data))
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&to)), to.set(s.addr, false)
	h.Iov = &iov
	h.SetIovlen(1)
	w := controlWriter{to: &ctl}
	w.segments(len(data) / 2)
	h.Control = &ctl.b[0]
	h.SetControllen(w.n)
	sent, errno := sendBatch(s.fd, &h, 1)
	return sent == 1 && errno == 0
}
