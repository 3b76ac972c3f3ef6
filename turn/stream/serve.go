// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// Serve takes connections from l, clients of the core's listener with that index,
// until Close or until somebody else closes l, which is an error. The server owns
// l and closes it, also on errors. An error of Accept is waited out: a full file
// table empties again.
//
// Connections may be anything that has the addresses of TCP: *net.TCPConn is
// read when it is ready, so that it holds no buffer until then, *tls.Conn shakes
// hands with the first read. These methods are used where they exist. Settled(holds
// bool) is told when the client gets an allocation and when that has ended, by the
// goroutine that reads, so that whoever lent a place may make room for others until
// then. CloseWrite ends one direction of a spliced connection: without it both end
// with the first. NetConn is the connection below TLS: it is closed in place of one
// whose client does not read, and its SetLinger(0) hands a reset on.
func (s *Server) Serve(l net.Listener, listener uint16) error {
	own := &listening{l}
	defer l.Close()
	if !s.track(own) {
		return net.ErrClosed
	}
	defer s.untrack(own)
	for failed := 0; ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			failed = 0
			s.welcome(c, listener)
		case isEnded(s.done):
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept turn clients at %v: %w", l.Addr(), err)
		default:
			if failed == 0 {
				s.log.Warn("turn clients cannot connect; trying on", "listener", l.Addr(), "err", err)
			}
			if !s.pause(failed) {
				return nil
			}
			failed++
		}
	}
}

// listening is a listener that Close ends.
type listening struct{ net.Listener }

func (l *listening) end() { _ = l.Close() }

// welcome serves a connection, or closes it when there are too many.
func (s *Server) welcome(n net.Conn, listener uint16) {
	client, ok := addrPort(n.RemoteAddr())
	if !ok {
		_ = n.Close()
		return
	}
	c := s.newConn(n, core.Flow{Client: client, Conn: s.lastConn.Add(1), Listener: listener})
	displaced, ok := s.places.enter(&c.place, client.Addr())
	if displaced != nil {
		s.stats.count(Displaced)
		displaced.end()
	}
	if !ok {
		s.stats.count(Crowded)
		c.closeHard()
		return
	}
	boundUnsent(n, strangeUnsent)
	// A TLS handshake writes; reads have their deadlines from the reader.
	_ = n.SetWriteDeadline(time.Now().Add(helloTimeout))
	if !s.track(c) || !s.start(c.run) {
		s.untrack(c)
		s.places.leave(&c.place)
		c.closeHard()
		return
	}
	s.stats.accepted.Add(1)
}

// addrPort returns a as a value, IPv4 in its short form; false for an address of
// another kind than TCP's.
func addrPort(a net.Addr) (netip.AddrPort, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := t.AddrPort()
	ap = netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	return ap, ap.IsValid()
}
