// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"cmp"
	"slices"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// maxCarried is how many clients of a shard may have their allocation at another.
const maxCarried = 1 << 14

// carriedFor is how long a client that has gone without a word is known at most,
// and some more while no packets come.
const carriedFor = time.Minute

// fromClient hands a datagram of a client to the core, or to the shard that has
// what the client asks for: the kernel distributes clients by their address, and
// a reserved port may be elsewhere.
func (b *books) fromClient(now time.Time, flow core.Flow, packet []byte, out *core.Output) {
	if b.cfg.Other == nil || len(b.carried) == 0 && !isAllocate(packet) || !b.carry(flow, packet) {
		b.core.FromClient(now, flow, packet, out)
	}
	if len(b.carried) > 0 && now.Sub(b.looked) >= cmp.Or(b.cfg.carriedFor, carriedFor) {
		b.lookUp(now)
	}
}

// isAllocate tells Allocate requests from the mass of packets.
func isAllocate(packet []byte) bool { return len(packet) >= 20 && packet[0] == 0 && packet[1] == 3 }

// carry takes a datagram to another shard if it belongs there.
func (b *books) carry(flow core.Flow, packet []byte) bool {
	number, known := b.carried[flow]
	if !known {
		if !isAllocate(packet) || len(b.carried) >= maxCarried || b.core.Holds(flow) {
			return false
		}
		var ok bool
		if number, ok = core.ShardOf(packet); !ok || number == b.cfg.Core.Shard {
			return false
		}
	}
	there := b.cfg.Other(number)
	if there == nil {
		return false
	}
	packet = slices.Clone(packet)
	ok := there.offer(func(now time.Time, c *core.Core, out *core.Output) {
		c.FromClient(now, flow, packet, out)
		// After an Allocate always: word of the end of the last one may be on its way.
		if holds := c.Holds(flow); holds != known || holds && isAllocate(packet) {
			b.shard.offer(func(time.Time, *core.Core, *core.Output) { b.belongs(flow, number, holds) })
		}
	})
	if !ok {
		b.stats.Uncarried++
	}
	return true
}

// lookUp asks other shards which of the clients that they have here still hold an
// allocation: one that ends without a packet of its client is not heard of here.
func (b *books) lookUp(now time.Time) {
	b.looked = now
	flows := make(map[uint8][]core.Flow)
	for flow, number := range b.carried {
		flows[number] = append(flows[number], flow)
	}
	for number, list := range flows {
		there := b.cfg.Other(number)
		if there == nil {
			continue
		}
		there.offer(func(_ time.Time, c *core.Core, _ *core.Output) { // if there is no room, the next time
			gone := slices.DeleteFunc(list, c.Holds)
			if len(gone) == 0 {
				return
			}
			b.shard.offer(func(time.Time, *core.Core, *core.Output) {
				for _, flow := range gone {
					b.belongs(flow, number, false)
				}
			})
		})
	}
}

// belongs notes that another shard has a client's allocation, or has it no more.
func (b *books) belongs(flow core.Flow, number uint8, holds bool) {
	if holds {
		b.carried[flow] = number
	} else {
		delete(b.carried, flow)
	}
	b.stats.Carried = len(b.carried)
}
