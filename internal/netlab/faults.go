// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// ordinaryMTU is that of links on which nothing was set.
const ordinaryMTU = 1500

// Rebind makes all boxes of the side forget their connections, as after a
// restart of a router. NATs give each host new ports from then on; a firewall
// lets nobody in that was not sent to again.
func (s *Side) Rebind() error {
	for i, box := range s.boxes {
		// First the ports: a packet in between must not find the old ones.
		if slices.Contains(s.plan.boxes[i], "cone") {
			if err := box.nft("flush map ip netlab out\nflush map ip netlab back\nflush set ip netlab seen\n"); err != nil {
				return err
			}
		}
		if err := box.nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			return fmt.Errorf("forget connections of %s: %w", box.path, err)
		}
	}
	return nil
}

// Blackout loses all packets of the side, until Restore. Nobody is told: the
// interfaces stay up.
func (s *Side) Blackout() error { return s.fault(func() { s.dark = true }) }

// Restore ends Blackout and Loss.
func (s *Side) Restore() error { return s.fault(func() { s.dark, s.loss = false, 0 }) }

// Loss loses a percentage of the packets of the side, in each direction.
func (s *Side) Loss(percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("lose %d percent at %s: want 0 to 100", percent, s.name)
	}
	return s.fault(func() { s.loss = percent })
}

// Part loses all packets between the side and another one, until Meet. What both
// exchange with others gets through.
func (s *Side) Part(other *Side) error {
	return s.fault(func() { s.lab.parted = append(s.lab.parted, [2]*Side{s, other}) })
}

// Meet ends Part, of either side.
func (s *Side) Meet(other *Side) error {
	return s.fault(func() {
		s.lab.parted = slices.DeleteFunc(s.lab.parted, func(p [2]*Side) bool {
			return p == [2]*Side{s, other} || p == [2]*Side{other, s}
		})
	})
}

// MTU sets the MTU of the link between the side and the middle, in bytes: 1280,
// below which there is no IPv6, to 1500, which it has at first. The interface of
// the host keeps its own: it has to find out.
func (s *Side) MTU(bytes int) error {
	if bytes < 1280 || bytes > ordinaryMTU {
		return fmt.Errorf("MTU %d at %s: want 1280 to %d", bytes, s.name, ordinaryMTU)
	}
	return errors.Join(s.outermost().mtu("wan0", bytes), s.lab.net.mtu(s.port(), bytes))
}

// DropICMP makes the boxes of the side and the middle keep to themselves that
// a packet was too big or could not be delivered, for the rest of the lab's
// life. The middle does so for all sides.
func (s *Side) DropICMP() error {
	silence, err := text([]string{"no_icmp_errors"}, netip.Addr{}, 0)
	if err != nil {
		return err
	}
	for _, box := range s.boxes {
		if err := box.nft(clear("silence") + silence); err != nil {
			return err
		}
	}
	return s.lab.net.nft(clear("silence") + silence)
}

// SetAddr gives the host another address in one of its networks, instead of the
// one of that IP version.
func (s *Side) SetAddr(addr netip.Addr) error {
	old := s.Addr4()
	if addr.Is6() {
		old = s.Addr6()
	}
	if !old.IsValid() {
		return fmt.Errorf("address %s for %s: it has none of that IP version to change", addr, s.name)
	}
	if addr == old {
		return nil
	}
	return s.move(old, addr)
}

// Networks are those in which the host has addresses. The first host of each
// is the box.
func (s *Side) Networks() []netip.Prefix { return s.networks }

// move gives the host an address instead of another one, which is invalid if it
// has none yet.
func (s *Side) move(from, to netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	home, ok := s.network(to)
	if !ok || to == at(home, 1).Addr() || to == home.Addr() {
		return fmt.Errorf("address %s for %s: want one of %v that is not the router's", to, s.name, s.networks)
	}
	if from.IsValid() {
		if err := s.host.noAddress("eth0", netip.PrefixFrom(from, home.Bits())); err != nil {
			return err
		}
	}
	if err := s.host.address("eth0", netip.PrefixFrom(to, home.Bits())); err != nil {
		return err
	}
	all := all4()
	if to.Is6() {
		all = all6()
	}
	// The route went with the only address that could use it.
	if err := s.host.route(all, at(home, 1).Addr()); err != nil {
		return err
	}
	kept := s.addrs[:0]
	for _, a := range s.addrs {
		if a != from {
			kept = append(kept, a)
		}
	}
	s.addrs = append(kept, to)
	return nil
}

// network is that of the host's networks that holds an address.
func (s *Side) network(addr netip.Addr) (netip.Prefix, bool) {
	for _, n := range s.networks {
		if n.Contains(addr) {
			return n, true
		}
	}
	return netip.Prefix{}, false
}

// fault changes what is wrong with the side and has the middle act on it.
func (s *Side) fault(change func()) error {
	s.lab.mu.Lock()
	defer s.lab.mu.Unlock()
	change()
	return s.lab.net.nft(s.lab.faults())
}

// faults are the rules by which the middle loses packets of sides. The lab's
// mu is held.
func (l *Lab) faults() string {
	var b strings.Builder
	b.WriteString(clear("faults") + "table inet faults {\nchain lost {\ntype filter hook prerouting priority raw; policy accept;\n")
	var forward strings.Builder
	for _, s := range l.sides {
		if s == nil {
			continue // it is being built
		}
		chance := ""
		switch {
		case s.dark:
		case s.loss > 0:
			chance = fmt.Sprintf("numgen random mod 100 < %d ", s.loss)
		default:
			continue
		}
		fmt.Fprintf(&b, "iifname %q %sdrop\n", s.port(), chance)
		fmt.Fprintf(&forward, "oifname %q %sdrop\n", s.port(), chance)
	}
	b.WriteString("}\nchain to {\ntype filter hook postrouting priority raw; policy accept;\n" + forward.String() + "}\n")
	b.WriteString("chain between {\ntype filter hook forward priority raw; policy accept;\n")
	for _, p := range l.parted {
		fmt.Fprintf(&b, "iifname %q oifname %q drop\n", p[0].port(), p[1].port())
		fmt.Fprintf(&b, "iifname %q oifname %q drop\n", p[1].port(), p[0].port())
	}
	b.WriteString("}\n}\n")
	return b.String()
}

// clear removes a table of rules, whether or not it is there.
func clear(table string) string { return "table inet " + table + "\ndelete table inet " + table + "\n" }
