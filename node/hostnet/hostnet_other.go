// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package hostnet

import (
	"context"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
)

// record is empty: nothing is ever done.
type record struct{}

// Set returns an error that wraps mesh.ErrUnsupported: only Linux is supported.
func (*Host) Set(_ context.Context, c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	return mesh.ErrUnsupported
}

// Clean does nothing.
func (*Host) Clean(string) error { return nil }

// CleanFor does nothing.
func (*Host) CleanFor(string, bool) error { return nil }

// PathMTU returns an error that wraps mesh.ErrUnsupported.
func (*Host) PathMTU([]netip.Addr) (int, error) { return 0, mesh.ErrUnsupported }

// LeftOut is 0.
func (*Host) LeftOut() int { return 0 }

// Changes returns an error that wraps mesh.ErrUnsupported.
func (*Host) Changes(context.Context) (<-chan struct{}, error) { return nil, mesh.ErrUnsupported }

// Close does nothing.
func (*Host) Close() error { return nil }

// TunnelsBeside knows of none.
func TunnelsBeside(string) (*Tunnels, error) { return nil, nil }
