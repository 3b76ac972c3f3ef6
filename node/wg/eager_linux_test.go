// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wg

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.zx2c4.com/wireguard/tun"
)

// packetFile is a device as the library's, of which each Read is one of its file.
type packetFile struct {
	tun.Device
	file *os.File
}

func (f packetFile) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	b := make([]byte, vnetHeader+maxPacketBytes)
	n, err := f.file.Read(b)
	var s splitter
	s.load(b[:n])
	return s.cut(bufs, sizes, offset), err
}

// eagerPair is an interface, and a function that is the kernel sending on it.
func eagerPair(t *testing.T) (e *eager, file *os.File, send func(b []byte)) {
	t.Helper()
	e, kernel := eagerTo(t)
	return e, e.Device.(packetFile).file, func(b []byte) {
		t.Helper()
		if _, err := kernel.Write(b); err != nil {
			t.Fatal(err)
		}
	}
}

// Reads gives what waits in full batches: nothing is lost, and nothing out of
// order, where a super-packet does not fit. The last batch does not wait to be full.
func TestEager_ReadsWhatWaits(t *testing.T) {
	e, _, send := eagerPair(t)
	var want [][]byte
	for i, segments := range []int{1, 47, 20, 30} {
		super, packets := tcpSuper(t, i%2 == 1, randomBytes(segments*testMSS, uint64(i)))
		send(super)
		want = append(want, packets...)
	}
	const offset = 16
	var got [][]byte
	for _, full := range []int{40, 40, 18} {
		bufs, sizes := buffers(40, offset+2000)
		n, err := e.Read(bufs, sizes, offset)
		if err != nil || n != full {
			t.Fatalf("read %d packets, %v; want %d", n, err, full)
		}
		for i, size := range sizes[:n] {
			got = append(got, bufs[i][offset:offset+size])
		}
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d is\n%x, want\n%x", i, got[i], want[i])
		}
	}
}

// What cannot be cut takes no place, and hides nothing.
func TestEager_PassesOverWhatIsNoPacket(t *testing.T) {
	e, _, send := eagerPair(t)
	_, packets := tcpSuper(t, false, randomBytes(10, 1))
	whole := vnet(0, 0, 0, 0, 0, packets[0])
	send(whole)
	send([]byte{1, 2, 3})
	send(whole)
	bufs, sizes := buffers(4, 2000)
	if n, err := e.Read(bufs, sizes, 0); n != 2 || err != nil {
		t.Errorf("read %d packets, %v; want 2", n, err)
	}
}

func TestEager_ClosedWhileReading(t *testing.T) {
	e, file, send := eagerPair(t)
	_, packets := tcpSuper(t, false, randomBytes(10, 1))
	result := make(chan error)
	go func() {
		bufs, sizes := buffers(4, 2000)
		for {
			n, err := e.Read(bufs, sizes, 0)
			if err != nil || n != 1 {
				result <- errors.Join(err, e.raw.Read(e.take))
				return
			}
			result <- nil
		}
	}()
	send(vnet(0, 0, 0, 0, 0, packets[0]))
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read of a closed interface: %v", err)
	}
}
