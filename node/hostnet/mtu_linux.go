// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PathMTU returns the smallest MTU of the interfaces and routes on which the
// host sends to addrs, in bytes; 0 when it reaches none of them. Ways that lead
// through the interface of the last Set do not count: the tunnel does not run
// in itself.
func (h *Host) PathMTU(addrs []netip.Addr) (int, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer nl.Close()
	mesh, least := h.index(), 0
	for _, addr := range addrs {
		ways, err := nl.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{Mark: Mark})
		if err != nil {
			continue // no way there: it says nothing about those to others
		}
		for i := range ways {
			if ways[i].LinkIndex == mesh {
				continue
			}
			link, err := nl.LinkByIndex(ways[i].LinkIndex)
			if err != nil {
				continue // gone since
			}
			for _, mtu := range []int{ways[i].MTU, link.Attrs().MTU} {
				if mtu > 0 && (least == 0 || mtu < least) {
					least = mtu
				}
			}
		}
	}
	return least, nil
}
