// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/shard"
	"github.com/meshgate/meshgate/turn/stream"
	"github.com/meshgate/meshgate/turn/xdp"
)

// quota is the ledger, which tells when it is full.
type quota struct {
	*core.Ledger
	full *[core.NumResources]*fullness
}

// Take implements core.Quota.
func (q quota) Take(user string, what core.Resource, n int) core.Grant {
	grant := q.Ledger.Take(user, what, n)
	if grant == core.TotalFull {
		q.full[what].refuse(time.Now(), noRoom(what))
	}
	return grant
}

// udpRelays opens the relays of shards.
type udpRelays struct{ *Server }

var _ shard.Relays = udpRelays{}

// Open implements shard.Relays.
func (r udpRelays) Open(a core.Action) (first, second shard.Opened, err error) {
	listen := func(addr netip.AddrPort) (*shard.Socket, uint16, error) {
		c, err := shard.Listen(addr, false)
		if err != nil {
			return nil, 0, err
		}
		return c, c.Addr().Port(), nil
	}
	one, two, addr, err := openRelay(r.relays, a, listen)
	if err != nil {
		r.full[core.Relays].refuse(time.Now(), noPort)
		return first, second, err
	}
	first = shard.Opened{Socket: one, Addr: addr}
	if two != nil {
		second = shard.Opened{Socket: two, Addr: netip.AddrPortFrom(addr.Addr(), addr.Port()+1)}
	}
	return first, second, nil
}

// Closed implements shard.Relays.
func (r udpRelays) Closed(addr netip.AddrPort) { r.relays.closed(addr, false) }

// Inside implements shard.Relays.
func (r udpRelays) Inside(peer netip.AddrPort) netip.AddrPort { return r.relays.inside(peer, false) }

// Outside implements shard.Relays.
func (r udpRelays) Outside(src netip.AddrPort) netip.AddrPort { return r.relays.outside(src, false) }

// streamConfig is the configuration of what serves streams.
func (s *Server) streamConfig(cfg Config, threads int) stream.Config {
	limits := s.limits.Load()
	return stream.Config{
		Shards: threads,
		Limits: stream.Limits{
			Connections: limits.Connections, ConnectionsPerSource: limits.ConnectionsPerSource,
			Peers: 2 * limits.PeerConnections, // the ledger counts them; these count until they have ended
		},
		OpenTCP: s.openTCP, ClosedTCP: func(addr netip.AddrPort) { s.relays.closed(addr, true) },
		Inside:  func(peer netip.AddrPort) netip.AddrPort { return s.relays.inside(peer, true) },
		Outside: func(src netip.AddrPort) netip.AddrPort { return s.relays.outside(src, true) },
		Logger:  cfg.Logger,
	}
}

// openTCP opens a relay of TCP.
func (s *Server) openTCP(a core.Action) (net.Listener, netip.AddrPort, error) {
	listen := func(addr netip.AddrPort) (net.Listener, uint16, error) {
		l, err := stream.ListenRelay(addr)
		if err != nil {
			return nil, 0, err
		}
		at, _ := addrPort(l.Addr())
		return l, at.Port(), nil
	}
	l, _, addr, err := openRelay(s.relays, a, listen)
	if err != nil {
		s.full[core.Relays].refuse(time.Now(), noPort)
	}
	return l, addr, err
}

// kernelConfig is the configuration of what serves channels in the kernel.
func (s *Server) kernelConfig(cfg Config) xdp.Config {
	c := xdp.Config{
		Mode: cfg.XDP, Listeners: make(map[uint16]netip.AddrPort), Local: s.relays.boundAt,
		Inside: func(peer netip.AddrPort) netip.AddrPort { return s.relays.inside(peer, false) },
		Logger: s.log,
	}
	if c.Mode == "" {
		c.Mode = xdp.Off
	}
	for i := range s.listening.sockets[0] {
		c.Listeners[i] = s.listening.sockets[0][i].Addr()
	}
	for _, side := range s.relays.sides {
		if side != nil && !side.bind.IsUnspecified() {
			c.Relays = append(c.Relays, side.bind)
		}
	}
	return c
}

// offload is what shards tell of channels; nil: nothing.
func (s *Server) offload() shard.Offload {
	if !s.kernel.Serves() {
		return nil
	}
	return s.kernel
}
