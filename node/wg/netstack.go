// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// nic is the stack's only network card.
	nic tcpip.NICID = 1
	// outboundQueue is how many packets, forwarded or our own, may wait for
	// WireGuard; about what a Linux interface of that speed holds.
	outboundQueue = 1024
	// tcpBufferDefault and tcpBufferMax are the sizes of a TCP socket's
	// buffers: 1 MiB at first fills 100 Mbit/s at 80 ms, 8 MiB 800 Mbit/s.
	tcpBufferDefault = 1 << 20
	tcpBufferMax     = 8 << 20
)

// netstack is the userspace network: a TUN device for WireGuard on one side,
// sockets on the other.
type netstack struct {
	name    string
	link    *link
	stack   *stack.Stack
	filter  *filter
	frames  *framePool
	metrics *metrics
	runs    sync.Pool // of *run
	events  chan tun.Event
	once    sync.Once
	closed  chan struct{}

	// Owned by Read.
	cutter segmenter
	batch  []packet
	queued []packet

	mu        sync.Mutex // guards addresses, and the end of events
	addresses []netip.Addr
}

var _ plane = (*netstack)(nil)

// newNetstack makes a network without addresses.
func newNetstack(name string, mtu int, of sizes, f *filter, frames *framePool, m *metrics) (*netstack, error) {
	n := &netstack{
		name: name, filter: f, frames: frames, metrics: m,
		batch:  make([]packet, of.batch),
		link:   &link{queue: newPacketQueue(of.outbound), metrics: m},
		events: make(chan tun.Event, 1),
		closed: make(chan struct{}),
	}
	n.link.mtu.Store(uint32(mtu))
	n.runs.New = func() any { return new(run) }
	n.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			// No options: no link-local address, no multicast reports, and
			// router advertisements of peers change nothing.
			ipv4.NewProtocol, ipv6.NewProtocolWithOptions(ipv6.Options{}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			// With Reno: this version's CUBIC leaves slow start by HyStart without
			// noting the window it had, and then shrinks it to zero if the first
			// round trips were quick. Nothing is under way then, so nothing ends it.
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
		HandleLocal: true,
	})
	if err := n.configure(); err != nil {
		n.stack.Close()
		return nil, err
	}
	return n, nil
}

// configure tunes TCP and plugs the network card in.
func (n *netstack) configure() error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpBufferDefault, Max: tcpBufferMax}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpBufferDefault, Max: tcpBufferMax}
	// Without RACK, which comes with probes for losses at the end: they are sent
	// twice the round trip after the last segment, without the least time that other
	// systems have, and are a whole super-segment. Near peers take longer than that
	// whenever a thread waits; each such probe halves the congestion window, since
	// this version takes what answers the original for news of a loss. Lost segments
	// are found by selective acknowledgements.
	recovery := tcpip.TCPRecovery(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &send, &receive, &recovery} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("tune tcp with %T: %s", o, err)
		}
	}
	if err := n.stack.CreateNIC(nic, n.link); err != nil {
		return fmt.Errorf("create network card: %s", err)
	}
	// What is routed where is WireGuard's business.
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

// setAddresses implements plane. Connections of addresses that stay live on.
func (n *netstack) setAddresses(want []netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	kept := n.addresses[:0:0]
	for _, a := range n.addresses {
		if slices.Contains(want, a) {
			kept = append(kept, a)
		} else if err := n.stack.RemoveAddress(nic, tcpip.AddrFromSlice(a.AsSlice())); err != nil {
			return fmt.Errorf("remove address %v: %w", a, netError(err))
		}
	}
	n.addresses = kept
	for _, a := range want {
		if slices.Contains(n.addresses, a) {
			continue
		}
		full, protocol := fullAddress(netip.AddrPortFrom(a, 0))
		err := n.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol: protocol, AddressWithPrefix: full.Addr.WithPrefix(),
		}, stack.AddressProperties{})
		if err != nil {
			return fmt.Errorf("add address %v: %w", a, netError(err))
		}
		n.addresses = append(n.addresses, a)
	}
	return nil
}

// Read implements tun.Device: it waits for packets to encrypt. The device
// calls it from one goroutine.
func (n *netstack) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	count, err := n.read(bufs, sizes, offset)
	n.filter.load().observe(bufs, sizes[:count], offset)
	return count, err
}

