// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// port is an interface at which the program runs.
type port struct {
	Interface
	index int
	link  link.Link
	pair  bool // a veth pair in native mode: what it sends needs a program at the other end
}

// portTakes says to the program that an interface takes packets from another one
// (PORT_TAKES in maps.h).
const portTakes = 1

// candidate is an interface at which the program might run.
type candidate struct {
	net.Interface
	driver string // as ethtool -i shows it; empty for lo
}

func (c candidate) loopback() bool { return c.Flags&net.FlagLoopback != 0 }

// look finds all interfaces, those of them that the configuration means, and the
// host's addresses.
func (e *Engine) look() (all []net.Interface, found []candidate, err error) {
	if all, err = net.Interfaces(); err != nil {
		return nil, nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := addresses(all)
	if err != nil {
		return nil, nil, err
	}
	alone := only(addrs)
	e.mu.Lock()
	e.only = alone
	e.mu.Unlock()
	for _, i := range all {
		if e.means(i.Name, addrs[i.Name], alone) {
			found = append(found, candidate{Interface: i, driver: driver(i.Name)})
		}
	}
	if other := func(c candidate) bool { return !c.loopback() }; e.cfg.Interfaces == nil && slices.ContainsFunc(found, other) {
		found = slices.DeleteFunc(found, candidate.loopback)
	}
	return all, found, nil
}

// complete says what is missing among the interfaces that were found.
func (e *Engine) complete(found []candidate) error {
	for _, name := range e.cfg.Interfaces {
		if !slices.ContainsFunc(found, func(c candidate) bool { return c.Name == name }) {
			return fmt.Errorf("no interface %q, which Interfaces names", name)
		}
	}
	if len(found) == 0 {
		return fmt.Errorf("no interface has an address of the listeners %v", e.cfg.Listeners)
	}
	return nil
}

// means reports whether the program should run at an interface.
func (e *Engine) means(name string, addrs []netip.Addr, only map[int]netip.Addr) bool {
	if e.cfg.Interfaces != nil {
		return slices.Contains(e.cfg.Interfaces, name)
	}
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		for _, l := range e.cfg.Listeners {
			if at, ok := here(l, a, only); ok && at.Addr() == a {
				return true
			}
		}
		return slices.Contains(e.cfg.Relays, a)
	})
}

// addresses are those of all interfaces by name.
func addresses(all []net.Interface) (map[string][]netip.Addr, error) {
	found := make(map[string][]netip.Addr)
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				found[i.Name] = append(found[i.Name], p.Addr())
			}
		}
	}
	return found, nil
}

// only is the host's address of each family with which it can be meant when none
// is named; there is none if there are several.
func only(addrs map[string][]netip.Addr) map[int]netip.Addr {
	found := make(map[int]netip.Addr)
	for _, a := range slices.Concat(slices.Collect(maps.Values(addrs))...) {
		if !a.IsGlobalUnicast() {
			continue
		}
		if _, twice := found[family(a)]; twice {
			found[family(a)] = netip.Addr{}
		} else {
			found[family(a)] = a
		}
	}
	return found
}

// driver is the name of an interface's driver, empty if it has none.
func driver(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return ""
	}
	before, _, _ := bytes.Cut(info.Driver[:], []byte{0})
	return string(before)
}

// receivers are drivers that take packets which a native program sends them from
// another interface. The kernel would drop packets for others.
func receivers() []string {
	return []string{
		"bnxt_en", "ena", "fec", "i40e", "iavf", "ice", "igb", "igc", "ixgbe", "ixgbevf", "mlx4_en", "mlx5_core",
		"mvneta", "mvpp2", "nfp", "qede", "sfc", "stmmac", "st_gmac", "tun", "veth", "virtio_net",
	}
}

// forwards reports whether the kernel tells the interface routes.
func (c candidate) forwards() bool {
	for _, family := range []string{"ipv4", "ipv6"} {
		raw, err := os.ReadFile("/proc/sys/net/" + family + "/conf/" + c.Name + "/forwarding")
		if err == nil && strings.TrimSpace(string(raw)) != "1" || err != nil && family == "ipv4" {
			return false
		}
	}
	return true
}

// modes are those to try at the interface, best first.
func (c candidate) modes(wanted Mode) []Mode {
	switch {
	case wanted != Auto:
		return []Mode{wanted}
	case c.driver == "veth":
		return []Mode{Generic}
	default:
		return []Mode{Native, Generic}
	}
}

// attach runs the program at an interface. What fails is not tried again until the
// interface has changed.
func (e *Engine) attach(c candidate) (err error) {
	defer func() {
		if err != nil {
			e.passed[c.Index] = c
		}
	}()
	switch {
	case e.asker == nil && !c.forwards():
		return fmt.Errorf("%s does not forward, and the kernel tells it no routes: %w", c.Name, e.alone)
	case c.loopback() && e.cfg.Mode == Auto:
		return fmt.Errorf("%s: what is on it is hardly served, and slower; use mode generic if you want that", c.Name)
	case !c.loopback() && len(c.HardwareAddr) != 6:
		return fmt.Errorf("%s: it has no Ethernet addresses", c.Name)
	}
	var errs []error
	for _, mode := range c.modes(e.cfg.Mode) {
		err := e.attachAs(c, mode)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("run the XDP program at %s: mode %s: %w", c.Name, mode, err))
	}
	return errors.Join(errs...)
}

func (e *Engine) attachAs(c candidate, mode Mode) error {
	options := link.XDPOptions{Program: e.programs.Programs[genericProgram], Interface: c.Index, Flags: link.XDPGenericMode}
	known := uint32(0)
	if mode == Native {
		options.Program, options.Flags = e.programs.Programs[nativeProgram], link.XDPDriverMode
		if slices.Contains(receivers(), c.driver) {
			known = portTakes
		}
	}
	l, err := link.AttachXDP(options)
	if err != nil {
		return err
	}
	if err := holds(l, options); err != nil {
		return errors.Join(err, l.Close())
	}
	// Last, so that nobody is sent there before.
	if err := e.programs.Maps["ports"].Put(uint32(c.Index), known); err != nil {
		return errors.Join(err, l.Close())
	}
	p := &port{Interface: Interface{Name: c.Name, Mode: mode}, index: c.Index, link: l, pair: mode == Native && c.driver == "veth"}
	e.mu.Lock()
	e.ports = append(e.ports, p)
	e.mu.Unlock()
	return nil
}

// holds reports whether a program is where it should be, by what the kernel says.
func holds(l link.Link, want link.XDPOptions) error {
	is, err := l.Info()
	if err != nil {
		return err
	}
	program, err := want.Program.Info()
	if err != nil {
		return err
	}
	id, _ := program.ID()
	if at := is.XDP(); is.Program != id || at == nil || int(at.Ifindex) != want.Interface {
		return fmt.Errorf("the kernel has attached program %d, not %d", is.Program, id)
	}
	return nil
}
