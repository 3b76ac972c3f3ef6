// SPDX-License-Identifier: Apache-2.0

// Package netcheck finds out what the network of this host lets through to the
// gateways of a mesh.
//
// It asks their STUN servers from one socket where packets come from, which tells
// how a NAT maps (RFC 5780 section 4.3, as far as the ports and addresses of the
// gateways allow), sends to itself from outside (hairpin), and gets an allocation
// over each transport of TURN. How a NAT filters takes a server that answers from
// another address than the one that was asked; no gateway does, since that answers
// whoever forges a source, so that filtering is not reported.
package netcheck

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxTargets bounds the gateways that are looked at.
	maxTargets = 8
	// maxServers bounds the STUN servers of one address family that are asked.
	maxServers = 8
	// stunTime is how long answers of STUN servers are waited for.
	stunTime = 2 * time.Second
	// hairpinTime is the same for a packet to oneself.
	hairpinTime = time.Second
	// relayTime bounds the attempt to get an allocation.
	relayTime = 5 * time.Second
)

// Mapping is how a NAT chooses the public port of a socket (RFC 4787 section 4.1).
type Mapping string

// What is known of a mapping. The zero value is that nothing is.
const (
	UnknownMapping Mapping = ""
	// NoNAT: the host's own address is seen.
	NoNAT Mapping = "no NAT"
	// EndpointIndependent: one port for all destinations, so that others can be
	// told of it.
	EndpointIndependent Mapping = "endpoint-independent"
	// PortIndependent: one port for all ports of the one address that was asked.
	PortIndependent Mapping = "endpoint-independent or address-dependent"
	// AddressDependent: another port for each address.
	AddressDependent Mapping = "address-dependent"
	// AddressAndPortDependent: another port for each port of each address.
	AddressAndPortDependent Mapping = "address and port-dependent"
)

// Predictable reports whether another node can be told where this one is reached.
func (m Mapping) Predictable() bool {
	return m == NoNAT || m == EndpointIndependent || m == PortIndependent
}

// Target is a gateway.
type Target struct {
	// Gateway names it for people.
	Gateway string
	// STUN are the ports that answer Binding requests.
	STUN []netip.AddrPort
	// TURN are the URIs (RFC 7065) of its TURN server, with a credential; without
	// one, or without a username, none are tried.
	TURN               []string
	Username, Password string
	// TLS is for turns: URIs; nil means the defaults of crypto/tls.
	TLS *tls.Config
}

// Config says what to look at.
type Config struct {
	// Targets are the gateways, of which the first 8 are looked at.
	Targets []Target
	// Addrs are the addresses of this host, by which the absence of a NAT is known,
	// and of a family; empty: they are not known.
	Addrs []netip.Addr
	// Logger gets single tests at level Debug; nil discards them.
	Logger *slog.Logger
}

// Report is what was found out.
type Report struct {
	IPv4 Family `json:"ipv4"`
	IPv6 Family `json:"ipv6"`
	// Gateways are those of Config.
	Gateways []Gateway `json:"gateways"`
	// Advice says in one sentence what to expect, or to do.
	Advice string `json:"advice"`
}

// Family is what UDP over one version of IP is like.
type Family struct {
	// Here says that this host has an address of the family, Asked that a gateway
	// has one, too, and Works that it answered.
	Here  bool `json:"here"`
	Asked bool `json:"asked"`
	Works bool `json:"works"`
	// Mapped is where servers see this host; the zero value is nowhere.
	Mapped  netip.AddrPort `json:"mapped,omitzero"`
	Mapping Mapping        `json:"mapping,omitempty"`
	// Filtering is empty: that is not known.
	Filtering string `json:"filtering,omitempty"`
	// Hairpin says whether the NAT returns what is sent to Mapped from inside: "yes",
	// "no", or empty where that was not tried.
	Hairpin string `json:"hairpin,omitempty"`
}

// Gateway is how one gateway is reached.
type Gateway struct {
	Gateway string `json:"gateway"`
	// RoundTrip is the least of its STUN answers, in milliseconds; 0: none came.
	RoundTrip float64 `json:"round_trip_ms,omitempty"`
	// UDP are its ports that were asked.
	UDP []Port `json:"udp"`
	// TURN are the transports that were tried.
	TURN []Relay `json:"turn"`
}

// Port is one that answers STUN, or should.
type Port struct {
	Address netip.AddrPort `json:"address"`
	// RoundTrip is in milliseconds; 0: no answer came.
	RoundTrip float64        `json:"round_trip_ms,omitempty"`
	Mapped    netip.AddrPort `json:"mapped,omitzero"`
}

