// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settingsDir is where the kernel shows its network settings.
const settingsDir = "/proc/sys/net/"

const on = "1"

// allForwarding4 and allForwarding6 make a router of the whole host.
const (
	allForwarding4 = "ipv4/conf/all/forwarding"
	allForwarding6 = "ipv6/conf/all/forwarding"
)

// setForwarding puts the firewall in force and switches forwarding on or back.
// What outlives the process is in the ledger before it is done, and until it is
// undone.
func (h *Host) setForwarding(nl *netlink.Handle, link netlink.Link, c *Config) error {
	var wanted []setting
	if c.Forward {
		egress, err := egress(nl, link, c.Serve)
		if err != nil {
			return err
		}
		wanted = h.forwarding(append(egress, link.Attrs().Name), settingsDir)
	}
	if c.Exit != nil {
		egress, err := egress(nl, link, []netip.Prefix{families[0].all})
		if err != nil {
			return err
		}
		wanted = append(wanted, h.loosened(egress)...)
	}
	f := &firewall{mesh: link.Attrs().Name, mtu: c.MTU, own: c.Addresses, networks: c.Networks, serve: c.Serve, masquerade: c.Masquerade}
	if f.mtu == 0 {
		f.mtu = link.Attrs().MTU
	}
	if err := h.claim(f, wanted); err != nil {
		return err
	}
	for _, s := range wanted {
		if err := h.switchTo(s); err != nil {
			return err
		}
	}
	if err := h.restore(wanted); err != nil {
		return err
	}
	return h.protect(f, len(c.Serve) > 0)
}

// forwarding returns the settings that let interfaces forward. The kernel asks
// the interface that a packet came in on; for IPv6, older kernels have one
// switch for all, with which an interface takes no router's word any more unless
// it is told to do so all the same: the host would lose its way out.
func (h *Host) forwarding(interfaces []string, dir string) []setting {
	var list []setting
	for _, name := range interfaces {
		list = append(list, setting{path: "ipv4/conf/" + name + "/forwarding", value: on})
		forced := "ipv6/conf/" + name + "/force_forwarding"
		if _, err := os.Stat(dir + forced); !errors.Is(err, fs.ErrNotExist) {
			list = append(list, setting{path: forced, value: on})
		} else if !slices.ContainsFunc(list, func(s setting) bool { return s.path == allForwarding6 }) {
			list = append(list, h.adverts(dir)...)
			list = append(list, setting{path: allForwarding6, value: on})
		}
	}
	return list
}

// adverts returns the settings that let interfaces that follow routers go on to
// do so, if it is up to us that the host forwards.
func (h *Host) adverts(dir string) []setting {
	own := h.changed(allForwarding6)
	if now, err := os.ReadFile(dir + allForwarding6); err != nil || strings.TrimSpace(string(now)) == on && !own {
		return nil
	}
	paths, _ := filepath.Glob(dir + "ipv6/conf/*/accept_ra") // the pattern is fine
	var list []setting
	for _, p := range paths {
		path := strings.TrimPrefix(p, dir)
		now, err := os.ReadFile(p)
		if h.changed(path) || err == nil && strings.TrimSpace(string(now)) == on && ours(path) {
			list = append(list, setting{path: path, value: "2"})
		}
	}
	return list
}

// changed reports whether we changed a setting.
func (h *Host) changed(path string) bool {
	return slices.ContainsFunc(h.done.settings, func(s setting) bool { return s.path == path })
}

// egress returns the names of the interfaces through which the host reaches
// networks, but for link itself.
func egress(nl *netlink.Handle, link netlink.Link, networks []netip.Prefix) ([]string, error) {
	var names []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		mine := slices.DeleteFunc(slices.Clone(networks), func(p netip.Prefix) bool { return p.Addr().Is4() != (family == netlink.FAMILY_V4) })
		if len(mine) == 0 {
			continue
		}
		list, err := nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, index := range leading(list, mine) {
			if index == link.Attrs().Index {
				continue
			}
			out, err := nl.LinkByIndex(index)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				continue // gone since
			}
			if err != nil {
				return nil, err
			}
			if !slices.Contains(names, out.Attrs().Name) && interfaceName(out.Attrs().Name) {
				names = append(names, out.Attrs().Name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// leading returns the indices of the interfaces to which routes of one family
// send packets for networks: by the routes within each, and by the longest
// around it. To everything there lead only the routes that are for all of it, or
// a half: what is routed apart is not meant by it.
func leading(routes []netlink.Route, networks []netip.Prefix) []int {
	var indices []int
	for _, p := range networks {
		around := -1
		for i := range routes {
			if to := destinationOf(&routes[i], p); to.Bits() <= p.Bits() && to.Contains(p.Addr()) {
				around = max(around, to.Bits())
			}
		}
		for i := range routes {
			to := destinationOf(&routes[i], p)
			within := to.Bits() > p.Bits() && p.Contains(to.Addr()) && (p.Bits() > 0 || to.Bits() == 1)
			if within || to.Bits() == around && to.Contains(p.Addr()) {
				indices = append(indices, hops(&routes[i])...)
			}
		}
	}
	slices.Sort(indices)
	return slices.Compact(indices)
}

// destinationOf returns where a route of the family of p leads.
func destinationOf(r *netlink.Route, p netip.Prefix) netip.Prefix {
	if r.Dst == nil {
		return netip.PrefixFrom(p.Addr(), 0).Masked()
	}
	return prefix(r.Dst).Masked()
}

// hops returns the indices of the interfaces that a route uses.
func hops(r *netlink.Route) []int {
	var list []int
	if r.LinkIndex > 0 {
		list = append(list, r.LinkIndex)
	}
	for _, hop := range r.MultiPath {
		list = append(list, hop.LinkIndex)
	}
	return list
}

// switchTo gives a setting our value.
func (h *Host) switchTo(s setting) error {
	now, err := os.ReadFile(settingsDir + s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without that family, or an interface that went
	}
	if err != nil {
		return fmt.Errorf("read setting: %w", err)
	}
	if strings.TrimSpace(string(now)) == s.value {
		return nil
	}
	h.before(s.path)
	if err := os.WriteFile(settingsDir+s.path, []byte(s.value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("switch on forwarding: %w", err)
	}
	return nil
}

// restore gives the settings that we changed and that are not in keep their old
// values, unless somebody else changed them since or another interface of ours
// needs them.
func (h *Host) restore(keep []setting) error {
	var errs []error
	h.done.settings = slices.DeleteFunc(h.done.settings, func(s setting) bool {
		if slices.ContainsFunc(keep, func(k setting) bool { return k.path == s.path }) {
			return false
		}
		if err := h.giveBack(s, h.done.name); err != nil {
			errs = append(errs, err)
			return false
		}
		return true
	})
	return errors.Join(errs...)
}

// giveBack gives one setting its old value for the interface name. That of
// another interface of ours may be about to need it: it says so before it looks
// whether the setting is on, and is asked again after that is off.
func (h *Host) giveBack(s setting, name string) error {
	if claimed(s.path, name) {
		return nil
	}
	now, err := os.ReadFile(settingsDir + s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read setting: %w", err)
	}
	if strings.TrimSpace(string(now)) != s.value {
		return nil
	}
	h.before("restore " + s.path)
	if err := os.WriteFile(settingsDir+s.path, []byte(s.before), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore setting: %w", err)
	}
	if claimed(s.path, name) {
		return os.WriteFile(settingsDir+s.path, []byte(s.value), 0)
	}
	return nil
}
