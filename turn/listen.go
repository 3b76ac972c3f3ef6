// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/shard"
	"github.com/meshgate/meshgate/turn/stream"
)

const (
	// portTries is how often the kernel may choose a port for both transports: one
	// that is free for TCP may be taken for UDP.
	portTries = 8
	// maxOwnSockets bounds the addresses of the host that have sockets of their own
	// when the server listens on all of them.
	maxOwnSockets = 16
)

// listening are the sockets that clients come in at.
type listening struct {
	// given and secure are Listeners and SecureListeners of Config; they are closed
	// whatever happens.
	given, secure []net.Listener

	proxies   []netip.Prefix // that begin connections to TCP with a header
	forged    func()         // counts those without
	seen      netip.Addr     // where clients are taken to see what listens on all addresses
	core      []core.Listener
	discovery []uint16
	sockets   []map[uint16]*shard.Socket // by shard, until it owns them
	streams   []streamListener
	exact     []uint16         // the listeners of core for UDP that were configured one by one
	udp       []netip.AddrPort // as configured, with the ports that they got
}

// streamListener accepts streams for a listener of core.
type streamListener struct {
	net.Listener
	index uint16
}

// open opens the sockets of cfg for n shards. What was opened is closed by close.
func (l *listening) open(cfg Config, n int) error {
	l.sockets = make([]map[uint16]*shard.Socket, n)
	for i := range l.sockets {
		l.sockets[i] = make(map[uint16]*shard.Socket)
	}
	l.proxies = cfg.TrustedProxies
	for _, side := range cfg.Relay.sides() {
		if !l.seen.IsValid() {
			l.seen = side.public
		}
	}
	for i, c := range slices.Concat(l.secure, l.given) {
		fitNarrow(c)
		if err := l.addStream(c, i < len(l.secure)); err != nil {
			return err
		}
	}
	tcp := slices.Clone(cfg.TCP)
	for _, a := range cfg.UDP {
		pair := slices.Index(tcp, a)
		var err error
		if a.Port() == 0 && pair >= 0 {
			tcp = slices.Delete(tcp, pair, pair+1)
			err = l.openPair(a)
		} else {
			err = l.openUDP(a)
		}
		if err != nil {
			return err
		}
	}
	for _, a := range tcp {
		c, err := l.listenTCP(a)
		if err != nil {
			return err
		}
		if err := l.addStream(c, false); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	l.discovery = square(l.core, l.exact)
	return nil
}

// openPair opens one port, which the kernel chooses, for both transports.
func (l *listening) openPair(a netip.AddrPort) error {
	for try := 1; ; try++ {
		tcp, err := l.listenTCP(a)
		if err != nil {
			return err
		}
		got, _ := addrPort(tcp.Addr())
		claimed, err := claim(netip.AddrPortFrom(a.Addr(), got.Port()))
		if err == nil {
			err = l.addStream(tcp, false)
			return errors.Join(err, l.share(a.Addr(), claimed))
		}
		if cerr := tcp.Close(); cerr != nil || try == portTries {
			return errors.Join(err, cerr)
		}
	}
}

func (l *listening) openUDP(a netip.AddrPort) error {
	claimed, err := claim(a)
	if err != nil {
		return err
	}
	return l.share(a.Addr(), claimed)
}

func (l *listening) listenTCP(a netip.AddrPort) (net.Listener, error) {
	network, at := "tcp", net.TCPAddrFromAddrPort(a)
	switch a.Addr() {
	case netip.IPv4Unspecified():
		network = "tcp4" // else it would take IPv6 as well
	case netip.IPv6Unspecified():
		at.IP = nil // of a host without IPv6 it is IPv4 alone
	}
	tcp, err := net.ListenTCP(network, at)
	if err != nil {
		return nil, fmt.Errorf("listen for turn over tcp: %w", err)
	}
	fitNarrow(tcp)
	if len(l.proxies) > 0 {
		return stream.Proxied(tcp, l.proxies, l.forged), nil
	}
	return tcp, nil
}

// addStream makes tcp a listener of core, which closes with l.
func (l *listening) addStream(tcp net.Listener, secure bool) error {
	at, ok := addrPort(tcp.Addr())
	if !ok {
		return fmt.Errorf("turn listener at %v is none of TCP", tcp.Addr())
	}
	index, err := l.add(core.Listener{Addr: at, Stream: true, Secure: secure})
	if err == nil {
		l.streams = append(l.streams, streamListener{tcp, index})
	}
	return err
}

// add adds a listener of core. One at all addresses is where peers see the relays:
// it has to be somewhere.
func (l *listening) add(c core.Listener) (uint16, error) {
	if len(l.core) > math.MaxUint16 {
		return 0, errors.New("turn has more than 65536 addresses to listen on")
	}
	if c.Addr.Addr().IsUnspecified() {
		c.Addr = netip.AddrPortFrom(l.seen, c.Addr.Port())
	}
	l.core = append(l.core, c)
	return uint16(len(l.core) - 1), nil
}

// claim opens the port of a, which the kernel chooses if it is 0, for nobody else:
// sockets that shards share would share it with another server, too. [::] is all
// addresses of both families, as far as the host has both.
func claim(a netip.AddrPort) (claimed []*shard.Socket, err error) {
	list := []netip.Addr{a.Addr()}
	if a.Addr() == netip.IPv6Unspecified() {
		list = []netip.Addr{netip.IPv4Unspecified(), a.Addr()}
	}
	port := a.Port()
	for _, addr := range list {
		c, failed := shard.Listen(netip.AddrPortFrom(addr, port), false)
		switch {
		case failed == nil:
			claimed, port = append(claimed, c), c.Addr().Port()
		case len(list) > 1 && errors.Is(failed, syscall.EAFNOSUPPORT):
		default:
			closeAll(claimed)
			return nil, fmt.Errorf("listen for turn over udp: %w", failed)
		}
	}
	if len(claimed) == 0 {
		return nil, fmt.Errorf("listen for turn over udp at %v: the host has neither IPv4 nor IPv6", a)
	}
	return claimed, nil
}

// share opens what was claimed for all shards. Where that is all addresses of the
// host, each gets sockets of its own, so that answers leave from where the request
// came in; what comes to addresses that the host gets later goes to a socket for all.
func (l *listening) share(configured netip.Addr, claimed []*shard.Socket) error {
	port := claimed[0].Addr().Port()
	var list []netip.AddrPort
	for _, c := range claimed {
		if c.Addr().Addr().IsUnspecified() {
			list = append(list, ownAddresses(c.Addr())...)
		}
		list = append(list, c.Addr())
	}
	alone := len(list) == 1 && len(l.sockets) == 1
	closeAll(claimed)
	for _, at := range list {
		sockets, err := listenShared(at, len(l.sockets), !alone)
		if err != nil && len(list) > 1 && !at.Addr().IsUnspecified() {
			continue // an address that is gone again, or not there yet
		}
		if err != nil {
			return fmt.Errorf("listen for turn over udp: %w", err)
		}
		index, err := l.add(core.Listener{Addr: at})
		if err != nil {
			closeAll(sockets)
			return err
		}
		for i, c := range sockets {
			l.sockets[i][index] = c
		}
		if len(list) == 1 {
			l.exact = append(l.exact, index)
		}
	}
	l.udp = append(l.udp, netip.AddrPortFrom(configured, port))
	return nil
}

// listenShared opens n sockets at one address.
func listenShared(at netip.AddrPort, n int, shared bool) ([]*shard.Socket, error) {
	var list []*shard.Socket
	for range n {
		c, err := shard.Listen(at, shared)
		if err != nil {
			closeAll(list)
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// ownAddresses are the host's addresses of the family of all, an unspecified one,
// that a socket can be bound to.
func ownAddresses(all netip.AddrPort) []netip.AddrPort {
	addrs, err := hostAddrs()
	if err != nil {
		return nil // one socket for all does as well where there is one address
	}
	var list []netip.AddrPort
	for _, a := range addrs {
		own := netip.AddrPortFrom(a, all.Port())
		if a.Is4() == all.Addr().Is4() && !a.IsLinkLocalUnicast() && !slices.Contains(list, own) && len(list) < maxOwnSockets {
			list = append(list, own)
		}
	}
	return list
}

func closeAll(list []*shard.Socket) {
	for _, c := range list {
		_ = c.Close() // nobody knows of it yet
	}
}

// square finds, among the listeners of list that are named, four that are two
// addresses with the same two ports: with these, clients find out what kind of NAT
// they are behind.
func square(list []core.Listener, named []uint16) []uint16 {
	at := make(map[netip.AddrPort]uint16)
	for _, i := range named {
		at[list[i].Addr] = i
	}
	for _, i := range named {
		for _, j := range named {
			a, b := list[i].Addr, list[j].Addr
			aq, ok1 := at[netip.AddrPortFrom(a.Addr(), b.Port())]
			bp, ok2 := at[netip.AddrPortFrom(b.Addr(), a.Port())]
			if ok1 && ok2 && a.Addr() != b.Addr() && a.Port() != b.Port() && a.Addr().Is4() == b.Addr().Is4() {
				return []uint16{i, aq, bp, j}
			}
		}
	}
	return nil
}

// hand gives the sockets of a shard away.
func (l *listening) hand(i int) map[uint16]*shard.Socket {
	m := l.sockets[i]
	l.sockets[i] = nil
	return m
}

// close closes what is not handed over.
func (l *listening) close() {
	for _, c := range slices.Concat(l.given, l.secure) {
		c.Close()
	}
	for _, c := range l.streams {
		c.Close()
	}
	for _, m := range l.sockets {
		for _, c := range m {
			_ = c.Close() // nobody has used it
		}
	}
}
