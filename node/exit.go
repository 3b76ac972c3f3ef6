// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/hostnet"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/wg"
)

// everything are the networks of all addresses.
var everything = [...]netip.Prefix{
	netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0),
}

// validateExit says what of the exits in c can never work.
func (c *Config) validateExit() error {
	switch {
	case c.Exit && c.Mode != wg.ModeTUN:
		return fmt.Errorf("%w: exit: it needs a TUN interface, and with it root or CAP_NET_ADMIN; start with --wireguard.mode tun, or without --exit", mesh.ErrInvalid)
	case c.Exit && c.KeepSources:
		return fmt.Errorf("%w: exit: the Internet has no route to addresses of the mesh; leave --masquerade on", mesh.ErrInvalid)
	case c.ExitNode == "":
		return nil
	case c.Follow == nil:
		return fmt.Errorf("%w: exit node: a gateway is reached from the Internet, and its answers would leave through the exit; give --exit-node to nodes that join", mesh.ErrInvalid)
	case c.Exit:
		return fmt.Errorf("%w: exit node: a node that is an exit uses none; give --exit or --exit-node", mesh.ErrInvalid)
	case c.ExitNode == c.ID:
		return fmt.Errorf("%w: exit node: %q is this node", mesh.ErrInvalid, c.ExitNode)
	}
	return nil
}

// exitUser is how a node uses an exit. Nothing of it is stored or told to the
// mesh: the node's own operator decides, and nobody else.
type exitUser struct {
	mu  sync.Mutex // guards the fields below
	now mesh.ExitUse
	// grants are the parts of everything that network ACLs grant through the exit, of
	// the last time that it worked.
	grants []netip.Prefix
	// beside are the exit's own addresses in the Internet, of then.
	beside []netip.Addr
}

// maxBeside is how many addresses of an exit are reached beside the tunnel.
const maxBeside = 8

// init takes what the node begins with.
func (e *exitUser) init(cfg *Config) {
	e.begin(cfg.ExitNode, cfg.ExitOpen)
	if cfg.Mode == wg.ModeTUN {
		cfg.Outbound.Apart()
	}
	cfg.Outbound.Exit(cfg.ExitNode != "")
}

// begin uses another exit from now on.
func (e *exitUser) begin(id mesh.NodeID, open bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id == "" {
		e.now, e.grants, e.beside = mesh.ExitUse{}, nil, nil
		return
	}
	if e.now.Node != id {
		e.now, e.grants = mesh.ExitUse{Node: id, Since: time.Now(), Why: "there is no path to it yet"}, nil
		e.beside = nil
	}
	e.now.Open = open
}

func (e *exitUser) use() mesh.ExitUse {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now
}

// host is what the host's network needs for the exit; nil: nothing. While the exit
// is out of reach for a moment, packets still go where WireGuard drops them, so
// that connections outlive it.
func (e *exitUser) host() *hostnet.Exit {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now.Node == "" || e.now.Open && !e.now.Works {
		return nil
	}
	x := &hostnet.Exit{Block: !e.now.Open, Beside: e.beside}
	for _, p := range e.grants {
		x.IPv4, x.IPv6 = x.IPv4 || p.Addr().Is4(), x.IPv6 || p.Addr().Is6()
	}
	return x
}

// apply puts behind the exit in plan, which is of s, what network ACLs grant
// through it, and notes whether that works.
func (e *exitUser) apply(s *mesh.Snapshot, plan mesh.Plan, n *Node) mesh.Plan {
	id := e.use().Node
	if id == "" {
		return plan
	}
	peer, grants, why := n.exitPeer(s, plan, id)
	changed, open := e.note(id, grants, peer.Node, why)
	switch {
	case changed && why == "":
		n.log.Info("packets to the Internet go through the exit", "peer", string(id))
	case changed && open:
		n.log.Warn("the exit is out of reach, and packets to the Internet leave in the usual way", "peer", string(id), "reason", why)
	case changed:
		n.log.Warn("the exit is out of reach, and packets to the Internet are not sent", "peer", string(id), "reason", why)
	}
	if why != "" {
		return plan
	}
	peer.AllowedIPs = slices.Concat(peer.AllowedIPs, grants)
	slices.SortFunc(peer.AllowedIPs, netip.Prefix.Compare)
	peer.AllowedIPs = slices.Compact(peer.AllowedIPs)
	plan.Peers = plan.Peers.With(peer)
	return plan
}

// note notes what is granted through the exit, or why it does not work. It reports
// whether that is news, and exitUser.now.Open.
func (e *exitUser) note(id mesh.NodeID, grants []netip.Prefix, exit *mesh.Node, why string) (changed, open bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now.Node != id {
		return false, false // there is another one since
	}
	works := why == ""
	if changed = works != e.now.Works; changed {
		e.now.Works, e.now.Since = works, time.Now()
	}
	if e.now.Why = why; works {
		outside := slices.DeleteFunc(exit.Outside(), func(a netip.Addr) bool { return !mesh.IsInternet(a) })
		slices.SortFunc(outside, netip.Addr.Compare)
		outside = slices.Compact(outside)
		e.grants, e.beside = grants, outside[:min(len(outside), maxBeside)]
	}
	return changed, e.now.Open
}

