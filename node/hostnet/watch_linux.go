// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Changes tells when somebody else has changed the interface of the last Set,
// its addresses, its routes or its packet filter, and when other interfaces come,
// go, or change their addresses or MTU, on which the tunnel may run. Several
// changes may be told as one. The channel is closed when ctx ends, or when the
// kernel has no more to say.
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
	watched := h.filterChanges(ctx)
	filters := watched
	go func() {
		defer close(changes)
		defer func() { // the library ends once nobody is needed to listen
			cancel()
			go drain(links)
			go drain(addrs)
			go drain(routes)
			drain(watched)
		}()
		for {
			tell, ok := true, true
			select {
			case <-ctx.Done():
				return
			case _, tell = <-filters:
				if !tell {
					filters = nil // never again
				}
			case _, ok = <-links:
			case _, ok = <-addrs:
			case u, open := <-routes:
				// New routes are no loss; that one of ours is deleted may be.
				tell, ok = open && u.Type == unix.RTM_DELROUTE && u.LinkIndex == h.index(), open
			}
			if !ok {
				return
			}
			if tell {
				select {
				case changes <- struct{}{}:
				default: // one that nobody has taken yet tells as much
				}
			}
		}
	}()
	return changes, nil
}

// filterChanges tells when something was deleted from our table, until ctx ends;
// then the channel is closed. A kernel without nftables never tells.
func (h *Host) filterChanges(ctx context.Context) <-chan struct{} {
	told := make(chan struct{}, 1)
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		h.logger.Warn("that others change the packet filter of the mesh interface will not be noticed", "err", err)
		close(told)
		return told
	}
	stop := context.AfterFunc(ctx, socket.Close)
	go func() {
		defer close(told)
		defer func() {
			if stop() {
				socket.Close()
			}
		}()
		for ctx.Err() == nil {
			messages, _, err := socket.Receive()
			// More than the kernel keeps for us may hold what concerns us.
			lost := errors.Is(err, unix.ENOBUFS)
			if err != nil && !lost {
				return
			}
			if !lost && !h.concerns(messages) {
				continue
			}
			select {
			case told <- struct{}{}:
			default:
			}
		}
	}()
	return told
}

// nfHeader is the length of struct nfgenmsg.
const nfHeader = 4

// concerns reports whether one of the messages says that something of our table
// was deleted.
func (h *Host) concerns(messages []syscall.NetlinkMessage) bool {
	name := h.table()
	for i := range messages {
		switch messages[i].Header.Type {
		case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE,
			unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELCHAIN,
			unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELRULE:
			if tableOf(messages[i].Data) == name {
				return true
			}
		}
	}
	return false
}

// tableOf returns the name of the table in a message about one, or about a chain
// or rule in it: the attribute of number 1 in all three.
func tableOf(data []byte) string {
	if len(data) < nfHeader {
		return ""
	}
	for data = data[nfHeader:]; len(data) >= 4; {
		size, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])
		if size < 4 || size > len(data) {
			return ""
		}
		if kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == unix.NFTA_TABLE_NAME {
			return strings.TrimRight(string(data[4:size]), "\x00")
		}
		data = data[min(len(data), (size+3)&^3):]
	}
	return ""
}

// table is the name of the table of the interface that was set up last.
func (h *Host) table() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return tableName(h.done.name)
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
