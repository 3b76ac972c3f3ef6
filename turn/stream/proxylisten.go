// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Of connections of proxies that owe their header: how many there may be, and how
// long it may take.
const (
	maxHeaders    = 1024
	headerTimeout = 10 * time.Second
)

// ProxyListener is a listener behind load balancers that say for whom they
// connect, by the PROXY protocol, version 2. Its Accept returns connections whose
// RemoteAddr is the client. TLS goes on top of it. It is safe for concurrent use.
type ProxyListener struct {
	net.Listener
	trusted []netip.Prefix
	refused func()

	ready   chan accepted // to Accept
	done    chan struct{} // closed by Close
	running sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	ended bool
	owing map[net.Conn]struct{}
}

// accepted is what Accept returns.
type accepted struct {
	conn net.Conn
	err  error
}

// Proxied takes connections from l, which it owns. Those from an address in
// trusted must begin with a PROXY header, or are closed, and refused is called,
// from several goroutines; it may be nil. All others are clients themselves: what they send is never taken
// for a header.
func Proxied(l net.Listener, trusted []netip.Prefix, refused func()) *ProxyListener {
	if refused == nil {
		refused = func() {}
	}
	p := &ProxyListener{
		Listener: l, trusted: slices.Clone(trusted), refused: refused,
		ready: make(chan accepted), done: make(chan struct{}), owing: make(map[net.Conn]struct{}),
	}
	p.running.Go(p.run)
	return p
}

// Accept returns the next connection whose client is known.
func (p *ProxyListener) Accept() (net.Conn, error) {
	select {
	case a := <-p.ready:
		return a.conn, a.err
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close closes the listener and the connections that Accept has not returned. It
// may be called again.
func (p *ProxyListener) Close() error {
	err := p.close()
	p.running.Wait()
	return err
}

func (p *ProxyListener) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	p.ended = true
	close(p.done)
	for c := range p.owing {
		_ = c.Close()
	}
	return p.Listener.Close()
}

// run accepts connections until the listener is closed. An error is Accept's, and
// whoever calls that waits before it does so again.
func (p *ProxyListener) run() {
	for {
		c, err := p.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			_ = p.close()
			return
		case err != nil || !p.trusts(c.RemoteAddr()):
			p.hand(accepted{conn: c, err: err})
		case p.owe(c):
			p.running.Go(func() { p.meet(c) })
		default:
			_ = c.Close()
			p.refused()
		}
	}
}

func (p *ProxyListener) trusts(a net.Addr) bool {
	from, ok := addrPort(a)
	return ok && slices.ContainsFunc(p.trusted, func(n netip.Prefix) bool { return n.Contains(from.Addr()) })
}

// owe counts c among those that owe a header; false: there are too many, or Close
// has begun.
func (p *ProxyListener) owe(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || len(p.owing) >= maxHeaders {
		return false
	}
	p.owing[c] = struct{}{}
	return true
}

// meet reads the header of c and hands it to Accept.
func (p *ProxyListener) meet(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(headerTimeout))
	client, err := readProxy(c)
	_ = c.SetReadDeadline(time.Time{})
	p.mu.Lock()
	delete(p.owing, c)
	p.mu.Unlock()
	switch {
	case err != nil:
		_ = c.Close()
		p.refused()
	case !client.IsValid(): // the proxy speaks for itself, to see whether somebody answers
		p.hand(accepted{conn: c})
	default:
		p.hand(accepted{conn: proxied(c, net.TCPAddrFromAddrPort(client))})
	}
}

// hand gives a to Accept, or closes it.
func (p *ProxyListener) hand(a accepted) {
	select {
	case p.ready <- a:
	case <-p.done:
		if a.conn != nil {
			_ = a.conn.Close()
		}
	}
}

// proxied returns c with the address of its client, and with all that a plain
// socket can do if it is one.
func proxied(c net.Conn, client net.Addr) net.Conn {
	if t, ok := c.(*net.TCPConn); ok {
		return &proxiedTCP{TCPConn: t, client: client}
	}
	return &proxiedConn{Conn: c, client: client}
}

type proxiedTCP struct {
	*net.TCPConn
	client net.Addr
}

// RemoteAddr is the client, not the proxy.
func (c *proxiedTCP) RemoteAddr() net.Addr { return c.client }

type proxiedConn struct {
	net.Conn
	client net.Addr
}

// RemoteAddr is the client, not the proxy.
func (c *proxiedConn) RemoteAddr() net.Addr { return c.client }
