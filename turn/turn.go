// SPDX-License-Identifier: Apache-2.0

// Package turn is a TURN and STUN server (RFC 8656, RFC 8489) that can face the
// open Internet: it relays for holders of a short-lived credential, towards
// peers that a policy allows, within quotas, and denies the rest.
//
// Secrets mints the credentials. A Server listens on UDP and TCP; listeners
// that the caller hands in (TLS, a port shared with HTTPS) work alike. DESIGN.md
// beside this file says how the parts fit.
package turn

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/xdp"
)

// DefaultRealm is the realm of a server whose Config names none. It is short
// because each challenge to a stranger carries it.
const DefaultRealm = "meshgate"

// software is how the server names itself to clients with a credential.
const software = "meshgate"

// Config says what a Server does. Secrets, Relay.Public and something to listen
// on are required.
type Config struct {
	// UDP and TCP are the addresses to listen on; [::] is all of both families.
	// Port 0 lets the kernel choose; an address that is in both with port 0 gets
	// the same port for both. Four addresses of UDP that are two hosts with the same
	// two ports answer NAT behaviour discovery (RFC 5780).
	UDP, TCP []netip.AddrPort
	// Listeners are served beside those. The server owns and closes them, also when
	// New fails. Addresses of their clients must be *net.TCPAddr. A connection that
	// has a method Settled(holds bool) is told when its client gets an allocation and
	// when that has ended, so that it may make room for others until it holds one.
	// Those of SecureListeners have TLS below, which the listener has put there: a
	// client that is sent on to another server finds TLS there, too.
	Listeners, SecureListeners []net.Listener
	// TCPRelays lets clients on streams ask for relays of TCP (RFC 6062). WebRTC needs
	// none, and each is a proxy for what its user may reach.
	TCPRelays bool
	// TrustedProxies are networks of load balancers that begin their connections
	// to TCP with a header of the PROXY protocol, version 2, which says who the
	// client is. Others must not send one.
	TrustedProxies []netip.Prefix
	// Relay says where relayed traffic leaves and enters.
	Relay Relay
	// Realm is the realm of all credentials; "" means DefaultRealm.
	Realm string
	// Secrets verifies credentials. Share it with whoever mints them.
	Secrets *Secrets
	// Users are those who need no minted credential; nil means none.
	Users *Users
	// AllowPeer is asked about every peer but the relays of this server, which
	// reach each other, its listeners, which nothing reaches, and those of
	// AllowNetworks. nil denies all of them. Allowing one port of an address
	// allows no other, and UDP alone. It is asked about the first packet to or from
	// such a peer, and again after Server.PolicyChanged and every few seconds; on
	// the addresses of the relays, about every packet. It is called from several
	// threads, which carry packets: it must be quick, must not block and must not
	// call the Server, but for PolicyChanged.
	AllowPeer func(user string, peer netip.AddrPort) bool
	// AllowNetworks are networks that every user may reach, but for addresses
	// of this host. A network that holds public addresses opens only those:
	// 0.0.0.0/0 is the Internet without private networks. Loopback, link-local
	// and multicast networks are refused.
	AllowNetworks []netip.Prefix
	// AllowUser is asked with each authenticated request of a user of Secrets; one
	// that it refuses is answered as if the credential were wrong. nil allows all.
	// The same holds for it as for AllowPeer.
	AllowUser func(user string) bool
	// Threads is how many threads carry packets; 0 is one for each CPU. More than
	// one need Linux.
	Threads int
	// Portable keeps to what every system has, also on Linux.
	Portable bool
	// XDP says whether the kernel serves channels over UDP past the server, where it
	// can; "" is xdp.Off. A packet filter of the host does not see what it serves.
	XDP xdp.Mode
	// Limits bounds what clients can take.
	Limits Limits
	// Logger gets changes of the server's state, and of each relay that has ended
	// whose it was; nil discards them. Packets and credentials are never logged.
	Logger *slog.Logger
	// Registerer gets the metrics; nil leaves them unregistered.
	Registerer prometheus.Registerer
}

// Relay says where relays are.
type Relay struct {
	// Public is the address at which peers reach the relays, and Public6 an IPv6
	// one for peers that have IPv6, or zero. Public may be IPv6 if Public6 is zero.
	Public, Public6 netip.Addr
	// Bind and Bind6 are the addresses of this host to which packets for Public
	// and Public6 come: these themselves, or a private one behind a one-to-one NAT.
	// Zero binds to all of the family.
	Bind, Bind6 netip.Addr
	// Here are UDP ports of this host, open on all of its addresses or on Bind and
	// Bind6, that peers have at Public and Public6. Relays reach them on the host
	// itself: many routers do not turn back what a host sends to its own public
	// address. Which of them a user may reach is for AllowPeer to say.
	Here []uint16
	// MinPort and MaxPort are the range of relay ports; both 0 leaves the choice to the kernel.
	MinPort, MaxPort uint16
}

