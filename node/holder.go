// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node/admin"
	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/topology"
	"github.com/meshgate/meshgate/node/wg"
)

// firstAnnounceDelay is the pause before the node writes its own record once
// more; it doubles with each time, up to maxAnnounceDelay.
const (
	firstAnnounceDelay = 50 * time.Millisecond
	maxAnnounceDelay   = 5 * time.Second
)

// Hold configures a node that keeps the mesh's state.
type Hold struct {
	// Store holds the state; the node closes it.
	Store store.Store
	// CloseStore ends the store; nil when there is nothing to end.
	CloseStore func() error
	// Admin is the identity that may do everything; empty means "admin".
	Admin string
	// Domain is the mesh's DNS domain; empty means "webmesh.internal.".
	Domain string
	// IPv4 is the mesh's IPv4 network; invalid means 172.16.0.0/12.
	IPv4 netip.Prefix
	// AcceptByDefault lets all nodes talk to each other until an ACL says
	// otherwise. It only matters when the mesh is made.
	AcceptByDefault bool
	// AllowUnprovenJoins lets nodes join that do not prove that they hold their
	// key, as v1 nodes do not.
	AllowUnprovenJoins bool
	// Joined says that the mesh was made by another gateway, so that this one
	// never makes it: it waits until the store holds its record, however long
	// that takes.
	Joined bool
	// Replicas returns the addresses, "host:port", at which the gateways keep the
	// state together: no route may lead there. Names are looked up again and again.
	// It does not block. Nil: this node keeps it alone.
	Replicas func() []string
	// LookUp finds the addresses of a name in Replicas; nil: the host's resolver
	// does.
	LookUp func(ctx context.Context, name string) ([]netip.Addr, error)
	// Purge says which members are removed because they are gone.
	Purge Purge
	// StaticIPv4 are the addresses of nodes that must have a certain one.
	StaticIPv4 map[mesh.NodeID]netip.Addr
}

// holder is the source of a node that keeps the mesh's state.
type holder struct {
	*member.Members
	*admin.Objects
	node     *Node
	cfg      Hold
	registry *registry.Registry
	ear      ear
	// clock is that of the host, which somebody may set; nil: time.Now.
	clock func() time.Time

	mu      sync.Mutex // guards planner
	planner *topology.Planner
}

func newHolder(n *Node, cfg Hold) (*holder, error) {
	r := registry.New(cfg.Store, n.cfg.Logger)
	members, err := member.New(member.Config{
		Registry: r, Self: n.cfg.ID, StaticIPv4: cfg.StaticIPv4, AllowUnproven: cfg.AllowUnprovenJoins,
		Replicas: n.replicas.addrs, Logger: n.cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("make membership: %w", err)
	}
	objects, err := admin.New(r, n.replicas.addrs, n.cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("make objects: %w", err)
	}
	return &holder{Members: members, Objects: objects, node: n, cfg: cfg, registry: r, ear: n.device}, nil
}

// Sync returns a snapshot of all that was acknowledged before the call.
func (h *holder) Sync(ctx context.Context) (*mesh.Snapshot, error) { return h.registry.Sync(ctx) }

// run opens WireGuard's port, writes the first state of a new mesh and
// follows the registry.
func (h *holder) run(ctx context.Context) error {
	n := h.node
	if err := n.openPort(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.registry.Run(ctx) })
	g.Go(func() error { return h.keepUp(ctx) })
	if n.replicas != nil {
		g.Go(func() error { return n.replicas.run(ctx) })
	}
	g.Go(func() error {
		if err := h.announce(ctx); err != nil {
			return err
		}
		return h.purge(ctx)
	})
	return g.Wait()
}

// keepUp has the planner follow the state as it changes. Nodes that join ask for a
// plan each, which then waits for few changes at most.
func (h *holder) keepUp(ctx context.Context) error {
	for after := uint64(0); ; {
		s, err := h.wait(ctx, after)
		if err != nil {
			return err
		}
		h.plannerOf(s).KeepUp()
		after = s.Version
	}
}

// openPort opens the port of WireGuard before there is a plan: it has to be known
// before the mesh is told where the node is reached.
func (n *Node) openPort(ctx context.Context) error {
	open := wg.Config{PrivateKey: n.cfg.Key.WireGuard(), ListenPort: n.cfg.ListenPort}
	if err := n.device.Set(ctx, open); err != nil {
		return fmt.Errorf("open wireguard port %d: %w", n.cfg.ListenPort, err)
	}
	return nil
}

