// SPDX-License-Identifier: Apache-2.0

package core

import (
	"iter"
	"net/netip"
	"time"
)

// Binding is a channel as a faster path than the core, such as one in the
// kernel, may serve it on its own.
type Binding struct {
	Channel uint16
	Relay   RelayID
	Relayed netip.AddrPort // the relay's address, as the peer sees it
	Peer    netip.AddrPort
	// ToPeer and FromPeer are when packets to and from the peer must end,
	// unless a later Binding says otherwise.
	ToPeer, FromPeer time.Time
	// BytesPerSecond bounds all allocations together that have the same Rate, in both
	// directions; 0 means no bound.
	BytesPerSecond int64
	Rate           *Rate
}

// Bindings yields the channels of a flow's allocation whose peers the policy
// allows until it changes. After a ChannelsChanged action they are all that such a path may
// serve for the flow; the core must not be given events meanwhile.
func (c *Core) Bindings(now time.Time, flow Flow) iter.Seq[Binding] {
	return func(yield func(Binding) bool) {
		at, a := c.at(now), c.flows[flow.key()]
		if a == nil {
			return
		}
		for number, p := range a.channels {
			r := a.relayOf(p.addr.Addr())
			if r == nil || r.deadline <= at || p.deadline <= at || !c.allowed(a, p) || p.fleeting {
				continue
			}
			b := Binding{
				Channel: number, Relay: r.id, Relayed: r.addr, Peer: p.addr,
				ToPeer:   c.time(min(r.deadline, p.deadline)),
				FromPeer: c.time(min(r.deadline, p.deadline, p.permission.deadline)),
			}
			if a.rate != nil && a.rate.PerSecond() > 0 {
				b.BytesPerSecond, b.Rate = a.rate.PerSecond(), a.rate
			}
			if !yield(b) {
				return
			}
		}
	}
}

// Credit counts what another path has relayed for the allocation of a flow, which
// may have ended since. The core then relays as much less: both paths together keep
// the rate. A driver with such a path calls it after each ChannelsChanged action.
func (c *Core) Credit(now time.Time, flow Flow, u Usage) {
	c.stats.Relayed.add(u)
	key := flow.key()
	a, rate := c.flows[key], c.owed[key]
	delete(c.owed, key)
	if a != nil {
		a.usage.add(u)
	}
	if a != nil && rate == nil {
		rate = a.rate
	}
	if rate != nil {
		rate.spend(now, u.SentBytes+u.ReceivedBytes)
	}
}

// owes remembers, until Credit, by which rate a was bounded, which ends now: who could
// begin anew without a debt would have no bound.
func (c *Core) owes(a *allocation) {
	if a.rate != nil {
		c.owed[a.flow.key()] = a.rate
	}
}

// tell says that the channels of a are not what they were, if anybody wants to know.
func (c *Core) tell(a *allocation, out *Output) {
	if !c.cfg.Offload || len(a.channels) == 0 && !a.told {
		return
	}
	a.told = len(a.channels) > 0
	out.add(Action{Kind: ChannelsChanged, Flow: a.flow})
}

// time is a moment of the core's own time as the driver's.
func (c *Core) time(at int64) time.Time { return c.epoch.Add(time.Duration(at)) }