// read is Read, before anybody is told.
func (n *netstack) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for count := 0; ; {
		for !n.cutter.done() {
			sizes[count] = n.cutter.next(bufs[count][offset:])
			if count++; count == len(bufs) {
				return count, nil
			}
		}
		if len(n.queued) == 0 {
			got := n.link.queue.pop(n.batch[:min(len(n.batch), len(bufs)-count)], count == 0)
			if got == 0 && count == 0 {
				return 0, os.ErrClosed
			} else if got == 0 {
				return count, nil
			}
			n.queued = n.batch[:got]
		}
		p := n.queued[0]
		n.queued[0], n.queued = packet{}, n.queued[1:]
		if p.pkt != nil {
			n.cutter.load(p.pkt)
			continue
		}
		sizes[count] = copy(bufs[count][offset:], p.frame.data)
		n.frames.put(p.frame)
		if count++; count == len(bufs) {
			return count, nil
		}
	}
}

// Write implements tun.Device: it takes decrypted packets in, or sends them
// back out to the peer that they are for. The device calls it from one
// goroutine per peer.
func (n *netstack) Write(bufs [][]byte, offset int) (int, error) {
	rules := n.filter.load()
	r := n.runs.Get().(*run)
	defer n.runs.Put(r)
	for _, buf := range bufs {
		p := buf[offset:]
		switch v := rules.judge(p); v {
		case deliver:
			n.deliver(r, p)
		case forward:
			n.forward(p)
		default:
			n.metrics.drop(v.reason())
		}
	}
	n.flush(r)
	return len(bufs), nil
}

// deliver hands a packet to the stack, possibly together with those after it.
// The packet's memory must stay until flush.
func (n *netstack) deliver(r *run, p []byte) {
	n.link.shut.inbound(p)
	if r.add(p) {
		return
	}
	n.flush(r)
	if !r.start(p) {
		n.link.inject(ipVersion(p), len(p), func(dst []byte) { copy(dst, p) })
	}
}

// flush hands the packets of r to the stack.
func (n *netstack) flush(r *run) {
	if len(r.parts) > 0 {
		n.link.inject(ipVersion(r.parts[0]), r.size, r.join)
		r.reset()
	}
}

// forward sends a packet of one peer back to the device, which finds out the
// peer that it goes to.
func (n *netstack) forward(p []byte) {
	if !decrementTTL(p) {
		n.metrics.drop(reasonTTL)
		return
	}
	f := n.frames.copyOf(p)
	if !n.link.queue.push(packet{frame: f}, false) {
		n.frames.put(f)
		n.metrics.drop(reasonQueueFull)
		return
	}
	n.metrics.forwarded.Inc()
}

// File implements tun.Device.
func (*netstack) File() *os.File { return nil }

// MTU implements tun.Device.
func (n *netstack) MTU() (int, error) { return int(n.link.MTU()), nil }

// Name implements tun.Device.
func (n *netstack) Name() (string, error) { return n.name, nil }

// Events implements tun.Device. It tells of setMTU alone; Close closes the channel.
func (n *netstack) Events() <-chan tun.Event { return n.events }

// BatchSize implements tun.Device.
func (n *netstack) BatchSize() int { return len(n.batch) }

// Close implements tun.Device: it ends all connections.
func (n *netstack) Close() error {
	n.once.Do(func() {
		// First the queue, on which the stack's goroutines may wait.
		for _, p := range n.link.queue.close() {
			if p.pkt != nil {
				p.pkt.DecRef()
			}
		}
		close(n.closed)
		n.stack.RemoveNIC(nic)
		n.stack.Close()
		n.mu.Lock()
		defer n.mu.Unlock()
		close(n.events)
	})
	return nil
}

// setMTU implements plane. Connections that stand keep the size of their segments;
// what is too large for the way then goes in fragments.
func (n *netstack) setMTU(mtu int) error {
	n.link.mtu.Store(uint32(mtu))
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.closed:
		return net.ErrClosed
	default:
	}
	select {
	case n.events <- tun.EventMTUUpdate:
	default: // one that was not taken yet tells as much
	}
	return nil
}

// wait implements plane. The stack has no goroutine that outlives Close for long.
func (*netstack) wait() {}

// dial implements plane.
func (n *netstack) dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	if network == "tcp" {
		return n.dialTCP(ctx, dst)
	}
	return n.openUDP(netip.AddrPort{}, dst)
}

// listenPacket implements plane.
func (n *netstack) listenPacket(_ context.Context, local netip.AddrPort) (net.PacketConn, error) {
	return n.openUDP(local, netip.AddrPort{})
}
