// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Why an allocation is not given; gate answers 486 and 508.
var (
	errQuota    = errors.New("allocation quota reached")
	errCapacity = errors.New("insufficient capacity")
)

// permissionLifetime and channelLifetime are fixed by RFC 8656 sections 9 and 12.
const (
	permissionLifetime = 5 * time.Minute
	channelLifetime    = 10 * time.Minute
)

// relay is one allocation: a socket on the relay address, who owns it, and
// what it may talk to. The engine sees it as a net.PacketConn, so that every
// packet passes the policy whatever the engine believes; its Close gives the
// quota and the port back.
type relay struct {
	*net.UDPConn
	server *Server
	user   string
	addr   netip.AddrPort // as the client and its peers see it

	ending atomic.Bool // the engine is about to be told; nothing more is granted
	ended  atomic.Bool // the engine has closed it

	// The fields below belong to the gate: only under gate.busy.
	expires     time.Time
	permissions map[netip.Addr]time.Time
	channels    map[uint16]time.Time

	closed func() // once: gives everything back
}

// ReadFrom returns the next packet from a peer that the policy allows. The
// engine's buffer holds datagrams up to one byte less than its size: one that
// fills it may have been cut, and half a packet is worse than none.
func (r *relay) ReadFrom(p []byte) (int, net.Addr, error) {
	for failed := 0; ; {
		n, src, err := r.ReadFromUDPAddrPort(p)
		if err != nil {
			if r.ended.Load() {
				// The engine knows: it has closed the relay. Told of it, its reader
				// would delete whatever allocation the client has by then.
				runtime.Goexit()
			}
			if errors.Is(err, net.ErrClosed) || !r.server.pause(failed) {
				return 0, nil, err
			}
			failed++
			continue
		}
		failed = 0
		src = r.server.relays.outside(netip.AddrPortFrom(src.Addr().Unmap(), src.Port()))
		switch {
		case n == len(p):
			r.server.metrics.drop(dropOversize)
		case !r.server.policy.allows(r.user, src):
			r.server.metrics.drop(dropSource)
		default:
			r.server.metrics.relayed(toClient, n)
			return n, net.UDPAddrFromAddrPort(src), nil
		}
	}
}

// WriteTo sends p to a peer, if the policy allows it at this moment. It never
// fails: a packet that cannot leave is lost, as packets are.
func (r *relay) WriteTo(p []byte, to net.Addr) (int, error) {
	peer, ok := addrPort(to)
	if !ok || !r.server.policy.allows(r.user, peer) || peer.Port() == 0 {
		r.server.metrics.drop(dropPeer)
		return len(p), nil
	}
	if _, err := r.WriteToUDPAddrPort(p, r.server.relays.inside(peer)); err != nil {
		r.server.metrics.drop(dropSocket)
		return len(p), nil
	}
	r.server.metrics.relayed(toPeer, len(p))
	return len(p), nil
}

// Close is the engine's end of the allocation. It may be called again.
func (r *relay) Close() error {
	r.ended.Store(true)
	r.closed()
	return nil
}

// grantPermissions records permissions for peers, or none of them when they do not all fit.
func (r *relay) grantPermissions(peers []netip.AddrPort, limit int, now time.Time) bool {
	forget(r.permissions, now)
	granted := maps.Clone(r.permissions)
	for _, p := range peers {
		granted[p.Addr()] = now.Add(permissionLifetime)
	}
	if len(granted) > limit {
		return false
	}
	r.permissions = granted
	return true
}

// grantChannel records the binding of a channel, if it fits.
func (r *relay) grantChannel(number uint16, limit int, now time.Time) bool {
	forget(r.channels, now)
	if _, bound := r.channels[number]; !bound && len(r.channels) >= limit {
		return false
	}
	r.channels[number] = now.Add(channelLifetime)
	return true
}

func forget[K comparable](m map[K]time.Time, now time.Time) {
	for k, end := range m {
		if !now.Before(end) {
			delete(m, k)
		}
	}
}

// relays opens relay sockets and keeps the books: how many each user has and
// which ports are taken. It is safe for concurrent use.
type relays struct {
	public  netip.Addr // advertised to clients
	bind    netip.Addr // bound to; may be unspecified
	here    []uint16   // of the host's own sockets at public
	ports   portRange
	secrets *Secrets // of which ports come
	perUser int
	total   int

	mu    sync.RWMutex // guards the fields below
	users map[string]int
	count int
	open  map[uint16]struct{}
}

// room says whether user may have one more relay.
func (rs *relays) room(user string) error {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return rs.roomLocked(user)
}

func (rs *relays) roomLocked(user string) error {
	switch {
	case rs.users[user] >= rs.perUser:
		return errQuota
	case rs.count >= rs.total:
		return errCapacity
	default:
		return nil
	}
}

