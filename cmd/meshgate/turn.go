// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/turn"
)

// openTURN starts STUN and TURN, unless the operator wants none.
func (p *gatewayProcess) openTURN(ctx context.Context) error {
	c := p.cfg
	if c.turnListen == "" {
		return nil
	}
	var secret []byte
	if c.turnSecretFile != "" {
		raw, err := os.ReadFile(c.turnSecretFile)
		if err != nil {
			return fmt.Errorf("read TURN secret: %w", err)
		}
		if secret = bytes.TrimSpace(raw); len(secret) == 0 {
			return usagef("--turn.secret-file %s is empty", c.turnSecretFile)
		}
	}
	var err error
	if p.secrets, err = turn.NewSecrets(secret, nil); err != nil {
		return fmt.Errorf("TURN secret: %w", err)
	}
	if secret == nil {
		p.secrets.Await() // that of the mesh
	}
	low, high, err := portRange(c.turnPorts)
	if err != nil {
		return err
	}
	open, err := networks("--turn.allow-peers", c.turnAllowPeers)
	if err != nil {
		return err
	}
	udp, tcp, err := listenTURN(ctx, c.turnListen)
	if err != nil {
		return err
	}
	listeners := []net.Listener{tcp}
	if p.tls != nil {
		p.turnTLS = newHandedOver(p.public.Addr())
		listeners = append(listeners, p.turnTLS)
	}
	relay := turn.Relay{Public: p.address, MinPort: low, MaxPort: high}
	switch {
	case isOwnAddress(p.address):
		relay.Bind = p.address
	case c.wgPort != 0:
		// A NAT is in front, which need not turn back what this host sends to its
		// own public address; nodes without UDP get to WireGuard by a relay.
		relay.Here = []uint16{c.wgPort}
	}
	p.turn, err = turn.New(turn.Config{
		PacketConns: []net.PacketConn{udp}, Listeners: listeners,
		Relay: relay, Secrets: p.secrets,
		AllowPeer: p.allowPeer, AllowNetworks: open, AllowUser: p.relayUsers.AllowUser,
		Logger: p.log, Registerer: p.registry,
	})
	if err != nil {
		return fmt.Errorf("start TURN: %w", err)
	}
	return nil
}

// listenTURN opens one port for both transports. Port 0 takes a free one.
func listenTURN(ctx context.Context, address string) (net.PacketConn, net.Listener, error) {
	var lc net.ListenConfig
	const tries = 8 // a port that is free for TCP may be taken for UDP
	for try := 1; ; try++ {
		tcp, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, nil, fmt.Errorf("listen for TURN (--turn.listen): %w", err)
		}
		host, _, _ := net.SplitHostPort(address)
		port := strconv.Itoa(tcp.Addr().(*net.TCPAddr).Port)
		udp, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(host, port))
		if err == nil {
			return udp, tcp, nil
		}
		if _, want, _ := net.SplitHostPort(address); want != "0" || try == tries {
			return nil, nil, errors.Join(fmt.Errorf("listen for TURN (--turn.listen): %w", err), tcp.Close())
		}
		if err := tcp.Close(); err != nil {
			return nil, nil, err
		}
	}
}

// allowPeer lets relayed traffic reach what sessions need: of this host the
// gateway's own end of DataChannels, of others what signalling has named to
// user; and for nodes WireGuard, of every gateway. It is called for every packet.
func (p *gatewayProcess) allowPeer(user string, at netip.AddrPort) bool {
	if p.tunnels.opens(p.node.Snapshot(), user, at) {
		return true
	}
	if at.Addr() != p.address && !p.host.has(at.Addr()) {
		return p.relayUsers.AllowPeer(user, at)
	}
	return p.icePort != 0 && at.Port() == p.icePort && p.offersICE(at.Addr())
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
	credential := p.secrets.Mint(caller, turnTTL)
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
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
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
