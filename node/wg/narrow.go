// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Narrow ways have room for IPv6 packets of 1280 bytes, and nothing on them says
// so. What is larger has to leave this host in fragments. Linux has an option for
// how large those are, IPV6_MTU, but heeds it only for packets that its own link
// has no room for: so packets of the tunnel are padded until that is the case.
// WireGuard's receivers go by the length in the packet, whoever made them.
const (
	// outerHeaders are those of IPv6 and UDP.
	outerHeaders = 40 + 8
	// narrowRoom is how large packets of the tunnel may be that fit narrow ways
	// whole. WireGuard rounds it up to itself.
	narrowRoom = minMTU - outerHeaders - device.MessageTransportSize
	// usualMTU is that of a link about which nothing is known.
	usualMTU = 1500
	// largestMTU is the largest of links that packets are padded for. Loopback
	// interfaces have larger ones, and are not narrow.
	largestMTU = 9216
)

// narrowSender is a bind that can send in fragments of 1280 bytes what does not
// fit a link of the host.
type narrowSender interface {
	// SendNarrow is conn.Bind's Send.
	SendNarrow(packets [][]byte, ep conn.Endpoint) error
}

// Narrow says whether nothing larger than IPv6 packets of 1280 bytes is known to
// get through where the path leads now: then what is larger goes in fragments, from
// the native socket or from those of relays that do their part. It holds until it
// is called again, which it has to be when the path leads elsewhere. Large packets
// go one by one meanwhile, and are up to a fifth larger, or much more where the
// host's own link is larger than usual.
func (p *Path) Narrow(on bool) { p.path.setNarrow(on) }

// setNarrow is Path.Narrow.
func (p *path) setNarrow(on bool) {
	size := 0
	switch to := p.where(); {
	case !on || !to.To.IsValid():
	case to.Socket == NativeSocket && to.To.Addr().Is6():
		size = paddedTo(linkMTU(to.To))
	default:
		size = paddedTo(usualMTU) // of who sends them on as IPv6
	}
	set := &p.bind.paths
	set.mu.Lock()
	defer set.mu.Unlock()
	if p.ended.Load() {
		size = 0
	}
	p.pad(size)
}

// pad pads packets to a size from now on; 0 means not. The caller holds mu of the
// path's set.
func (p *path) pad(size int) {
	was := p.padded.Swap(int32(size))
	switch narrow := &p.bind.paths.narrow; {
	case was == 0 && size != 0:
		narrow.Add(1)
	case was != 0 && size == 0:
		narrow.Add(-1)
	}
}

// paddedTo is how large packets of the tunnel are that a link has no room for; 0
// for a link that is not narrow.
func paddedTo(mtu int) int {
	if mtu > largestMTU {
		return 0
	}
	const unit = device.PaddingMultiple
	return (max(mtu, minMTU) - outerHeaders - device.MessageTransportSize + unit) / unit * unit
}

// widen pads the packets that go where the way is narrow.
func (g *gate) widen(routes *prefixSet, bufs [][]byte, sizes []int, offset int) {
	for i, size := range sizes {
		if size <= narrowRoom {
			continue
		}
		b := bufs[i][offset:]
		_, dst, ok := addresses(b[:size])
		if !ok {
			continue
		}
		to := g.to(routes, dst)
		if to == nil {
			continue
		}
		p := to.leads.Load()
		if p == nil {
			continue
		}
		// Behind it WireGuard needs room for its seal and for padding of its own.
		if n := int(p.padded.Load()); n > size && n+2*device.PaddingMultiple <= len(b) {
			clear(b[size:n])
			sizes[i] = n
		}
	}
}

// sendPath sends packets of a path through the native bind.
func (b *bind) sendPath(p *path, packets [][]byte, ep conn.Endpoint) error {
	narrow, ok := b.udp.(narrowSender)
	if !ok || p.padded.Load() == 0 || !ep.DstIP().Is6() {
		return b.sendNative(packets, ep)
	}
	b.metrics.out[kindNative].Add(float64(len(packets)))
	return narrow.SendNarrow(packets, ep)
}

// tooLarge reports whether any of the packets does not fit narrow ways whole.
func tooLarge(packets [][]byte) bool {
	for _, p := range packets {
		if len(p) > minMTU-outerHeaders {
			return true
		}
	}
	return false
}
