// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// maxPacket is the largest packet from a client that is looked at: more than an
// Ethernet frame with all of TURN's headers, less than a jumbo frame.
const maxPacket = 2048

// gate stands between the clients of one socket and the engine. To the engine
// it is the socket: a net.PacketConn that yields only packets the engine handles
// well. Malformed ones, floods and requests that must be refused end here; what
// goes on is written anew, so that the engine parses no STUN message of which
// this package has not set each attribute.
//
// The engine handles one packet after the other, between one ReadFrom and the
// next. busy is held during that time, so that hooks which the engine calls
// know the request they are called for, and nothing is ended half-way.
type gate struct {
	server *Server
	conn   net.PacketConn // a UDP socket, or a stream
	stream bool
	out    []byte // scratch for messages that the gate writes; used under busy

	busy    sync.Mutex
	working bool    // busy is held by the reader; only the reader touches this
	now     request // what the engine works on; under busy

	mu     sync.Mutex // guards the fields below
	relays map[netip.AddrPort]*relay
}

// request is an authenticated request on its way through the engine.
type request struct {
	kind   uint16
	client netip.AddrPort
	user   string
	key    []byte
	peers  []netip.AddrPort // that the policy allowed
	even   bool             // an Allocate asks for an even relay port
}

func newGate(s *Server, conn net.PacketConn) *gate {
	return &gate{server: s, conn: conn, out: make([]byte, 0, maxPacket), relays: make(map[netip.AddrPort]*relay)}
}

// ReadFrom returns the next packet for the engine. An error is final.
func (g *gate) ReadFrom(p []byte) (int, net.Addr, error) {
	if g.working {
		g.working = false
		g.busy.Unlock()
	}
	for failed := 0; ; {
		n, addr, err := g.conn.ReadFrom(p)
		if err != nil {
			if g.stream || errors.Is(err, net.ErrClosed) || !g.server.pause(failed) {
				return 0, nil, err
			}
			failed++
			continue
		}
		failed = 0
		client, ok := addrPort(addr)
		if !ok || n == len(p) {
			g.server.metrics.drop(dropOversize)
			continue
		}
		g.busy.Lock()
		if out := g.admit(p[:n], client); out != nil {
			g.working = true
			return copy(p, out), addr, nil
		}
		g.busy.Unlock()
	}
}

// WriteTo sends what the engine, a relay or the gate itself has for a client.
func (g *gate) WriteTo(p []byte, to net.Addr) (int, error) {
	if m := message(p); len(m) >= headerLen && m[0]>>6 == 0 && m.kind()&classResponse != 0 {
		g.observe(m)
	}
	return g.conn.WriteTo(p, to)
}

// observe notes a response. The engine writes responses while it works on
// their request, so g.now is the request that this one answers.
func (g *gate) observe(m message) {
	if m.kind()&classMask == classError {
		g.server.metrics.refuse(m.errorCode())
		return
	}
	if g.now.kind == refreshRequest {
		if r := g.relay(g.now.client); r != nil {
			r.expires = time.Now().Add(g.server.limits.Lifetime)
		}
	}
}

// admit returns what the engine shall see instead of packet b; nil when it is not for the engine.
func (g *gate) admit(b []byte, client netip.AddrPort) []byte {
	g.now = request{client: client}
	switch {
	case !check(b):
		g.server.metrics.drop(dropMalformed)
		return nil
	case b[0]>>6 == 1:
		return g.admitData(b, client)
	}
	m := message(b)
	switch m.kind() {
	case bindingRequest:
		return g.admitStranger(m, client)
	case sendIndication:
		return g.admitSend(m, client)
	case allocateRequest, refreshRequest, createPermissionRequest, channelBindRequest:
		return g.admitRequest(m, client)
	default:
		g.server.metrics.drop(dropUnexpected)
		return nil
	}
}

// admitData passes data of clients that have an allocation; the engine looks up
// permission and channel, the relay asks the policy.
func (g *gate) admitData(b []byte, client netip.AddrPort) []byte {
	if g.relay(client) == nil {
		g.server.metrics.drop(dropNoRelay)
		g.hint(b, client)
		return nil
	}
	return b
}

// hint tells a client over UDP that sends data without an allocation so: its
// allocation was lost when the server started anew, and nothing else would tell it
// for seconds. It answers no request, so that nobody has to believe it; clients ask
// whether it is true. Since the source may be forged it is no larger than what it
// is for, and each network gets its share.
func (g *gate) hint(b []byte, client netip.AddrPort) {
	out := newMessage(g.out, refreshRequest|classError, new([12]byte)[:])
	out = out.add(attrErrorCode, []byte{0, 0, codeMismatch / 100, codeMismatch % 100})
	if g.stream || len(out) > len(b) || !g.server.answers.Take(client.Addr()) {
		return
	}
	_, _ = g.WriteTo(out, g.address(client)) // the next packet is another occasion
}