// Relay is an attempt to get an allocation.
type Relay struct {
	URI       string `json:"uri"`
	Transport string `json:"transport"`
	// Took is how long it took, in milliseconds; 0: there is none.
	Took    float64        `json:"took_ms,omitempty"`
	Relayed netip.AddrPort `json:"relayed,omitzero"`
	// Error says why there is none.
	Error string `json:"error,omitempty"`
}

// Check looks at the network, for some seconds. An error is for a Config that
// makes no sense, and for a ctx that ended; what does not work is in the report.
func Check(ctx context.Context, cfg Config) (Report, error) {
	if len(cfg.Targets) == 0 {
		return Report{}, errors.New("netcheck: no gateway to look at")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Logger = cfg.Logger.With("component", "netcheck")
	targets := cfg.Targets[:min(len(cfg.Targets), maxTargets)]
	r := Report{Gateways: make([]Gateway, len(targets))}
	var wg sync.WaitGroup
	for i, t := range targets {
		r.Gateways[i] = Gateway{Gateway: t.Gateway, UDP: []Port{}, TURN: []Relay{}}
		wg.Go(func() { r.Gateways[i].TURN = relays(ctx, cfg.Logger, t) })
	}
	var ports4, ports6 map[netip.AddrPort]Port
	wg.Go(func() { r.IPv4, ports4 = family(ctx, cfg, targets, "udp4") })
	wg.Go(func() { r.IPv6, ports6 = family(ctx, cfg, targets, "udp6") })
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return Report{}, err
	}
	for i, t := range targets {
		r.Gateways[i].ports(t, ports4, ports6)
	}
	r.Advice = advice(&r)
	return r, nil
}

// ports takes what is known of the ports of a gateway.
func (g *Gateway) ports(t Target, lists ...map[netip.AddrPort]Port) {
	for _, at := range t.STUN {
		for _, list := range lists {
			p, ok := list[at]
			if !ok {
				continue
			}
			g.UDP = append(g.UDP, p)
			if p.RoundTrip > 0 && (g.RoundTrip == 0 || p.RoundTrip < g.RoundTrip) {
				g.RoundTrip = p.RoundTrip
			}
		}
	}
}

// milliseconds is never 0, which stands for what did not happen.
func milliseconds(d time.Duration) float64 {
	return max(float64(d.Round(10*time.Microsecond))/float64(time.Millisecond), 0.01)
}

// advice says what to expect in a network like this.
func advice(r *Report) string {
	udp := r.IPv4.Works || r.IPv6.Works
	streams, relayed, tried := false, false, false
	for _, g := range r.Gateways {
		for _, t := range g.TURN {
			tried = true
			relayed = relayed || t.Error == ""
			streams = streams || t.Error == "" && t.Transport != "UDP"
		}
	}
	switch {
	case !udp && streams:
		return "UDP is blocked here, so that all packets take TURN over TCP or TLS, which is slower: have the firewall let UDP out, to ports 3478 and 51820 of the gateways at least."
	case !udp && !tried:
		return "No gateway answers over UDP; give a token (--token-file), or run this on the host of a node, to see whether TURN over TCP and TLS gets through."
	case !udp:
		return "No gateway answers in any way: see that this host is online, and that the gateways run and their ports are open."
	case r.IPv4.Mapping == NoNAT || r.IPv6.Mapping == NoNAT:
		return "This host is seen at an address of its own: direct paths work wherever the other end lets UDP out, unless a firewall here drops what comes in."
	case r.IPv4.Mapping.Predictable() || r.IPv6.Mapping.Predictable():
		return "Direct paths work with nodes everywhere but behind a NAT that changes ports (symmetric) or a firewall that blocks UDP; packets to those are relayed."
	case r.IPv4.Mapping == UnknownMapping && r.IPv6.Mapping == UnknownMapping:
		return "UDP gets through; how the NAT here chooses ports takes a second port or gateway that answers."
	case tried && !relayed:
		return fmt.Sprintf("The NAT here uses another port for each destination (%s), and no TURN server serves this host: packets go by way of the gateways; see that port 3478 of a gateway is open.", r.worst())
	default:
		return fmt.Sprintf("The NAT here uses another port for each destination (%s): direct paths work only with nodes that are open to all senders, and packets to others are relayed; a UDP port that is forwarded to this host (--wireguard.listen-port and --public-address) makes it one of those.", r.worst())
	}
}

// worst is the mapping that the advice is about.
func (r *Report) worst() Mapping {
	if r.IPv4.Mapping != UnknownMapping {
		return r.IPv4.Mapping
	}
	return r.IPv6.Mapping
}
