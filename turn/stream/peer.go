// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// connectTimeout is how long a peer has to take a connection (RFC 6062 section 5.2).
const connectTimeout = 30 * time.Second

// peer is a TCP connection between a relay and a peer. Until it is spliced
// nothing is read from it, so that what the peer sends waits in its own host.
type peer struct {
	server *Server
	home   *Streams
	id     core.ConnectionID // known before anybody else than the shard's thread needs it
	done   chan struct{}     // closed by end

	mu     sync.Mutex // guards the fields below
	conn   net.Conn   // nil while it is being made
	client *conn      // that it is spliced to
	ended  bool
}

// newPeer counts one more connection to a peer; nil: there are too many.
func (s *Server) newPeer(home *Streams, id core.ConnectionID) *peer {
	p := &peer{server: s, home: home, id: id, done: make(chan struct{})}
	if s.stats.peers.Add(1) > int64(s.cfg.Limits.Peers) || !s.track(p) {
		s.stats.peers.Add(-1)
		return nil
	}
	return p
}

// end closes the connection, and ends the client that it is spliced to. It does
// not block and may be called again.
func (p *peer) end() {
	p.mu.Lock()
	first, conn, client := !p.ended, p.conn, p.client
	p.ended = true
	p.mu.Unlock()
	if !first {
		return
	}
	close(p.done)
	if conn != nil {
		_ = conn.Close()
	}
	if client != nil {
		client.end()
	}
	p.server.untrack(p)
	p.server.stats.peers.Add(-1)
}

// attach gives p its connection; false: p has ended, and the connection is closed.
func (p *peer) attach(conn net.Conn) bool {
	p.mu.Lock()
	ended := p.ended
	p.conn = conn
	p.mu.Unlock()
	if ended {
		_ = conn.Close()
	}
	return !ended
}

// attachClient gives p the client that it is spliced to; false: p has ended.
func (p *peer) attachClient(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.client = c
	return !p.ended
}

// dial connects to a peer from the port of the relay at local, and has the core told.
func (p *peer) dial(local, to netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout) //nolint:forbidigo // ended by end
	defer cancel()
	dialed := make(chan struct{})
	defer close(dialed)
	p.server.running.Go(func() {
		select {
		case <-p.done:
			cancel()
		case <-dialed:
		}
	})
	conn, err := connect(ctx, local, to)
	if err == nil {
		if !p.attach(conn) {
			return
		}
	}
	p.home.do(func(now time.Time, c *core.Core, out *core.Output) {
		switch {
		case p.home.peers[p.id] != p: // the core has closed it
		case err != nil:
			delete(p.home.peers, p.id)
			p.end()
			c.ConnectFailed(p.id, out)
		default:
			c.Connected(now, p.id, out)
		}
	})
	if err != nil {
		p.end() // also when the shard has ended
	}
}

// connect dials from an address on which a relay listens.
func connect(ctx context.Context, local, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local), Control: sharePort, FallbackDelay: -1}
	return d.DialContext(ctx, "tcp", to.String())
}

// closed tells the core that the connection has ended, and what went through it
// since it was told last. If the core has closed it, it is told nothing.
func (p *peer) closed(last core.Usage) {
	p.home.do(func(now time.Time, c *core.Core, out *core.Output) {
		if p.home.peers[p.id] == p {
			delete(p.home.peers, p.id)
			c.Carried(now, p.id, last)
			c.ConnectionClosed(p.id, out)
		}
	})
}

// abandon ends a connection whose client has gone, on the shard's thread or off it.
func (p *peer) abandon() {
	p.end()
	p.closed(core.Usage{})
}
