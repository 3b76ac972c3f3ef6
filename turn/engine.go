// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/logging"
	pion "github.com/pion/turn/v3"
)

var errNotOffered = errors.New("not offered")

// startEngine lets pion/turn serve the clients of g until g's socket is closed.
// This file is all that knows which engine it is.
//
// Each socket and each stream has an engine of its own, so that the hooks below
// know the request they are called for. The engine keeps nonces, the tables of
// allocations, permissions and channels with their timers, and moves the data.
func startEngine(g *gate) error {
	_, err := pion.NewServer(pion.ServerConfig{
		Realm:      g.server.realm,
		InboundMTU: maxPacket,
		// Everything worth telling is counted by the gate and the relays; what
		// the engine logs is one line per packet, with addresses.
		LoggerFactory: &logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled},
		AuthHandler:   func(string, string, net.Addr) ([]byte, bool) { return g.now.key, g.now.key != nil },
		PacketConnConfigs: []pion.PacketConnConfig{{
			PacketConn:            &engineConn{gate: g},
			RelayAddressGenerator: generator{g},
			PermissionHandler:     func(_ net.Addr, peer net.IP) bool { return g.permitted(peer) },
		}},
	})
	return err
}

// engineConn tells the server when the engine has stopped reading.
type engineConn struct {
	*gate
	stopped sync.Once
}

func (c *engineConn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, addr, err := c.gate.ReadFrom(p)
	if err != nil {
		c.stopped.Do(func() { c.server.left(c.gate) })
	}
	return n, addr, err
}

// permitted says whether the policy allowed ip in the request at hand. The gate
// refused the request otherwise; this is the second lock on the same door.
func (g *gate) permitted(ip net.IP) bool {
	addr, _ := netip.AddrFromSlice(ip)
	for _, p := range g.now.peers {
		if p.Addr() == addr.Unmap() {
			return true
		}
	}
	return false
}

// generator makes relays for the engine.
type generator struct{ gate *gate }

func (generator) Validate() error { return nil }

func (generator) AllocateConn(string, int) (net.Conn, net.Addr, error) {
	return nil, nil, errNotOffered // TCP relays (RFC 6062)
}

func (g generator) AllocatePacketConn(string, int) (net.PacketConn, net.Addr, error) {
	if g.gate.now.kind != allocateRequest {
		return nil, nil, errNotOffered
	}
	r, err := g.gate.open()
	if err != nil {
		return nil, nil, err
	}
	return r, net.UDPAddrFromAddrPort(r.addr), nil
}

// open makes the allocation that the request at hand asks for.
func (g *gate) open() (*relay, error) {
	s, client, user := g.server, g.now.client, g.now.user
	conn, err := s.relays.listen(user, g.now.even)
	if err != nil {
		if errors.Is(err, errCapacity) {
			s.full.refuse(time.Now())
		}
		return nil, err
	}
	port := localPort(conn)
	r := &relay{
		UDPConn:     conn,
		server:      s,
		user:        user,
		addr:        netip.AddrPortFrom(s.relays.public, port),
		expires:     time.Now().Add(s.limits.Lifetime),
		permissions: make(map[netip.Addr]time.Time),
		channels:    make(map[uint16]time.Time),
	}
	r.closed = sync.OnceFunc(func() {
		g.mu.Lock()
		if g.relays[client] == r {
			delete(g.relays, client)
		}
		g.mu.Unlock()
		conn.Close()
		s.relays.release(user, port)
		s.metrics.allocations.Dec()
		s.running.Done()
	})
	s.running.Add(1)
	s.metrics.allocations.Inc()
	s.metrics.created.Inc()
	g.mu.Lock()
	g.relays[client] = r
	g.mu.Unlock()
	return r, nil
}
