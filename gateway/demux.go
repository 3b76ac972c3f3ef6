// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// alpnTURN is the protocol name of TURN over TLS (RFC 7443).
const alpnTURN = "stun.turn"

// newTLSListener puts TLS on l; ctx ends handshakes, and shaken counts those that fail by
// themselves. With turn, connections that speak TURN go to it; the others are
// accepted. A connection is accepted when its handshake is over, for which it has
// headerTimeout and may say no more than two hellos.
func newTLSListener(ctx context.Context, l net.Listener, cfg *tls.Config, shaken *handshakes, turn func(net.Conn)) net.Listener {
	cfg = cfg.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if s, ok := hello.Conn.(*shaking); ok {
			s.left += maxHello // for the rest, which may be a second hello
		}
		return nil, nil // cfg it stays
	}
	d := &demux{
		Listener: l, tls: cfg, shaken: shaken, turn: turn,
		accepted: make(chan net.Conn), done: make(chan struct{}), sorting: make(map[net.Conn]struct{}),
	}
	d.wg.Go(func() { d.run(ctx) })
	return d
}

// demux shares one TLS port between HTTP and TURN. A client says by ALPN which
// one it speaks, or by its first byte: the first two bits of a STUN message
// are zero (RFC 8489 section 5), an HTTP request begins with a letter.
type demux struct {
	net.Listener
	tls    *tls.Config
	shaken *handshakes
	turn   func(net.Conn) // nil: nobody wants what speaks TURN

	accepted chan net.Conn // HTTP connections on their way to Accept; never closed
	done     chan struct{} // closed when the listener has ended
	wg       sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	err     error      // why the listener ended; nil while it has not
	sorting map[net.Conn]struct{}
}

// run accepts connections until the listener ends.
func (d *demux) run(ctx context.Context) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			d.end(err)
			return
		}
		if d.hold(conn) {
			d.wg.Go(func() { d.sort(ctx, conn) })
		}
	}
}

// hold remembers a connection that is being sorted, so that end can close it.
func (d *demux) hold(conn net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		_ = conn.Close() // nobody is there to serve it
		return false
	}
	d.sorting[conn] = struct{}{}
	return true
}

func (d *demux) letGo(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sorting, conn)
}

// end stops everything; the first err counts.
func (d *demux) end(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return
	}
	d.err = err
	close(d.done)
	for conn := range d.sorting {
		_ = conn.Close() // it was promised nothing yet
	}
}

// sort ends the handshake and hands the connection to whom it is for.
func (d *demux) sort(ctx context.Context, raw net.Conn) {
	isTURN, conn, err := d.classify(ctx, raw)
	d.letGo(raw)
	switch {
	case err != nil:
		_ = raw.Close() // who is not understood gets no answer
	case isTURN && placeOf(raw).lend():
		d.turn(&lentConn{Conn: conn, place: placeOf(raw)})
	case isTURN:
		_ = raw.Close() // others keep what is left of the port
	default:
		select {
		case d.accepted <- conn:
		case <-d.done:
			_ = raw.Close()
		}
	}
}

func (d *demux) classify(ctx context.Context, raw net.Conn) (isTURN bool, sorted net.Conn, err error) {
	said := &shaking{Conn: raw, left: maxHello, place: placeOf(raw)}
	conn := tls.Server(said, d.tls)
	if err := conn.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return false, nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) { // else it had to make room, or all ends
			d.shaken.fail(raw.RemoteAddr(), err)
		}
		return false, nil, err
	}
	said.over = true
	sorted = conn
	switch protocol := conn.ConnectionState().NegotiatedProtocol; {
	case d.turn == nil:
	case protocol == alpnTURN:
		isTURN = true
	case protocol == "":
		peeked := &peekedConn{Conn: conn, reader: bufio.NewReader(conn)}
		first, err := peeked.reader.Peek(1)
		if err != nil {
			return false, nil, err
		}
		isTURN, sorted = first[0]>>6 == 0, peeked
	}
	return isTURN, sorted, conn.SetDeadline(time.Time{})
}

// Accept returns the next HTTP connection.
func (d *demux) Accept() (net.Conn, error) {
	select {
	case conn := <-d.accepted:
		return conn, nil
	case <-d.done:
		d.mu.Lock()
		defer d.mu.Unlock()
		return nil, d.err
	}
}

// Close ends the listener and what has not been handed over.
func (d *demux) Close() error {
	err := d.Listener.Close()
	d.end(net.ErrClosed)
	d.wg.Wait()
	return err
}

// shaking is a connection of which little is read until its handshake is over, and
// as long as nobody is known on it: crypto/tls keeps what it reads of a message, up
// to 64 KiB, for as long as the rest of it does not come, also afterwards, and what
// is in front of a request adds to that.
type shaking struct {
	net.Conn
	place *place // nil: it has none, and what comes after the handshake has no bound
	// left is how many more bytes are read. Only who shakes hands uses it, and
	// sets over before anybody else has the connection.
	left int
	over bool
}

// Read implements net.Conn.
func (s *shaking) Read(p []byte) (int, error) {
	if s.over {
		return s.place.read(s.Conn, p)
	}
	if s.left <= 0 {
		return 0, errTooLarge
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

// NetConn is the connection below.
func (s *shaking) NetConn() net.Conn { return s.Conn }

// peekedConn is a TLS connection whose first byte was looked at.
type peekedConn struct {
	*tls.Conn
	reader *bufio.Reader
}

// Read implements net.Conn.
func (c *peekedConn) Read(p []byte) (int, error) {
	if c.reader == nil {
		return c.Conn.Read(p)
	}
	n, err := c.reader.Read(p)
	if c.reader.Buffered() == 0 {
		c.reader = nil
	}
	return n, err
}
