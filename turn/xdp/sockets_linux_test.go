// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// TestEngine_SendsWhatSocketsSend gives each datagram to the server's sockets first
// and to the program then: at the other end of the cable the frames are the same to
// the byte, but for what every host chooses as it likes (chosen).
func TestEngine_SendsWhatSocketsSend(t *testing.T) {
	o := newOutside(t, Native)
	must(t, feature("near", unix.ETHTOOL_STXCSUM, false)) // sockets write their checksums
	s := newLive(t, Native)
	w := o.tap()
	for _, client := range clients() {
		for i, peer := range peers()[:2] {
			client := netip.AddrPortFrom(client.Addr(), client.Port()+uint16(i))
			c := &caller{TB: t, UDPConn: o.listen(client), server: serverOf(client)}
			p := o.listen(netip.AddrPortFrom(peer.Addr(), 0))
			peer = p.LocalAddr().(*net.UDPAddr).AddrPort()
			c.allocate(peer)
			relay := s.relayOf(flowOf(client))
			for n, size := range []int{0, 1, 2, 3, 4, 100, 1200, 1440} {
				up := received(client, serverOf(client), append(frame(0x4000, random(size)), random(n%4)...))
				testSameFrame(t, s, w, flowOf(client), up, relay, peer)
				testSameFrame(t, s, w, flowOf(client), received(peer, relay, random(size)), serverOf(client), client)
			}
		}
	}
}

// testSameFrame sends a datagram by both ways.
func testSameFrame(t *testing.T, s *live, w *tap, flow core.Flow, came packet, from, to netip.AddrPort) {
	t.Helper()
	came.srcMAC, came.dstMAC = w.end, w.near
	s.relayed(flow)
	var left [2][]byte
	for i, kernel := range []bool{false, true} {
		s.serve(flow, kernel)
		w.send(came.marshal())
		left[i] = w.hear(from, to)
	}
	if up, down, _ := s.relayed(flow); up+down != 1 {
		t.Errorf("%d bytes from %v: the server has relayed %d of 2 datagrams itself: %+v", len(came.data), came.from, up+down, s.engine.Stats())
	}
	if !bytes.Equal(chosen(left[0]), chosen(left[1])) {
		t.Errorf("%d bytes from %v to %v:\nsockets % x\nprogram % x", len(came.data), came.from, to, left[0], left[1])
	}
}

// chosen is a frame without what a host may choose: IPv4's DF and identification, and
// the checksum that is over them, and IPv6's flow label.
func chosen(frame []byte) []byte {
	b := slices.Clone(frame)
	if ip := b[14:]; ip[0]>>4 == 4 {
		clear(ip[4:6])
		ip[6] &^= 0x40
		clear(ip[10:12]) // parse has found it right
	} else {
		ip[1] &= 0xf0
		clear(ip[2:4])
	}
	return b
}

// serve says whether the kernel serves what a client has.
func (s *live) serve(flow core.Flow, kernel bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kernel {
		s.engine.Changed(flow, s.core.Bindings(time.Now(), flow))
	} else {
		s.engine.Changed(flow, slices.Values([]core.Binding(nil)))
	}
}

// relayOf is the relay of a client's only channel.
func (s *live) relayOf(flow core.Flow) (relay netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := range s.core.Bindings(time.Now(), flow) {
		relay = b.Relayed
	}
	return relay
}

// tap sends and hears frames at the outer end of the cable.
type tap struct {
	testing.TB
	fd        int
	near, end net.HardwareAddr
}

func (o *outside) tap() *tap {
	o.Helper()
	w := &tap{TB: o, near: linkOf(o, "near").Attrs().HardwareAddr}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // as it is on the wire
	o.enter(func() (err error) {
		end := linkOf(o, "end").Attrs()
		w.end = end.HardwareAddr
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: end.Index})
	})
	o.Cleanup(func() { unix.Close(w.fd) })
	must(o, unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(late / time.Second)}))
	return w
}

func (w *tap) send(frame []byte) {
	w.Helper()
	_, err := unix.Write(w.fd, frame)
	must(w, err)
}

// hear returns the next frame with a whole datagram that comes from the server.
func (w *tap) hear(from, to netip.AddrPort) []byte {
	w.Helper()
	b := make([]byte, 2048)
	for {
		n, at, err := unix.Recvfrom(w.fd, b, 0)
		must(w, err)
		if l, ok := at.(*unix.SockaddrLinklayer); !ok || l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p, ok := parse(b[:n]); ok && p.from == from && p.to == to && p.check == full {
			return b[:n]
		}
	}
}