// exitPeer returns the peer that an exit is in plan, and what is granted through
// it; or why there is none, for people.
func (n *Node) exitPeer(s *mesh.Snapshot, plan mesh.Plan, id mesh.NodeID) (peer mesh.Peer, grants []netip.Prefix, why string) {
	peer, ok := plan.Peers.Get(id)
	switch {
	case !ok:
		return peer, nil, n.whyNoExit(id)
	case !peer.Node.Exit:
		return peer, nil, fmt.Sprintf("node %q does not offer to be an exit; start it with --exit", id)
	case len(peer.AllowedIPs) == 0:
		return peer, nil, n.whyNoExit(id)
	}
	network := n.networkOf(s)
	for _, all := range everything {
		own := plan.Self.IPv6
		if all.Addr().Is4() {
			own = plan.Self.IPv4
		}
		if !own.IsValid() {
			continue
		}
		from := policy.Endpoint{Node: string(n.cfg.ID), Network: netip.PrefixFrom(own.Addr(), own.Addr().BitLen())}
		for _, part := range network.Granted(from, policy.Endpoint{Node: string(id), Network: all}) {
			// What ACLs say of the mesh itself is in the plan.
			if !slices.ContainsFunc(s.Networks(), func(own netip.Prefix) bool { return own.Bits() <= part.Bits() && own.Contains(part.Addr()) }) {
				grants = append(grants, part)
			}
		}
	}
	if len(grants) == 0 {
		return peer, nil, fmt.Sprintf("no network ACL lets this node reach the Internet through %q", id)
	}
	return peer, grants, ""
}

// whyNoExit says why no packet reaches an exit.
func (n *Node) whyNoExit(id mesh.NodeID) string {
	for _, st := range n.Paths() {
		if st.Node == id && st.Path.Why != "" {
			return "there is no path to it: " + st.Path.Why
		}
	}
	return fmt.Sprintf("there is no path to %q: it is off, no node of that name is in the mesh, or network ACLs keep it away; meshgate status %s says more", id, id)
}

// ExitUse is how the node uses an exit.
func (n *Node) ExitUse() mesh.ExitUse { return n.exit.use() }

// UseExit has the node, and its host in ModeTUN, reach the Internet through another
// node from now on; empty: through none. Open is Config.ExitOpen. It does not wait
// until that works. Errors wrap mesh.ErrInvalid or mesh.ErrUnsupported.
func (n *Node) UseExit(_ context.Context, id mesh.NodeID, open bool) error {
	if id != "" {
		c := n.cfg
		c.ExitNode = id
		if err := c.validateExit(); err != nil {
			if n.members != nil || n.cfg.Exit {
				return fmt.Errorf("%w: this node uses no exit: %w", mesh.ErrUnsupported, err)
			}
			return err
		}
	}
	f, ok := n.source.(*follower)
	if !ok {
		return nil // it has none
	}
	n.exit.begin(id, open)
	n.cfg.Outbound.Exit(id != "")
	if n.pairs != nil {
		n.pairs.Hold(id)
	}
	f.renew()
	return nil
}

// takeForExit has the device of an exit take packets for the Internet from nodes
// that network ACLs let there.
func (n *Node) takeForExit(s *mesh.Snapshot, cfg *wg.Config) {
	if !n.cfg.Exit || n.host == nil {
		return
	}
	others, exits := cfg.Allow, policy.ExitFilter(s, n.cfg.ID, n.flows)
	cfg.Allow = func(p mesh.Packet) bool {
		return others(p) || mesh.IsInternet(p.Dst) && !s.Contains(p.Dst) && exits.Allow(p)
	}
}

// onlyAnswers lets nothing in from the other side of an exit but answers: whoever is
// there, the exit itself included, opens no connection to this node.
func (n *Node) onlyAnswers(s *mesh.Snapshot, plan mesh.Plan, cfg *wg.Config) {
	if !n.exit.use().Works {
		return
	}
	beyond := func(a netip.Addr) bool {
		return !s.Contains(a) && !slices.ContainsFunc(plan.Routes, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	accept, sent := cfg.Accept, cfg.Sent
	cfg.Accept = func(p mesh.Packet) bool {
		if beyond(p.Src) && !n.flows.Answers(p) {
			return false
		}
		return accept == nil || accept(p)
	}
	cfg.Sent = func(p mesh.Packet) {
		if beyond(p.Dst) {
			n.flows.Sent(p)
		}
		if sent != nil {
			sent(p)
		}
	}
}
