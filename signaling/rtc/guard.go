// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun"
	"github.com/pion/transport/v2"
	"github.com/pion/transport/v2/stdnet"
)

// pion/stun v0.6.1 indexes into address attributes before it looks at their
// length, so one packet of 32 bytes ends the process. Nothing in this package
// hands pion a packet that sound has not seen.

const (
	stunHeader = 20
	stunCookie = 0x2112A442
	// maxNesting is how deep a TURN Data indication may wrap further packets.
	maxNesting = 2
)

// sound says whether the STUN, TURN or other packet p may be given to pion:
// every attribute lies inside the message and every address attribute has the
// size of its family (RFC 8489 14.1, 14.2). What is neither STUN nor
// ChannelData is sound.
func sound(p []byte) bool { return soundAt(p, 0) }

func soundAt(p []byte, depth int) bool {
	switch {
	case depth > maxNesting:
		return false
	case len(p) >= stunHeader && binary.BigEndian.Uint32(p[4:8]) == stunCookie:
		return soundMessage(p, depth)
	case len(p) >= 4 && p[0]&0xC0 == 0x40: // TURN ChannelData
		n := int(binary.BigEndian.Uint16(p[2:4]))
		return n <= len(p)-4 && soundAt(p[4:4+n], depth+1)
	}
	return true
}

func soundMessage(p []byte, depth int) bool {
	size := int(binary.BigEndian.Uint16(p[2:4]))
	if size > len(p)-stunHeader {
		return false
	}
	for rest := p[stunHeader : stunHeader+size]; len(rest) > 0; {
		if len(rest) < 4 {
			return false
		}
		kind, n := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		rest = rest[4:]
		if n > len(rest) || !soundAttribute(kind, rest[:n], depth) {
			return false
		}
		padded := (n + 3) &^ 3
		rest = rest[min(padded, len(rest)):]
	}
	return true
}

func soundAttribute(kind uint16, value []byte, depth int) bool {
	switch kind {
	case 0x0001, 0x0002, 0x0004, 0x0005, 0x000B, // MAPPED-ADDRESS and its RFC 3489 kin
		0x0012, 0x0016, 0x0020, // XOR-PEER-, XOR-RELAYED-, XOR-MAPPED-ADDRESS
		0x8020, 0x8022 + 1, 0x802B, 0x802C: // old XOR-MAPPED-ADDRESS, ALTERNATE-SERVER, RESPONSE-ORIGIN, OTHER-ADDRESS
		if len(value) < 4 {
			return false
		}
		return value[1] == 1 && len(value) == 8 || value[1] == 2 && len(value) == 20
	case 0x0013: // DATA: what a peer sent through the relay
		return soundAt(value, depth+1)
	}
	return true
}

// guardedUDP is a socket of one peer. It drops unsound packets on the way in,
// and on the way out checks whose turn has not come. The methods of it that ICE
// does not call (Read, ReadMsgUDP, ...) are closed off.
type guardedUDP struct {
	transport.UDPConn
	drop   func()
	forget func()
	checks *checks
	lease  *lease
}

var errUnguarded = errors.New("rtc: read method without a packet check")

func (c *guardedUDP) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.UDPConn.ReadFrom(p)
		if err != nil {
			return n, addr, err
		}
		if !sound(p[:n]) {
			c.drop()
			continue
		}
		if b, ok := parseBinding(p[:n]); ok && (b.kind == bindingRequest || b.kind == bindingSuccess) {
			if from, ok := addrPort(addr); ok {
				c.checks.verify(p[:n], &b, from) // ICE looks again, and drops
			}
		}
		if answer, to := c.lease.hears(p[:n]); answer != nil {
			_, _ = c.UDPConn.WriteTo(answer, to) // it is repeated
		}
		return n, addr, nil
	}
}

