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
// its addresses, its routes, the rules for them or its packet filter, and when other interfaces come,
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
	watched, ruled := h.filterChanges(ctx), h.ruleChanges(ctx)
	filters, rules := watched, ruled
	go func() {
		defer close(changes)
		defer func() { // the library ends once nobody is needed to listen
			cancel()
			go drain(links)
			go drain(addrs)
			go drain(routes)
			drain(watched)
			drain(ruled)
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
			case _, tell = <-rules:
				if !tell {
					rules = nil
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
	return h.subscribe(ctx, "the packet filter of the mesh interface", unix.NETLINK_NETFILTER, h.concerns, unix.NFNLGRP_NFTABLES)
}

// ruleChanges tells when a routing rule of ours was deleted, likewise.
func (h *Host) ruleChanges(ctx context.Context) <-chan struct{} {
	return h.subscribe(ctx, "the routing rules of the mesh interface", unix.NETLINK_ROUTE, ruleDeleted, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
}

// subscribe tells of messages of the kernel that concern us, until ctx ends; then
// the channel is closed. What says for the log what they are about.
func (h *Host) subscribe(ctx context.Context, what string, protocol int, concerns func([]syscall.NetlinkMessage) bool, groups ...uint) <-chan struct{} {
	told := make(chan struct{}, 1)
	socket, err := nl.Subscribe(protocol, groups...)
	if err != nil {
		h.logger.Warn("that others change "+what+" will not be noticed", "err", err)
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
			if !lost && !concerns(messages) {
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

// fibHeader is the length of struct fib_rule_hdr.
const fibHeader = 12

// ruleDeleted reports whether one of the messages says that a rule was deleted
// which may be ours.
func ruleDeleted(messages []syscall.NetlinkMessage) bool {
	for i := range messages {
		if m := &messages[i]; m.Header.Type == unix.RTM_DELRULE {
			if priority, ok := priorityOf(m.Data); ok {
				if _, ours := ruleTable(priority); ours {
					return true
				}
			}
		}
	}
	return false
}

// priorityOf returns the priority in a message about a routing rule.
func priorityOf(data []byte) (int, bool) {
	if len(data) < fibHeader {
		return 0, false
	}
	value := attribute(data[fibHeader:], unix.FRA_PRIORITY)
	if len(value) != 4 {
		return 0, false
	}
	return int(binary.NativeEndian.Uint32(value)), true
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
	return strings.TrimRight(string(attribute(data[nfHeader:], unix.NFTA_TABLE_NAME)), "\x00")
}

// attribute returns the value of the first attribute of a kind; nil without one.
func attribute(data []byte, wanted uint16) []byte {
	for len(data) >= 4 {
		size, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])
		if size < 4 || size > len(data) {
			return nil
		}
		if kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == wanted {
			return data[4:size]
		}
		data = data[min(len(data), (size+3)&^3):]
	}
	return nil
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
