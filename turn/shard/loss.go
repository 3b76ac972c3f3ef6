// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/meshgate/meshgate/turn/core"
)

// Loss is why the system did not take a datagram for sending.
type Loss uint8

// The reasons.
const (
	NoRoute  Loss = iota // the host has no way there, or not from this address
	Denied               // a firewall of the host, or another rule of it
	NoRoom               // no memory, or the queue of the socket or of the interface is full
	TooLarge             // it must stay whole and does not fit the way
	Failed               // anything else
	NumLosses
)

// String is the reason as a label.
func (l Loss) String() string {
	return [...]string{"no_route", "not_permitted", "no_buffer", "too_large", "socket_error"}[l]
}

// lossOf is what an error of sending means.
func lossOf(err error) Loss {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return Failed
	}
	switch errno {
	case syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT:
		return NoRoute
	case syscall.EPERM, syscall.EACCES:
		return Denied
	case syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN:
		return NoRoom
	case syscall.EMSGSIZE:
		return TooLarge
	default:
		return Failed
	}
}

// unsent counts a datagram that could not be sent from a port, which has not been
// relayed then.
func (b *books) unsent(p *port, to netip.AddrPort, data []byte, err error) {
	why := lossOf(err)
	b.stats.Lost[why]++
	if b.cfg.Unsent != nil {
		b.cfg.Unsent(why, err)
	}
	if p.relay == 0 {
		b.unsentClient(core.Flow{Client: to, Listener: p.listener}, data)
		return
	}
	b.stats.ToPeers.take(1, uint64(len(data)))
	b.core.UnsentPeer(p.relay, len(data))
}

// unsentClient takes back that data of a peer was relayed, if the message is that.
func (b *books) unsentClient(flow core.Flow, message []byte) {
	if n, ok := b.core.UnsentClient(flow, message); ok {
		b.stats.ToClients.take(1, uint64(n))
	}
}
