// SPDX-License-Identifier: Apache-2.0

package core

import "net/netip"

// Flow is RFC 8656's 5-tuple: where a client is and where it came in.
type Flow struct {
	// Client is the client's address as the server sees it, not IPv4-mapped.
	Client netip.AddrPort
	// Conn is 0 for datagrams; on a stream it is the driver's number of the
	// connection, which is not used again before StreamClosed.
	Conn uint64
	// Listener is an index into Config.Listeners.
	Listener uint16
}

// RelayID names a relay socket. Its low 32 bits are an index that is as low as
// the number of relays that were ever open at once, so that a driver can keep
// its sockets in a slice; the high ones differ each time an index is reused.
// 0 is no relay.
type RelayID uint64

// ConnectionID names a TCP connection to a peer (RFC 6062). 0 is none.
type ConnectionID uint32

// Kind is what an Action asks for.
type Kind uint8

// The kinds of actions, with the fields of Action that they use.
const (
	// SendClient: send Data to Flow.Client from Flow.Listener, or on the stream
	// Flow.Conn.
	SendClient Kind = iota + 1
	// SendPeer: send Data from Relay to Peer, unfragmented if DontFragment.
	SendPeer
	// OpenRelay: open a relay for Family and Transport, on behalf of User, and
	// answer with RelayOpened or RelayFailed. With Even the port is even, and with Second
	// not 0 the next port is opened too, under that id, or both fail.
	OpenRelay
	// CloseRelay: close Relay. No event for it counts any more.
	CloseRelay
	// Connect: open a TCP connection from Relay to Peer and answer with
	// Connected or ConnectFailed for Connection. A driver should give up after
	// 30 seconds, when the core does.
	Connect
	// Splice: hand the stream Flow.Conn over. From here its bytes go to
	// Connection and back as they are, those that were read behind the last
	// frame first; the core sees no more of either until ConnectionClosed.
	Splice
	// Disconnect: close Connection, and the stream spliced to it if there is one.
	Disconnect
	// ChannelsChanged: a path that serves channels past the core must serve for
	// Flow what Bindings yields now, and nothing else. Only with Config.Offload.
	ChannelsChanged
)

// Action is something that the driver must do, in the order of the Output.
type Action struct {
	Kind         Kind
	Family       Family
	Transport    Transport
	Even         bool
	DontFragment bool
	Flow         Flow
	Relay        RelayID
	Second       RelayID
	Connection   ConnectionID
	Peer         netip.AddrPort
	// User is who has the allocation: a driver may choose ports by it.
	User string
	// Data lies in the packet that was handed in or in the Output: it is good
	// until that packet is overwritten, or Reset.
	Data []byte
}

// Output collects actions. Its owner executes them and calls Reset. The zero
// value is ready.
type Output struct {
	Actions []Action
	arena   []byte // messages that the core wrote
}

// maxArena is how much memory an Output keeps over Reset.
const maxArena = 1 << 20

// Reset empties o and keeps its memory for what comes next.
func (o *Output) Reset() {
	clear(o.Actions)
	o.Actions = o.Actions[:0]
	if cap(o.arena) > maxArena {
		o.arena = nil
	}
	o.arena = o.arena[:0]
}

func (o *Output) add(a Action) { o.Actions = append(o.Actions, a) }
