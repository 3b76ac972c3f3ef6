// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// Allocation is what one client holds, as an operator sees it.
type Allocation struct {
	// ID names the allocation as long as it lasts, and no other one of any server
	// before or after it.
	ID string
	// User is whose credential opened it.
	User string
	// Client is where its client is, and Server the address it came in at.
	Client, Server netip.AddrPort
	// Stream says that the client came by TCP or TLS, else by UDP, and Secure
	// that it is TLS.
	Stream, Secure bool
	// TCP says that it relays TCP (RFC 6062), else UDP.
	TCP bool
	// Relayed are the addresses at which peers reach it: one, or an IPv4 and an IPv6 one.
	Relayed []netip.AddrPort
	// Since is when it was made, and Expires when it ends unless it is refreshed.
	Since, Expires time.Time
	// Permissions, Channels and Connections (RFC 6062) are how many it holds.
	Permissions, Channels, Connections int
	// SentPackets and SentBytes went to peers, ReceivedPackets and ReceivedBytes
	// came from them. Bytes are those of the payload.
	SentPackets, SentBytes, ReceivedPackets, ReceivedBytes uint64
}

// Alternate is another server that clients may go to while this one drains.
type Alternate struct {
	// Addr is where it listens.
	Addr netip.AddrPort
	// Stream says that it listens there for TCP or TLS, else for UDP, and Secure
	// that it is TLS: each gets clients of its kind alone.
	Stream, Secure bool
	// Domain is the name in its certificate; "" for none.
	Domain string
}

// Allocations lists what all clients hold, the oldest first.
func (s *Server) Allocations() []Allocation {
	var list []Allocation
	s.each(func(_ time.Time, c *core.Core, _ *core.Output) {
		for info := range c.Allocations() {
			list = append(list, s.describe(info))
		}
	})
	slices.SortFunc(list, func(a, b Allocation) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	return list
}

func (s *Server) describe(i core.Info) Allocation {
	l := s.listening.core[i.Flow.Listener]
	a := Allocation{
		ID: fmt.Sprintf(idFormat, i.ID), User: i.User, Client: i.Flow.Client, Server: l.Addr, Stream: l.Stream, Secure: l.Secure,
		TCP: i.Transport == core.TCP, Since: i.Since.Round(0), Expires: i.Expires.Round(0),
		Permissions: i.Permissions, Channels: i.Channels, Connections: i.Connections,
		SentPackets: i.Usage.SentPackets, SentBytes: i.Usage.SentBytes,
		ReceivedPackets: i.Usage.ReceivedPackets, ReceivedBytes: i.Usage.ReceivedBytes,
	}
	for _, r := range i.Relayed {
		if r.IsValid() {
			a.Relayed = append(a.Relayed, r)
		}
	}
	return a
}

// idFormat is how IDs of core look in Allocation.ID.
const idFormat = "%016x"

// CloseAllocation ends the allocation with an ID at once, and says whether there
// was one, and the connection of its client if that came by one; over UDP the client
// is not told. It may come back unless its credential is refused.
func (s *Server) CloseAllocation(id string) bool {
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil || fmt.Sprintf(idFormat, n) != id {
		return false
	}
	return s.evict(core.ShardOfAllocation(n), func(i core.Info) bool { return i.ID == n && n != 0 }) > 0
}

// Users lists those who hold allocations by a credential of Secrets, in no order.
func (s *Server) Users() []string {
	return slices.DeleteFunc(s.ledger.Users(), func(user string) bool { return strings.HasPrefix(user, staticPrefix) })
}

// Evict ends all allocations of user at once, as CloseAllocation does, and returns
// how many there were. It refuses no credential: that is for AllowUser to do.
func (s *Server) Evict(user string) (n int) {
	for i := range s.shards {
		n += s.evict(uint8(i), func(i core.Info) bool { return i.User == user })
	}
	return n
}

// evict ends what a shard has that which is true of, and returns how many
// allocations that were.
func (s *Server) evict(number uint8, which func(core.Info) bool) (n int) {
	s.at(number, func(_ time.Time, c *core.Core, out *core.Output) {
		c.Evict(func(i core.Info) bool {
			if !which(i) {
				return false
			}
			if i.ID != 0 { // else it is a port that is reserved
				n++
			}
			if i.Flow.Conn != 0 {
				s.streams.For(int(number)).End(i.Flow)
			}
			return true
		}, out)
	})
	return n
}
