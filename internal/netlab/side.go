// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"sync"
)

// Side is a host and what is between it and the middle of the network.
type Side struct {
	lab    *Lab
	name   string
	kind   Kind
	plan   plan
	number int

	host *namespace
	// boxes are what packets pass on their way out, the first one first.
	boxes []*namespace
	// networks are those of the host, one for each IP version that it has.
	networks []netip.Prefix

	mu    sync.Mutex   // guards the fields below; held while addresses change
	addrs []netip.Addr // of the host

	// What is wrong with the way between the side and the middle; guarded by
	// the lab's mu.
	loss int // percent
	dark bool
}

// build makes the namespaces of the side, connects them and has the boxes do
// what the plan says. Of a server, the host has two addresses of each kind.
func (s *Side) build(server bool) (err error) {
	if s.host, err = s.lab.namespace(s.name); err != nil {
		return err
	}
	for i := range s.plan.boxes {
		box, err := s.lab.namespace(fmt.Sprintf("%s.box%d", s.name, i))
		if err != nil {
			return err
		}
		if err := box.forward(); err != nil {
			return err
		}
		s.boxes = append(s.boxes, box)
	}
	if err := s.wire(); err != nil {
		return err
	}
	if s.plan.v4 {
		if err := s.build4(server); err != nil {
			return err
		}
	}
	if s.plan.v6 {
		if err := s.build6(server); err != nil {
			return err
		}
	}
	for i, box := range s.boxes {
		rules, err := text(s.plan.boxes[i], at(s.outer4(i), 2).Addr(), firstPort(i))
		if err != nil {
			return err
		}
		if err := box.nft(rules); err != nil {
			return err
		}
	}
	return nil
}

// firstPort is where a NAT begins to count ports, whose bytes are swapped. NATs
// behind each other begin with different ones, so that a port is not taken for
// that of the other one.
func firstPort(box int) int { return (1+box)<<8 | 0x10 }

// wire connects the host, the boxes and the middle.
func (s *Side) wire() error {
	if err := connect(s.host, "eth0", s.boxes[0], "lan0"); err != nil {
		return err
	}
	for i := 1; i < len(s.boxes); i++ {
		if err := connect(s.boxes[i-1], "wan0", s.boxes[i], "lan0"); err != nil {
			return err
		}
	}
	return connect(s.outermost(), "wan0", s.lab.net, s.port())
}

func (s *Side) outermost() *namespace { return s.boxes[len(s.boxes)-1] }

// port is the interface of the middle to which the side is connected.
func (s *Side) port() string { return fmt.Sprintf("p%d", s.number) }

// home4 is the IPv4 network of the host.
func (s *Side) home4() netip.Prefix {
	if s.plan.public {
		return open4(s.number)
	}
	return home4(s.number)
}

// outer4 is the IPv4 network on the way out of a box, in which it is the second
// host. The next one is the first.
func (s *Side) outer4(box int) netip.Prefix {
	if box == len(s.boxes)-1 {
		return link4(s.number)
	}
	return carrier4(s.number)
}

// build4 gives everything its IPv4 addresses and routes.
func (s *Side) build4(server bool) error {
	home, link := s.home4(), link4(s.number)
	if err := s.lab.net.address(s.port(), at(link, 1)); err != nil {
		return err
	}
	if s.plan.public {
		if err := s.lab.net.route(home, at(link, 2).Addr()); err != nil {
			return err
		}
	}
	inner := home
	for i, box := range s.boxes {
		outer := s.outer4(i)
		if err := errors.Join(box.address("lan0", at(inner, 1)), box.address("wan0", at(outer, 2))); err != nil {
			return err
		}
		if err := box.route(all4(), at(outer, 1).Addr()); err != nil {
			return err
		}
		inner = outer
	}
	return s.settle(home, server)
}

// build6 gives everything its IPv6 addresses and routes. There is one box.
func (s *Side) build6(server bool) error {
	home, link, box := home6(s.number), link6(s.number), s.boxes[0]
	return errors.Join(
		s.lab.net.address(s.port(), at(link, 1)),
		s.lab.net.route(home, at(link, 2).Addr()),
		box.address("wan0", at(link, 2)),
		box.address("lan0", at(home, 1)),
		box.route(all6(), at(link, 1).Addr()),
		s.settle(home, server),
	)
}

// settle gives the host its place in a network: the second, as the first is
// that of the box. A server has the third, too.
func (s *Side) settle(home netip.Prefix, server bool) error {
	s.networks = append(s.networks, home)
	if err := s.move(netip.Addr{}, at(home, 2).Addr()); err != nil {
		return err
	}
	if server {
		return s.host.address("eth0", at(home, 3))
	}
	return nil
}

// all4 and all6 are the networks of default routes.
func all4() netip.Prefix { return netip.PrefixFrom(netip.IPv4Unspecified(), 0) }
func all6() netip.Prefix { return netip.PrefixFrom(netip.IPv6Unspecified(), 0) }

// Name is what the side was called.
func (s *Side) Name() string { return s.name }

// Kind is how the side reaches the network; that of servers is Open.
func (s *Side) Kind() Kind { return s.kind }

// Addr4 is the IPv4 address of the host, behind its NAT; the zero value if it
// has none.
func (s *Side) Addr4() netip.Addr { return s.addr(netip.Addr.Is4) }

// Addr6 is the IPv6 address of the host; the zero value if it has none.
func (s *Side) Addr6() netip.Addr { return s.addr(netip.Addr.Is6) }

func (s *Side) addr(of func(netip.Addr) bool) netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.addrs {
		if of(a) {
			return a
		}
	}
	return netip.Addr{}
}

// Second is the other address that a server has beside one of its addresses.
func (s *Side) Second(addr netip.Addr) netip.Addr { return addr.Next() }

// Exec is a process on the host that was not started yet. Signals reach the
// program itself. It is killed when ctx ends, or with the lab; the caller waits
// for it.
func (s *Side) Exec(ctx context.Context, args ...string) *exec.Cmd {
	return s.host.command(ctx, args...)
}

// Run runs f on a thread of its own that is on the host, and returns what f
// does. Sockets that f makes stay there; goroutines that it starts do not. f
// may not fail a test, since it is not on its goroutine.
func (s *Side) Run(f func() error) error { return s.host.enter(f) }
