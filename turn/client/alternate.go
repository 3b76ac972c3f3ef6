// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// maxAlternates bounds how often a client is sent on from one server to another.
const maxAlternates = 4

// codeAlternate is the code by which a server sends clients on (RFC 8489 section 10).
const codeAlternate = 300

// alternate is a server that another one names: one that drains, or has no room.
type alternate struct {
	at     netip.AddrPort
	domain string // in its certificate; "" for that of the server that named it
}

// alternate returns the server that m, a refusal, sends the client on to; the zero
// alternate when it names none that makes sense.
func (m message) alternate() alternate {
	at := m.plainAddress(attrAlternateServer)
	addr := at.Addr()
	domain := string(m.get(attrAlternateDomain))
	if !addr.IsValid() || isNoServer(addr) || at.Port() == 0 || domain != "" && !isName(domain) {
		return alternate{}
	}
	return alternate{at, domain}
}

// sentOn is the error for m, a refusal of an allocation that the server has signed.
func sentOn(m message) error {
	err := refusal(methodAllocate, codeAlternate)
	err.alternate = m.alternate()
	return err
}

// nowhere are networks in which there is no server, or only another address than it
// seems: that a translator or tunnel takes out of it.
var nowhere = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),   // this host
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved and broadcast
	netip.MustParsePrefix("::/8"),        // IPv4 in it, NAT64, reserved
	netip.MustParsePrefix("2001::/32"),   // Teredo
	netip.MustParsePrefix("2002::/16"),   // 6to4
	netip.MustParsePrefix("ff00::/8"),    // multicast
}

// isNoServer reports whether no server may be said to be at an address: which other
// one it leads to, or whether to this host, nobody could tell.
func isNoServer(a netip.Addr) bool {
	if a.IsLoopback() {
		return false // ::1 is in ::/8
	}
	for _, p := range nowhere {
		if p.Contains(a) {
			return true
		}
	}
	if !a.Is6() {
		return false
	}
	// ISATAP (RFC 5214) has IPv4 in the identifier of the interface.
	b := a.As16()
	return b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// shared are networks of somebody's own that netip does not call private: that which
// carriers share (RFC 6598), site-local (RFC 3879), and what clouds and carriers
// serve to their machines.
var shared = [...]netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("fec0::/10"),
}

// isShared reports whether an address is in one of them.
func isShared(a netip.Addr) bool {
	for _, p := range shared {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// isName reports whether a server may have text for its name.
func isName(text string) bool {
	return len(text) <= 255 && !strings.ContainsAny(text, "/@?#[]:% \t\r\n\x00")
}

// stop is a server on the way from the one that the user has named to the one that
// gives the allocation.
type stop struct {
	server
	address string // "host:port"
	tls     *tls.Config
	// remote is where an attempt has found it, and seen are the stops before it.
	remote netip.AddrPort
	seen   []netip.AddrPort
}

// allocateAt allocates at one address of s, or where the server there sends its
// clients on to.
func allocateAt(ctx context.Context, cfg Config, s server, address string) (*Allocation, error) {
	at := stop{server: s, address: address, tls: cfg.TLS}
	for hops := 0; ; hops++ {
		a, err := at.allocate(ctx, cfg)
		next, ok := at.next(cfg, err)
		switch {
		case !ok || hops == maxAlternates:
			return a, at.explain(err, hops)
		case ctx.Err() != nil:
			return nil, at.explain(impatience(ctx), hops)
		}
		cfg.Logger.Debug("the server sends its clients on", "to", next.address)
		at = next
	}
}

// explain says of an error at a later stop where it happened.
func (p *stop) explain(err error, hops int) error {
	if err == nil || hops == 0 {
		return err
	}
	return fmt.Errorf("it sends its clients on to %s: %w", p.address, err)
}

// next is the stop that err, with which p has refused an allocation, sends the
// client on to. It is none of those before, and no nearer to this host than p is: a
// server on the Internet does not tell what to send to in here.
func (p *stop) next(cfg Config, err error) (stop, bool) {
	var code *CodeError
	if !errors.As(err, &code) || !code.alternate.at.IsValid() {
		return stop{}, false
	}
	to := code.alternate
	if to.at.Addr().Is4() != p.remote.Addr().Is4() || nearness(to.at.Addr()) > nearness(p.remote.Addr()) {
		return stop{}, false
	}
	n := stop{server: p.server, address: to.at.String(), tls: p.tls, seen: append(slices.Clone(p.seen), p.remote)}
	if slices.Contains(n.seen, to.at) {
		return stop{}, false
	}
	if n.transport != TLS {
		return n, true
	}
	switch name := to.domain; {
	case cfg.AlternateTLS != nil && name == "":
		n.host, n.tls = to.at.Addr().String(), cfg.AlternateTLS(to.at.Addr().String())
	case cfg.AlternateTLS != nil:
		n.host, n.tls = name, cfg.AlternateTLS(name)
	case name != "":
		n.host = name
		if n.tls != nil {
			n.tls = n.tls.Clone()
			n.tls.ServerName = "" // that of the server before
		}
	}
	return n, true
}

// nearness orders addresses by how much of the network can reach them.
func nearness(a netip.Addr) int {
	switch {
	case a.IsLoopback():
		return 3
	case a.IsLinkLocalUnicast():
		return 2
	case a.IsPrivate() || isShared(a):
		return 1
	default:
		return 0
	}
}

// allocate allocates at p, from another port when the server confuses this
// allocation with an older one.
func (p *stop) allocate(ctx context.Context, cfg Config) (*Allocation, error) {
	for tries := 1; ; tries++ {
		conn, err := connect(ctx, cfg, p)
		if err != nil {
			return nil, err
		}
		a := newAllocation(cfg, p.server, conn)
		if err = a.open(ctx); err == nil {
			return a, nil
		}
		if tries == mismatchTries || !errors.Is(err, ErrLost) {
			return nil, advise(err, p.server, p.address)
		}
	}
}

// connect opens the way to p, up to where TURN begins.
func connect(ctx context.Context, cfg Config, p *stop) (net.Conn, error) {
	conn, err := cfg.Dial(ctx, p.network(), p.address)
	if err != nil {
		return nil, advise(fmt.Errorf("connect: %w", err), p.server, p.address)
	}
	p.remote = remoteOf(conn)
	switch p.transport {
	case UDP:
		fitNarrow(conn)
		return conn, nil
	case TCP:
		return conn, nil
	}
	config := &tls.Config{}
	if p.tls != nil {
		config = p.tls.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = p.host
	}
	if config.NextProtos == nil {
		config.NextProtos = []string{alpn}
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, advise(fmt.Errorf("tls handshake: %w", err), p.server, p.address)
	}
	return secure, nil
}

// remoteOf is where the other end of a connection is.
func remoteOf(c net.Conn) netip.AddrPort {
	if c.RemoteAddr() == nil {
		return netip.AddrPort{}
	}
	at, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // of another network it is none
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}
