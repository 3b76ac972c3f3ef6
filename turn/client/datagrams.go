// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"net"
	"syscall"
	"time"
)

const (
	// readBurst is how many datagrams are read at once: 16 KiB per idle allocation.
	readBurst = 8
	// socketBuffer holds what arrives while the reader works, and whole bursts on their way out.
	socketBuffer = 1 << 20
	// maxPause is the longest wait after an error of the socket that may pass,
	// such as an interface that is down.
	maxPause = 500 * time.Millisecond
)

// datagrams is a link over a connected UDP socket: the kernel drops what does
// not come from the server.
type datagrams struct {
	net.Conn
	batch  *batchConn // nil where the platform, or the socket, knows no batches
	closed chan struct{}
}

func newDatagrams(conn net.Conn) *datagrams {
	if b, ok := conn.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok { // the kernel may grant less; that costs packets under load only
		_, _ = b.SetReadBuffer(socketBuffer), b.SetWriteBuffer(socketBuffer)
	}
	return &datagrams{Conn: conn, batch: newBatchConn(conn), closed: make(chan struct{})}
}

func (d *datagrams) control(m message) {
	if _, err := d.Write(m); isRefusal(err) {
		_, _ = d.Write(m) // the error was that of an earlier packet
	}
}

func (d *datagrams) send(b *burst) error {
	if d.batch != nil {
		return d.batch.write(b)
	}
	for i := range b.frames[:b.n] {
		f := &b.frames[i]
		n := copy(b.whole[:], f.head[:f.headLen])
		n += copy(b.whole[n:], f.data)
		clear(b.whole[n : n+f.padding])
		if _, err := d.Write(b.whole[:n+f.padding]); err != nil && !isRefusal(err) {
			return err
		}
	}
	return nil
}

func (d *datagrams) receive(a *Allocation) {
	var burst [readBurst]*packet
	for i := range burst {
		burst[i] = packets.Get().(*packet)
	}
	defer func() {
		for _, p := range burst {
			packets.Put(p)
		}
	}()
	for failed := 0; ; {
		n, err := d.read(burst[:], a)
		switch {
		case err == nil:
			failed = 0
			a.take(burst[:n])
		case isRefusal(err):
			a.refused()
		case errors.Is(err, net.ErrClosed), !d.pause(failed):
			a.fail(net.ErrClosed)
			return
		default: // whether the server is out of reach for good is for the core to find out
			failed++
		}
	}
}

// read reads up to len(burst) datagrams, at least one. Those that do not fit
// their buffers are left out.
func (d *datagrams) read(burst []*packet, a *Allocation) (int, error) {
	if d.batch != nil {
		n, oversize, err := d.batch.read(burst)
		a.oversize.Add(uint64(oversize))
		return n, err
	}
	n, err := d.Read(burst[0].buf[:])
	burst[0].n = n
	if n == packetSize {
		a.oversize.Add(1)
		return 0, nil
	}
	return 1, err
}

// pause waits after the n-th failure in a row; false means that the link closes.
func (d *datagrams) pause(n int) bool {
	timer := time.NewTimer(min(5*time.Millisecond<<min(n, 10), maxPause))
	defer timer.Stop()
	select {
	case <-d.closed:
		return false
	case <-timer.C:
		return true
	}
}

func (d *datagrams) run() error   { return nil }
func (d *datagrams) lost() uint64 { return 0 }

func (d *datagrams) close() {
	close(d.closed)
	_ = d.Close() // nothing is to be flushed
}

// isRefusal says whether err is the host's word that nothing listens where
// an earlier datagram went.
func isRefusal(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
