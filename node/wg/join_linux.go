// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

const (
	// leastJoined is how many packets are worth a super-packet of our own. Shorter
	// runs, as of many connections at once, are left to the library, which finds
	// what belongs together in all of a batch.
	leastJoined = 8
	// mostJoined is how many packets the library writes at a time.
	mostJoined = conn.IdealBatchSize
	// mostHeaders is the length of the largest headers of a run.
	mostHeaders = ipv6HeaderLen + 60
)

// joiner writes runs of TCP packets as super-packets. The kernel gathers them from
// where they are: the library copies each into the buffer of the first one, which
// costs the time, and the memory of 64 KiB that most buffers never use else.
type joiner struct {
	run  run
	head [vnetHeader + mostHeaders]byte
	iovs [1 + mostJoined]unix.Iovec
	used int
	// put writes iovs, result is what came of it; it is kept to be made once.
	put    func(fd uintptr) bool
	result syscall.Errno
}

// joiners are kept for the goroutines of all peers.
var joiners = sync.Pool{New: func() any {
	j := new(joiner)
	j.put = func(fd uintptr) bool {
		_, _, j.result = unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&j.iovs[0])), uintptr(j.used))
		return j.result != unix.EAGAIN
	}
	return j
}}

// Write implements tun.Device.
func (e *eager) Write(bufs [][]byte, offset int) (int, error) {
	j := joiners.Get().(*joiner)
	defer joiners.Put(j)
	defer j.run.reset()
	var err error
	written := 0
	for i := 0; i < len(bufs); {
		n := j.find(bufs[i:], offset)
		if n >= leastJoined && j.run.intact() {
			err = errors.Join(err, e.pass(bufs[written:i], offset), j.write(e.raw))
			written = i + n
		}
		i += n
	}
	return len(bufs), errors.Join(err, e.pass(bufs[written:], offset))
}

// pass leaves packets to the library.
func (e *eager) pass(bufs [][]byte, offset int) error {
	if len(bufs) == 0 {
		return nil
	}
	_, err := e.Device.Write(bufs, offset)
	return err
}

// find makes the run that the first packet begins, and returns how many are in it.
func (j *joiner) find(bufs [][]byte, offset int) (n int) {
	if !j.run.start(bufs[0][offset:]) {
		return 1
	}
	for n = 1; n < min(len(bufs), mostJoined) && j.run.add(bufs[n][offset:]); n++ {
	}
	return n
}

// write writes the run.
func (j *joiner) write(to syscall.RawConn) error {
	r := &j.run
	vnet := j.head[:vnetHeader]
	clear(vnet)
	vnet[0], vnet[vnetGSOType] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, unix.VIRTIO_NET_HDR_GSO_TCPV4
	if r.ip == ipv6HeaderLen {
		vnet[vnetGSOType] = unix.VIRTIO_NET_HDR_GSO_TCPV6
	}
	binary.NativeEndian.PutUint16(vnet[vnetHeaders:], uint16(r.headers))
	binary.NativeEndian.PutUint16(vnet[vnetSegment:], uint16(len(r.parts[0])-r.headers))
	binary.NativeEndian.PutUint16(vnet[vnetSumStart:], uint16(r.ip))
	binary.NativeEndian.PutUint16(vnet[vnetSumOffset:], tcpChecksum)
	r.lead(j.head[vnetHeader:])
	j.used = 0
	j.add(j.head[:vnetHeader+r.headers])
	for _, p := range r.parts {
		j.add(p[r.headers:])
	}
	// Only what is closed cannot be written to at all.
	if err := to.Write(j.put); err != nil {
		return fmt.Errorf("%w: %w", os.ErrClosed, err)
	}
	switch j.result {
	case 0:
		return nil
	case unix.EBADFD: // the interface is gone
		return os.ErrClosed
	}
	return fmt.Errorf("write a super-packet: %w", j.result)
}

// add adds bytes to what is written.
func (j *joiner) add(b []byte) {
	v := &j.iovs[j.used]
	v.Base = &b[0]
	v.SetLen(len(b))
	j.used++
}

// lead writes the headers of the joined packet. The checksum of TCP is left to the
// kernel, which needs the sum over the pseudo header in its place.
func (r *run) lead(dst []byte) {
	copy(dst, r.parts[0][:r.headers])
	addrs := dst[8:ipv6HeaderLen]
	if r.ip == ipv4HeaderLen {
		binary.BigEndian.PutUint16(dst[ipv4TotalLength:], uint16(r.size))
		binary.BigEndian.PutUint16(dst[ipv4Checksum:], 0)
		binary.BigEndian.PutUint16(dst[ipv4Checksum:], ^checksum.Checksum(dst[:ipv4HeaderLen], 0))
		addrs = dst[12:ipv4HeaderLen]
	} else {
		binary.BigEndian.PutUint16(dst[ipv6Length:], uint16(r.size-ipv6HeaderLen))
	}
	last := r.parts[len(r.parts)-1]
	dst[r.ip+tcpFlags] |= last[r.ip+tcpFlags] & tcpFlagPush
	sum := checksum.Checksum(addrs, checksum.Combine(uint16(r.size-r.ip), protocolTCP))
	binary.BigEndian.PutUint16(dst[r.ip+tcpChecksum:], sum)
}

// intact reports whether the checksums of all parts are right. The kernel computes
// that of what is joined anew, and would make a damaged part look whole.
func (r *run) intact() bool {
	for _, p := range r.parts {
		if checksum.Checksum(p[r.ip:], pseudoSum(p, r.ip)) != 0xffff {
			return false
		}
	}
	return true
}
