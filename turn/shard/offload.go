// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// creditEvery is how often the counters of Offload are asked for.
const creditEvery = time.Second

// channelsChanged tells Offload what it may serve for a flow.
func (b *books) channelsChanged(now time.Time, flow core.Flow) {
	if b.cfg.Offload == nil {
		return
	}
	b.cfg.Offload.Changed(flow, b.core.Bindings(now, flow))
	b.creditFlow(now, flow) // what has ended included
	delete(b.offloaded, flow)
	for range b.core.Bindings(now, flow) {
		b.offloaded[flow] = struct{}{}
		break
	}
}

// creditAll counts what went past the core, if it is time, and returns when to
// do it again; false is never.
func (b *books) creditAll(now time.Time) (time.Time, bool) {
	if len(b.offloaded) == 0 {
		return time.Time{}, false
	}
	if !now.Before(b.credit) {
		b.credit = now.Add(creditEvery)
		for flow := range b.offloaded {
			b.creditFlow(now, flow)
		}
	}
	return b.credit, true
}

func (b *books) creditFlow(now time.Time, flow core.Flow) {
	u := b.cfg.Offload.Counters(flow)
	b.core.Credit(now, flow, u)
	b.stats.ToPeers.add(u.SentPackets, u.SentBytes)
	b.stats.ToClients.add(u.ReceivedPackets, u.ReceivedBytes)
}
