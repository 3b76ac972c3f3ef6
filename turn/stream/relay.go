// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/meshgate/meshgate/turn/core"
)

// relay is a relay of TCP: a port at which peers connect, and from which their
// connections are made.
type relay struct {
	server *Server
	id     core.RelayID
	addr   netip.AddrPort // as peers see it
	local  netip.AddrPort // where it listens
	l      net.Listener
	once   sync.Once
}

// openRelay opens what an OpenRelay action asks for and takes connections there;
// nil: it cannot. It does not block if Config.OpenTCP does not.
func (s *Server) openRelay(home *Streams, a core.Action) *relay {
	if s.cfg.OpenTCP == nil {
		return nil
	}
	l, addr, err := s.cfg.OpenTCP(a)
	if err != nil {
		s.log.Debug("no relay of tcp could be opened", "err", err)
		return nil
	}
	r := &relay{server: s, id: a.Relay, addr: addr, l: l}
	if local, ok := addrPort(l.Addr()); ok {
		r.local = local
	}
	s.stats.relays.Add(1)
	if !s.track(r) || !s.start(func() { r.accept(home) }) {
		r.end()
		return nil
	}
	return r
}

// isSelf reports whether a peer is the relay itself, as peers see it or as this
// host reaches it.
func (r *relay) isSelf(peer netip.AddrPort) bool {
	peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	return peer == r.addr || r.server.cfg.Inside(peer) == r.local
}

// end closes the relay. It does not block and may be called again.
func (r *relay) end() {
	r.once.Do(func() {
		_ = r.l.Close()
		r.server.untrack(r)
		r.server.stats.relays.Add(-1)
		if f := r.server.cfg.ClosedTCP; f != nil {
			f(r.addr)
		}
	})
}

// accept hands the connections of peers to the core, one after the other: a
// flood of them waits in the kernel, which has a bound for it.
func (r *relay) accept(home *Streams) {
	for failed := 0; ; {
		n, err := r.l.Accept()
		switch {
		case err == nil:
			failed = 0
			r.welcome(home, n)
		case errors.Is(err, net.ErrClosed), !r.server.pause(failed):
			return
		default:
			failed++
		}
	}
}

// welcome keeps a connection of a peer for the client, if the core wants it.
func (r *relay) welcome(home *Streams, n net.Conn) {
	from, ok := addrPort(n.RemoteAddr())
	if !ok {
		_ = n.Close()
		return
	}
	p := r.server.newPeer(home, 0)
	if p == nil {
		_ = n.Close()
		return
	}
	if !p.attach(n) || !home.accepted(r, r.server.cfg.Outside(from), p) {
		p.end()
	}
}

// ListenRelay opens the socket of a relay of TCP for Config.OpenTCP; port 0 lets
// the kernel choose. No other socket of the host can have the address while it is
// open, but for the connections that the relay makes itself.
func ListenRelay(addr netip.AddrPort) (net.Listener, error) {
	network := "tcp6"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	var c net.ListenConfig
	c.SetMultipathTCP(false)                                         // whose sockets share no port
	l, err := c.Listen(context.Background(), network, addr.String()) //nolint:forbidigo // names nothing to resolve
	if err != nil {
		return nil, fmt.Errorf("listen for peers: %w", err)
	}
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = sharePort("", "", raw)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("share the port of a relay with its connections: %w", err)
	}
	return l, nil
}
