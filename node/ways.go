// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/pair"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/policy"
)

// Ways says how packets of this node get to its WireGuard peers and to nodes that
// it is a pair with, by their ids. An error wraps mesh.ErrUnavailable: the node is
// not in the mesh yet.
func (n *Node) Ways(ctx context.Context) ([]mesh.Way, error) {
	v, err := n.viewWays(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]mesh.Way, 0, len(v.stats.Peers))
	for _, p := range v.stats.Peers {
		if o, ok := v.snapshot.NodeByKey(p.PublicKey); ok {
			list = append(list, v.to(o))
		}
	}
	slices.SortFunc(list, func(a, b mesh.Way) int { return cmp.Compare(a.Node, b.Node) })
	return list, nil
}

// WayTo says how packets of this node get to another one, a peer or not.
func (n *Node) WayTo(ctx context.Context, o *mesh.Node) (mesh.Way, error) {
	v, err := n.viewWays(ctx)
	if err != nil {
		return mesh.Way{}, err
	}
	return v.to(o), nil
}

// wayView is what is known of the ways of a node at a moment.
type wayView struct {
	snapshot *mesh.Snapshot
	self     *mesh.Node // may be nil
	network  *policy.Network
	stats    mesh.InterfaceStats
	pairs    map[mesh.NodeID]pair.Status
	peers    map[mesh.WireGuardKey]mesh.PeerStats
	// gateways are nodes by the addresses at which their TURN servers relay.
	gateways map[netip.Addr]mesh.NodeID
	now      time.Time
}

func (n *Node) viewWays(ctx context.Context) (*wayView, error) {
	s := n.Snapshot()
	if s == nil {
		return nil, fmt.Errorf("%w: the node has not entered the mesh yet", mesh.ErrUnavailable)
	}
	stats, err := n.contacts.stats(n.device.Stats)
	if err != nil {
		return nil, fmt.Errorf("read interface statistics: %w", err)
	}
	v := &wayView{
		snapshot: s, self: s.Node(n.cfg.ID), network: n.networkOf(s), stats: stats, pairs: make(map[mesh.NodeID]pair.Status),
		peers: make(map[mesh.WireGuardKey]mesh.PeerStats, len(stats.Peers)), gateways: make(map[netip.Addr]mesh.NodeID), now: time.Now(),
	}
	if n.pairs != nil {
		for _, st := range n.pairs.Look(ctx) {
			v.pairs[st.Node] = st
		}
	}
	for _, p := range stats.Peers {
		v.peers[p.PublicKey] = p
	}
	for g := range s.Nodes.Gateways() {
		for _, at := range g.WireGuardEndpoints {
			// On one machine everybody has that address.
			if !at.Addr().IsLoopback() {
				v.gateways[at.Addr().Unmap()] = g.ID
			}
		}
	}
	return v, nil
}

// to says how packets get to a node.
func (v *wayView) to(o *mesh.Node) mesh.Way {
	st, ok := v.pairs[o.ID]
	switch {
	case ok && st.Path.Standing && (st.Stands || st.Gateway):
		return wayOf(o.ID, st.Path, v.now)
	case ok && st.Gateway && !st.Silent.IsZero():
		return mesh.Way{Node: o.ID, Why: fmt.Sprintf("no answer for %s: it is off, or out of reach", v.age(st.Silent))}
	case ok && !st.Gateway:
		w, silent := v.carried(o)
		if silent {
			return w
		}
		w.Why = cmp.Or(whyOf(st.Path, v.now), "both nodes have a path, and wait for the first handshake on it")
		return w
	}
	if p, ok := v.peers[o.PublicKey.WireGuard()]; ok && len(p.AllowedIPs) > 0 {
		return v.endpoint(o, p)
	}
	w, _ := v.carried(o)
	return w
}

// age is how long ago a time is, for people.
func (v *wayView) age(at time.Time) time.Duration {
	return max(v.now.Sub(at).Round(time.Second), time.Second)
}

// wayOf is a way that package path has found.
func wayOf(id mesh.NodeID, st path.State, now time.Time) mesh.Way {
	w := mesh.Way{Node: id, Kind: mesh.DirectWay, Remote: st.Route.To, RTT: st.RTT, Since: st.Since}
	if !st.Direct {
		w.Kind, w.Via, w.Transport, w.Why = mesh.RelayedWay, st.Relay, st.Transport.String(), whyOf(st, now)
	}
	return w
}

// whyOf is why a way is not direct, or why there is none, and when it was last.
func whyOf(st path.State, now time.Time) string {
	ago := now.Sub(st.DirectEnded).Round(time.Second)
	if st.Why == "" || st.DirectEnded.IsZero() || ago > time.Hour {
		return st.Why
	}
	return fmt.Sprintf("%s; it was direct to %s until %s ago", st.Why, st.LastDirect, max(ago, 0))
}

// endpoint is the way to a peer of which only its endpoint is known.
func (v *wayView) endpoint(o *mesh.Node, p mesh.PeerStats) mesh.Way {
	w := mesh.Way{Node: o.ID}
	switch age := v.now.Sub(p.LastHandshake); {
	case p.LastHandshake.IsZero():
		w.Why = "its first handshake has not come: is it up, and does UDP get through?"
		return w
	case age >= silence:
		w.Why = fmt.Sprintf("its last handshake is %s old: it is off, out of reach, or has nothing to say", age.Round(time.Second))
		return w
	}
	at, err := netip.ParseAddrPort(p.Endpoint)
	if err != nil {
		w.Kind, w.Why = mesh.RelayedWay, "its packets travel inside of another connection"
		return w
	}
	w.Kind, w.Remote = mesh.DirectWay, netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if gate, ok := v.gateways[w.Remote.Addr()]; ok && gate != o.ID && !o.HoldsState() {
		w.Kind, w.Via = mesh.RelayedWay, string(gate)
		w.Why = "no UDP of the node gets here by itself"
	}
	return w
}

// carried is the way to a node behind another one. silent is true for none because
// that one, a gateway, does not answer.
func (v *wayView) carried(o *mesh.Node) (w mesh.Way, silent bool) {
	w = mesh.Way{Node: o.ID, Why: noWay(v.network, v.self, o)}
	addr, err := firstAddr(o)
	if err != nil {
		return w, false
	}
	p, ok := carrier(v.stats, addr)
	if !ok {
		return w, false
	}
	by, ok := v.snapshot.NodeByKey(p.PublicKey)
	switch {
	case !ok:
		return w, false
	case by.ID == o.ID:
		return v.endpoint(o, p), false
	case !v.pairs[by.ID].Silent.IsZero():
		w.Why = fmt.Sprintf("out of reach: gateway %s has not answered for %s", by.ID, v.age(v.pairs[by.ID].Silent))
		return w, true
	case v.now.Sub(p.LastHandshake) >= silence:
		w.Why = fmt.Sprintf("%s, by way of which it is reached, does not answer", by.ID)
		return w, false
	}
	w.Kind, w.Via, w.Why = mesh.CarriedWay, string(by.ID), "no packet was sent there of late, which is what a direct path is looked for by"
	if !o.Paths {
		w.Why = "it runs no version of Meshgate that looks for direct paths"
	}
	return w, false
}