// sides returns where relays of IPv4 and of IPv6 are: public and bound. Of a family
// without relays both are zero.
func (r Relay) sides() [2]struct{ public, bind netip.Addr } {
	list := [2]struct{ public, bind netip.Addr }{{r.Public, r.Bind}, {r.Public6, r.Bind6}}
	if r.Public.Is6() && !r.Public6.IsValid() {
		list[0], list[1] = list[1], list[0]
	}
	for i, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if list[i].public.IsValid() && !list[i].bind.IsValid() {
			list[i].bind = any
		}
	}
	return list
}

func (r Relay) validate() error {
	sides := r.sides()
	for i, name := range []string{"IPv4", "IPv6"} {
		at, is := sides[i], func(a netip.Addr) bool { return a.Is4() == (i == 0) && !a.Is4In6() && a.Zone() == "" }
		switch {
		case !at.public.IsValid() && !at.bind.IsValid():
		case !at.public.IsValid() || !is(at.public) || at.public.IsUnspecified():
			return fmt.Errorf("turn relay address %s is not an %s address that peers can reach", at.public, name)
		case !is(at.bind):
			return fmt.Errorf("turn relay bind address %s is not %s", at.bind, name)
		}
	}
	switch {
	case !sides[0].public.IsValid() && !sides[1].public.IsValid():
		return errors.New("turn relay address is missing: give Public, at which peers can reach relays")
	case slices.Contains(r.Here, 0):
		return errors.New("turn relay here holds port 0, which is none")
	case r.MinPort > r.MaxPort || r.MinPort == 0 && r.MaxPort != 0:
		return fmt.Errorf("turn relay ports %d-%d are no range", r.MinPort, r.MaxPort)
	}
	return nil
}

// Limits bounds what clients can take; the zero value of each field means its default.
type Limits struct {
	// RelaysPerUser is how many relay ports a user holds at a time: an allocation has
	// one, and two with an IPv4 and an IPv6 relay or with a port that is reserved.
	// Default 10. Relays is how many all users hold. Default 4096, or one per relay
	// port if that is less.
	Relays, RelaysPerUser int
	// PermissionsPerAllocation is how many peer addresses an allocation talks to,
	// PermissionsPerUser how many all allocations of a user together, and Permissions
	// how many those of all users. Defaults 32, 16 for each of RelaysPerUser, and 32768.
	Permissions, PermissionsPerUser, PermissionsPerAllocation int
	// Channels and the others are the same for channels that are bound, with the same
	// defaults.
	Channels, ChannelsPerUser, ChannelsPerAllocation int
	// Lifetime is how long an allocation lasts, and lasts again after each
	// Refresh, in whole seconds. Default 10 minutes. MaxLifetime is what clients can
	// ask for, but for those whose credential ends sooner: no lifetime ends later
	// than Lifetime after it. Default 1 hour, and no less than Lifetime.
	Lifetime, MaxLifetime time.Duration
	// BytesPerSecond is what all allocations of a user relay together, in both
	// directions, with a burst of a second's worth. Default 0: no bound.
	BytesPerSecond int64
	// AnswersPerSecond is how many packets a second each /24 (IPv6: /56) of UDP
	// clients without an allocation is answered, after a burst of three
	// seconds' worth. Default 10.
	AnswersPerSecond int
	// PeerConnections is how many connections to peers all relays of TCP have, those
	// that are being made included, and PeerConnectionsPerUser how many those of one
	// user. Defaults 1024 and 32. ConnectsPerSecond is how many a user begins in a
	// second, after a burst of twice as many. Default 10.
	PeerConnections, PeerConnectionsPerUser, ConnectsPerSecond int
	// Connections and ConnectionsPerSource bound open TCP connections in total
	// and by address (IPv6: /64). Defaults 4096 and 128.
	Connections, ConnectionsPerSource int
}

