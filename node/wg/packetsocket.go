// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/device"
)

// Limits of packet sockets. Datagrams that a device has no time for stay in the
// socket, relayQueue apart.
const (
	maxSockets  = 64
	socketBatch = 32
	relayQueue  = 512
)

// Socket tells the sockets of a device apart. Numbers are not used again.
type Socket uint32

// NativeSocket is the device's UDP port.
const NativeSocket Socket = 0

// PacketSocket is a virtual UDP socket, such as an allocation on a TURN server.
type PacketSocket interface {
	// WriteBatch sends datagrams to an address and keeps no reference to them. It
	// does not wait for long, drops what it has no room for, and is called from
	// several goroutines.
	WriteBatch(packets [][]byte, to netip.AddrPort) error
	// ReadBatch waits for datagrams, reads up to len(bufs) of them, and says how
	// long each is and where from. One that fills its buffer counts as cut off
	// and is dropped. An error ends the socket, after what was read with it. It is
	// called from one goroutine.
	ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error)
	// Close makes both return, and may be called more than once. It may take a
	// moment.
	Close() error
}

// errBrokenSocket says that a PacketSocket does not do what it has to.
var errBrokenSocket = errors.New("packet socket read more than there was room for")

// packetSocket is a PacketSocket of a device.
type packetSocket struct {
	bind *bind
	id   Socket
	conn PacketSocket
	done chan struct{}
	once sync.Once
	// running counts the receiving goroutine.
	running sync.WaitGroup
}

// AddSocket gives the device one more socket, for STUN and for paths. Its
// datagrams are WireGuard's only if they come from where a path accepts them.
// The device owns s from now on, also after an error.
//
// The socket stays until its ReadBatch fails, remove is called or the device is
// closed; remove waits until s is no longer read. What is routed to a socket
// that is gone is dropped. Errors wrap mesh.ErrExhausted when there are 64.
func (d *Device) AddSocket(s PacketSocket) (id Socket, remove func(), err error) {
	added, err := d.bind.addSocket(s)
	if err != nil {
		return 0, nil, errors.Join(fmt.Errorf("add packet socket: %w", err), s.Close())
	}
	return added.id, added.remove, nil
}

// SendSTUN sends a STUN message through a socket. It may be called by
// Options.STUN. Errors wrap mesh.ErrInvalid for what is no STUN message or no address, and
// mesh.ErrNotFound for a socket that is gone.
func (d *Device) SendSTUN(s Socket, to netip.AddrPort, b []byte) error {
	if err := d.sendSTUN(s, unmapped(to), b); err != nil {
		return fmt.Errorf("send stun to %v on socket %d: %w", to, s, err)
	}
	return nil
}

// sendSTUN is SendSTUN without the words.
func (d *Device) sendSTUN(s Socket, to netip.AddrPort, b []byte) error {
	switch {
	case d.closed.Load():
		return net.ErrClosed
	case contentOf(b) != contentSTUN:
		return fmt.Errorf("message of %d bytes is not stun: %w", len(b), mesh.ErrInvalid)
	case !to.IsValid() || to.Port() == 0:
		return fmt.Errorf("not an address with a port: %w", mesh.ErrInvalid)
	}
	if s == NativeSocket {
		return d.bind.sendNativeSTUN(to, b)
	}
	added := d.bind.socket(s)
	if added == nil {
		return fmt.Errorf("the socket is gone: %w", mesh.ErrNotFound)
	}
	if err := added.conn.WriteBatch([][]byte{b}, to); err != nil {
		return err
	}
	d.metrics.stunOut[kindRelay].Inc()
	return nil
}

// sendNativeSTUN sends a STUN message through the UDP port.
func (b *bind) sendNativeSTUN(to netip.AddrPort, message []byte) error {
	if b.port.Load() == 0 {
		return fmt.Errorf("there is no udp port before the first configuration: %w", mesh.ErrUnavailable)
	}
	ep, err := b.udp.ParseEndpoint(to.String())
	if err != nil {
		return err
	}
	if err := b.throughUDP([][]byte{message}, ep); err != nil {
		return err
	}
	b.metrics.stunOut[kindNative].Inc()
	return nil
}