// WriteTo implements net.PacketConn.
func (c *guardedUDP) WriteTo(p []byte, addr net.Addr) (int, error) {
	to, paced := relayedCheck(p)
	if !paced && isCheck(p) {
		to, paced = addrPort(addr)
	}
	if paced && !c.checks.allow(path{c, to}, time.Now()) {
		return len(p), nil
	}
	c.lease.sends(p, addr)
	return c.UDPConn.WriteTo(p, addr)
}

// addrPort is a UDP address with IPv4 as such.
func addrPort(a net.Addr) (netip.AddrPort, bool) {
	udp, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	at := udp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), true
}

func (c *guardedUDP) Read(p []byte) (int, error) {
	n, _, err := c.ReadFrom(p)
	return n, err
}

func (c *guardedUDP) ReadFromUDP(p []byte) (int, *net.UDPAddr, error) {
	return 0, nil, errUnguarded
}

func (c *guardedUDP) ReadMsgUDP(p, oob []byte) (int, int, int, *net.UDPAddr, error) {
	return 0, 0, 0, nil, errUnguarded
}

// Close implements net.PacketConn. A socket whose TURN server has not said yet that
// the relay is given back stays open until the peer has ended.
func (c *guardedUDP) Close() error {
	if c.lease.ending() {
		return nil
	}
	c.forget()
	return c.UDPConn.Close()
}

// guardedStream checks TURN over TCP or TLS: it gives out whole frames (RFC
// 8656 section 3.1) and ends with an error at the first unsound one.
type guardedStream struct {
	net.Conn
	forget func()
	checks *checks
	frame  []byte // what is left of the last frame
}

// Write implements net.Conn. The TURN client writes a frame at a time.
func (c *guardedStream) Write(p []byte) (int, error) {
	if to, ok := relayedCheck(p); ok && !c.checks.allow(path{c, to}, time.Now()) {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *guardedStream) Read(p []byte) (int, error) {
	if len(c.frame) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.frame)
	c.frame = c.frame[n:]
	return n, nil
}

func (c *guardedStream) next() error {
	head := make([]byte, 4, stunHeader)
	if _, err := io.ReadFull(c.Conn, head); err != nil {
		return err
	}
	size := int(binary.BigEndian.Uint16(head[2:4]))
	if head[0]&0xC0 == 0x40 {
		size = (size + 3) &^ 3 // ChannelData is padded on a stream
	} else {
		size += stunHeader - 4
	}
	c.frame = append(head, make([]byte, size)...)
	if _, err := io.ReadFull(c.Conn, c.frame[4:]); err != nil {
		return err
	}
	if !sound(c.frame) {
		c.frame = nil
		return errors.New("rtc: malformed frame from the TURN server")
	}
	return nil
}

func (c *guardedStream) Close() error {
	c.forget()
	return c.Conn.Close()
}

const (
	socketBuffer = 2 << 20 // of a peer's own socket
	sharedBuffer = 8 << 20 // of the socket that all share
)

// interfaceTTL is how long a listing of the machine's interfaces is believed.
const interfaceTTL = 5 * time.Second

// interfaces lists the machine's interfaces, freshly but not for every peer.
type interfaces struct {
	mu   sync.Mutex // guards the fields below
	list []*transport.Interface
	at   time.Time
}

func (i *interfaces) get() ([]*transport.Interface, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.list != nil && time.Since(i.at) < interfaceTTL {
		return i.list, nil
	}
	n, err := stdnet.NewNet()
	if err != nil {
		return nil, err
	}
	if i.list, err = n.Interfaces(); err != nil {
		return nil, err
	}
	i.at = time.Now()
	return i.list, nil
}

// guardedNet is the network of one peer: every socket that ICE opens drops
// unsound packets. Its end has two steps, with that of ICE between them: quit and
// close.
type guardedNet struct {
	transport.Net
	interfaces *interfaces
	drop       func()
	urls       []*stun.URI   // of the servers
	goodbye    time.Duration // bounds the time from quit to the end of close
	checks     *checks       // set before ICE opens the first socket
	ended      chan struct{} // closed when all sockets are

	mu      sync.Mutex // guards the fields below
	closed  bool
	sockets map[io.Closer]*guardedUDP // nil for streams
	late    *time.Timer               // calls end
}

