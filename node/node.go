// SPDX-License-Identifier: Apache-2.0

// Package node is one member of a mesh: it owns the state, the WireGuard
// device and the host's network settings, and keeps the second two equal to
// what the first says.
//
// State flows one way (ARCHITECTURE.md): an intent becomes a store command,
// the store's changes become a Snapshot, a topology.Planner turns a Snapshot into
// a Plan, and the reconcile loop hands the Plan to wg and hostnet. Nothing flows
// back.
//
// A node holds state itself (Config.Hold) or follows a gateway that does
// (Config.Follow); everything else is the same.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node/hostnet"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/pair"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/turn/limiter"
)

// keepalive is how often a node without a public address sends a packet to
// its gateways, so that the NAT in between keeps its mapping: the value that
// WireGuard's own documentation recommends.
const keepalive = 25 * time.Second

// retryDelay is the pause after a plan could not be applied.
const retryDelay = time.Second

// maxRest is the longest pause after a plan was applied. It is as long as that
// took, so that changes that come in crowds are applied together.
const maxRest = 100 * time.Millisecond

// Config says what the node is. Exactly one of Hold and Follow is set.
type Config struct {
	// ID names the node in the mesh.
	ID mesh.NodeID
	// Key is the node's identity; LoadKey reads it from a data directory.
	Key mesh.PrivateKey
	// Hold makes the node keep the mesh's state itself.
	Hold *Hold
	// Follow makes the node a member that gets its peers from a gateway.
	Follow *Follow

	// Mode says how packets meet the host; see wg.Mode.
	Mode wg.Mode
	// Lean is for one of many nodes in a process, with ModeNetstack; see
	// wg.Options.Lean.
	Lean bool
	// InterfaceName is the TUN interface; empty means "meshgate0".
	InterfaceName string
	// ListenPort is WireGuard's UDP port; 0 means one that the host picks.
	ListenPort uint16
	// MTU of the mesh in bytes; 0 means 1420, or less when the way to the gateways
	// has not as much room.
	MTU int
	// PrimaryEndpoint is the IP address or DNS name at which other nodes reach
	// this one; empty for a node that only calls out.
	PrimaryEndpoint string
	// OtherEndpoints are further addresses at which others reach WireGuard here, such
	// as one of the other IP version.
	OtherEndpoints []netip.Addr
	// API is where a gateway serves everybody, for nodes that lose theirs; zero
	// is not told, and has no effect on a node that follows a gateway.
	API mesh.API
	// Zone is the zone awareness id, or empty.
	Zone string
	// Features are advertised to the mesh beside what the node knows itself.
	Features []mesh.Feature
	// Expose lists the host's services that the mesh may reach here.
	Expose []Expose
	// Routes are networks that this node offers to reach.
	Routes []netip.Prefix
	// KeepSources lets packets of the mesh leave for Routes with the addresses
	// that they have in the mesh, to which these networks need a route; else the
	// host puts its own there. It has no effect without a TUN interface.
	KeepSources bool
	// Exit has the node take packets for the Internet from nodes that choose it for
	// that, as far as network ACLs let them. It needs a TUN interface, and does
	// not go with KeepSources.
	Exit bool
	// ExitNode is the node through which this one reaches the Internet, and with it
	// its host in ModeTUN; empty: none. It needs Follow, and does not go with Exit.
	ExitNode mesh.NodeID
	// ExitOpen lets packets leave the host in the usual way while there is no way
	// to ExitNode; else they are not sent.
	ExitOpen bool
	// Outbound makes the connections to gateways and relays; it has to be that of
	// Follow.Public. Nil makes one that only relays use.
	Outbound *hostnet.Outbound

	// InterfaceAddrs lists the addresses of the host's interfaces, which no
	// route opens to the mesh; nil means net.InterfaceAddrs. It is asked when a
	// connection is made, at most once a second.
	InterfaceAddrs func() ([]net.Addr, error)

	// Logger is for state changes; nil discards them.
	Logger *slog.Logger
	// Registerer takes the metrics; nil leaves them unregistered.
	Registerer prometheus.Registerer
}

