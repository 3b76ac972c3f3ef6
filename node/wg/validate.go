// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// validate finds what no device could be. Errors wrap mesh.ErrInvalid.
func (c *Config) validate() error {
	if c.PrivateKey.IsZero() {
		return fmt.Errorf("no private key: %w", mesh.ErrInvalid)
	}
	if err := c.validateAddresses(); err != nil {
		return err
	}
	own := c.PrivateKey.Public()
	keys := make(map[mesh.WireGuardKey]struct{}, len(c.Peers))
	owner := make(map[netip.Prefix]mesh.WireGuardKey)
	for i := range c.Peers {
		p := &c.Peers[i]
		if err := p.validate(owner); err != nil {
			return fmt.Errorf("peer %v: %w", p.Key, err)
		}
		if _, twice := keys[p.Key]; twice || p.Key == own {
			return fmt.Errorf("peer %v: the key is taken: %w", p.Key, mesh.ErrInvalid)
		}
		keys[p.Key] = struct{}{}
	}
	return nil
}

// validateAddresses checks our own addresses.
func (c *Config) validateAddresses() error {
	for _, p := range c.Addresses {
		if !p.IsValid() || martian(p.Addr()) {
			return fmt.Errorf("own address %v: %w", p, mesh.ErrInvalid)
		}
	}
	return nil
}

// validate checks one peer; owner says whose each prefix is.
func (p *Peer) validate(owner map[netip.Prefix]mesh.WireGuardKey) error {
	if p.Key.IsZero() {
		return fmt.Errorf("no key: %w", mesh.ErrInvalid)
	}
	if p.Keepalive < 0 || p.Keepalive > maxKeepalive*time.Second {
		return fmt.Errorf("keepalive %v: %w", p.Keepalive, mesh.ErrInvalid)
	}
	if p.Endpoint != "" {
		if _, _, err := splitEndpoint(p.Endpoint); err != nil {
			return err
		}
	}
	for _, prefix := range p.AllowedIPs {
		if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
			return fmt.Errorf("allowed prefix %v: %w", prefix, mesh.ErrInvalid)
		}
		if other, taken := owner[prefix]; taken {
			return fmt.Errorf("allowed prefix %v belongs to peer %v: %w", prefix, other, mesh.ErrInvalid)
		}
		owner[prefix] = p.Key
	}
	return nil
}

// splitEndpoint takes "host:port" apart.
func splitEndpoint(endpoint string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(endpoint)
	if err != nil {
		return "", 0, fmt.Errorf("endpoint %q: %w: %w", endpoint, err, mesh.ErrInvalid)
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, fmt.Errorf("endpoint %q: not host:port: %w", endpoint, mesh.ErrInvalid)
	}
	return host, uint16(n), nil
}
