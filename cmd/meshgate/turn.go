// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/turn"
)

// maxTURNThreads is far beyond what the traffic of a gateway takes.
const maxTURNThreads = 64

// openTURN starts STUN and TURN, unless the operator wants none.
func (p *gatewayProcess) openTURN(ctx context.Context) error {
	c := p.cfg
	if c.turnListen == "" {
		return nil
	}
	p.turnOpen = p.parsed.turnOpen
	p.turnRates.set(c)
	at, err := turnAddress(ctx, c.turnListen)
	if err != nil {
		return err
	}
	p.warnOfTURN(at, p.parsed.relayLow, p.parsed.relayHigh)
	var secure []net.Listener
	if p.tls != nil {
		p.turnTLS = newHandedOver(p.public.Addr())
		secure = append(secure, p.turnTLS)
	}
	p.turn, err = turn.New(turn.Config{
		UDP: []netip.AddrPort{at}, TCP: []netip.AddrPort{at}, SecureListeners: secure, TrustedProxies: p.parsed.turnProxies,
		TCPRelays: c.turnTCPRelays,
		Relay:     p.relay(p.parsed.relayLow, p.parsed.relayHigh), Secrets: p.secrets, Users: p.turnUsers,
		AllowPeer: p.allowPeer, AllowNetworks: p.turnOpen, AllowUser: p.relayUsers.AllowUser,
		Limits:  c.turnLimits,
		Threads: min(c.turnThreads, maxTURNThreads), XDP: p.parsed.xdp, Logger: p.log, Registerer: p.registry,
	})
	if err != nil {
		return fmt.Errorf("start TURN (--turn.listen %s): %w", c.turnListen, err)
	}
	return nil
}

// relay says where relays are: at the addresses of the gateway, one of each family
// at most, by ports of a range.
func (p *gatewayProcess) relay(low, high uint16) turn.Relay {
	r := turn.Relay{MinPort: low, MaxPort: high}
	for _, a := range []netip.Addr{p.address.Unmap(), p.address6} {
		bind := netip.Addr{} // all addresses of the host
		if a.IsValid() && isOwnAddress(a) {
			bind = a
		}
		switch {
		case a.Is4():
			r.Public, r.Bind = a, bind
		case a.Is6():
			r.Public6, r.Bind6 = a, bind
		}
	}
	if !isOwnAddress(p.address) && p.cfg.wgPort != 0 {
		// A NAT is in front, which need not turn back what this host sends to its
		// own public address; nodes without UDP get to WireGuard by a relay.
		r.Here = []uint16{p.cfg.wgPort}
	}
	return r
}

