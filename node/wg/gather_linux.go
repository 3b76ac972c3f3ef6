// SPDX-License-Identifier: Apache-2.0

//go:build linux && !android

package wg

import (
	"encoding/binary"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// mostGathered is how many packets are sent at a time.
	mostGathered = conn.IdealBatchSize
	// mostSegments is how many datagrams the kernel cuts one message into.
	mostSegments = 64
	// controlBytes has room for the source address, and for the size of datagrams.
	controlBytes = 64
)

// gatherer sends bursts that the kernel gathers from where the packets are. The
// library copies each into the buffer of the first one, which costs the time, and
// the memory of 64 KiB that most buffers never use else. What goes wrong here is
// left to the library.
type gatherer struct{ four, six gatherSocket }

// gatherSocket is one of the library's sockets; raw is nil if there is none, or the
// kernel does not cut.
type gatherSocket struct {
	raw syscall.RawConn
	// off is set when the kernel did not want to after all.
	off atomic.Bool
}

// newGatherer returns one for the open sockets of std.
func newGatherer(std *conn.StdNetBind) *gatherer {
	g := new(gatherer)
	g.four.raw = cuttingSocket(std, "ipv4", "ipv4TxOffload")
	g.six.raw = cuttingSocket(std, "ipv6", "ipv6TxOffload")
	return g
}

// cuttingSocket is the library's socket in a field of std, if it may be given bursts
// to cut. It is nil for a version of the library that keeps it elsewhere, which a
// test would notice.
func cuttingSocket(std *conn.StdNetBind, socket, offload string) syscall.RawConn {
	of := reflect.ValueOf(std).Elem()
	field, cuts := of.FieldByName(socket), of.FieldByName(offload)
	if !field.IsValid() || field.Type() != reflect.TypeFor[*net.UDPConn]() || !cuts.IsValid() || cuts.Kind() != reflect.Bool || !cuts.Bool() {
		return nil
	}
	// The library has no other way to its sockets.
	c := *(**net.UDPConn)(unsafe.Pointer(field.UnsafeAddr()))
	if c == nil {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// send sends packets to an endpoint of the library, and returns how many of the first
// it has sent: the rest is to be sent in another way.
func (g *gatherer) send(packets [][]byte, ep conn.Endpoint) int {
	to, ok := ep.(*conn.StdNetEndpoint)
	if !ok || len(packets) > mostGathered {
		return 0
	}
	at := &g.four
	if to.Addr().Is6() {
		at = &g.six
	}
	if at.raw == nil || at.off.Load() {
		return 0
	}
	b := gathered.Get().(*gathering)
	defer gathered.Put(b)
	return b.through(at, packets, to)
}

// gathering is a call to send messages, each of datagrams of one size.
type gathering struct {
	heads    [mostGathered]messageHead
	iovs     [mostGathered]unix.Iovec
	controls [mostGathered][controlBytes]byte
	// first is the packet that each message begins with, and after the last one how
	// many packets there are.
	first [mostGathered + 1]int
	name4 unix.RawSockaddrInet4
	name6 unix.RawSockaddrInet6
	// used is how many messages there are, sent how many the kernel took.
	used, sent int
	// put sends, errno is what came of it; it is kept to be made once.
	put   func(fd uintptr) bool
	errno syscall.Errno
}

// messageHead is struct mmsghdr.
type messageHead struct {
	unix.Msghdr
	_ uint32 // what was sent
}

var gathered = sync.Pool{New: func() any {
	b := new(gathering)
	b.put = b.call
	return b
}}

// call sends what is left, and reports false when it has to wait for room.
func (b *gathering) call(fd uintptr) bool {
	for b.sent < b.used {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.heads[b.sent])), uintptr(b.used-b.sent), 0, 0, 0)
		switch errno {
		case 0:
			b.sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			b.errno = errno
			return true
		}
	}
	return true
}

// build makes the messages of packets: in each are datagrams of one size, of which
// the last may be smaller, and no more than a link takes whole.
func (b *gathering) build(packets [][]byte, to *conn.StdNetEndpoint) {
	b.used, b.sent, b.errno = 0, 0, 0
	name, length := b.address(to.AddrPort)
	for i := 0; i < len(packets); b.used++ {
		size, total, n := len(packets[i]), 0, 0
		for last := size; i+n < len(packets) && n < mostSegments && last == size; n++ {
			p := packets[i+n]
			if last = len(p); n > 0 && (last > size || last == 0 || total+last > maxBurst) {
				break
			}
			total += last
			v := &b.iovs[i+n]
			v.Base = unsafe.SliceData(p)
			v.SetLen(len(p))
		}
		b.first[b.used] = i
		h := &b.heads[b.used].Msghdr
		*h = unix.Msghdr{Name: name, Namelen: length, Iov: &b.iovs[i]}
		h.SetIovlen(n)
		control, data := from(b.controls[b.used][:0], to), []byte(nil)
		if n > 1 {
			control, data = controlMessage(control, unix.SOL_UDP, unix.UDP_SEGMENT, 2)
			binary.NativeEndian.PutUint16(data, uint16(size))
		}
		if len(control) > 0 {
			h.Control = &control[0]
			h.SetControllen(len(control))
		}
		i += n
	}
	b.first[b.used] = len(packets)
}

// address is that which all messages go to.
func (b *gathering) address(to netip.AddrPort) (name *byte, length uint32) {
	if to.Addr().Is6() {
		b.name6 = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&b.name6.Port))[:], to.Port())
		return (*byte)(unsafe.Pointer(&b.name6)), unix.SizeofSockaddrInet6
	}
	b.name4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&b.name4.Port))[:], to.Port())
	return (*byte)(unsafe.Pointer(&b.name4)), unix.SizeofSockaddrInet4
}

// through sends packets through a socket, and returns how many of the first it has sent.
func (b *gathering) through(at *gatherSocket, packets [][]byte, to *conn.StdNetEndpoint) int {
	b.build(packets, to)
	defer b.reset()
	// It fails when the socket is closed.
	if err := at.raw.Write(b.put); err == nil && b.errno == unix.EIO {
		at.off.Store(true) // of a network card that does not compute checksums
	}
	return b.first[b.sent]
}

// reset forgets the packets.
func (b *gathering) reset() {
	clear(b.iovs[:b.first[b.used]])
}

// from appends the address of ours that an endpoint says, if it does.
func from(control []byte, to *conn.StdNetEndpoint) []byte {
	src, data := to.SrcIP(), []byte(nil)
	switch {
	case !src.IsValid() || src.Is4() != to.Addr().Is4():
	case src.Is4():
		control, data = controlMessage(control, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		binary.NativeEndian.PutUint32(data, uint32(to.SrcIfidx()))
		copy(data[4:], src.AsSlice())
	default:
		control, data = controlMessage(control, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		copy(data, src.AsSlice())
		binary.NativeEndian.PutUint32(data[16:], uint32(to.SrcIfidx()))
	}
	return control
}

// controlMessage appends a control message of n bytes, and returns its data, which
// are zero.
func controlMessage(control []byte, level, kind int32, n int) (all, data []byte) {
	at := len(control)
	all = control[:at+unix.CmsgSpace(n)]
	clear(all[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&all[at]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	return all, all[at+unix.CmsgLen(0):][:n]
}
