// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// lastMetric is that of the route which refuses what no other one takes.
	lastMetric = 1 << 30
	// wholeMark compares all bits of a mark.
	wholeMark = 0xffffffff
)

// families are the address families of rules and routes, with their networks of
// everything.
var families = [...]struct {
	number int
	all    netip.Prefix
}{
	{netlink.FAMILY_V4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)},
	{netlink.FAMILY_V6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)},
}

// setExit makes routes and rules what c.Exit says. A packet is refused rather
// than sent beside the tunnel at each moment between: the routes come before the
// rules, and go after them.
func (h *Host) setExit(nl *netlink.Handle, link netlink.Link, c *Config) error {
	table := exitTable(h.done.name)
	if c.Exit == nil {
		if !h.done.exit {
			return nil
		}
		if err := h.dropExits(nl, func(t int) bool { return t == table }); err != nil {
			return err
		}
		h.done.exit = false
		return nil
	}
	again := h.done.exit
	h.done.exit = true
	for _, f := range families {
		enters := c.Exit.IPv4
		if f.number == netlink.FAMILY_V6 {
			enters = c.Exit.IPv6
		}
		if f.number == netlink.FAMILY_V6 && withoutIPv6() {
			continue
		}
		if err := h.setExitRoutes(nl, f.number, f.all, exitRoutes(link, table, f.all, enters, c.Exit)); err != nil {
			return err
		}
		if err := h.setExitRules(nl, f.number, table, again); err != nil {
			return err
		}
	}
	return nil
}

// withoutIPv6 reports whether the kernel has no IPv6 at all.
func withoutIPv6() bool {
	_, err := os.Stat(settingsDir + "ipv6")
	return err != nil
}

// exitRoutes are the routes of a table of ours.
func exitRoutes(link netlink.Link, table int, all netip.Prefix, enters bool, e *Exit) []*netlink.Route {
	var list []*netlink.Route
	for _, a := range e.Beside {
		if a.Is4() == all.Addr().Is4() {
			one := netip.PrefixFrom(a, a.BitLen())
			list = append(list, &netlink.Route{Dst: ipNet(one), Table: table, Protocol: routeProtocol, Type: unix.RTN_THROW, Priority: 1})
		}
	}
	if e.Block || !enters {
		list = append(list, &netlink.Route{
			Dst: ipNet(all), Table: table, Protocol: routeProtocol, Type: unix.RTN_UNREACHABLE, Priority: lastMetric,
		})
	}
	if enters {
		list = append(list, &netlink.Route{
			Dst: ipNet(all), Table: table, Protocol: routeProtocol, Type: unix.RTN_UNICAST, Priority: 1,
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
		})
	}
	return list
}

// setExitRoutes adds the routes of a table that are missing, and removes others
// of ours.
func (h *Host) setExitRoutes(nl *netlink.Handle, family int, all netip.Prefix, wanted []*netlink.Route) error {
	present, err := nl.RouteListFiltered(family, &netlink.Route{Table: wantedTable(wanted), Protocol: routeProtocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes of the exit: %w", err)
	}
	same := func(a, b *netlink.Route) bool {
		return a.Type == b.Type && destinationOf(a, all) == destinationOf(b, all) && (a.Type != unix.RTN_UNICAST || a.LinkIndex == b.LinkIndex)
	}
	for _, w := range wanted {
		if slices.ContainsFunc(present, func(p netlink.Route) bool { return same(&p, w) }) {
			continue
		}
		h.before("exit route")
		if err := nl.RouteAdd(w); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route to the exit: %w", err)
		}
	}
	for i := range present {
		if slices.ContainsFunc(wanted, func(w *netlink.Route) bool { return same(&present[i], w) }) {
			continue
		}
		h.before("no exit route")
		if err := gone(nl.RouteDel(&present[i])); err != nil {
			return fmt.Errorf("remove route to the exit: %w", err)
		}
	}
	return nil
}

// wantedTable is the table of routes, of which there is at least one.
func wantedTable(routes []*netlink.Route) int { return routes[0].Table }

