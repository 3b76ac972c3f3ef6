// SPDX-License-Identifier: Apache-2.0

// Package client holds one allocation on a TURN server and looks like a UDP
// socket (RFC 8656): packets written to it leave the server's relayed address,
// over IPv4 or IPv6, and what arrives there is read from it. The way to the
// server is UDP, TCP or TLS, over either address family.
//
// Allocate gets an Allocation. It asks for permissions and channels as packets
// need them, keeps everything alive, and ends by Close or when the server has
// lost it: then Done is closed, and the caller allocates again. When the server is
// about to end, Draining is closed before. Like on any
// UDP socket packets may get lost; Stats counts those that were lost here.
//
// The protocol is a state machine without I/O (core.go, transaction.go,
// peers.go); allocation.go moves its packets, and link.go says over what.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Family is the address family of a relayed address.
type Family int

// The families that an allocation may be asked for.
const (
	AnyFamily Family = iota // whatever the server gives to who does not ask, which is IPv4
	IPv4
	IPv6
)

// alpn is what a client of TURN over TLS offers, so that it may share a port
// with others (RFC 7443).
const alpn = "stun.turn"

// addressTimeout is how long one of several addresses of a server may take to
// answer over UDP before the next one is tried.
const addressTimeout = 2 * time.Second

// mismatchTries is how often another local port is tried when the server
// knows an allocation of the one before (RFC 8656 section 7.4, code 437).
const mismatchTries = 3

// maxAddresses bounds the addresses of a server that are tried over UDP.
const maxAddresses = 4

// Config says on which server to allocate what. Server, Username and Password
// are required, but by servers that serve everybody.
type Config struct {
	// Server is a URI of RFC 7065: "turn:turn.example.org:3478?transport=udp",
	// "turn:198.51.100.1?transport=tcp", "turns:[2001:db8::1]:443?transport=tcp".
	Server string
	// Username and Password are a long-term credential (RFC 8489 section 9.2);
	// SetCredential replaces them while the allocation lives.
	Username, Password string
	// Family is that of the relayed address; zero leaves it to the server.
	Family Family
	// TLS is for turns: servers. nil means the defaults of crypto/tls; an empty
	// ServerName means the host of Server, no NextProtos mean ALPN "stun.turn".
	TLS *tls.Config
	// AlternateTLS is what to use in place of TLS at another server, to which the
	// one of a turns: URI sends its clients on, by the name in its certificate, or
	// its address if it has none there. nil is TLS, with that name, if there is one,
	// for the ServerName.
	AlternateTLS func(host string) *tls.Config
	// Dial connects to the server: a connected UDP socket for "udp", which then
	// gets packets of the server alone and one Write per packet, or a stream for
	// "tcp". The allocation owns what it returns. nil means net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// LookUp finds the addresses of the server's name for UDP, as that of
	// net.Resolver, which nil means. For streams Dial does it.
	LookUp func(ctx context.Context, network, name string) ([]netip.Addr, error)
	// Logger gets what an operator may want to know of one allocation, at level
	// Debug; nil discards it. Peers and credentials are never logged.
	Logger *slog.Logger
}

// Allocate gets an allocation. It returns when that stands, when the server
// refuses it, when it does not answer (ErrTimeout, after 40 s), or with ctx: up to a
// second later if the server may be giving an allocation, which goes back to it. A
// server that sends its clients on to another one (300 Try Alternate, signed), as
// one does that drains, is followed there over the same transport.
func Allocate(ctx context.Context, cfg Config) (*Allocation, error) {
	s, err := parseServer(cfg.Server)
	if err != nil {
		return nil, err
	}
	if len(cfg.Username) > 508 {
		return nil, fmt.Errorf("turn username of %d bytes: at most 508 are possible", len(cfg.Username))
	}
	if cfg.Family < AnyFamily || cfg.Family > IPv6 {
		return nil, fmt.Errorf("turn address family %d: use AnyFamily, IPv4 or IPv6", cfg.Family)
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.LookUp == nil {
		cfg.LookUp = net.DefaultResolver.LookupNetIP
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Logger = cfg.Logger.With("component", "turn client", "server", s.uri)
	a, err := allocate(ctx, cfg, s)
	if err != nil {
		return nil, fmt.Errorf("allocate on %s: %w", s.uri, err)
	}
	cfg.Logger.Debug("allocation stands", "transport", s.transport, "relayed", a.relayed, "mapped", a.mapped)
	return a, nil
}

// allocate tries the addresses of s one after the other: over UDP nothing but
// an answer shows that one of them works. Dial knows how to do it for streams.
func allocate(ctx context.Context, cfg Config, s server) (a *Allocation, err error) {
	addresses := []string{s.at()}
	if s.transport == UDP {
		if addresses, err = lookup(ctx, cfg, s); err != nil {
			return nil, err
		}
	}
	for i, address := range addresses {
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if i < len(addresses)-1 {
			attempt, cancel = context.WithTimeout(ctx, addressTimeout)
		}
		a, err = allocateAt(attempt, cfg, s, address)
		cancel()
		if code := (*CodeError)(nil); err == nil || ctx.Err() != nil || errors.As(err, &code) {
			return a, err // there is a server that has said what it has to say
		}
	}
	return nil, err
}

// lookup returns the addresses of s to try.
func lookup(ctx context.Context, cfg Config, s server) ([]string, error) {
	if _, err := netip.ParseAddr(s.host); err == nil {
		return []string{s.at()}, nil
	}
	found, err := cfg.LookUp(ctx, "ip", s.host)
	if err != nil {
		return nil, fmt.Errorf("look up the server: %w", err)
	}
	var addresses []string
	for _, a := range found[:min(len(found), maxAddresses)] {
		addresses = append(addresses, net.JoinHostPort(a.Unmap().String(), s.port))
	}
	return addresses, nil
}

// advise adds to err what may help, where the error alone does not say it.
func advise(err error, s server, address string) error {
	var wrongName *tls.CertificateVerificationError
	switch {
	case errors.As(err, &wrongName):
		return fmt.Errorf("%w; name the server as its certificate does, or trust its issuer in the TLS configuration", err)
	case errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, ErrRefused):
		return fmt.Errorf("%s %s: %w (%w)", s.network(), address, ErrRefused, err)
	case errors.Is(err, ErrRefused):
		return fmt.Errorf("%s %s: %w", s.network(), address, err)
	case errors.Is(err, ErrTimeout) && s.transport == UDP:
		return fmt.Errorf("udp %s: %w; if a firewall drops UDP, use turn over TCP or TLS", address, err)
	case errors.Is(err, ErrTimeout):
		return fmt.Errorf("tcp %s: %w", address, err)
	default:
		return err
	}
}
