// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v2"
)

const (
	// muxPacketSize is the largest packet that is read, as ICE has it.
	muxPacketSize = 8 << 10
	// maxAddresses are the remote addresses that one peer may hold. A client
	// whose NAT gives it yet another loses the oldest.
	maxAddresses = 64
	// maxOutstanding are the checks of one peer whose answers are awaited, and
	// answerTime how long; ICE itself forgets a check after 4 s.
	maxOutstanding = 128
	answerTime     = 5 * time.Second
	// claimLapse is how long the owner of an address may be silent while another
	// peer shows that it is there. A NAT gives a port to the next client, but not
	// while the last one uses it.
	claimLapse = 5 * time.Second
	// readPause is the wait after an error of the socket that may pass.
	readPause = 20 * time.Millisecond
)

var errNoPeer = errors.New("rtc: no peer of that ufrag")

// udpMux lets all peers share one socket. A packet goes to the peer that it
// was meant for, as far as that can be shown:
//
//   - a STUN request to the peer whose ufrag it names, if it is sealed with the
//     password of that peer;
//   - a STUN response to the peer that sent the request, if it comes from where
//     the request went;
//   - anything else to the owner of the address that it came from.
//
// The owner of an address is the peer that received a properly sealed STUN
// message from it. Sending there gives no right to it: a candidate is a mere
// assertion, and may name what another peer uses.
//
// One goroutine reads; it ends with close.
type udpMux struct {
	engine *Engine
	socket net.PacketConn
	reader addrPortReader
	done   chan struct{} // closed when nobody reads

	mu     sync.Mutex // guards the fields below
	closed bool
	peers  map[string]*muxPeer // by ufrag
	owners map[netip.AddrPort]*owner
	asked  map[transaction]asked
}

var _ ice.UDPMux = (*udpMux)(nil)

// addrPortReader is how a socket is read without an allocation for each packet.
type addrPortReader interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
}

// muxPeer is a peer that shares the socket.
type muxPeer struct {
	checks *checks
	conns  [2]*muxConn // IPv4 and IPv6; nil until ICE asks for them
}

// owner is the peer that an address belongs to.
type owner struct {
	conn *muxConn
	addr *net.UDPAddr // the address as ICE takes it; nobody writes to it
	// heard is set by each packet, and cleared when another peer shows up at
	// the address at the time contested.
	heard     bool
	contested time.Time
}

// asked is a check that waits for its answer.
type asked struct {
	conn *muxConn
	to   netip.AddrPort
	at   time.Time
}

func newUDPMux(e *Engine, socket net.PacketConn) *udpMux {
	enlarge(socket, sharedBuffer)
	m := &udpMux{
		engine: e, socket: socket, done: make(chan struct{}),
		peers: map[string]*muxPeer{}, owners: map[netip.AddrPort]*owner{}, asked: map[transaction]asked{},
	}
	var ok bool
	if m.reader, ok = socket.(addrPortReader); !ok {
		m.reader = anySocket{socket}
	}
	go m.read()
	return m
}

// anySocket reads a socket that is no *net.UDPConn.
type anySocket struct{ net.PacketConn }

func (s anySocket) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := s.ReadFrom(b)
	if udp, ok := from.(*net.UDPAddr); ok {
		return n, udp.AddrPort(), err
	}
	return n, netip.AddrPort{}, err
}

// close closes the socket and waits until nobody reads it.
func (m *udpMux) close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	err := m.socket.Close()
	<-m.done
	m.mu.Lock()
	defer m.mu.Unlock()
	for ufrag := range m.peers {
		m.remove(ufrag)
	}
	return err
}

// Close implements ice.UDPMux, which has it for owners of a mux: agents do not
// call it.
func (m *udpMux) Close() error { return m.close() }

// expect makes a peer known before ICE asks for its connection.
func (m *udpMux) expect(ufrag string, c *checks) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peers[ufrag] = &muxPeer{checks: c}
}

// GetConn implements ice.UDPMux.
func (m *udpMux) GetConn(ufrag string, addr net.Addr) (net.PacketConn, error) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return nil, errNoPeer
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[ufrag]
	switch {
	case m.closed:
		return nil, io.ErrClosedPipe
	case p == nil:
		return nil, errNoPeer
	}
	conn := &p.conns[family(udp.AddrPort().Addr())]
	if *conn == nil {
		*conn = newMuxConn(m, p.checks)
	}
	return *conn, nil
}

func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}

// RemoveConnByUfrag implements ice.UDPMux: the peer has ended.
func (m *udpMux) RemoveConnByUfrag(ufrag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(ufrag)
}

// remove needs the caller's lock.
func (m *udpMux) remove(ufrag string) {
	p := m.peers[ufrag]
	if p == nil {
		return
	}
	delete(m.peers, ufrag)
	for _, c := range p.conns {
		if c != nil {
			c.queue.close()
			m.free(c)
		}
	}
}

// free gives up what a connection holds. It needs the caller's lock.
func (m *udpMux) free(c *muxConn) {
	for _, a := range c.addresses {
		delete(m.owners, a)
	}
	for _, id := range c.outstanding {
		delete(m.asked, id)
	}
	c.addresses, c.outstanding = nil, nil
}