// addSocket makes s a socket of the bind.
func (b *bind) addSocket(s PacketSocket) (*packetSocket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut {
		return nil, net.ErrClosed
	}
	next := make(map[Socket]*packetSocket)
	if now := b.sockets.Load(); now != nil {
		maps.Copy(next, *now)
	}
	if len(next) >= maxSockets {
		return nil, fmt.Errorf("there are %d sockets; remove one first: %w", maxSockets, mesh.ErrExhausted)
	}
	b.lastSocket++
	added := &packetSocket{bind: b, id: b.lastSocket, conn: s, done: make(chan struct{})}
	next[added.id] = added
	b.sockets.Store(&next)
	b.metrics.sockets.Inc()
	added.running.Add(1)
	b.running.Go(func() {
		defer added.running.Done()
		defer added.close()
		added.receiveLoop()
	})
	return added, nil
}

// socket returns a packet socket, or nil when it is gone.
func (b *bind) socket(id Socket) *packetSocket {
	if now := b.sockets.Load(); now != nil {
		return (*now)[id]
	}
	return nil
}

// remove ends the socket and waits for its goroutine.
func (s *packetSocket) remove() {
	s.close()
	s.running.Wait()
}

// close ends the socket without waiting.
func (s *packetSocket) close() {
	s.once.Do(func() {
		b := s.bind
		b.mu.Lock()
		next := maps.Clone(*b.sockets.Load())
		delete(next, s.id)
		b.sockets.Store(&next)
		b.mu.Unlock()
		b.metrics.sockets.Dec()
		close(s.done)
		_ = s.conn.Close() // it is of no use any more, whatever it says
	})
}

// send hands packets to the socket. Those that it does not take are lost like
// any datagram.
func (s *packetSocket) send(packets [][]byte, to netip.AddrPort) {
	if err := s.conn.WriteBatch(packets, to); err != nil {
		s.bind.metrics.dropMany(reasonSocketSend, len(packets))
		return
	}
	s.bind.metrics.out[kindRelay].Add(float64(len(packets)))
}

// receiveLoop sorts what the socket receives, until it fails.
func (s *packetSocket) receiveLoop() {
	var (
		frames [socketBatch]*frame
		bufs   [socketBatch][]byte
		sizes  [socketBatch]int
		from   [socketBatch]netip.AddrPort
		pool   = s.bind.frames
		finder = finder{socket: s.id}
	)
	for i := range frames {
		frames[i] = pool.get(pool.size)
		bufs[i] = frames[i].data
	}
	defer func() {
		for _, f := range frames {
			pool.put(f)
		}
	}()
	for {
		n, err := s.conn.ReadBatch(bufs[:], sizes[:], from[:])
		if n < 0 || n > socketBatch {
			n, err = 0, errBrokenSocket
		}
		for i := range n {
			if s.take(&finder, frames[i], sizes[i], from[i]) {
				frames[i] = pool.get(pool.size)
				bufs[i] = frames[i].data
			}
		}
		if err != nil {
			return
		}
	}
}

// take sorts one datagram. It reports whether the frame is somebody else's now.
func (s *packetSocket) take(in *finder, f *frame, size int, from netip.AddrPort) bool {
	b := s.bind
	if size < 0 || size >= len(f.data) {
		b.metrics.drop(reasonSocketOversize)
		return false
	}
	message := f.data[:size]
	switch kind := contentOf(message); {
	case kind == contentSTUN && b.stun != nil:
		b.metrics.stunIn[kindRelay].Inc()
		b.stun(s.id, unmapped(from), message)
		return false
	case kind != contentWireGuard:
		b.metrics.drop(reasonSocketGarbage)
		return false
	}
	var sender *source
	if table := b.paths.table.Load(); table != nil {
		sender = in.find(table, from)
	}
	if sender == nil {
		b.metrics.drop(reasonSocketStranger)
		return false
	}
	return s.admit(sender, f, message)
}

// admit hands a message that came on a path to the device. It reports whether
// the frame is the device's now.
func (s *packetSocket) admit(sender *source, f *frame, message []byte) bool {
	b := s.bind
	if message[0] != device.MessageTransportType && !sender.path.handshakes.Allow() {
		b.metrics.drop(reasonSocketHandshake)
		return false
	}
	sender.heard.Store(b.paths.now())
	b.metrics.in[kindRelay].Inc()
	if isHandshake(message) && b.takes(message, sender.path) {
		return false
	}
	f.data = message
	select {
	case b.relayed <- received{frame: f, from: sender.path}:
		return true
	case <-s.done:
		f.data = f.data[:cap(f.data)]
		return false
	}
}
