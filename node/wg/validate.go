// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// validate finds what no device could be, its peers aside: see applied.compare.
// Errors wrap mesh.ErrInvalid.
func (c *Config) validate() error {
	if c.PrivateKey.IsZero() {
		return fmt.Errorf("no private key: %w", mesh.ErrInvalid)
	}
	return c.validateAddresses()
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

// validate checks one peer.
func (p *Peer) validate() error {
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
	}
	for _, prefix := range p.Veiled {
		if prefix != prefix.Masked() || !CanVeil(prefix) {
			return fmt.Errorf("veiled prefix %v: %w", prefix, mesh.ErrInvalid)
		}
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
