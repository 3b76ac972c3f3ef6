// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/node/mesh"
)

// routeProtocol marks our routes in the kernel's tables, where "ip route" shows it.
const routeProtocol = 109

// record is what was done to one interface, so that it can be undone.
type record struct {
	name string
	// index tells the interface from a later one of the same name; 0 means none.
	index int
	// raised is set when the link was down before.
	raised bool
	// mtu is the one before; 0 if it was not changed.
	mtu               int
	addresses, routes []netip.Prefix
	settings          []setting
	// firewall is the fingerprint of the table that was put; empty without one.
	firewall string
	// exit is set when there may be routes and rules for Config.Exit.
	exit bool
	// refused are the routes that are left out, each logged once.
	refused []netip.Prefix
	// left are the settings that were on before, each logged once.
	left []string
}

// Set makes the interface what c says. Equal calls change nothing; what is
// missing again, for instance since the link was down, is put back.
//
// Errors that wrap mesh.ErrInvalid changed nothing; after another error the
// next Set carries on from where this one stopped.
func (h *Host) Set(ctx context.Context, c Config) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("set up interface: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.set(ctx, &c); err != nil {
		return fmt.Errorf("set up interface %s: %w", c.Interface, err)
	}
	return nil
}

// Close takes back everything. An interface that is gone took the rest along.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.undo()
}

// set does the work of Set.
func (h *Host) set(ctx context.Context, c *Config) error {
	if h.done.name != "" && h.done.name != c.Interface {
		if err := h.undo(); err != nil {
			return err
		}
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(c.Interface)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return ErrGone
	}
	if err != nil {
		return err
	}
	if index := link.Attrs().Index; h.done.index != index {
		h.done.name = c.Interface
		kept := h.done.exit || h.kept == c.Interface
		h.done = record{name: c.Interface, index: index, settings: h.done.outliving(), exit: kept}
		h.kept = ""
	}
	steps := []func(nl *netlink.Handle, link netlink.Link, c *Config) error{
		h.setLink, h.setForwarding, h.setAddresses, h.setRoutes, h.setExit, h.dropAddresses,
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(nl, link, c); err != nil {
			return err
		}
	}
	return nil
}

// setLink sets the MTU and brings the interface up.
func (h *Host) setLink(nl *netlink.Handle, link netlink.Link, c *Config) error {
	if now := link.Attrs().MTU; c.MTU != 0 && c.MTU != now {
		h.before("mtu")
		if err := nl.LinkSetMTU(link, c.MTU); err != nil {
			return fmt.Errorf("set mtu %d: %w", c.MTU, err)
		}
		if h.done.mtu == 0 {
			h.done.mtu = now
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		h.before("up")
		if err := nl.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up: %w", err)
		}
		h.done.raised = true
	}
	return nil
}

// setAddresses adds the addresses that are missing.
func (h *Host) setAddresses(nl *netlink.Handle, link netlink.Link, c *Config) error {
	present, err := addresses(nl, link)
	if err != nil {
		return err
	}
	for _, p := range c.Addresses {
		if slices.Contains(present, p) {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // a tunnel has no duplicates to wait for
		}
		h.before("address")
		if err := nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %v: %w", p, err)
		}
		h.told(slices.Contains(h.done.addresses, p), "address", p)
		h.done.addresses = with(h.done.addresses, p)
	}
	return nil
}

// told logs what somebody else had taken away.
func (h *Host) told(again bool, what string, p netip.Prefix) {
	if again {
		h.logger.Warn("put back what was taken from the mesh interface", what, p)
	}
}

// dropAddresses removes the addresses of ours that are not wanted any more. It
// comes last: routes may depend on them.
func (h *Host) dropAddresses(nl *netlink.Handle, link netlink.Link, c *Config) error {
	for _, p := range slices.Clone(h.done.addresses) {
		if slices.Contains(c.Addresses, p) {
			continue
		}
		if err := gone(nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})); err != nil {
			return fmt.Errorf("remove address %v: %w", p, err)
		}
		h.done.addresses = less(h.done.addresses, p)
	}
	return nil
}

