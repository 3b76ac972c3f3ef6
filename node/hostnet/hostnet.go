// SPDX-License-Identifier: Apache-2.0

// Package hostnet puts a mesh interface into the host's network: link state,
// MTU, addresses, routes, the leave to forward, and address translation on the
// way out of the mesh.
//
// It touches only what it put there. What others changed in the meantime, or
// had set up before, stays; Close takes back the rest.
//
// A process that is killed takes its TUN interface along, with addresses and
// routes. What it leaves is in an nftables table of its own, named after the
// interface: the rules, and, as comments, each setting of another interface with
// its value before, noted before it was changed. The kernel forgets both at the
// same time, at a restart. Clean takes back what the dead have left.
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
	// Serve are the networks outside of the mesh to which this host forwards for
	// the mesh; they need Forward. The interfaces that lead there forward, too, so
	// that the answers come back, TCP is told the segment size that fits the
	// interface, and what came in through it reaches no address of the host but
	// those of Addresses. An interface that did not forward before does so only
	// into the mesh, but for answers, unless the whole host is made a router.
	Serve []netip.Prefix
	// Networks are those of the mesh. A host that serves drops what comes in by
	// another interface from an address in them that Routes lead to, or from one
	// of Addresses.
	Networks []netip.Prefix
	// Exit leads what goes nowhere else into the interface; nil does not.
	Exit *Exit
	// Masquerade are the networks whose packets leave for Serve with the host's
	// own address, so that nobody there needs a route back; empty for none.
	Masquerade []netip.Prefix
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
	for _, list := range []struct {
		what     string
		networks []netip.Prefix
	}{{"route", c.Routes}, {"network of the mesh", c.Networks}, {"network to serve", c.Serve}, {"network to masquerade", c.Masquerade}} {
		for _, p := range list.networks {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
				return fmt.Errorf("%s %v: %w", list.what, p, mesh.ErrInvalid)
			}
		}
	}
	if len(c.Serve) > 0 && !c.Forward {
		return fmt.Errorf("networks to serve without forwarding: %w", mesh.ErrInvalid)
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
	// step is told before each change of the host, for tests; nil is not.
	step func(what string)
	mu   sync.Mutex // guards the fields below
	done record
	// kept is the interface for which CleanFor left an Exit in force, until Set.
	kept string
}

// New makes a Host that has changed nothing. A nil logger discards.
func New(logger *slog.Logger) *Host {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Host{logger: logger.With("component", "hostnet")}
}

// before tells tests that the host is about to be changed.
func (h *Host) before(what string) {
	if h.step != nil {
		h.step(what)
	}
}
