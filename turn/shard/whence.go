// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// local is an address of this host, and the interface if it needs one.
type local struct {
	addr  netip.Addr
	index uint32
}

// fromListener gives a datagram of a client to the core, and on a socket of all
// addresses remembers to which of them the client sends, if it is answered.
func (b *books) fromListener(now time.Time, p *port, from netip.AddrPort, packet []byte, to local, out *core.Output) {
	before := len(out.Actions)
	flow := core.Flow{Client: from, Listener: p.listener}
	b.fromClient(now, flow, packet, out)
	if p.locals != nil && to.addr.IsValid() && len(packet) > 0 && packet[0] < 0x40 && len(out.Actions) > before {
		b.rememberLocal(p, flow, to)
	}
}

// maxLocals is how many clients without an allocation a socket of all addresses
// remembers at most.
const maxLocals = 4096

func (b *books) rememberLocal(p *port, flow core.Flow, to local) {
	known := p.locals
	if known[flow.Client] == to {
		return
	}
	if len(known) >= b.locals {
		for client := range known {
			if !b.core.Holds(core.Flow{Client: client, Listener: p.listener}) {
				delete(known, client)
			}
		}
		b.locals = len(known) + maxLocals
	}
	known[flow.Client] = to
}
