// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package netlab builds networks with NATs out of network namespaces.
//
//	lab := netlab.New(t)
//	server := lab.Server("gate")
//	laptop := lab.Side("laptop", netlab.Symmetric)
//
// In the middle is a router, the namespace NAME.net, to which each side is
// connected by boxes of its own: routers that translate and filter, as the kind
// of the side says. The hosts are real enough for real programs: they have
// network stacks of their own, and nothing else of their own. Nothing is
// connected to the machine that the lab runs on, whose network is not touched.
//
// It needs root on Linux, nft and nsenter.
package netlab

import (
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// rules are what boxes do.
//
//go:embed rules/*.nft
var rules embed.FS

// maxSides is how many sides and servers fit into a lab: each has a number
// that its addresses hold.
const maxSides = 250

// Lab is a network. Its methods and those of its sides may be called at the
// same time.
type Lab struct {
	lease *lease
	net   *namespace // the router in the middle

	mu     sync.Mutex       // guards the fields below, and is held while faults are set
	spaces []*namespace     // all, to be removed
	sides  map[string]*Side // nil: it is being built
	parted [][2]*Side       // that lose each other's packets
	closed bool
}

// Start makes a lab without sides. prefix, of letters and digits, begins the
// names of its namespaces; a random number makes them unique. What labs of
// processes that were killed left behind is removed first. The caller closes
// the lab.
func Start(prefix string) (*Lab, error) {
	if !regexp.MustCompile(`^[a-z0-9]{1,16}$`).MatchString(prefix) {
		return nil, fmt.Errorf("prefix %q: want 1 to 16 small letters and digits", prefix)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run this as root")
	}
	if err := errors.Join(shareNetnsDir(), sweep()); err != nil {
		return nil, err
	}
	lease, err := newLease(prefix)
	if err != nil {
		return nil, err
	}
	l := &Lab{lease: lease, sides: map[string]*Side{}}
	if l.net, err = l.namespace("net"); err == nil {
		err = l.net.forward()
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close kills all processes in the lab and removes it. Further calls do
// nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var paths []string
	for _, n := range l.spaces {
		paths = append(paths, n.path)
	}
	errs := []error{discard(paths)}
	for _, n := range l.spaces {
		errs = append(errs, n.close())
	}
	if err := errors.Join(errs...); err != nil {
		// The file stays without its lock, so that the next lab tries again.
		return errors.Join(fmt.Errorf("close lab: %w", err), l.lease.file.Close())
	}
	return l.lease.end()
}

// Name begins the names of all namespaces of the lab.
func (l *Lab) Name() string { return l.lease.name }

// Server adds a host with public addresses, two of each IP version, that
// nothing filters. name is unique in the lab: small letters, digits and
// hyphens.
func (l *Lab) Server(name string) (*Side, error) {
	p := Open.plan()
	p.v6 = true
	return l.add(name, Open, p, true)
}

// Side adds a host behind what kind says. name is as for Server.
func (l *Lab) Side(name string, kind Kind) (*Side, error) {
	if kind < 0 || kind >= kinds {
		return nil, fmt.Errorf("side %q: there is no %s", name, kind)
	}
	return l.add(name, kind, kind.plan(), false)
}

// add takes a number for the side and builds it.
func (l *Lab) add(name string, kind Kind, p plan, server bool) (*Side, error) {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`).MatchString(name) || name == "net" {
		return nil, fmt.Errorf("side %q: want 1 to 32 small letters, digits and hyphens, and not net", name)
	}
	l.mu.Lock()
	_, taken := l.sides[name]
	number := len(l.sides) + 1
	full := number > maxSides
	if !taken && !full && !l.closed {
		l.sides[name] = nil
	}
	closed := l.closed
	l.mu.Unlock()
	switch {
	case closed:
		return nil, fmt.Errorf("side %q: the lab is closed", name)
	case taken:
		return nil, fmt.Errorf("side %q: the lab has one of that name", name)
	case full:
		return nil, fmt.Errorf("side %q: a lab has no room for more than %d", name, maxSides)
	}
	s := &Side{lab: l, name: name, kind: kind, plan: p, number: number}
	if err := s.build(server); err != nil {
		return nil, fmt.Errorf("side %q: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sides[name] = s
	return s, nil
}

// namespace makes one that goes with the lab.
func (l *Lab) namespace(name string) (*namespace, error) {
	n, err := newNamespace(l.lease.name + "." + name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(errors.New("the lab is closed"), n.close(), discard([]string{n.path}))
	}
	l.spaces = append(l.spaces, n)
	return n, nil
}

// The addresses of a lab. Those of sides, servers and the links between count
// as public everywhere, since programs treat others differently: documentation
// networks would not do. 11.0.0.0/8 is routed by nobody whom we could want to
// reach, 2d00::/8 was never given to anybody, and no packet leaves the lab.

// link4 is the network between the middle and the outermost box of a side.
func link4(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(number), 0, 0}), 24)
}

// open4 is the network of hosts with public addresses.
func open4(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(number), 1, 0}), 24)
}

// home4 is the network behind the innermost NAT.
func home4(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(number), 0}), 24)
}

// carrier4 is the network between two NATs (RFC 6598).
func carrier4(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(number), 0}), 24)
}

// link6 and home6 are the same for IPv6.
func link6(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x2d, 0, 0, 6, 0, byte(number), 0, 0}), 64)
}

func home6(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x2d, 0, 0, 6, 0, byte(number), 0, 1}), 64)
}

// at is the nth host of a network, of at most 255.
func at(network netip.Prefix, n byte) netip.Prefix {
	b := network.Addr().AsSlice()
	b[len(b)-1] = n
	addr, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(addr, network.Bits())
}

// text returns rules of files, for a NAT whose outside address is wan and that
// begins to count ports with first. nft takes no variables in all of the places.
func text(files []string, wan netip.Addr, first int) (string, error) {
	var b strings.Builder
	for _, name := range files {
		raw, err := rules.ReadFile("rules/" + name + ".nft")
		if err != nil {
			return "", err
		}
		b.Write(raw)
	}
	return strings.NewReplacer("$WAN", wan.String(), "$FIRST", strconv.Itoa(first)).Replace(b.String()), nil
}
