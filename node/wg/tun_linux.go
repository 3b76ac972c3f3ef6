// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wg

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// createTUN creates a network interface; it needs the right to.
func createTUN(name string, mtu int) (tun.Device, error) {
	dev, err := tun.CreateTUN(name, mtu)
	if err != nil || dev.BatchSize() == 1 { // without offloads, each read gives one packet
		return dev, err
	}
	raw, err := dev.File().SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reach the interface's file: %w", err), dev.Close())
	}
	return newEager(dev, raw), nil
}

// eager is the library's interface, of which one Read takes all that waits. The
// library takes one packet of the kernel at a time, which may be a super-packet of
// up to 64 KiB. What it reads goes through four goroutines as one batch, so that
// few full batches cost much less than many small ones.
type eager struct {
	tun.Device
	raw syscall.RawConn

	// Owned by Read.
	buf []byte // for one packet of the kernel
	// take reads into buf, got is what came of it; it is kept to be made once.
	take func(fd uintptr) bool
	got  int
	// left is what of a super-packet had no room in the batch.
	left splitter
}

// newEager wraps dev, whose file raw is, and whose packets have a vnet header.
func newEager(dev tun.Device, raw syscall.RawConn) *eager {
	e := &eager{Device: dev, raw: raw, buf: make([]byte, vnetHeader+maxPacketBytes)}
	e.take = func(fd uintptr) bool {
		var err error
		if e.got, err = unix.Read(int(fd), e.buf); err != nil {
			e.got = 0
		}
		return true // whatever came of it, do not wait
	}
	return e
}

// Read implements tun.Device. It waits for the first packet only, as the library
// does: errors are told by that.
func (e *eager) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	if n = e.left.cut(bufs, sizes, offset); n == 0 {
		if n, err = e.Device.Read(bufs, sizes, offset); err != nil {
			return n, err
		}
	}
	for n < len(bufs) && e.more() {
		n += e.left.cut(bufs[n:], sizes[n:], offset)
	}
	return n, nil
}

// more takes what waits, if anything does.
func (e *eager) more() bool {
	// It fails when the file is closed, which the next Read tells.
	if err := e.raw.Read(e.take); err != nil || e.got == 0 {
		return false
	}
	e.left.load(e.buf[:e.got])
	return true
}
