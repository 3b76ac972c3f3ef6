// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// Streams executes the actions of one shard on streams: it is a shard.Streams.
// Its methods belong to the shard's thread, as do its fields but the first three;
// they do not block.
type Streams struct {
	server *Server
	index  int
	shard  Shard // set by Attach

	conns  map[uint64]*conn            // whose frames the core has seen, until they end or are spliced
	relays map[core.RelayID]*relay     // of TCP, those that are being opened included
	peers  map[core.ConnectionID]*peer // connections of relays to peers
	spent  *chunk                      // of the last event: actions may point into it until the next
}

func newStreams(s *Server, index int) *Streams {
	return &Streams{
		server: s, index: index,
		conns: make(map[uint64]*conn), relays: make(map[core.RelayID]*relay), peers: make(map[core.ConnectionID]*peer),
	}
}

// do has the shard call f, which may use what belongs to the shard's thread. It
// is false when the shard has ended.
func (s *Streams) do(f func(now time.Time, c *core.Core, out *core.Output)) bool {
	return s.shard.Do(f)
}

// reclaim gives back the chunk of the last event: its actions are executed.
func (s *Streams) reclaim() {
	s.server.buffers.put(s.spent)
	s.spent = nil
}

// Send queues a frame for a connection. What cannot wait is dropped, which is false,
// or ends the connection.
func (s *Streams) Send(flow core.Flow, data []byte) bool {
	c := s.conns[flow.Conn]
	if c == nil {
		return false // it has ended, and StreamClosed is on its way
	}
	switch c.queue.add(data) {
	case dropped:
		s.server.stats.count(Lagging)
		return false
	case overflowed:
		c.abort(Stuck)
		return false
	}
	return true
}

// End ends the connection of a client whose allocation was taken away: that tells
// it so. It belongs to the shard's thread, too.
func (s *Streams) End(flow core.Flow) {
	if c := s.conns[flow.Conn]; c != nil {
		c.end()
	}
}

// OpenRelay opens a relay of TCP and has the core told.
func (s *Streams) OpenRelay(a core.Action) {
	r := s.server.openRelay(s, a)
	if r == nil {
		s.do(func(now time.Time, c *core.Core, out *core.Output) { c.RelayFailed(now, a.Relay, out) })
		return
	}
	s.relays[a.Relay] = r
	s.do(func(now time.Time, c *core.Core, out *core.Output) { c.RelayOpened(now, a.Relay, r.addr, out) })
}

// CloseRelay closes a relay of TCP. The core closes its connections on its own.
func (s *Streams) CloseRelay(id core.RelayID) {
	if r := s.relays[id]; r != nil {
		delete(s.relays, id)
		r.end()
	}
}

// Connect begins to connect a relay to a peer.
func (s *Streams) Connect(a core.Action) {
	r := s.relays[a.Relay]
	var p *peer
	if r != nil && !r.isSelf(a.Peer) { // which TCP would allow
		p = s.server.newPeer(s, a.Connection)
	}
	if p == nil {
		s.do(func(_ time.Time, c *core.Core, out *core.Output) { c.ConnectFailed(a.Connection, out) })
		return
	}
	s.peers[a.Connection] = p
	local, to := r.local, s.server.cfg.Inside(a.Peer)
	if !s.server.start(func() { p.dial(local, to) }) {
		p.end()
	}
}

// Disconnect closes a connection to a peer, and the client's if it is spliced.
func (s *Streams) Disconnect(id core.ConnectionID) {
	if p := s.peers[id]; p != nil {
		delete(s.peers, id)
		p.end()
	}
}

// Splice hands a connection of a client over: its reader copies from here on.
func (s *Streams) Splice(flow core.Flow, id core.ConnectionID) {
	c, p := s.conns[flow.Conn], s.peers[id]
	delete(s.conns, flow.Conn) // the core knows it by id from here
	switch {
	case c != nil && p != nil:
		c.splice(p)
	case p != nil: // the client has gone meanwhile
		p.abandon()
	case c != nil: // so has the peer; the core has heard or will
		c.end()
	}
}

// accepted hands a connection that a peer has opened to the core. False: nobody
// wants it, or the shard has ended.
func (s *Streams) accepted(r *relay, from netip.AddrPort, p *peer) bool {
	answer := make(chan bool, 1)
	ok := s.do(func(now time.Time, c *core.Core, out *core.Output) {
		id, ok := core.ConnectionID(0), false
		if s.relays[r.id] == r {
			id, ok = c.PeerConnected(now, r.id, from, out)
		}
		if ok {
			p.id = id
			s.peers[id] = p
		}
		answer <- ok
	})
	if !ok {
		return false
	}
	select {
	case ok = <-answer:
		return ok
	case <-s.server.done:
		return false
	}
}
