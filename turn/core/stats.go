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

// Failure is why the credential of a request was refused. Its client is not told.
type Failure uint8

// The failures.
const (
	FailedMismatch Failure = iota // none of the keys of the account
	FailedExpired                 // the key is right, the account has ended
	FailedRevoked                 // the key is right, Config.Admit says no
	FailedAwaited                 // no key that is known yet: no answer
	FailedTooFar                  // the key is right, the account would end in more than a year
	FailedUnknown                 // no such account, or the name is none that there can be
	FailedGuessing                // not tried, or not told: its network has had too many refused
	NumFailures
)

// String is the failure as a label.
func (f Failure) String() string {
	return [...]string{"mismatch", "expired", "revoked", "undecided", "too_far", "unknown", "guessing"}[f]
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
	// Failed counts requests whose credential was refused.
	Failed [NumFailures]uint64
	// Full counts requests, and connections of peers, that were refused because a bound
	// was reached.
	Full [NumResources][NumBounds]uint64
	// Relayed counts what all allocations have relayed.
	Relayed Usage
	// Allocated and Ended count allocations.
	Allocated, Ended uint64
	// Allocations, Reservations and Connections are held now.
	Allocations, Reservations, Connections int
}

func (s *Stats) count(code int) {
	if i, ok := slices.BinarySearch(ErrorCodes(), code); ok {
		s.Errors[i]++
	}
}

func (c *Core) drop(reason DropReason) { c.stats.Dropped[reason]++ }

// Add adds what another core has counted, and holds.
func (s *Stats) Add(o Stats) {
	for i, n := range o.Dropped {
		s.Dropped[i] += n
	}
	for i, n := range o.Errors {
		s.Errors[i] += n
	}
	for i, n := range o.Failed {
		s.Failed[i] += n
	}
	for i := range o.Full {
		for j, n := range o.Full[i] {
			s.Full[i][j] += n
		}
	}
	s.Relayed.add(o.Relayed)
	s.Allocated += o.Allocated
	s.Ended += o.Ended
	s.Allocations += o.Allocations
	s.Reservations += o.Reservations
	s.Connections += o.Connections
}

// Refused is how many requests had a credential that was refused. A driver tells by
// it who guesses.
func (c *Core) Refused() uint64 {
	f := &c.stats.Failed
	return f[FailedMismatch] + f[FailedExpired] + f[FailedRevoked] + f[FailedGuessing]
}

// Stats returns the counters.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Allocations, s.Reservations, s.Connections = len(c.flows), len(c.reservations), len(c.connections)
	return s
}

// Usage counts what an allocation has relayed: sent is to peers.
type Usage struct {
	SentPackets, SentBytes         uint64
	ReceivedPackets, ReceivedBytes uint64
}

func (u *Usage) add(o Usage) {
	u.SentPackets += o.SentPackets
	u.SentBytes += o.SentBytes
	u.ReceivedPackets += o.ReceivedPackets
	u.ReceivedBytes += o.ReceivedBytes
}

// Info describes an allocation.
type Info struct {
	// ID names the allocation; no other one, also of another core, has it.
	// Reservations, which Evict tells of, have none.
	ID   uint64
	Flow Flow
	// Since is when it was asked for.
	Since     time.Time
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
		ID: a.id, Flow: a.flow, Since: a.since, User: a.user, Transport: a.transport, Usage: a.usage,
		Permissions: len(a.permissions), Channels: len(a.channels), Connections: len(a.connections),
	}
	for n, r := range a.relays {
		if r != nil && r.open {
			i.Relayed[n] = r.addr
		}
	}
	return i
}

// last is the info of an allocation that ends, with all relayed addresses that it had.
func (a *allocation) last() Info {
	i := a.info()
	for n, addr := range a.ended {
		if !i.Relayed[n].IsValid() {
			i.Relayed[n] = addr
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

// ShardOfAllocation is Config.Shard of the core that has the allocation with an
// Info.ID, if there is one.
func ShardOfAllocation(id uint64) uint8 { return uint8(id >> 56) }