// source is where the node's snapshots come from: its own registry, or a
// gateway's answers.
type source interface {
	// run follows the state until ctx ends.
	run(ctx context.Context) error
	// wait returns a snapshot with a Version above after.
	wait(ctx context.Context, after uint64) (*mesh.Snapshot, error)
	// plan derives the plan of node id from s.
	plan(s *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error)
	// healthy is nil while the source follows the state.
	healthy() error
	// close releases what run does not.
	close() error
}

// Node is a running member of a mesh. Make one with New, run it with Run.
type Node struct {
	cfg    Config
	log    *slog.Logger
	device *wg.Device
	host   *hostNetwork // nil without an interface on the host
	room   *room        // nil with one
	// replicas are where gateways keep the state together; nil: nowhere.
	replicas *lookups
	source   source
	members  membership
	// objects and store are nil on a node that holds no state.
	objects objects
	store   store.Store
	exposed *exposer
	peers   *peer.Peers
	// pairs is nil on a node that takes no part in them.
	pairs *pair.Pairs
	// strangers bounds what the device answers to STUN where pairs is nil.
	strangers *limiter.Limiter
	exit      exitUser
	// locals, contacts and origins are caches of what a connection needs to know.
	locals   hostAddrs
	tunnels  hostTunnels
	contacts contacts
	origins  origins
	// opened is when the device was.
	opened time.Time

	ready    chan struct{} // closed once the first plan is applied
	snapshot atomic.Pointer[mesh.Snapshot]
	current  atomic.Pointer[mesh.Plan]
	inForce  inForce

	// devicePeers belongs to reconcile.
	devicePeers devicePeers
	// flows outlive the packet filters of single snapshots.
	flows *policy.Flows
	// acls are those of the snapshot that Destination was last asked about.
	acls atomic.Pointer[compiledACLs]
}

// membership changes who is in the mesh; only a node that holds state has one.
type membership interface {
	Join(ctx context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error)
	Update(ctx context.Context, r mesh.UpdateRequest) error
	Leave(ctx context.Context, id mesh.NodeID) error
	LeaveBound(ctx context.Context, id mesh.NodeID) error
	Adopt(ctx context.Context, id mesh.NodeID) (*mesh.Snapshot, error)
}

// Validate says what in c can never work, naming the field.
func (c *Config) Validate() error {
	if _, err := mesh.ParseNodeID(string(c.ID)); err != nil {
		return fmt.Errorf("node id: %w", err)
	}
	if (c.Hold == nil) == (c.Follow == nil) {
		return fmt.Errorf("%w: a node either holds state or follows a gateway", mesh.ErrInvalid)
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		return fmt.Errorf("%w: mtu %d is outside 1280 to 65535", mesh.ErrInvalid, c.MTU)
	}
	if err := c.validateExit(); err != nil {
		return err
	}
	return validateExpose(c.Expose, c.Features)
}

// New makes a node and opens its WireGuard device, so that the port is known;
// the mesh is entered by Run. The caller ends it with Close.
func New(cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.InterfaceName == "" {
		cfg.InterfaceName = "meshgate0"
	}
	if cfg.Outbound == nil {
		cfg.Outbound = new(hostnet.Outbound)
	}
	n := &Node{
		cfg:    cfg,
		log:    cfg.Logger.With("component", "node", "node", string(cfg.ID)),
		ready:  make(chan struct{}),
		opened: time.Now(),
		flows:  policy.NewFlows(),

		strangers:   limiter.New(strangersRate, strangersBurst),
		devicePeers: devicePeers{calls: cfg.PrimaryEndpoint == ""},
	}
	n.device, err = wg.New(wg.Options{
		Mode:          cfg.Mode,
		InterfaceName: cfg.InterfaceName,
		MTU:           cfg.MTU,
		Lean:          cfg.Lean,
		Logger:        cfg.Logger,
		Registerer:    cfg.Registerer,
		STUN:          n.stun,
	})
	if err != nil {
		return nil, fmt.Errorf("open wireguard device: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.device.Close())
		}
	}()
	n.exit.init(&cfg)
	if cfg.Mode == wg.ModeTUN {
		n.host = newHostNetwork(n)
	} else {
		n.room = &room{node: n, pathMTU: hostnet.New(cfg.Logger).PathMTU, set: n.device.SetMTU}
	}
	if err := n.registerLeftOut(); err != nil {
		return nil, err
	}
	if n.peers, err = peer.New(peer.Config{Dial: n.DialContext}); err != nil {
		return nil, err
	}
	n.exposed = newExposer(cfg.Expose, n.device, n.origin, cfg.Logger)
	if cfg.Hold != nil {
		n.replicas = newLookups(cfg.Hold.Replicas, cfg.Hold.LookUp, n.log)
		h, err := newHolder(n, *cfg.Hold)
		if err != nil {
			return nil, err
		}
		n.source, n.members, n.objects, n.store = h, h, h, cfg.Hold.Store
		return n, nil
	}
	f, err := newFollower(n, *cfg.Follow)
	if err != nil {
		return nil, err
	}
	n.source = f
	if n.pairs, err = n.newPairs(f); err != nil {
		return nil, err
	}
	return n, nil
}

