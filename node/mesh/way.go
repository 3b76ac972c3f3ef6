// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"time"
)

// WayKind says who carries packets between two nodes.
type WayKind int

// The kinds of ways. The zero value is that there is none.
const (
	NoWay WayKind = iota
	// DirectWay has nobody but the network on it.
	DirectWay
	// RelayedWay leads over a TURN server, which cannot read the packets.
	RelayedWay
	// CarriedWay leads over another node, which decrypts and forwards them.
	CarriedWay
)

// Way is how packets of a node get to another one, for people.
type Way struct {
	// Node is the other end.
	Node NodeID
	Kind WayKind
	// Via is the node that carries the packets or whose TURN server does, or the
	// host of a TURN server that is no node's; empty for none or unknown.
	Via string
	// Transport is how a relay is reached: UDP, TCP or TLS; empty for none or
	// unknown.
	Transport string
	// Remote is where packets go; zero when they are carried, or unknown.
	Remote netip.AddrPort
	// RTT is what the last check took; zero: none was made.
	RTT time.Duration
	// Since is when packets began to go this way; zero: unknown.
	Since time.Time
	// Why says in one sentence why the way is not direct, or why there is none.
	Why string
}

// Pong is what came back from a node that was asked for a sign of life.
type Pong struct {
	// Address is that of the node in the mesh.
	Address netip.Addr
	RTT     time.Duration
}

// ExitUse is how a node uses an exit.
type ExitUse struct {
	// Node is the exit; empty: none is used, and the rest is zero.
	Node NodeID
	// Works says that packets to the Internet go through it; Why says why not.
	Works bool
	Why   string
	// Open says that packets leave the host in the usual way while it does not
	// work; else they are not sent.
	Open bool
	// Since is when Works became what it is.
	Since time.Time
}
