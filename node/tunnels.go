// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/hostnet"
)

// hostTunnels knows the tunnels of other nodes on the host, which may be in other
// meshes. The zero value is ready; it is safe for concurrent use.
type hostTunnels struct{ last atomic.Pointer[tunnelView] }

// tunnelView is what there was at one time. It is immutable.
type tunnelView struct {
	at      time.Time
	tunnels *hostnet.Tunnels // nil for none
}

// load asks for the tunnels beside the interface own, at most once in
// hostAddrsAge. What it cannot read is what it was before.
func (h *hostTunnels) load(own string, ask func(string) (*hostnet.Tunnels, error)) (*hostnet.Tunnels, error) {
	v := h.last.Load()
	if v != nil && time.Since(v.at) < hostAddrsAge {
		return v.tunnels, nil
	}
	next := &tunnelView{at: time.Now()}
	tunnels, err := ask(own)
	if next.tunnels = tunnels; err != nil && v != nil {
		next.tunnels = v.tunnels
	}
	h.last.Store(next)
	return next.tunnels, err
}

// forget has load ask anew.
func (h *hostTunnels) forget() {
	if v := h.last.Load(); v != nil {
		h.last.Store(&tunnelView{tunnels: v.tunnels})
	}
}

// inOtherTunnel reports whether what this host sends to addr goes through the
// tunnel of another node on it.
func (n *Node) inOtherTunnel(addr netip.Addr) bool {
	tunnels, err := n.tunnels.load(n.device.Name(), hostnet.TunnelsBeside)
	if err != nil {
		n.log.Debug("tunnels of other nodes on this host cannot be read", "err", err)
	}
	return tunnels.Lead(addr)
}