// listen opens a socket for user on a free port, an even one if asked. release
// gives back what it took.
//
// The first ports that are tried are the user's own: whoever allocates anew after
// a server has started anew is where its peers know it to be, without a word to
// them. To all others these ports are as good as random.
func (rs *relays) listen(user string, even bool) (*net.UDPConn, error) {
	if err := rs.reserve(user); err != nil {
		return nil, err
	}
	for port := range rs.choices(user) {
		if even && port%2 != 0 {
			continue
		}
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(rs.bind, port)))
		if err != nil {
			continue // taken
		}
		fitNarrow(conn)
		if even && localPort(conn)%2 != 0 {
			conn.Close()
			continue
		}
		rs.mu.Lock()
		defer rs.mu.Unlock()
		rs.open[localPort(conn)] = struct{}{}
		return conn, nil
	}
	rs.release(user, 0)
	return nil, fmt.Errorf("relay port of %s: %w", rs.bind, errCapacity)
}

// choices yields the ports for a relay of user, from the one that it is to have on.
func (rs *relays) choices(user string) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		if rs.ports != (portRange{}) {
			for n := range ownPorts {
				port := rs.ports.first + uint16(rs.secrets.draw(user, n)%uint32(rs.ports.size()))
				if !rs.isOpen(port) && !yield(port) {
					return
				}
			}
		}
		rs.ports.random()(yield)
	}
}

func (rs *relays) reserve(user string) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if err := rs.roomLocked(user); err != nil {
		return err
	}
	rs.users[user]++
	rs.count++
	return nil
}

// holders are the users who have relays.
func (rs *relays) holders() []string {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return slices.Collect(maps.Keys(rs.users))
}

func (rs *relays) release(user string, port uint16) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.open, port)
	rs.count--
	if rs.users[user]--; rs.users[user] == 0 {
		delete(rs.users, user)
	}
}

// isOpen says whether port is a relay of this server.
func (rs *relays) isOpen(port uint16) bool {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	_, ok := rs.open[port]
	return ok
}

// mayOpen says whether peer may be a relay of this server at another time. Clients
// that know each other from before it started anew ask for permissions before both
// have their relays; packets go there when they do.
func (rs *relays) mayOpen(peer netip.AddrPort) bool {
	return rs.ports != (portRange{}) && peer.Addr() == rs.public && peer.Port() >= rs.ports.first && peer.Port() <= rs.ports.last
}

// isHere says whether who sends to port at the public address means a socket of
// this host: a relay, or one of its own.
func (rs *relays) isHere(port uint16) bool { return slices.Contains(rs.here, port) || rs.isOpen(port) }

// inside returns where to send a packet for peer. Behind a one-to-one NAT the
// public address is not on this host: relays reach each other, and the sockets of
// the host, on the bound one.
func (rs *relays) inside(peer netip.AddrPort) netip.AddrPort {
	if peer.Addr() == rs.public && rs.isHere(peer.Port()) {
		return netip.AddrPortFrom(rs.local(), peer.Port())
	}
	return peer
}

// outside undoes inside for the source of a packet. Nobody else can hold a
// port of the bound address while the relay does.
func (rs *relays) outside(src netip.AddrPort) netip.AddrPort {
	if src.Addr() == rs.local() && rs.isHere(src.Port()) {
		return netip.AddrPortFrom(rs.public, src.Port())
	}
	return src
}

func (rs *relays) local() netip.Addr {
	if rs.bind.IsUnspecified() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return rs.bind
}

// ownPorts is how many ports a user has of its own, as far as nobody else has them.
const ownPorts = 4

// kernelTries is how often the kernel may choose a port: it does not know that
// the port must be even.
const kernelTries = 32

// portRange is an inclusive range of ports; {0, 0} leaves the choice to the kernel.
type portRange struct{ first, last uint16 }

func (r portRange) size() int { return int(r.last) - int(r.first) + 1 }

// random yields each port of r once, from an unpredictable one on and in
// strides, so that relay ports tell nothing about their neighbours.
func (r portRange) random() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		if r == (portRange{}) {
			for i := 0; i < kernelTries && yield(0); i++ {
			}
			return
		}
		var seed [8]byte
		rand.Read(seed[:]) // never fails (crypto/rand)
		n := uint32(r.size())
		at, stride := binary.BigEndian.Uint32(seed[:])%n, binary.BigEndian.Uint32(seed[4:])%n
		for gcd(stride, n) != 1 { // a stride that shares no factor with n visits every port once
			stride = (stride + 1) % n
		}
		for range n {
			if !yield(r.first + uint16(at)) {
				return
			}
			at = (at + stride) % n
		}
	}
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func localPort(c *net.UDPConn) uint16 {
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// addrPort returns a as a value, IPv4 in its short form; false for an address of any other kind.
func addrPort(a net.Addr) (netip.AddrPort, bool) {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), ap.IsValid()
}