func (l Limits) withDefaults(relay Relay) Limits {
	set := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	ports := portRange{relay.MinPort, relay.MaxPort}
	total := 4096
	if relay.MaxPort != 0 {
		total = min(total, ports.size())
	}
	set(&l.RelaysPerUser, 10)
	set(&l.Relays, total)
	for _, f := range []struct{ all, user, allocation *int }{
		{&l.Permissions, &l.PermissionsPerUser, &l.PermissionsPerAllocation},
		{&l.Channels, &l.ChannelsPerUser, &l.ChannelsPerAllocation},
	} {
		set(f.all, 32768)
		set(f.user, 16*l.RelaysPerUser)
		set(f.allocation, 32)
	}
	set(&l.AnswersPerSecond, 10)
	set(&l.PeerConnections, 1024)
	set(&l.PeerConnectionsPerUser, 32)
	set(&l.ConnectsPerSecond, 10)
	set(&l.Connections, 4096)
	set(&l.ConnectionsPerSource, 128)
	if l.Lifetime == 0 {
		l.Lifetime = 10 * time.Minute
	}
	if l.MaxLifetime == 0 {
		l.MaxLifetime = max(time.Hour, l.Lifetime)
	}
	return l
}

func (l Limits) validate() error {
	for _, f := range []struct {
		name string
		n    int
	}{
		{"Relays", l.Relays}, {"RelaysPerUser", l.RelaysPerUser},
		{"Permissions", l.Permissions}, {"PermissionsPerUser", l.PermissionsPerUser}, {"PermissionsPerAllocation", l.PermissionsPerAllocation},
		{"Channels", l.Channels}, {"ChannelsPerUser", l.ChannelsPerUser}, {"ChannelsPerAllocation", l.ChannelsPerAllocation},
		{"PeerConnections", l.PeerConnections}, {"PeerConnectionsPerUser", l.PeerConnectionsPerUser}, {"ConnectsPerSecond", l.ConnectsPerSecond},
		{"AnswersPerSecond", l.AnswersPerSecond}, {"Connections", l.Connections}, {"ConnectionsPerSource", l.ConnectionsPerSource},
	} {
		if f.n < 0 {
			return fmt.Errorf("turn limit %s of %d is negative: give 0 for its default, or more", f.name, f.n)
		}
	}
	switch {
	case l.BytesPerSecond < 0:
		return fmt.Errorf("turn limit of %d bytes a second is negative", l.BytesPerSecond)
	case l.Lifetime < time.Second || l.Lifetime > time.Hour || l.Lifetime%time.Second != 0:
		return fmt.Errorf("turn allocation lifetime %s is not whole seconds up to one hour", l.Lifetime)
	case l.MaxLifetime < l.Lifetime || l.MaxLifetime > 24*time.Hour:
		return fmt.Errorf("turn allocation lifetime limit %s is not between the lifetime of %s and 24h", l.MaxLifetime, l.Lifetime)
	}
	return nil
}

// counts are the limits in the terms of core.
func (l Limits) counts() (perUser, total core.Counts) {
	return core.Counts{
			Relays: l.RelaysPerUser, Permissions: l.PermissionsPerUser, Channels: l.ChannelsPerUser, Connections: l.PeerConnectionsPerUser,
		}, core.Counts{
			Relays: l.Relays, Permissions: l.Permissions, Channels: l.Channels, Connections: l.PeerConnections,
		}
}

func (l Limits) core() core.Limits {
	return core.Limits{
		DefaultLifetime: l.Lifetime, MaxLifetime: l.MaxLifetime, Permissions: l.PermissionsPerAllocation, Channels: l.ChannelsPerAllocation,
		Relays: maxPerShard, // the ledger counts those of all shards
	}
}

// maxPerShard is more than there are relay ports of both families.
const maxPerShard = 1 << 20

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case len(c.UDP)+len(c.TCP)+len(c.Listeners)+len(c.SecureListeners) == 0:
		return errors.New("turn has no address to listen on")
	case c.Secrets == nil:
		return errors.New("turn has no secrets")
	case len(c.Realm) > maxRealm:
		return fmt.Errorf("turn realm %q is longer than %d bytes: each challenge to a stranger carries it", c.Realm, maxRealm)
	case c.Threads < 0 || c.Threads > maxThreads:
		return fmt.Errorf("turn threads %d: give 0 for one per CPU, or up to %d", c.Threads, maxThreads)
	}
	if err := c.Relay.validate(); err != nil {
		return err
	}
	if c.XDP != "" {
		if _, err := xdp.ParseMode(string(c.XDP)); err != nil {
			return fmt.Errorf("turn xdp: %w", err)
		}
	}
	if _, err := openNetworks(c.AllowNetworks, newBlocks(specialPurpose())); err != nil {
		return err
	}
	return c.Limits.withDefaults(c.Relay).validate()
}

// maxRealm is that of package core; maxThreads is far beyond the CPUs that a TURN
// server makes use of.
const maxRealm, maxThreads = 20, 64