// read hands out packets until the socket is closed.
func (m *udpMux) read() {
	defer close(m.done)
	buf := make([]byte, muxPacketSize)
	for {
		n, from, err := m.reader.ReadFromUDPAddrPort(buf)
		if err != nil {
			if m.ended(err) {
				return
			}
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		p := buf[:n]
		switch {
		case !sound(p):
			m.engine.drop()
		case isSTUN(p):
			m.message(p, from)
		default:
			m.data(p, from)
		}
	}
}

// ended says whether an error of the socket is its end. If it may pass, ended
// waits a little.
func (m *udpMux) ended(err error) bool {
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return true
	}
	m.engine.logger.Debug("read the shared socket", "err", err)
	<-time.After(readPause)
	return false
}

// data hands on a packet that is not STUN.
func (m *udpMux) data(p []byte, from netip.AddrPort) {
	m.mu.Lock()
	o := m.owners[from]
	if o == nil {
		m.mu.Unlock()
		m.engine.drops.stray.Add(1)
		return
	}
	o.heard = true
	conn, addr := o.conn, o.addr
	m.mu.Unlock()
	conn.deliver(p, addr)
}

// message hands on a STUN message, and gives the address that it came from to
// its peer if the message is sealed.
func (m *udpMux) message(p []byte, from netip.AddrPort) {
	b, ok := parseBinding(p)
	if !ok {
		m.engine.drop()
		return
	}
	var conn *muxConn
	switch b.kind {
	case bindingRequest:
		conn = m.receiver(b.receiver, from)
	case bindingSuccess:
		conn = m.asker(b.id, from)
	}
	if conn == nil { // also indications and errors: ICE has no use for them
		m.engine.drops.stray.Add(1)
		return
	}
	if !conn.checks.verify(p, &b, from) {
		m.engine.drops.forged.Add(1)
		return
	}
	conn.deliver(p, m.claim(conn, from))
}

// receiver is the connection of the peer with that ufrag, or nil.
func (m *udpMux) receiver(ufrag []byte, from netip.AddrPort) *muxConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[string(ufrag)]; p != nil {
		return p.conns[family(from.Addr())]
	}
	return nil
}

// asker is the connection that sent the request id to that address, or nil.
func (m *udpMux) asker(id transaction, from netip.AddrPort) *muxConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.asked[id]
	if !ok || a.to != from {
		return nil
	}
	delete(m.asked, id)
	if time.Since(a.at) > answerTime {
		return nil
	}
	return a.conn
}

// claim gives an address to a connection, unless another that is alive has it.
// It returns the address for ICE.
func (m *udpMux) claim(conn *muxConn, from netip.AddrPort) *net.UDPAddr {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.owners[from]
	switch {
	case o == nil:
		addr := net.UDPAddrFromAddrPort(from)
		m.own(conn, from, addr)
		return addr
	case o.conn == conn:
		o.heard = true
	case o.heard || o.contested.IsZero():
		o.heard, o.contested = false, time.Now()
	case time.Since(o.contested) >= claimLapse:
		o.conn.forget(from)
		delete(m.owners, from)
		m.own(conn, from, o.addr)
	}
	return o.addr
}

// own makes a connection the owner of an address that has none. It needs the
// caller's lock.
func (m *udpMux) own(conn *muxConn, from netip.AddrPort, addr *net.UDPAddr) {
	if conn.queue.isClosed() {
		return // it was freed meanwhile
	}
	if len(conn.addresses) == maxAddresses {
		oldest := conn.addresses[0]
		conn.forget(oldest)
		delete(m.owners, oldest)
	}
	m.owners[from] = &owner{conn: conn, addr: addr}
	conn.addresses = append(conn.addresses, from)
}

// ask notes a check that goes out.
func (m *udpMux) ask(conn *muxConn, id transaction, to netip.AddrPort, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if conn.queue.isClosed() {
		return
	}
	if len(conn.outstanding) < maxOutstanding {
		conn.outstanding = append(conn.outstanding, id)
	} else {
		delete(m.asked, conn.outstanding[conn.oldest])
		conn.outstanding[conn.oldest] = id
		conn.oldest = (conn.oldest + 1) % maxOutstanding
	}
	m.asked[id] = asked{conn: conn, to: to, at: now}
}

// GetListenAddresses implements ice.UDPMux: the addresses that the machine has
// now, filtered as for single sockets.
func (m *udpMux) GetListenAddresses() []net.Addr {
	local := m.socket.LocalAddr().(*net.UDPAddr)
	if !local.IP.IsUnspecified() {
		if m.engine.localAddr(local.IP) {
			return []net.Addr{local}
		}
		return nil
	}
	list, err := m.engine.interfaces.get()
	if err != nil {
		m.engine.logger.Warn("interfaces cannot be listed", "err", err)
		return nil
	}
	var out []net.Addr
	for _, i := range list {
		addrs, _ := i.Addrs() // an interface without addresses is an error to pion
		for _, a := range addrs {
			ipn, ok := a.(*net.IPNet)
			if !ok || i.Flags&net.FlagUp == 0 || ipn.IP.IsLinkLocalUnicast() || !m.engine.localAddr(ipn.IP) {
				continue
			}
			if ipn.IP.To4() == nil && local.IP.To4() != nil {
				continue // an IPv4 socket
			}
			out = append(out, &net.UDPAddr{IP: ipn.IP, Port: local.Port})
		}
	}
	return out
}

// drops counts packets that were not handed on.
type drops struct {
	malformed atomic.Uint64 // no parser may see it
	stray     atomic.Uint64 // of no peer
	forged    atomic.Uint64 // not sealed by the other side
	overrun   atomic.Uint64 // the peer did not keep up
	paced     atomic.Uint64 // a check of ours, whose turn had not come
}