// Run brings the node up and keeps it in step with the mesh until ctx ends.
// It returns nil when ctx ended and the cause otherwise.
func (n *Node) Run(ctx context.Context) error {
	if n.pairs != nil {
		// The ways to others end last: a node that leaves tells a gateway.
		ways, stop := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = n.pairs.Run(ways) // it ends with its context alone
		}()
		defer func() { stop(); <-ended }()
		n.pairs.Hold(n.cfg.ExitNode)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.source.run(ctx) })
	g.Go(func() error { return n.reconcile(ctx) })
	g.Go(func() error { return n.exposed.run(ctx) })
	if n.host != nil {
		g.Go(func() error { return n.host.mend(ctx) })
	} else {
		g.Go(func() error { return n.room.run(ctx) })
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Close ends what New opened. Call it after Run has returned.
func (n *Node) Close() error {
	n.peers.Close()
	errs := []error{n.source.close()}
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	return errors.Join(append(errs, n.device.Close())...)
}

// reconcile applies the plan of each new snapshot. A plan that cannot be
// applied is tried again; the device keeps what it has meanwhile.
func (n *Node) reconcile(ctx context.Context) error {
	var after uint64
	for {
		s, err := n.source.wait(ctx, after)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := n.apply(ctx, s); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n.log.Warn("plan not applied, trying again", "err", err, "n", s.Version)
			if err := pause(ctx, retryDelay); err != nil {
				return err
			}
			continue
		}
		after = s.Version
		if err := pause(ctx, min(time.Since(began), maxRest)); err != nil {
			return err
		}
	}
}

// apply makes the device and the host equal to the plan of s and publishes s.
func (n *Node) apply(ctx context.Context, s *mesh.Snapshot) error {
	plan, err := n.source.plan(s, n.cfg.ID)
	if err != nil {
		return fmt.Errorf("plan for snapshot %d: %w", s.Version, err)
	}
	plan = n.exit.apply(s, plan, n)
	if err := n.device.Set(ctx, n.deviceConfig(s, plan)); err != nil {
		return fmt.Errorf("set wireguard: %w", err)
	}
	if n.host != nil {
		if err := n.host.set(ctx, s, &plan); err != nil {
			return err
		}
	}
	n.room.fit(&plan, false)
	if err := n.exposed.set(ctx, plan.Self.Addrs()); err != nil {
		return fmt.Errorf("expose services: %w", err)
	}
	n.snapshot.Store(s)
	defer n.inForce.set(s)
	first := n.current.Swap(&plan) == nil
	if first {
		close(n.ready)
		n.log.Info("node is up", "addr", plan.Self.Addrs(), "n", plan.Peers.Len())
	}
	return nil
}

