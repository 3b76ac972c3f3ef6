// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Changes tells when somebody else has changed the interface of the last Set,
// its addresses or its routes; several changes may be told as one. The channel
// is closed when ctx ends, or when the kernel has no more to say.
func (h *Host) Changes(ctx context.Context) (<-chan struct{}, error) {
	links, addrs, routes := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate), make(chan netlink.RouteUpdate)
	ctx, cancel := context.WithCancel(ctx)
	for _, subscribe := range []func() error{
		func() error { return netlink.LinkSubscribe(links, ctx.Done()) },
		func() error { return netlink.AddrSubscribe(addrs, ctx.Done()) },
		func() error { return netlink.RouteSubscribe(routes, ctx.Done()) },
	} {
		if err := subscribe(); err != nil {
			cancel()
			return nil, fmt.Errorf("watch the host's network: %w", err)
		}
	}
	changes := make(chan struct{}, 1)
	go func() {
		defer close(changes)
		defer cancel()
		defer func() { // the library ends once nobody is needed to listen
			go drain(links)
			go drain(addrs)
			go drain(routes)
		}()
		for {
			index, ok := 0, false
			select {
			case <-ctx.Done():
				return
			case u, open := <-links:
				index, ok = int(u.Index), open
			case u, open := <-addrs:
				index, ok = u.LinkIndex, open
			case u, open := <-routes:
				// New routes are no loss; that one is deleted may be.
				index, ok = u.LinkIndex, open
				if open && u.Type != unix.RTM_DELROUTE {
					continue
				}
			}
			if !ok {
				return
			}
			if index == h.index() {
				select {
				case changes <- struct{}{}:
				default: // one that nobody has taken yet tells as much
				}
			}
		}
	}()
	return changes, nil
}

// index is that of the interface that was set up last.
func (h *Host) index() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.done.index
}

func drain[T any](c <-chan T) {
	for range c { //nolint:revive // only its end counts
	}
}
