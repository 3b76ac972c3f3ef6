// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"
)

// pathPrefix starts the text form of an endpoint that is a path. No address
// looks like it.
const pathPrefix = "path:"

// Limits of paths.
const (
	maxPaths = 4096
	// maxRoutes is from how many places a peer may be heard.
	maxRoutes = 32
)

// path is one endpoint for the library, whatever is under it.
type path struct {
	bind *bind
	id   uint64
	key  mesh.WireGuardKey
	// hop is where packets go; nil when nowhere.
	hop atomic.Pointer[hop]
	// sources are where packets come from. The slice is replaced, never changed.
	sources atomic.Pointer[[]*source]
	// sent is when something was last sent, as pathSet.now says it; 0 never.
	sent atomic.Int64
	// handshakes limits the handshake messages that come in from packet sockets.
	handshakes *rate.Limiter
	ended      atomic.Bool
	// padded is what packets of the tunnel are padded to that have no room where
	// the path leads, in bytes; 0 when all have.
	padded atomic.Int32
	// held is what waits for a hop.
	held held
}

// hop is a route that is ready for use.
type hop struct {
	Route
	socket *packetSocket // nil for the native one
	native conn.Endpoint // nil for others
}

// source is where packets of a path come from.
type source struct {
	Route
	path *path
	// heard is when that last happened, as pathSet.now says it; 0 never.
	heard atomic.Int64
}

// sourceTable finds sources.
type sourceTable = map[Route]*source

// pathSet is the paths of a bind.
type pathSet struct {
	// table has the sources of all paths. It is replaced, never changed, and nil
	// as long as there are none.
	table atomic.Pointer[sourceTable]
	began time.Time
	// held is how many packets wait in all paths.
	held atomic.Int64
	// narrow is how many paths are padded.
	narrow atomic.Int32

	mu     sync.Mutex // guards the fields below, and changes of paths and table
	byID   map[uint64]*path
	byKey  map[mesh.WireGuardKey]*path
	lastID uint64
	closed bool
}

// init makes the set ready.
func (s *pathSet) init() {
	s.began = time.Now()
	s.byID, s.byKey = make(map[uint64]*path), make(map[mesh.WireGuardKey]*path)
}

// now is the time since the set began, and never 0.
func (s *pathSet) now() int64 { return int64(time.Since(s.began)) + 1 }

// at is the time that now was t; the zero time for 0.
func (s *pathSet) at(t int64) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return s.began.Add(time.Duration(t))
}

// openPath makes a path for a peer, which begins at an address; nowhere if that
// is invalid.
func (b *bind) openPath(key mesh.WireGuardKey, first netip.AddrPort) (*path, error) {
	p := &path{bind: b, key: key, handshakes: rate.NewLimiter(handshakeRate, handshakeBurst)}
	p.held.all = &b.paths.held
	start := Route{NativeSocket, first}
	p.hop.Store(b.hopTo(start))
	s := &b.paths
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, net.ErrClosed
	case s.byKey[key] != nil:
		return nil, fmt.Errorf("it has a path; close that one first: %w", mesh.ErrExists)
	case len(s.byID) >= maxPaths:
		return nil, fmt.Errorf("there are %d paths; close one first: %w", maxPaths, mesh.ErrExhausted)
	}
	s.lastID++
	p.id = s.lastID
	s.byID[p.id], s.byKey[key] = p, p
	var sources []*source
	if p.hop.Load() != nil && s.of(start) == nil {
		sources = []*source{{Route: start, path: p}}
	}
	s.replace(p, sources)
	b.metrics.paths.Inc()
	return p, nil
}

// of returns the source with a route, or nil. The caller holds mu.
func (s *pathSet) of(r Route) *source {
	if table := s.table.Load(); table != nil {
		return (*table)[r]
	}
	return nil
}

// replace makes these the sources of a path. The caller holds mu.
func (s *pathSet) replace(p *path, sources []*source) {
	next := make(sourceTable)
	if table := s.table.Load(); table != nil {
		next = maps.Clone(*table)
	}
	if was := p.sources.Load(); was != nil {
		for _, old := range *was {
			delete(next, old.Route)
		}
	}
	for _, fresh := range sources {
		next[fresh.Route] = fresh
	}
	p.sources.Store(&sources)
	if len(next) == 0 {
		s.table.Store(nil)
	} else {
		s.table.Store(&next)
	}
}

// lookup returns the open path that an endpoint's text form names, or nil.
func (s *pathSet) lookup(text string) *path {
	id, err := strconv.ParseUint(strings.TrimPrefix(text, pathPrefix), 10, 64)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id]
}

// forPeer returns the open path of a peer, or nil.
func (s *pathSet) forPeer(key mesh.WireGuardKey) *path {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key]
}

// all returns the open paths.
func (s *pathSet) all() []*path {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.byID))
}

// shut ends all paths for good.
func (s *pathSet) shut() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, p := range s.all() {
		p.end(netip.AddrPort{})
	}
}

// hopTo makes a route ready, or returns nil when it leads nowhere.
func (b *bind) hopTo(r Route) *hop {
	if !r.To.IsValid() || r.To.Port() == 0 {
		return nil
	}
	if r.Socket != NativeSocket {
		if s := b.socket(r.Socket); s != nil {
			return &hop{Route: r, socket: s}
		}
		return nil
	}
	ep, err := b.udp.ParseEndpoint(r.To.String())
	if err != nil {
		return nil // not an address of this platform
	}
	return &hop{Route: r, native: ep}
}

