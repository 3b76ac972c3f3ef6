// SPDX-License-Identifier: Apache-2.0

package core

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// DropReason is why something was dropped without an answer.
type DropReason uint8

// The reasons.
const (
	DropJunk         DropReason = iota // no message that a server takes
	DropUnanswered                     // an answer that would be too large, or was not wanted (Config.Answer)
	DropNoAllocation                   // data for or from an allocation that is not there
	DropNoChannel                      // data on a channel that is not bound
	DropNoPermission                   // data to or from an address without permission
	DropForbidden                      // data to or from a peer that the policy does not allow any more
	DropOversize                       // data that does not fit a datagram with its header
	DropRate                           // data, or connections, beyond what the user may have
	NumDropReasons
)

// String is the reason as a label.
func (d DropReason) String() string {
	return [...]string{"junk", "unanswered", "no_allocation", "no_channel", "no_permission", "forbidden", "oversize", "rate"}[d]
}

// ErrorCodes are all codes of error responses, in rising order.
func ErrorCodes() []int {
	return []int{
		codeTryAlternate, codeBadRequest, codeUnauthenticated, codeForbidden, codeUnknownAttribute, codeMismatch,
		codeStaleNonce, codeFamily, codeWrongCredentials, codeTransport, codePeerFamily, codeConnectionExists,
		codeConnectionFailed, codeQuota, codeCapacity,
	}
}

// Stats are counters since New, and what the core holds now.
type Stats struct {
	// Dropped counts what was dropped, by reason.
	Dropped [NumDropReasons]uint64
	// Errors counts error responses, in the order of ErrorCodes.
	Errors [15]uint64
	// Allocated and Ended count allocations.
	Allocated, Ended uint64
	// Allocations, Reservations, Connections and Pending are held now.
	Allocations, Reservations, Connections, Pending int
}

func (s *Stats) count(code int) {
	if i, ok := slices.BinarySearch(ErrorCodes(), code); ok {
		s.Errors[i]++
	}
}

func (c *Core) drop(reason DropReason) { c.stats.Dropped[reason]++ }

// Stats returns the counters.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Allocations, s.Reservations, s.Connections = len(c.flows), len(c.reservations), len(c.connections)
	s.Pending = len(c.waiting.byID)
	return s
}

// Usage counts what an allocation has relayed: sent is to peers.
type Usage struct {
	SentPackets, SentBytes         uint64
	ReceivedPackets, ReceivedBytes uint64
}

// Info describes an allocation.
type Info struct {
	Flow      Flow
	User      string
	Transport Transport
	// Relayed are the relayed addresses, IPv4 first; invalid where there is none.
	Relayed [2]netip.AddrPort
	// Expires is when the last of them ends unless it is refreshed.
	Expires time.Time
	// Permissions, Channels and Connections are held, those that have just ended included.
	Permissions, Channels, Connections int
	Usage                              Usage
}

func (a *allocation) info() Info {
	i := Info{
		Flow: a.flow, User: a.user, Transport: a.transport, Usage: a.usage,
		Permissions: len(a.permissions), Channels: len(a.channels), Connections: len(a.connections),
	}
	for n, r := range a.relays {
		if r != nil && r.open {
			i.Relayed[n] = r.addr
		}
	}
	return i
}

// Allocations yields all allocations, in no order. The core must not be given
// events meanwhile.
func (c *Core) Allocations() iter.Seq[Info] {
	return func(yield func(Info) bool) {
		for _, a := range c.flows {
			info := a.info()
			var last int64
			for _, r := range a.relays {
				if r != nil {
					last = max(last, r.deadline)
				}
			}
			info.Expires = c.time(last)
			if !yield(info) {
				return
			}
		}
	}
}
