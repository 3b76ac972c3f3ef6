// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wg

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Write is that of the library, without joining anything.
func (f packetFile) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		if _, err := f.file.Write(vnet(0, 0, 0, 0, 0, b[offset:])); err != nil {
			return 0, err
		}
	}
	return len(bufs), nil
}

// written are the packets that an interface gave the kernel, and how many came in
// each super-packet.
func written(t *testing.T, kernel *os.File, n int) (packets [][]byte, supers []int) {
	t.Helper()
	if err := kernel.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, vnetHeader+maxPacketBytes)
	for len(packets) < n {
		size, err := kernel.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		one := splitAll(bytes.Clone(buf[:size]), 128)
		packets, supers = append(packets, one...), append(supers, len(one))
	}
	return packets, supers
}

// framed are packets as the library gives them to be written.
func framed(packets [][]byte) (bufs [][]byte) {
	for _, p := range packets {
		bufs = append(bufs, append(make([]byte, vnetHeader+6), p...))
	}
	return bufs
}

// What the kernel makes of super-packets are the packets that were written, in their
// order, and long runs of one connection are joined as far as a packet may be.
func TestEager_WritesRunsAsOne(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		_, long := tcpSuper(t, v6, randomBytes(40*testMSS+100, 1))
		_, short := tcpSuper(t, !v6, randomBytes(leastJoined*testMSS-testMSS, 2))
		_, other := tcpSuper(t, !v6, randomBytes(leastJoined*testMSS, 3))
		long = flagged(v6, long)
		damaged := clone(flagged(!v6, other))
		damaged[3][len(damaged[3])-1] ^= 1
		for name, c := range map[string]struct {
			packets [][]byte
			want    []int
		}{
			"one":       {long, []int{41}},
			"two":       {slices.Concat(long, flagged(!v6, other)), []int{41, leastJoined}},
			"too short": {flagged(!v6, short), slices.Repeat([]int{1}, len(short))},
			"between":   {slices.Concat(flagged(!v6, short)[:2], long, flagged(!v6, short)[2:4]), []int{1, 1, 41, 1, 1}},
			"damaged":   {damaged, slices.Repeat([]int{1}, len(damaged))},
		} {
			e, kernel := eagerTo(t)
			if n, err := e.Write(framed(c.packets), vnetHeader+6); err != nil || n != len(c.packets) {
				t.Fatalf("v6 %t, %s: wrote %d, %v", v6, name, n, err)
			}
			got, supers := written(t, kernel, len(c.packets))
			if !slices.Equal(supers, c.want) {
				t.Errorf("v6 %t, %s: super-packets of %v, want %v", v6, name, supers, c.want)
			}
			for i := range c.packets {
				if !bytes.Equal(got[i], c.packets[i]) {
					t.Fatalf("v6 %t, %s: packet %d is\n%x, want\n%x", v6, name, i, got[i], c.packets[i])
				}
			}
		}
	}
}

// flagged are packets with no flags but those that a run may have.
func flagged(v6 bool, packets [][]byte) [][]byte {
	ip := ipv4HeaderLen
	if v6 {
		ip = ipv6HeaderLen
	}
	packets = clone(packets)
	for i, p := range packets {
		p[ip+tcpFlags] = tcpFlagAck
		if i == len(packets)-1 {
			p[ip+tcpFlags] |= tcpFlagPush
		}
		resum(p, ip)
	}
	return packets
}

// clone copies packets.
func clone(packets [][]byte) (copies [][]byte) {
	for _, p := range packets {
		copies = append(copies, bytes.Clone(p))
	}
	return copies
}

// eagerTo is an interface, and the kernel's side of it.
func eagerTo(t *testing.T) (*eager, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, kernel := os.NewFile(uintptr(fds[0]), "tun"), os.NewFile(uintptr(fds[1]), "kernel")
	t.Cleanup(func() { _, _ = file.Close(), kernel.Close() })
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return newEager(packetFile{file: file}, raw), kernel
}

func TestEager_WriteTellsWhatFailed(t *testing.T) {
	_, long := tcpSuper(t, false, randomBytes(20*testMSS, 1))
	e, kernel := eagerTo(t)
	if err := kernel.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Write(framed(flagged(false, long)), vnetHeader+6); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write to nobody: %v", err)
	}
	if err := e.Device.(packetFile).file.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Write(framed(flagged(false, long)), vnetHeader+6); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write when closed: %v", err)
	}
}