// route sends packets another way from now on, and first those that wait for one.
func (p *path) route(r Route) {
	next := p.bind.hopTo(r)
	p.bind.paths.mu.Lock()
	ended := p.ended.Load()
	if !ended {
		p.hop.Store(next)
	}
	p.bind.paths.mu.Unlock()
	if next == nil || ended {
		return
	}
	packets, lost := p.held.take(time.Now())
	p.bind.metrics.dropMany(reasonPathNowhere, lost)
	if len(packets) > 0 {
		_ = p.sendTo(next, packets) // they may get lost, as on every way
	}
}

// accept makes routes the sources of the path, and says whether other paths have
// lost some by that. After an error nothing changed.
func (p *path) accept(routes []Route) (taken bool, err error) {
	if len(routes) > maxRoutes {
		return false, fmt.Errorf("%d routes, more than %d: %w", len(routes), maxRoutes, mesh.ErrInvalid)
	}
	set := &p.bind.paths
	set.mu.Lock()
	defer set.mu.Unlock()
	if p.ended.Load() {
		return false, net.ErrClosed
	}
	var (
		was  = *p.sources.Load()
		next = make([]*source, 0, len(routes))
		lost []*source // of other paths
		same = 0
	)
	for _, r := range routes {
		r.To = unmapped(r.To)
		if !r.To.IsValid() || r.To.Port() == 0 {
			return false, fmt.Errorf("route %v on socket %d: not an address with a port: %w", r.To, r.Socket, mesh.ErrInvalid)
		}
		if slices.ContainsFunc(next, func(other *source) bool { return other.Route == r }) {
			continue
		}
		s := set.of(r)
		switch {
		case s != nil && s.path == p:
			same++
		case s != nil:
			lost = append(lost, s)
			fallthrough
		default:
			s = &source{Route: r, path: p}
		}
		next = append(next, s)
	}
	if same < len(was) || same < len(next) {
		for _, s := range lost {
			s.path.lose(s)
		}
		set.replace(p, next)
	}
	return len(lost) > 0, nil
}

// lose takes away a source that another path gets. The caller holds mu of the set,
// and puts another source in the place of this one there.
func (p *path) lose(gone *source) {
	rest := slices.DeleteFunc(slices.Clone(*p.sources.Load()), func(s *source) bool { return s == gone })
	p.sources.Store(&rest)
}

// end takes the path out of use; again is harmless. What the library still has
// for it goes to the address after, until the library is told: packets that were
// on their way carry the path as their endpoint, and so bring it back there.
func (p *path) end(after netip.AddrPort) {
	last := p.bind.hopTo(Route{NativeSocket, after})
	set := &p.bind.paths
	set.mu.Lock()
	defer set.mu.Unlock()
	if p.ended.Swap(true) {
		return
	}
	p.hop.Store(last)
	p.pad(0)
	set.replace(p, nil)
	delete(set.byID, p.id)
	delete(set.byKey, p.key)
	p.bind.metrics.paths.Dec()
	packets, lost := p.held.take(time.Now())
	p.bind.metrics.dropMany(reasonPathNowhere, lost+len(packets))
}

// send sends packets where the path leads. The latest of those that it leads
// nowhere wait for a while, and the others are lost like any datagram.
func (p *path) send(packets [][]byte) error {
	if to := p.hop.Load(); to != nil {
		return p.sendTo(to, packets)
	}
	to, err := p.hold(packets)
	if to == nil {
		return err
	}
	return p.sendTo(to, packets)
}

// hold keeps packets until the path leads somewhere, unless it does by now: then
// it returns where.
func (p *path) hold(packets [][]byte) (*hop, error) {
	p.held.mu.Lock()
	defer p.held.mu.Unlock()
	// Whoever has changed that since takes what is held after us.
	if to := p.hop.Load(); to != nil {
		return to, nil
	}
	if p.ended.Load() {
		p.bind.metrics.dropMany(reasonPathNowhere, len(packets))
		return nil, net.ErrClosed
	}
	p.bind.metrics.dropMany(reasonPathNowhere, p.held.put(packets, time.Now()))
	return nil, nil
}

// sendTo sends packets one way.
func (p *path) sendTo(to *hop, packets [][]byte) error {
	p.sent.Store(p.bind.paths.now())
	p.bind.calls.sent(packets, p)
	if to.socket != nil {
		to.socket.send(packets, to.To)
		return nil
	}
	return p.bind.sendPath(p, packets, to.native)
}

// activity is Path.Activity.
func (p *path) activity() Activity {
	a := Activity{Sent: p.bind.paths.at(p.sent.Load())}
	var last int64
	for _, s := range *p.sources.Load() {
		if t := s.heard.Load(); t > last {
			last, a.From = t, s.Route
		}
	}
	a.Heard = p.bind.paths.at(last)
	return a
}

// where returns where packets go; the zero Route when nowhere.
func (p *path) where() Route {
	if to := p.hop.Load(); to != nil {
		return to.Route
	}
	return Route{}
}

// The rest implements conn.Endpoint. The device tells sources apart by address
// when it limits handshakes and makes cookies, so each path has one of its own,
// whatever it leads over.

// ClearSrc implements conn.Endpoint.
func (p *path) ClearSrc() {}

// SrcToString implements conn.Endpoint.
func (p *path) SrcToString() string { return "" }

// DstToString implements conn.Endpoint.
func (p *path) DstToString() string { return pathPrefix + strconv.FormatUint(p.id, 10) }

// DstToBytes implements conn.Endpoint.
func (p *path) DstToBytes() []byte {
	ip := p.DstIP().As16()
	return ip[:]
}

// DstIP implements conn.Endpoint.
func (p *path) DstIP() netip.Addr { return discardAddress(1<<63 | p.id) }

// SrcIP implements conn.Endpoint.
func (p *path) SrcIP() netip.Addr { return netip.Addr{} }

var _ conn.Endpoint = (*path)(nil)
