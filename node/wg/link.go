// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// maxSuperSegment is the size of the TCP segments that the stack hands over
// for us to cut; an IP length field holds no more.
const maxSuperSegment = 1<<16 - 1

// link is the network card of the userspace stack. What the stack sends goes
// into the queue that the device reads.
type link struct {
	queue   *packetQueue
	mtu     atomic.Uint32
	metrics *metrics
	shut    zeroWindows
	// up is the stack's receiving side, nil while detached.
	up atomic.Pointer[stack.NetworkDispatcher]
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// WritePackets implements stack.LinkEndpoint. TCP data waits for room in the
// queue, which paces the sender. Everything else is dropped when there is
// none: replies to packets from peers are written by the very goroutines that
// the device must be able to stop before it reads on.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range packets.AsSlice() {
		l.shut.outbound(pkt)
		wait := pkt.TransportProtocolNumber == tcp.ProtocolNumber && pkt.Data().Size() > 0
		if l.queue.push(packet{pkt: pkt.IncRef()}, wait) {
			continue
		}
		pkt.DecRef()
		if wait {
			return i, &tcpip.ErrClosedForSend{}
		}
		l.metrics.drop(reasonQueueFull)
	}
	return packets.Len(), nil
}

// inject hands the packet that fill writes, of n bytes, to the stack.
func (l *link) inject(version, n int, fill func(dst []byte)) {
	up := l.up.Load()
	if up == nil {
		return
	}
	view := buffer.NewViewSize(n)
	fill(view.AsSlice())
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	defer pkt.DecRef()
	protocol := header.IPv4ProtocolNumber
	if version == 6 {
		protocol = header.IPv6ProtocolNumber
	}
	(*up).DeliverNetworkPacket(protocol, pkt)
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(up stack.NetworkDispatcher) {
	if up == nil {
		l.up.Store(nil)
		return
	}
	l.up.Store(&up)
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.up.Load() != nil }

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu.Load() }

// SetMTU implements stack.LinkEndpoint. The stack does not set it; netstack does.
func (*link) SetMTU(uint32) {}

// Capabilities implements stack.LinkEndpoint. Checksums are up to the stack,
// except in super-segments.
func (*link) Capabilities() stack.LinkEndpointCapabilities { return 0 }

// GSOMaxSize implements stack.GSOEndpoint.
func (*link) GSOMaxSize() uint32 { return maxSuperSegment }

// SupportedGSO implements stack.GSOEndpoint: segmenter cuts super-segments.
func (*link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// MaxHeaderLength implements stack.LinkEndpoint.
func (*link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.LinkEndpoint. There is none.
func (*link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.LinkEndpoint.
func (*link) SetLinkAddress(tcpip.LinkAddress) {}

// Wait implements stack.LinkEndpoint.
func (*link) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.LinkEndpoint.
func (*link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.LinkEndpoint.
func (*link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.LinkEndpoint.
func (*link) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (*link) SetOnCloseAction(func()) {}