// announce bootstraps a new mesh, or brings the node's own record up to date.
func (h *holder) announce(ctx context.Context) error {
	n := h.node
	self := mesh.Node{
		ID:              n.cfg.ID,
		PublicKey:       n.cfg.Key.Public(),
		PrimaryEndpoint: n.cfg.PrimaryEndpoint,
		Zone:            n.cfg.Zone,
		Features:        n.cfg.Features,
		Services:        services(n.cfg.Expose),
		API:             n.cfg.API,
		Exit:            n.cfg.Exit,
	}
	self.WireGuardEndpoints = wireguardEndpoints(n.cfg.PrimaryEndpoint, n.cfg.OtherEndpoints, n.device.ListenPort())
	if err := h.insist(ctx, func() error { return h.enter(ctx, self) }); err != nil {
		return err
	}
	// What is not configured any more is withdrawn.
	if err := h.insist(ctx, func() error { return h.Members.Declare(ctx, self, n.cfg.Routes) }); err != nil {
		return fmt.Errorf("update own record (the data directory belongs to node id and key of its first start): %w", err)
	}
	return nil
}

// insist makes a change until it is made, or refused for what it is, or ctx
// ends. A leader that changes, others that join all the time, or a disk that is
// full make it late, and are no reason to end: what was there before goes on.
func (h *holder) insist(ctx context.Context, change func() error) error {
	for delay := firstAnnounceDelay; ; delay = min(2*delay, maxAnnounceDelay) {
		err := change()
		passes := errors.Is(err, mesh.ErrUnavailable) || errors.Is(err, store.ErrNotLeader) || errors.Is(err, store.ErrFull)
		if !passes || ctx.Err() != nil {
			return err
		}
		h.node.log.Warn("own record not up to date yet, trying again", "err", err)
		if pause(ctx, delay) != nil {
			return err
		}
	}
}

// enter makes the mesh, or becomes a gateway of one that another node has made.
func (h *holder) enter(ctx context.Context, self mesh.Node) error {
	if h.cfg.Joined {
		if _, err := h.wait(ctx, 0); err != nil {
			return err
		}
		if err := h.registry.AddGateway(ctx, self.ID); err != nil {
			return fmt.Errorf("become a gateway of the mesh: %w", err)
		}
		return nil
	}
	err := h.registry.Bootstrap(ctx, registry.Bootstrap{
		Self:            self,
		Admin:           h.cfg.Admin,
		Domain:          h.cfg.Domain,
		IPv4:            h.cfg.IPv4,
		AcceptByDefault: h.cfg.AcceptByDefault,
	})
	if err != nil {
		return fmt.Errorf("bootstrap the mesh: %w", err)
	}
	return nil
}

func (h *holder) wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		s, err := h.registry.Wait(ctx, after)
		if err != nil {
			return nil, err
		}
		// Before the bootstrap there is nothing to plan for.
		if s.Node(h.node.cfg.ID) != nil {
			return s, nil
		}
		after = s.Version
	}
}

func (h *holder) plan(s *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error) {
	return h.plannerOf(s).Plan(id)
}

// plannerOf returns a planner for s, so that all who plan for a snapshot at a
// time share what they can.
func (h *holder) plannerOf(s *mesh.Snapshot) *topology.Planner {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.planner == nil || h.planner.Snapshot() != s {
		p := topology.New(s, h.planner)
		if h.planner != nil && h.planner.Snapshot().Version > s.Version {
			return p // for somebody who lags behind
		}
		h.planner = p
	}
	return h.planner
}

func (h *holder) healthy() error { return nil }

func (h *holder) close() error {
	if h.cfg.CloseStore == nil {
		return nil
	}
	if err := h.cfg.CloseStore(); err != nil && !errors.Is(err, store.ErrClosed) {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// wireguardEndpoints is where others send packets to; none when the primary
// endpoint is a name or absent, since the record carries addresses only.
func wireguardEndpoints(primary string, others []netip.Addr, port uint16) []netip.AddrPort {
	addr, err := netip.ParseAddr(primary)
	if err != nil {
		return nil
	}
	list := []netip.AddrPort{netip.AddrPortFrom(addr, port)}
	for _, other := range others {
		list = append(list, netip.AddrPortFrom(other, port))
	}
	return list
}

// hostPort joins a host and a port.
func hostPort(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
