// SPDX-License-Identifier: Apache-2.0

package node

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// conversations are the UDP conversations of one exposed port: bounded in all
// and for each member of the mesh. A new one always finds room, at the cost of
// the member that has the most.
type conversations struct {
	mu   sync.Mutex // guards the fields below and the place of each conversation
	open map[netip.AddrPort]*conversation
	// members hold each member's conversations, the longest idle first.
	members map[string]*list.List
}

// conversation is a socket to the service for one address and port in the mesh.
type conversation struct {
	from   net.Addr
	key    netip.AddrPort
	member string
	target net.Conn
	place  *list.Element // in the list of its member; nil when it has ended
}

func newConversations() *conversations {
	return &conversations{open: map[netip.AddrPort]*conversation{}, members: map[string]*list.List{}}
}

// find returns the conversation with key, or nil.
func (v *conversations) find(key netip.AddrPort) *conversation {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.open[key]
}

// used notes that a datagram of c passed.
func (v *conversations) used(c *conversation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c.place != nil {
		v.members[c.member].MoveToBack(c.place)
	}
}

// add takes c in, which is not there yet. It returns the conversation that had
// to end for it, whose target is up to the caller, or nil: the one of the same
// member that is idle for longest, or of the member with the most when the
// port is full.
func (v *conversations) add(c *conversation) (ended *conversation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	own := v.members[c.member]
	if own == nil {
		own = list.New()
		v.members[c.member] = own
	}
	switch {
	case own.Len() >= maxMemberConversations:
		ended = own.Front().Value.(*conversation)
	case len(v.open) >= maxConversations:
		most := own
		for _, other := range v.members {
			if other.Len() > most.Len() {
				most = other
			}
		}
		if most.Len() > 0 {
			ended = most.Front().Value.(*conversation)
		}
	}
	c.place = own.PushBack(c)
	v.open[c.key] = c
	if ended != nil {
		v.drop(ended)
	}
	return ended
}

// remove forgets c, if it is still there.
func (v *conversations) remove(c *conversation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drop(c)
}

// drop is remove under the lock.
func (v *conversations) drop(c *conversation) {
	if c.place == nil {
		return
	}
	own := v.members[c.member]
	own.Remove(c.place)
	c.place = nil
	delete(v.open, c.key)
	if own.Len() == 0 {
		delete(v.members, c.member)
	}
}

// serveUDP keeps one socket to the service per conversation, so that the
// service can tell them apart and its answers find their way.
func (x *exposer) serveUDP(ctx context.Context, mesh net.PacketConn, e Expose) {
	defer func() { _ = mesh.Close() }()
	defer context.AfterFunc(ctx, func() { _ = mesh.Close() })()
	talks := newConversations()
	buf := make([]byte, 65535)
	for {
		n, from, err := mesh.ReadFrom(buf)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				x.log.Error("exposed port no longer reads", "addr", mesh.LocalAddr(), "err", err)
			}
			return
		}
		key := addrPortOf(from)
		c := talks.find(key)
		if c == nil {
			target, err := dialHost(ctx, e)
			if err != nil {
				x.log.Warn("exposed service does not answer", "addr", e.Target, "err", err)
				continue
			}
			c = &conversation{from: from, key: key, member: x.origin(key.Addr()), target: target}
			if ended := talks.add(c); ended != nil {
				_ = ended.target.Close() // which ends its reader
			}
			x.wait.Go(func() {
				defer talks.remove(c)
				answerUDP(ctx, mesh, c, talks)
			})
		}
		talks.used(c)
		_ = c.target.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = c.target.Write(buf[:n]) // an unreachable service shows in the reads
	}
}

// answerUDP carries the service's datagrams back until the conversation is idle.
func answerUDP(ctx context.Context, mesh net.PacketConn, c *conversation, talks *conversations) {
	defer func() { _ = c.target.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.target.Close() })()
	buf := make([]byte, 65535)
	for {
		n, err := c.target.Read(buf)
		if err != nil {
			return
		}
		_ = c.target.SetReadDeadline(time.Now().Add(udpIdle))
		talks.used(c)
		if _, err := mesh.WriteTo(buf[:n], c.from); err != nil {
			return
		}
	}
}

// addrPortOf is an address of the net package as a value; invalid when it has
// no IP address.
func addrPortOf(a net.Addr) netip.AddrPort {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
