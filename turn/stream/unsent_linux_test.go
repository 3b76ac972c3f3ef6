// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// A slow reader does not get what is old: what it has not taken waits in the queue,
// which drops, and not in the kernel, which has megabytes for it.
func TestServe_SlowReaderGetsNothingOld(t *testing.T) {
	for way, start := range dials() {
		t.Run(way, func(t *testing.T) {
			s := newServer(t, nil)
			f := newShards(t, s, 1, nil)[0]
			start(t, s)().channel()
			sent, data := 0, make([]byte, 8000)
			before := uint64(0)
			// Once the kernel takes no more, hundreds in a row are lost.
			for lost := 0; lost < 500 && sent < 100<<20; {
				for range 100 {
					f.fromPeer(t, somebody, data)
					sent += len(data)
				}
				now := s.Stats().Ended[Lagging]
				if now-before == 100 {
					lost += 100
				} else {
					lost = 0
				}
				before = now
			}
			f.see(t, func(*core.Core, *core.Output) {
				for _, v := range f.streams.conns {
					if n := unsent(t, v.net); n > maxUnsent+piece+maxUnsent/2 {
						t.Errorf("the kernel holds %d bytes that it has not sent, want about %d", n, maxUnsent)
					}
				}
			})
		})
	}
}

// unsent is how many bytes the kernel holds of a connection and has not sent.
func unsent(t testing.TB, n net.Conn) (size int) {
	t.Helper()
	if v, ok := n.(interface{ NetConn() net.Conn }); ok {
		n = v.NetConn()
	}
	raw, err := n.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if failed := raw.Control(func(fd uintptr) { size, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQNSD) }); errors.Join(err, failed) != nil {
		t.Fatal(err, failed)
	}
	return size
}