// exitRulesOf are the rules of a table of ours, in the order in which they are
// added. The kernel asks the first one first: what the main table has but for
// default routes. All that is not the tunnel's own goes by the second.
func exitRulesOf(family, table int) []*netlink.Rule {
	known, rest := netlink.NewRule(), netlink.NewRule()
	known.Table, known.SuppressPrefixlen = unix.RT_TABLE_MAIN, 0
	mask := uint32(wholeMark)
	rest.Table, rest.Mark, rest.Mask, rest.Invert = table, Mark, &mask, true
	list := []*netlink.Rule{known, rest}
	for i, r := range list {
		r.Family, r.Protocol, r.Priority = family, routeProtocol, exitPriority(table)+i
	}
	return list
}

// setExitRules adds the rules of a table that are missing. Again says that they
// were there before.
func (h *Host) setExitRules(nl *netlink.Handle, family, table int, again bool) error {
	present, err := nl.RuleList(family)
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	for _, w := range exitRulesOf(family, table) {
		if slices.ContainsFunc(present, func(p netlink.Rule) bool {
			return p.Priority == w.Priority && p.Table == w.Table && p.Protocol == routeProtocol
		}) {
			continue
		}
		h.before("exit rule")
		if err := nl.RuleAdd(w); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add routing rule for the exit: %w", err)
		}
		if again {
			h.logger.Warn("put back a routing rule that was taken from the mesh interface", "n", w.Priority)
		}
	}
	return nil
}

// dropExits removes the rules and then the routes of those tables of ours that
// which names.
func (h *Host) dropExits(nl *netlink.Handle, which func(table int) bool) error {
	for _, f := range families {
		rules, err := nl.RuleList(f.number)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list routing rules: %w", err)
		}
		for i := range rules {
			table, ok := ruleTable(rules[i].Priority)
			if !ok || rules[i].Protocol != routeProtocol || !which(table) {
				continue
			}
			h.before("no exit rule")
			if err := absent(nl.RuleDel(&rules[i])); err != nil {
				return fmt.Errorf("remove routing rule of the exit: %w", err)
			}
		}
		routes, err := nl.RouteListFiltered(f.number, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: routeProtocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("list routes of the exit: %w", err)
		}
		for i := range routes {
			if !ourTable(routes[i].Table) || !which(routes[i].Table) {
				continue
			}
			h.before("no exit route")
			if err := gone(nl.RouteDel(&routes[i])); err != nil {
				return fmt.Errorf("remove route to the exit: %w", err)
			}
		}
	}
	return nil
}

// absent forgives that a rule to be removed is not there.
func absent(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return gone(err)
}

// buryExits removes what the dead have left: rules and routes for name, and for
// interfaces that are not there. With keep, those for name stay: the node that
// begins goes on with them.
func (h *Host) buryExits(nl *netlink.Handle, name string, keep bool) error {
	links, err := nl.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	alive := map[int]bool{}
	for _, l := range links {
		alive[exitTable(l.Attrs().Name)] = true
	}
	if !keep {
		delete(alive, exitTable(name))
	} else {
		alive[exitTable(name)] = true
		h.kept = name
	}
	return h.dropExits(nl, func(table int) bool { return !alive[table] })
}

// loosened returns the settings that let packets of the tunnel in where only
// marked ones go out: a host that compares each packet with where its answer
// would go does not see the mark.
func (h *Host) loosened(interfaces []string) []setting {
	strict := func(name string) bool {
		path := "ipv4/conf/" + name + "/rp_filter"
		now, err := os.ReadFile(settingsDir + path)
		return err == nil && strings.TrimSpace(string(now)) == strictFilter
	}
	all := strict("all")
	var list []setting
	for _, name := range interfaces {
		path := "ipv4/conf/" + name + "/rp_filter"
		if h.changed(path) || strict(name) || all && !h.isLoose(path) {
			list = append(list, setting{path: path, value: looseFilter})
		}
	}
	return list
}

// isLoose reports whether a filter is loose whatever that of all interfaces is:
// the kernel takes the larger of the two.
func (h *Host) isLoose(path string) bool {
	now, err := os.ReadFile(settingsDir + path)
	return err != nil || strings.TrimSpace(string(now)) == looseFilter
}
