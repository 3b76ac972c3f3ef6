// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TunnelsBeside returns the tunnels of other nodes on the host: those of all but
// the interface own, to which our routes lead. It needs no privilege, and reads
// the host's routes only if there is another tunnel at all.
func TunnelsBeside(own string) (*Tunnels, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	links, err := nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var others []netlink.Link
	for _, l := range links {
		if kind := l.Type(); (kind == "tuntap" || kind == "tun" || kind == "wireguard") && l.Attrs().Name != own && l.Attrs().Flags&net.FlagUp != 0 {
			others = append(others, l)
		}
	}
	if len(others) == 0 {
		return nil, nil
	}
	return tunnelsOf(nl, others)
}

// tunnelsOf returns those of some interfaces that are tunnels of nodes.
func tunnelsOf(nl *netlink.Handle, links []netlink.Link) (*Tunnels, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		all = append(all, list...)
	}
	ours := make(map[int]bool)
	for i := range all {
		if all[i].Protocol == routeProtocol {
			ours[all[i].LinkIndex] = true
		}
	}
	t := new(Tunnels)
	in := make(map[int]bool)
	for _, l := range links {
		if !ours[l.Attrs().Index] {
			continue
		}
		in[l.Attrs().Index] = true
		list, err := addresses(nl, l)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			t.addresses = append(t.addresses, p.Addr())
		}
	}
	if len(in) == 0 {
		return nil, nil
	}
	for i := range all {
		r := &all[i]
		if r.Dst == nil || prefix(r.Dst).Bits() == 0 {
			continue
		}
		if p := prefix(r.Dst).Masked(); in[r.LinkIndex] {
			t.routes = append(t.routes, p)
		} else {
			t.beside = append(t.beside, p)
		}
	}
	return t, nil
}