func newGuardedNet(i *interfaces, drop func(), urls []*stun.URI, goodbye time.Duration) *guardedNet {
	return &guardedNet{
		Net: &stdnet.Net{}, interfaces: i, drop: drop, urls: urls, goodbye: goodbye,
		ended: make(chan struct{}), sockets: map[io.Closer]*guardedUDP{},
	}
}

// Interfaces implements transport.Net.
func (n *guardedNet) Interfaces() ([]*transport.Interface, error) { return n.interfaces.get() }

// ListenUDP implements transport.Net.
func (n *guardedNet) ListenUDP(network string, addr *net.UDPAddr) (transport.UDPConn, error) {
	return n.guardUDP(n.Net.ListenUDP(network, addr))
}

// ListenPacket implements transport.Net; ICE uses it for TURN over UDP.
func (n *guardedNet) ListenPacket(network, address string) (net.PacketConn, error) {
	addr, err := n.ResolveUDPAddr(network, address)
	if err != nil {
		return nil, err
	}
	return n.ListenUDP(network, addr)
}

// DialUDP implements transport.Net; ICE uses it for TURN over DTLS, which is
// off.
func (n *guardedNet) DialUDP(string, *net.UDPAddr, *net.UDPAddr) (transport.UDPConn, error) {
	return nil, transport.ErrNotSupported
}

// DialTCP implements transport.Net. TURN over TCP goes through turnDialer.
func (n *guardedNet) DialTCP(string, *net.TCPAddr, *net.TCPAddr) (transport.TCPConn, error) {
	return nil, transport.ErrNotSupported
}

func (n *guardedNet) guardUDP(c transport.UDPConn, err error) (transport.UDPConn, error) {
	if err != nil {
		return nil, err
	}
	guarded := &guardedUDP{UDPConn: c, drop: n.drop, checks: n.checks, lease: newLease(n.urls), forget: func() { n.forget(c) }}
	if err := n.track(c, guarded); err != nil {
		return nil, err
	}
	enlarge(c, socketBuffer)
	return guarded, nil
}

// enlarge asks for larger socket buffers. SCTP sends bursts of a whole
// congestion window, and the default of Linux holds 90 packets of it; what
// falls out costs a retransmission timeout.
func enlarge(c any, bytes int) {
	if b, ok := c.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok {
		_ = b.SetReadBuffer(bytes) // the system gives as much as it allows
		_ = b.SetWriteBuffer(bytes)
	}
}

// guardStream wraps a connection to a TURN server.
func (n *guardedNet) guardStream(c net.Conn) (net.Conn, error) {
	if err := n.track(c, nil); err != nil {
		return nil, err
	}
	return &guardedStream{Conn: c, checks: n.checks, forget: func() { n.forget(c) }}, nil
}

func (n *guardedNet) track(c io.Closer, guarded *guardedUDP) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		_ = c.Close()
		return net.ErrClosed
	}
	n.sockets[c] = guarded
	return nil
}

func (n *guardedNet) forget(c io.Closer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sockets, c)
}

// quit ends all sockets but those through which a relay is to be given back, and
// so a gathering that waits for a server. There are no further ones.
func (n *guardedNet) quit() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for c, guarded := range n.sockets {
		if guarded == nil || !guarded.lease.mayStand() {
			_ = c.Close()
			delete(n.sockets, c)
		}
	}
	n.late = time.AfterFunc(n.goodbye, n.end)
}

// close waits for the servers of relays that were given back, and ends what is left.
// Call it once, after quit.
func (n *guardedNet) close() {
	n.sayGoodbye()
	n.end()
}

// end ends all sockets, whatever they are waiting for.
func (n *guardedNet) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sockets == nil {
		return
	}
	n.late.Stop()
	for c := range n.sockets {
		_ = c.Close()
	}
	n.sockets = nil
	close(n.ended)
}
