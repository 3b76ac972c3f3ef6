// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// silence is the age of a handshake from which a peer may be gone: no
	// session lives longer (REJECT_AFTER_TIME of the protocol).
	silence = 3 * time.Minute
	// silentDial is how long a connection to a silent peer is tried for. The
	// first packet starts a handshake, which takes a round trip.
	silentDial = 3 * time.Second
	// greeting is how long peers that call us may take to do so first, after
	// they joined or this node started: a keepalive and some handshakes.
	greeting = keepalive + 5*time.Second
	// statusPatience is how long a node may take to say how it is. It is shorter
	// than the patience of those who ask, so that they hear why there is no answer.
	statusPatience = 5 * time.Second
	// contactsAge is how long the device's answer is believed at most.
	contactsAge = time.Second
	// contactsShare bounds the time spent on asking to one part in so many.
	contactsShare = 20
)

// contacts knows when the device last heard its peers. The zero value is
// ready; it is safe for concurrent use.
type contacts struct{ last atomic.Pointer[contactsView] }

type contactsView struct {
	stats   mesh.InterfaceStats
	expires time.Time
}

// stats asks, unless it did a moment ago: some milliseconds on a small mesh, at
// most contactsAge on one whose peers take long to list.
func (c *contacts) stats(ask func() (mesh.InterfaceStats, error)) (mesh.InterfaceStats, error) {
	if v := c.last.Load(); v != nil && time.Now().Before(v.expires) {
		return v.stats, nil
	}
	start := time.Now()
	s, err := ask()
	if err != nil {
		return mesh.InterfaceStats{}, err
	}
	now := time.Now()
	c.last.Store(&contactsView{stats: s, expires: now.Add(min(contactsShare*now.Sub(start), contactsAge))})
	return s, nil
}

// carrier finds the peer that WireGuard sends packets for addr to.
func carrier(stats mesh.InterfaceStats, addr netip.Addr) (mesh.PeerStats, bool) {
	best, longest := -1, -1
	for i := range stats.Peers {
		for _, p := range stats.Peers[i].AllowedIPs {
			if p.Bits() > longest && p.Contains(addr) {
				best, longest = i, p.Bits()
			}
		}
	}
	if best < 0 {
		return mesh.PeerStats{}, false
	}
	return stats.Peers[best], true
}

// tunnel is what dialPeer needs of the device.
type tunnel interface {
	Stats() (mesh.InterfaceStats, error)
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// dialPeer connects through WireGuard. It does not wait in vain: a peer that
// cannot be called and never called is told at once, one that has been silent
// after silentDial. The errors wrap mesh.ErrUnavailable.
func (n *Node) dialPeer(ctx context.Context, d tunnel, s *mesh.Snapshot, network string, at netip.AddrPort) (net.Conn, error) {
	// contact is the present state of the peer that carries the address.
	contact := func() (mesh.PeerStats, bool) {
		stats, err := n.contacts.stats(d.Stats)
		if err != nil {
			return mesh.PeerStats{}, false
		}
		return carrier(stats, at.Addr())
	}
	peer, ok := contact()
	if !ok || !silent(peer) {
		c, err := d.DialContext(ctx, network, at.String())
		if err != nil {
			owner, _ := s.NodeByAddr(at.Addr())
			return nil, n.unrouted(s, owner, err)
		}
		return c, nil
	}
	node, _ := s.NodeByKey(peer.PublicKey)
	early := n.early(node)
	if !early && peer.LastHandshake.IsZero() && peer.Endpoint == "" {
		return nil, unheard(node, peer, at.Addr())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !early {
		defer time.AfterFunc(silentDial, func() {
			// What was sent has been answered if there is a handshake by now.
			if now, ok := contact(); ok && silent(now) {
				cancel(unheard(node, now, at.Addr()))
			}
		}).Stop()
	}
	c, err := d.DialContext(ctx, network, at.String())
	if err == nil {
		return c, nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, mesh.ErrUnavailable) {
		return nil, cause
	}
	if now, ok := contact(); ok && silent(now) && errors.Is(err, context.DeadlineExceeded) {
		return nil, unheard(node, now, at.Addr())
	}
	return nil, err
}

// silent reports whether the peer may be gone: it may also have had nothing to
// say for a while.
func silent(p mesh.PeerStats) bool { return time.Since(p.LastHandshake) > silence }

// early reports whether it is too early to say that o, which may be nil, does
// not call.
func (n *Node) early(o *mesh.Node) bool {
	return time.Since(n.opened) < greeting || o != nil && time.Since(o.JoinedAt) < greeting
}

// unheard says since when the peer that carries addr has not been heard. o is
// the peer's node, or nil.
func unheard(o *mesh.Node, p mesh.PeerStats, addr netip.Addr) error {
	name, start := "the peer that carries "+addr.String(), "WireGuard"
	if o != nil {
		name = string(o.ID)
		if o.RunsMeshgate() {
			start = "Meshgate"
		}
		if !owns(o, addr) && !o.IPv6.Contains(addr) {
			name += ", through which " + addr.String() + " is reached,"
		}
	}
	if p.LastHandshake.IsZero() {
		return fmt.Errorf("%w: %s has never shaken hands with this node; start %s on it", mesh.ErrUnavailable, name, start)
	}
	return fmt.Errorf("%w: %s was last heard %s ago; see that it is on and online", mesh.ErrUnavailable, name, brief(time.Since(p.LastHandshake)))
}

// unanswered says what is known of node id, which is at addr and has not answered
// within statusPatience. The error wraps mesh.ErrUnavailable.
func (n *Node) unanswered(id mesh.NodeID, addr netip.Addr) error {
	s := n.Snapshot()
	if since, ok := s.Silent[id]; ok {
		return fmt.Errorf("%w: %s has not been heard since %s, %s ago; see that it is on and online",
			mesh.ErrUnavailable, id, since.UTC().Format(time.RFC3339), brief(time.Since(since)))
	}
	known := "see that it is on and online"
	if stats, err := n.contacts.stats(n.device.Stats); err == nil {
		peer, ok := carrier(stats, addr)
		via, _ := s.NodeByKey(peer.PublicKey)
		switch {
		case !ok || via == nil:
			known = "no tunnel of this node leads to it now; meshgate get edges shows its neighbours"
		case via.ID != id:
			known = fmt.Sprintf("it is reached through %s, and meshgate status says when it was last heard", via.ID)
		case peer.LastHandshake.IsZero():
			return unheard(via, peer, addr)
		default:
			known = fmt.Sprintf("it was last heard %s ago; see that it is on and online", brief(time.Since(peer.LastHandshake)))
		}
	}
	return fmt.Errorf("%w: %s did not answer within %v; %s", mesh.ErrUnavailable, id, statusPatience, known)
}

// brief writes a duration as people say it: 40s, 12m, 3h, 5d.
func brief(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
}
