// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"iter"
	"net/netip"

	"github.com/meshgate/meshgate/turn/core"
)

// Relays opens UDP sockets for relays and knows how addresses look from inside.
type Relays interface {
	// Open opens what an OpenRelay action with Transport UDP asks for, by Listen;
	// second only if a.Second is not 0. The shard owns the sockets from here.
	Open(a core.Action) (first, second Opened, err error)
	// Closed tells that the socket of a relay is closed; addr is as Open gave it.
	Closed(addr netip.AddrPort)
	// Inside returns where to send what is for peer: its address, or behind a
	// one-to-one NAT that of a socket of this host.
	Inside(peer netip.AddrPort) netip.AddrPort
	// Outside undoes Inside for the source of a datagram.
	Outside(src netip.AddrPort) netip.AddrPort
}

// Opened is an open relay. Addr is its address as peers see it.
type Opened struct {
	Socket *Socket
	Addr   netip.AddrPort
}

// Streams executes actions on streams. It copies the data of Send.
type Streams interface {
	// Send executes SendClient on a stream. It is false when the data is dropped.
	Send(flow core.Flow, data []byte) bool
	// OpenRelay and CloseRelay are the actions for relays of TCP.
	OpenRelay(a core.Action)
	CloseRelay(id core.RelayID)
	// Connect, Disconnect and Splice are the actions of these names.
	Connect(a core.Action)
	Disconnect(id core.ConnectionID)
	Splice(flow core.Flow, id core.ConnectionID)
}

// Offload is a path past the core, such as one in the kernel.
type Offload interface {
	// Changed tells that for flow bindings are now all that it may serve.
	Changed(flow core.Flow, bindings iter.Seq[core.Binding])
	// Counters returns what it has relayed for flow since it was asked last. It
	// is asked once a second, and after Changed.
	Counters(flow core.Flow) core.Usage
}
