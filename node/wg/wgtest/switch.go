// SPDX-License-Identifier: Apache-2.0

package wgtest

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// switchQueue is how many datagrams wait at a socket of a switch.
const switchQueue = 1 << 14

// Switch is a network in memory that packet sockets are plugged into.
type Switch struct {
	mu      sync.RWMutex // guards sockets
	sockets map[netip.AddrPort]*Socket
}

// Socket is a packet socket of a Switch.
type Socket struct {
	// Addr is where others reach it.
	Addr netip.AddrPort
	// Sent and Lost count datagrams that it was to send, and those that its own
	// queue had no room for.
	Sent, Lost atomic.Int64

	network *Switch
	queue   chan parcel
	done    chan struct{}
	once    sync.Once
}

// parcel is a datagram on its way.
type parcel struct {
	from netip.AddrPort
	data []byte
}

// NewSwitch makes a network without sockets.
func NewSwitch() *Switch { return &Switch{sockets: make(map[netip.AddrPort]*Socket)} }

// Socket plugs a socket in at an address like "192.0.2.1:1000", in place of the
// one that is there.
func (n *Switch) Socket(addr string) *Socket {
	s := &Socket{
		Addr: netip.MustParseAddrPort(addr), network: n,
		queue: make(chan parcel, switchQueue), done: make(chan struct{}),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sockets[s.Addr] = s
	return s
}

// WriteBatch implements wg.PacketSocket. What is for nobody is lost.
func (s *Socket) WriteBatch(packets [][]byte, to netip.AddrPort) error {
	select {
	case <-s.done:
		return net.ErrClosed
	default:
	}
	s.Sent.Add(int64(len(packets)))
	s.network.mu.RLock()
	other := s.network.sockets[to]
	s.network.mu.RUnlock()
	if other == nil {
		return nil
	}
	for _, p := range packets {
		select {
		case other.queue <- parcel{s.Addr, append([]byte(nil), p...)}:
		default:
			other.Lost.Add(1)
		}
	}
	return nil
}

// ReadBatch implements wg.PacketSocket.
func (s *Socket) ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (n int, err error) {
	select {
	case <-s.done:
		return 0, net.ErrClosed
	case p := <-s.queue:
		for {
			sizes[n], from[n] = copy(bufs[n], p.data), p.from
			if n++; n == len(bufs) {
				return n, nil
			}
			select {
			case p = <-s.queue:
			default:
				return n, nil
			}
		}
	}
}

// Close implements wg.PacketSocket. The address is free again.
func (s *Socket) Close() error {
	s.once.Do(func() {
		close(s.done)
		s.network.mu.Lock()
		defer s.network.mu.Unlock()
		if s.network.sockets[s.Addr] == s {
			delete(s.network.sockets, s.Addr)
		}
	})
	return nil
}