// setRoutes adds the routes that are missing and removes ours that are not
// wanted any more.
func (h *Host) setRoutes(nl *netlink.Handle, link netlink.Link, c *Config) error {
	present, elsewhere, err := routes(nl, link)
	if err != nil {
		return err
	}
	refused := h.done.refused
	h.done.refused = nil
	wanted := make(map[netip.Prefix]bool, len(c.Routes))
	for _, p := range c.Routes {
		has := slices.Contains(present, p)
		why := c.danger(p)
		if why == "" && !has && slices.Contains(elsewhere, p) {
			why = "the host has another"
		}
		if why != "" {
			h.refuse(p, why, slices.Contains(refused, p))
			continue
		}
		if wanted[p] = true; has {
			continue
		}
		h.before("route")
		if err := nl.RouteAdd(route(link, p)); err != nil {
			return fmt.Errorf("add route %v: %w", p, err)
		}
		h.told(slices.Contains(h.done.routes, p), "route", p)
		h.done.routes = with(h.done.routes, p)
	}
	for _, p := range slices.Clone(h.done.routes) {
		if wanted[p] {
			continue
		}
		if err := gone(nl.RouteDel(route(link, p))); err != nil {
			return fmt.Errorf("remove route %v: %w", p, err)
		}
		h.done.routes = less(h.done.routes, p)
	}
	return nil
}

// danger says why a route must not be there, whatever else the host has; empty
// if it may.
func (c *Config) danger(p netip.Prefix) string {
	if mesh.TooWide(p) {
		return "it leads to everything, or to much of it"
	}
	if mesh.CheckSpecial(p) != nil {
		return "it holds addresses that mean something else on each host"
	}
	if i := slices.IndexFunc(c.Outside, p.Contains); i >= 0 {
		return "it holds " + c.Outside[i].String() + ", on which the tunnel itself runs"
	}
	return ""
}

// LeftOut is how many routes of the latest Config were left out.
func (h *Host) LeftOut() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.done.refused)
}

// refuse notes that a route is left out, and logs it unless that was said before.
func (h *Host) refuse(p netip.Prefix, why string, said bool) {
	h.done.refused = with(h.done.refused, p)
	if !said {
		h.logger.Warn("route left out", "addr", p, "reason", why)
	}
}

// undo takes back what is recorded, as far as the interface is still there.
func (h *Host) undo() error {
	errs := []error{h.restore(nil)}
	errs = append(errs, h.protect(&firewall{mesh: h.done.name}, false))
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer nl.Close()
	if name := cmp.Or(h.kept, h.done.name); h.kept != "" || h.done.exit {
		table := exitTable(name)
		errs = append(errs, h.dropExits(nl, func(t int) bool { return t == table }))
		h.kept = ""
	}
	done := h.done
	h.done = record{name: done.name, settings: done.settings, firewall: done.firewall}
	if len(done.settings) == 0 {
		h.done = record{}
	}
	link, err := nl.LinkByName(done.name)
	if done.index == 0 || errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && link.Attrs().Index != done.index {
		return errors.Join(errs...)
	}
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, p := range done.routes {
		errs = append(errs, gone(nl.RouteDel(route(link, p))))
	}
	for _, p := range done.addresses {
		errs = append(errs, gone(nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})))
	}
	if done.raised {
		errs = append(errs, nl.LinkSetDown(link))
	}
	if done.mtu != 0 {
		errs = append(errs, nl.LinkSetMTU(link, done.mtu))
	}
	return errors.Join(errs...)
}

// gone forgives that something to be removed is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// addresses returns the addresses of a link.
func addresses(nl *netlink.Handle, link netlink.Link) ([]netip.Prefix, error) {
	list, err := nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	present := make([]netip.Prefix, 0, len(list))
	for _, a := range list {
		present = append(present, prefix(a.IPNet))
	}
	return present, nil
}

// routes returns the networks to which the main table leads through a link,
// and those to which it leads elsewhere. A network may be in both.
func routes(nl *netlink.Handle, link netlink.Link) (present, elsewhere []netip.Prefix, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			switch {
			case r.Dst == nil:
			case r.LinkIndex == link.Attrs().Index:
				present = append(present, prefix(r.Dst))
			default:
				elsewhere = append(elsewhere, prefix(r.Dst))
			}
		}
	}
	return present, elsewhere, nil
}

// route returns our route to p.
func route(link netlink.Link, p netip.Prefix) *netlink.Route {
	return &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(p),
		Scope: netlink.SCOPE_LINK, Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN,
	}
}

// ipNet converts a prefix and keeps the host bits.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix converts what ipNet makes back.
func prefix(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// with returns list with p in it.
func with(list []netip.Prefix, p netip.Prefix) []netip.Prefix {
	if slices.Contains(list, p) {
		return list
	}
	return append(list, p)
}

// less returns list without p.
func less(list []netip.Prefix, p netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(list, func(q netip.Prefix) bool { return p == q })
}
