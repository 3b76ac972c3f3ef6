// SPDX-License-Identifier: Apache-2.0

// Package hostnet puts a mesh interface into the host's network: link state,
// MTU, addresses, routes and the leave to forward.
//
// It touches only what it put there. What others changed in the meantime, or
// had set up before, stays; Close takes back the rest.
package hostnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

// Config is the wanted state of an interface.
type Config struct {
	// Interface is the name of an existing interface.
	Interface string
	// MTU of the interface; 0 leaves it alone.
	MTU int
	// Addresses with the length of the network that is on the link.
	Addresses []netip.Prefix
	// Routes are networks to reach through the interface. Default routes and
	// networks that hold an address of Outside are left out, since the packets of
	// the tunnel itself would follow them; so are networks that touch special ones
	// (mesh.CheckSpecial), and those that the host already reaches in another way.
	// They are logged, and counted by LeftOut.
	Routes []netip.Prefix
	// Outside are addresses that must stay outside of the tunnel, without zones:
	// the tunnel runs on them.
	Outside []netip.Addr
	// Forward lets the host send packets that came in through the interface on
	// to others, as a hub does. Kernels before Linux 6.17 can allow that for
	// IPv6 only on all interfaces at once.
	Forward bool
}

// validate finds what no host could do. Errors wrap mesh.ErrInvalid.
func (c *Config) validate() error {
	if c.Interface == "" {
		return fmt.Errorf("no interface: %w", mesh.ErrInvalid)
	}
	if c.MTU < 0 {
		return fmt.Errorf("mtu %d: %w", c.MTU, mesh.ErrInvalid)
	}
	for _, p := range c.Addresses {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("address %v: %w", p, mesh.ErrInvalid)
		}
	}
	for _, p := range c.Routes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("route %v: %w", p, mesh.ErrInvalid)
		}
	}
	return nil
}

// ErrGone says that the interface does not exist any more. Set returns it.
var ErrGone = errors.New("the interface is gone")

// Host changes the network of the host that the process runs on. Its methods
// may be called concurrently. They act on the network namespace of the calling
// thread.
type Host struct {
	logger *slog.Logger
	mu     sync.Mutex // guards done
	done   record
}

// New makes a Host that has changed nothing. A nil logger discards.
func New(logger *slog.Logger) *Host {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Host{logger: logger.With("component", "hostnet")}
}
