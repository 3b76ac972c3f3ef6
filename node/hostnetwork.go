// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/hostnet"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

const (
	// defaultMTU fits a 1500 byte underlay with IPv6 and WireGuard's header.
	defaultMTU = 1420
	// leastMTU is what IPv6 asks of a link. Where the underlay has no room for it,
	// the packets of the tunnel travel in fragments.
	leastMTU = 1280
	// tunnelOverhead is what IPv6, UDP and WireGuard add to a packet, in bytes.
	tunnelOverhead = 80
	// maxUnderlay is to how many others the way is looked at.
	maxUnderlay = 16
)

// hostNetwork keeps the host's network equal to the latest plan.
type hostNetwork struct {
	*hostnet.Host
	node *Node

	// mu guards the fields below, and is held while they are put in force: what
	// is older never comes after what is newer.
	mu       sync.Mutex
	snapshot *mesh.Snapshot
	plan     *mesh.Plan // nil before the first
	mtu      int        // in force
}

// newHostNetwork returns the host's network for a node whose interface was just
// made, without what a node that was killed has left of it.
func newHostNetwork(n *Node) *hostNetwork {
	h := &hostNetwork{Host: hostnet.New(n.cfg.Logger), node: n}
	if err := h.CleanFor(n.device.Name(), n.cfg.ExitNode != ""); err != nil {
		n.log.Warn("what a node that was killed has left on this host may still be there; the next start tries again", "err", err)
	}
	return h
}

// set makes the host's network what plan, which is of s, needs.
func (h *hostNetwork) set(ctx context.Context, s *mesh.Snapshot, plan *mesh.Plan) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snapshot, h.plan = s, plan
	return h.force(ctx)
}

// force puts the latest plan in force, with the MTU that the way to others
// leaves.
func (h *hostNetwork) force(ctx context.Context) error {
	n := h.node
	c := n.hostConfig(h.snapshot, h.plan)
	c.Interface = n.device.Name()
	path, err := h.PathMTU(n.underlay(h.plan))
	if err != nil {
		return fmt.Errorf("find out the mtu: %w", err)
	}
	c.MTU = meshMTU(n.cfg.MTU, path)
	if err := h.Set(ctx, *c); err != nil {
		return fmt.Errorf("set host network: %w", err)
	}
	if h.mtu != c.MTU && (h.mtu != 0 || c.MTU != defaultMTU) {
		n.log.Info("mtu of the mesh interface", "n", c.MTU)
	}
	h.mtu = c.MTU
	return nil
}

// meshMTU is the MTU of the mesh interface over an underlay with one of path; 0
// means unknown. What was configured wins.
func meshMTU(configured, path int) int {
	switch {
	case configured != 0:
		return configured
	case path == 0:
		return defaultMTU
	}
	return max(leastMTU, min(defaultMTU, path-tunnelOverhead))
}

// mend puts back what others take from the mesh interface: network managers
// and people do. Without the interface nothing is left to mend: the node ends,
// and its supervisor starts it anew.
func (h *hostNetwork) mend(ctx context.Context) error {
	changes, err := h.Changes(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(lookAtPeers)
	defer tick.Stop()
	for {
		moved := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			moved = true
		case _, ok := <-changes:
			if !ok && ctx.Err() == nil {
				return fmt.Errorf("%w: the kernel tells no more of changes of the network", mesh.ErrUnavailable)
			}
			h.node.look()
		}
		if err := h.again(ctx, moved); errors.Is(err, hostnet.ErrGone) {
			return fmt.Errorf("interface %s: %w; start the node anew", h.node.device.Name(), err)
		} else if err != nil && ctx.Err() == nil {
			h.node.log.Warn("host network not mended, trying again at its next change", "err", err)
		}
		// Hosts with many containers change all the time.
		if err := pause(ctx, maxRest); err != nil {
			return err
		}
	}
}

// again puts in force what is wanted already; moved says that only what changes
// without the mesh may be another.
func (h *hostNetwork) again(ctx context.Context, moved bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.plan == nil || moved && h.node.exit.use().Node == "" && !toOneAddress(h.plan.Routes) && len(h.node.replicas.names()) == 0 {
		return nil // the first plan is being applied, or there is nothing to compare
	}
	return h.force(ctx)
}

// hostConfig is what plan needs of the host's network.
func (n *Node) hostConfig(s *mesh.Snapshot, plan *mesh.Plan) *hostnet.Config {
	c := &hostnet.Config{
		Addresses: addresses(plan.Self), Routes: plan.Routes, Outside: n.outside(plan),
		Serve: served(s, n.cfg.ID), Networks: s.Networks(),
	}
	if n.cfg.Exit {
		for _, all := range everything {
			if !slices.Contains(c.Serve, all) {
				c.Serve = append(c.Serve, all)
			}
		}
	}
	c.Exit = n.exit.host()
	c.Forward = n.members != nil || len(c.Serve) > 0
	if !n.cfg.KeepSources && len(c.Serve) > 0 {
		c.Masquerade = s.Networks()
	}
	return c
}

// served are the networks outside of the mesh to which a node forwards, sorted.
func served(s *mesh.Snapshot, id mesh.NodeID) []netip.Prefix {
	var list []netip.Prefix
	for r, forwarder := range policy.RouteForwarders(s) {
		if forwarder != id {
			continue
		}
		for _, p := range r.Destinations {
			if p = p.Masked(); s.Routable(p) {
				list = append(list, p)
			}
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return mesh.WithinSpan(slices.Compact(list))
}

// underlay are addresses to which the tunnel runs, those of gateways first, as
// many as are worth a look.
func (n *Node) underlay(plan *mesh.Plan) []netip.Addr {
	var gateways, others []netip.Addr
	for p := range plan.Peers.All() {
		if p.Node.HoldsState() {
			gateways = append(gateways, p.Node.Outside()...)
		}
		if addr, ok := addrOf(p.Endpoint); ok && len(others) < maxUnderlay {
			others = append(others, addr)
		}
	}
	list := append(gateways, others...)
	return list[:min(len(list), maxUnderlay)]
}