// turnAddress reads --turn.listen; without a host it is all addresses.
func turnAddress(ctx context.Context, text string) (netip.AddrPort, error) {
	wrong := usagef("--turn.listen %q: write it as HOST:PORT or :PORT, such as :3478", text)
	host, service, err := net.SplitHostPort(text)
	if err != nil {
		return netip.AddrPort{}, wrong
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return netip.AddrPort{}, wrong
	}
	addr := netip.IPv6Unspecified()
	if host != "" {
		if addr, err = netip.ParseAddr(host); err != nil {
			found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			if err != nil || len(found) == 0 {
				return netip.AddrPort{}, fmt.Errorf("resolve --turn.listen %s: %w", text, err)
			}
			addr = found[0]
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// allowPeer lets relayed traffic reach what sessions need: of this host the
// gateway's own end of DataChannels, of others what signalling has named to
// user; and for nodes WireGuard, of every gateway. What it says is kept until
// PolicyChanged, for some seconds at most.
func (p *gatewayProcess) allowPeer(user string, at netip.AddrPort) bool {
	if p.tunnels.opens(p.node.Snapshot(), user, at) {
		return true
	}
	if at.Addr() != p.address && !p.host.has(at.Addr()) {
		return p.relayUsers.AllowPeer(user, at)
	}
	return p.icePort != 0 && at.Port() == p.icePort && p.offersICE(at.Addr())
}

// candidate notes that namer, the other side of a session of user, has named at as
// an address of its own.
func (p *gatewayProcess) candidate(user, namer string, at netip.AddrPort) {
	if p.relayUsers.Candidate(user, namer, at) && p.turn != nil {
		p.turn.PolicyChanged(user)
	}
}

// followPolicy has relays judged anew whenever the mesh changes: nodes come and go,
// and so do ports of WireGuard.
func (p *gatewayProcess) followPolicy(ctx context.Context) error {
	if p.turn == nil {
		return nil
	}
	for after := uint64(0); ; {
		s, err := p.node.Wait(ctx, after)
		if err != nil {
			return nil //nolint:nilerr // the node has ended, or ctx, and so do the relays
		}
		p.turn.PolicyChanged()
		after = s.Version
	}
}

// offersICE says whether the address of this host is one that DataChannels are
// offered at.
func (p *gatewayProcess) offersICE(addr netip.Addr) bool {
	switch s := p.node.Snapshot(); {
	case addr.IsLoopback() && !p.cfg.dev, s != nil && s.Contains(addr):
		return false
	case addr == p.address, p.iceAddr.IsUnspecified():
		return true
	}
	return addr == p.iceAddr
}

// relayRight says by which right user gets TURN credentials in the call of
// ctx: by that of the call, or, for the other end of a relayed session, because
// it is a node of the mesh.
func (p *gatewayProcess) relayRight(ctx context.Context, user string) func() error {
	if c := api.CallerFrom(ctx); c.ID == user && c.Allowed != nil {
		return c.Allowed
	}
	return func() error {
		if s := p.node.Snapshot(); s == nil || s.Node(mesh.NodeID(user)) == nil {
			return fmt.Errorf("%w: no node %q in the mesh", mesh.ErrNotFound, user)
		}
		return nil
	}
}

// rightsChanged ends what callers have lost the right to: sessions, and relays,
// whichever gateway gave the credentials.
func (p *gatewayProcess) rightsChanged() {
	p.departed.follow(p.node.Snapshot())
	p.signaling.Review()
	if p.turn == nil {
		return
	}
	for _, user := range p.relayUsers.Revoked(p.turn.Users()) {
		if n := p.turn.Evict(user); n > 0 {
			p.log.Info("relays ended: their user is no longer allowed to have them", "user", user, "n", n)
		}
	}
}

// iceServers are this gateway's STUN and TURN with credentials for caller, the
// latter last; for nobody ("") STUN alone.
func (p *gatewayProcess) iceServers(ctx context.Context, caller string) []*v1.ICEServer {
	if p.turn == nil {
		return nil
	}
	at := netip.AddrPortFrom(p.address, p.turn.UDPAddrs()[0].Port()).String()
	stun := &v1.ICEServer{Urls: []string{"stun:" + at}}
	if caller == "" {
		return []*v1.ICEServer{stun}
	}
	credential := p.secrets.MintBounded(caller, turnTTL, p.turnRates.of(p.node.Snapshot(), caller))
	p.relayUsers.Minted(caller, p.relayRight(ctx, caller), credential.ExpiresAt)
	return []*v1.ICEServer{
		stun,
		{
			Urls:     []string{"turn:" + at + "?transport=udp", "turn:" + at + "?transport=tcp"},
			Username: credential.Username, Credential: credential.Password,
			ExpiresAt: timestamppb.New(credential.ExpiresAt),
		},
	}
}

// isOwnAddress reports whether an interface of this host has addr.
func isOwnAddress(addr netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr.Unmap() {
			return true
		}
	}
	return false
}

// networks reads the networks of a flag; a single address is one of its own.
func networks(flag string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		a, err := netip.ParseAddr(text)
		if err == nil && a.IsUnspecified() {
			return nil, usagef("%s %q is no address of a host: all addresses are %s/0", flag, text, text)
		}
		if err == nil && a.Zone() == "" {
			out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return nil, usagef("%s %q: want a network such as 192.0.2.0/24, or an address", flag, text)
		}
		out = append(out, p)
	}
	return out, nil
}

// portRange reads "A-B".
func portRange(text string) (low, high uint16, err error) {
	a, b, ok := strings.Cut(text, "-")
	if ok {
		var x, y uint64
		x, err = strconv.ParseUint(a, 10, 16)
		if err == nil {
			y, err = strconv.ParseUint(b, 10, 16)
		}
		if err == nil && x > 0 && x <= y {
			return uint16(x), uint16(y), nil
		}
	}
	return 0, 0, usagef("--turn.relay-ports %q: want a range such as 49152-65535", text)
}