// deviceConfig turns a plan into the desired state of the WireGuard device.
func (n *Node) deviceConfig(s *mesh.Snapshot, plan mesh.Plan) wg.Config {
	cfg := wg.Config{
		PrivateKey: n.cfg.Key.WireGuard(),
		ListenPort: n.cfg.ListenPort,
		Addresses:  addresses(plan.Self),
		Lists:      n.devicePeers.of(s, plan.Peers),
		Networks:   s.Networks(),
	}
	if own, err := netip.ParseAddr(n.cfg.PrimaryEndpoint); err == nil {
		cfg.OneMachine = own.IsLoopback()
	}
	// What AllowedIPs let in needs a second look only where ports count.
	var delivery *policy.Filter
	if policy.Restricted(s) {
		delivery = policy.DeliveryFilter(s, plan, n.flows)
		cfg.Accept, cfg.Sent = delivery.Allow, delivery.Sent
	}
	// Only a node that holds state sees the rules between others, so only it
	// forwards for them. Others forward to the networks that they offer.
	cfg.Allow = func(mesh.Packet) bool { return false }
	if n.members != nil {
		cfg.Allow = policy.ForwardFilter(s, n.flows).Allow
	} else if networks := served(s, n.cfg.ID); n.host != nil && len(networks) > 0 {
		if delivery == nil {
			delivery = policy.DeliveryFilter(s, plan, n.flows)
		}
		cfg.Allow = func(p mesh.Packet) bool {
			return slices.ContainsFunc(networks, func(network netip.Prefix) bool { return network.Contains(p.Dst) }) && delivery.Allow(p)
		}
	}
	if n.pairs != nil {
		cfg.Seek = n.pairs.Seek
	}
	n.takeForExit(s, &cfg)
	n.onlyAnswers(s, plan, &cfg)
	if n.host != nil && n.members == nil {
		cfg.Mark = hostnet.Mark
	}
	return cfg
}

// Self is the node's id.
func (n *Node) Self() mesh.NodeID { return n.cfg.ID }

// Ready is closed when the node is in the mesh and its first plan is applied.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Healthy is nil when the node serves; the error says what it waits for.
func (n *Node) Healthy() error {
	if n.current.Load() == nil {
		return fmt.Errorf("%w: the node has not entered the mesh yet", mesh.ErrUnavailable)
	}
	return n.source.healthy()
}

// Snapshot is the state that the data plane follows now; nil before Ready.
func (n *Node) Snapshot() *mesh.Snapshot { return n.snapshot.Load() }

// Wait blocks until a snapshot with a Version above after exists.
func (n *Node) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	return n.source.wait(ctx, after)
}

// Applied blocks until the data plane follows a snapshot with at least version.
func (n *Node) Applied(ctx context.Context, version uint64) error {
	return n.inForce.wait(ctx, version)
}

// Plan derives the plan of any node from s.
func (n *Node) Plan(s *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error) {
	return n.source.plan(s, id)
}

// Join makes a node a member. Only a node that holds state can.
func (n *Node) Join(ctx context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error) {
	if n.members == nil {
		return nil, errNoState
	}
	return n.members.Join(ctx, r)
}

// Update changes a member. Only a node that holds state can.
func (n *Node) Update(ctx context.Context, r mesh.UpdateRequest) error {
	if n.members == nil {
		return errNoState
	}
	return n.members.Update(ctx, r)
}

// Leave removes a member. Only a node that holds state can.
func (n *Node) Leave(ctx context.Context, id mesh.NodeID) error {
	if n.members == nil {
		return errNoState
	}
	return n.members.Leave(ctx, id)
}

// LeaveBound is Leave, but the id stays bound to its key.
func (n *Node) LeaveBound(ctx context.Context, id mesh.NodeID) error {
	if n.members == nil {
		return errNoState
	}
	return n.members.LeaveBound(ctx, id)
}

// Adopt makes this node the gateway that a member is reached through. Only a
// node that holds state can.
func (n *Node) Adopt(ctx context.Context, id mesh.NodeID) (*mesh.Snapshot, error) {
	if n.members == nil {
		return nil, errNoState
	}
	return n.members.Adopt(ctx, id)
}

// RemoveGateway ends that the ACLs which a mesh begins with take a node for a
// gateway. Only a node that holds state can.
func (n *Node) RemoveGateway(ctx context.Context, id mesh.NodeID) error {
	h, ok := n.source.(*holder)
	if !ok {
		return errNoState
	}
	return h.registry.RemoveGateway(ctx, id)
}

// Stats are the WireGuard interface's counters.
func (n *Node) Stats() (mesh.InterfaceStats, error) { return n.device.Stats() }

// Attach gives the WireGuard device one more path for its packets; see wg.Device.Attach.
func (n *Node) Attach(c wg.PacketConn) (detach func(), err error) { return n.device.Attach(c) }

// errNoState is the answer of a node that follows a gateway.
var errNoState = fmt.Errorf("%w: this node holds no state; ask a gateway", mesh.ErrUnsupported)

// addresses are a node's mesh addresses as the interface carries them.
func addresses(self *mesh.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range self.Addrs() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
