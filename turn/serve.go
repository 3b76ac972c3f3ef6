// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	// socketBuffer holds what arrives while the reader works: some 700 full packets.
	socketBuffer = 1 << 20
	// addressInterval is how often the host's own addresses are read again.
	addressInterval = 10 * time.Second
	// maxPause is the longest wait after an error that may pass, such as a full file table.
	maxPause = time.Second
)

// listen opens the sockets that the configuration names.
func (s *Server) listen(udp, tcp []netip.AddrPort) error {
	for _, a := range udp {
		c, err := net.ListenUDP("udp"+family(a), net.UDPAddrFromAddrPort(a))
		if err != nil {
			return fmt.Errorf("listen for turn over udp: %w", err)
		}
		s.sockets = append(s.sockets, c)
	}
	for _, a := range tcp {
		l, err := net.ListenTCP("tcp"+family(a), net.TCPAddrFromAddrPort(a))
		if err != nil {
			return fmt.Errorf("listen for turn over tcp: %w", err)
		}
		s.listeners = append(s.listeners, l)
	}
	return nil
}

// family keeps an IPv4 wildcard from opening an IPv6 socket.
func family(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "4"
	}
	return ""
}

// serve starts all that runs until Close.
func (s *Server) serve() error {
	for _, c := range s.sockets {
		if b, ok := c.(interface{ SetReadBuffer(int) error }); ok {
			_ = b.SetReadBuffer(socketBuffer) // the kernel may grant less; that costs packets under load only
		}
		if err := s.enter(newGate(s, c)); err != nil {
			return err
		}
	}
	for _, l := range s.listeners {
		s.running.Go(func() { s.accept(l) })
	}
	s.running.Go(s.watchAddresses)
	return nil
}

// enter hands g to an engine. left is called when that is done with it.
func (s *Server) enter(g *gate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.running.Add(1)
	if err := startEngine(g); err != nil {
		s.running.Done()
		return fmt.Errorf("start turn engine: %w", err)
	}
	s.gates[g] = struct{}{}
	return nil
}

// left forgets g: its socket is broken or closed.
func (s *Server) left(g *gate) {
	s.mu.Lock()
	delete(s.gates, g)
	s.mu.Unlock()
	g.Close()
	if addr, ok := g.conn.(*stream); ok {
		s.dismiss(addr.Conn)
	}
	s.running.Done()
}

// accept serves the connections of l until it is closed.
func (s *Server) accept(l net.Listener) {
	for failed := 0; ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			failed = 0
			s.welcome(c)
		case errors.Is(err, net.ErrClosed), !s.pause(failed):
			return
		default:
			failed++
		}
	}
}

// welcome serves c, or closes it when there are too many.
func (s *Server) welcome(c net.Conn) {
	client, ok := addrPort(c.RemoteAddr())
	if !ok || !s.conns.enter(client.Addr()) {
		s.metrics.drop(dropConnections)
		c.Close()
		return
	}
	s.metrics.connections.Inc()
	// A TLS handshake writes; reads have their deadline from the stream.
	_ = c.SetWriteDeadline(time.Now().Add(helloTimeout))
	g := newGate(s, nil)
	g.stream = true
	g.conn = newStream(c, s.limits.Lifetime,
		func() bool { return g.relay(client) != nil },
		func() { s.metrics.drop(dropOversize) })
	if err := s.enter(g); err != nil {
		c.Close()
		s.dismiss(c)
	}
}

// dismiss undoes welcome.
func (s *Server) dismiss(c net.Conn) {
	client, _ := addrPort(c.RemoteAddr()) // welcome has seen it
	s.conns.leave(client.Addr())
	s.metrics.connections.Dec()
}

// watchAddresses keeps the policy's idea of the host's own addresses fresh.
func (s *Server) watchAddresses() {
	tick := time.NewTicker(addressInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
			if err := s.policy.refresh(); err != nil {
				s.log.Warn("reading interface addresses failed; the last ones stay denied", "err", err)
			}
		}
	}
}

// pause waits after the n-th failure in a row; false means that the server closes.
func (s *Server) pause(n int) bool {
	timer := time.NewTimer(min(5*time.Millisecond<<min(n, 10), maxPause))
	defer timer.Stop()
	select {
	case <-s.done:
		return false
	case <-timer.C:
		return true
	}
}

// Close ends all allocations, closes all sockets and waits for what ran. It may
// be called again.
func (s *Server) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	gates := make([]*gate, 0, len(s.gates))
	for g := range s.gates {
		gates = append(gates, g)
	}
	s.mu.Unlock()
	if first {
		close(s.done)
	}
	for _, l := range s.listeners {
		l.Close()
	}
	for _, c := range s.sockets {
		c.Close()
	}
	for _, g := range gates {
		g.Close()
	}
	s.running.Wait()
	return nil
}