// admitSend passes a Send indication, reduced to what it must have. One that
// asks for more, such as DONT-FRAGMENT, is to be ignored (RFC 8656 section 11.2).
func (g *gate) admitSend(m message, client netip.AddrPort) []byte {
	peer, hasPeer := m.get(attrXORPeerAddress)
	data, hasData := m.get(attrData)
	if !hasPeer || !hasData || len(m.unknown()) > 0 {
		g.server.metrics.drop(dropUnexpected)
		return nil
	}
	out := newMessage(g.out, m.kind(), m.transaction()).add(attrXORPeerAddress, peer).add(attrData, data)
	return g.admitData(out, client)
}

// admitStranger passes the bare header of m, for which the engine answers with
// the client's address or with a challenge. Over UDP the source may be forged,
// so each network gets its share of answers.
func (g *gate) admitStranger(m message, client netip.AddrPort) []byte {
	if !g.stream && g.relay(client) == nil && !g.server.answers.Take(client.Addr()) {
		g.server.metrics.drop(dropRate)
		return nil
	}
	return newMessage(g.out, m.kind(), m.transaction())
}

// admitRequest authenticates m, answers it when it must be refused, and else
// passes what the engine needs of it under a new signature. A request whose
// credential is wrong, expired or revoked becomes one without credential: the
// answer is the same 401. One that cannot be judged yet gets none: it is sent
// again.
func (g *gate) admitRequest(m message, client netip.AddrPort) []byte {
	s := g.server
	user, key, failure := s.secrets.authenticate(m, s.realm, time.Now())
	if failure == authenticated && s.allowUser != nil && !s.allowUser(user) {
		failure = revoked
	}
	if failure != authenticated {
		if failure != anonymous {
			s.metrics.failures[string(failure)].Inc()
		}
		if failure == undecided {
			return nil
		}
		return g.admitStranger(m, client)
	}
	g.now = request{kind: m.kind(), client: client, user: user, key: key}
	if code := g.judge(m); code != 0 {
		g.refuse(m, code)
		return nil
	}
	out := newMessage(g.out, m.kind(), m.transaction())
	signed, _ := m.split()
	for t, v := range signed.attributes() {
		switch t {
		case attrUsername, attrRealm, attrNonce, attrRequestedTransport, attrChannelNumber, attrXORPeerAddress:
			out = out.add(t, v)
		}
	}
	if kind := m.kind(); kind == allocateRequest || kind == refreshRequest {
		out = out.add(attrLifetime, g.lifetime(signed))
	}
	if out = out.sign(key); len(out) >= maxPacket {
		s.metrics.drop(dropOversize)
		return nil
	}
	return out
}

// refuse answers m with an error, signed as the client expects.
func (g *gate) refuse(m message, code int) {
	out := newMessage(g.out, m.kind()|classError, m.transaction())
	out = out.add(attrErrorCode, []byte{0, 0, byte(code / 100), byte(code % 100)})
	if code == codeUnknownAttribute {
		out = out.add(attrUnknownAttributes, m.unknown())
	}
	// An answer that gets lost is asked for again.
	_, _ = g.WriteTo(out.sign(g.now.key), g.address(g.now.client))
}

// address returns client in the form that the socket takes.
func (g *gate) address(client netip.AddrPort) net.Addr {
	if g.stream {
		return net.TCPAddrFromAddrPort(client)
	}
	return net.UDPAddrFromAddrPort(client)
}

// relay returns the allocation of client, nil when it has none.
func (g *gate) relay(client netip.AddrPort) *relay {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.relays[client]
}

// evict ends the allocations of user. A stream has one at most, which ends with
// it; on a UDP socket evict waits until the engine rests, so that nothing is
// half-made.
func (g *gate) evict(user string) (n int) {
	if !g.stream {
		g.busy.Lock()
		defer g.busy.Unlock()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.relays {
		if r.user != user || !r.ending.CompareAndSwap(false, true) {
			continue
		}
		n++
		if g.stream {
			g.Close()
		} else {
			r.UDPConn.Close() // the engine's reader of the relay sees it, and deletes the allocation
		}
	}
	return n
}

// Close closes the socket; the engine then ends its allocations.
func (g *gate) Close() error { return g.conn.Close() }

// LocalAddr is the address of the socket.
func (g *gate) LocalAddr() net.Addr { return g.conn.LocalAddr() }

// SetDeadline does nothing: the gate decides how long to wait.
func (g *gate) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing: the gate decides how long to wait.
func (g *gate) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: the gate decides how long to wait.
func (g *gate) SetWriteDeadline(time.Time) error { return nil }
