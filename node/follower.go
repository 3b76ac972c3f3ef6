// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// backoffMin and backoffMax bound the pause between two rounds of attempts,
	// half of which is left to chance, so that nodes which lost a gateway
	// together do not come back together.
	backoffMin = 500 * time.Millisecond
	backoffMax = 15 * time.Second
)

// Gateway is the membership API of a gateway, as seen by a node that follows it.
type Gateway interface {
	// Join asks for membership and proves that the node holds key. It may
	// change r.
	Join(ctx context.Context, r *v1.JoinRequest, key mesh.PrivateKey) (*v1.JoinResponse, error)
	// Adopt asks the gateway to take over node id, which is a member.
	Adopt(ctx context.Context, id string) (*v1.JoinResponse, error)
	// Leave ends the membership of node id.
	Leave(ctx context.Context, id string) error
	// SubscribePeers calls each for every configuration of node id, the first
	// at once and not older than the revision after, until the stream breaks or
	// ctx ends.
	SubscribePeers(ctx context.Context, id string, after uint64, each func(*v1.PeerConfigurations) error) error
}

// PairGateway is what a node that takes part in pairs asks of a gateway. Calls end
// with their context.
type PairGateway interface {
	// FollowPairs opens a stream that tells who may be a pair with the node.
	FollowPairs(ctx context.Context) peer.Call[meshgatev1.FollowPairsResponse, meshgatev1.FollowPairsRequest]
	// SignalPaths opens a channel to another node, on which the two tell each other
	// how they can be reached.
	SignalPaths(ctx context.Context) peer.Call[v1.WebRTCSignal, v1.WebRTCSignal]
}

// Follow configures a node that gets its peers from a gateway, and from another
// one when that is gone.
type Follow struct {
	// Public is the gateway on its public address, with the join token.
	Public Gateway
	// Mesh makes the client of a gateway on its mesh address, where the node
	// is known by its WireGuard key.
	Mesh func(addr netip.AddrPort) Gateway
	// Other makes the client of any gateway of the mesh on its public address
	// (mesh.Node.API), where the node shows its key; the error says why it
	// cannot. Nil: the node knows the gateway of Public only.
	Other func(mesh string, gate *mesh.Node) (Gateway, error)
	// Paths makes the node take part in pairs: it tells the mesh so. What answers
	// other nodes is signaling.Config.Paths. It needs MeshPairs.
	Paths bool
	// MeshPairs makes the client of a gateway on its mesh address, for pairs, and
	// OtherPairs that of any gateway on its public address, as Mesh and Other do;
	// nil likewise.
	MeshPairs  func(addr netip.AddrPort) PairGateway
	OtherPairs func(mesh string, gate *mesh.Node) (PairGateway, error)
	// RelayTLS says whom to believe as the TURN server of a URI over TLS; nil: the
	// authorities of the system.
	RelayTLS func(uri string) *tls.Config
	// DataDir keeps the membership over restarts. Empty keeps it in memory, and
	// the node leaves the mesh when it ends.
	DataDir string
	// Again joins anew, whatever DataDir says of an earlier membership: for a
	// node that was removed.
	Again bool
	// Refused reports whether an error of Join is final (the token or the id
	// was refused), so that trying again is pointless.
	Refused func(error) bool
	// Distrusted reports whether an error of Join says that what answered is not
	// the gateway to believe, which is final for a node that is no member yet;
	// nil: nothing does.
	Distrusted func(error) bool
	// Name is the gateway that Public asks, for the log.
	Name string
	// Explain is an error in words for people, with what to do; nil: its own.
	Explain func(error) string
	// Removed reports whether an error of Join or Adopt says that the mesh has
	// removed the node. It ends the node for good, so that no guess will do.
	Removed func(error) bool
}

// follower is the source of a node that follows a gateway. Its snapshots are
// partial: the node itself, its peers, the gateways and the ACLs that concern
// it.
type follower struct {
	node *Node
	cfg  Follow
	// sessions is the WireGuard device.
	sessions sessions

	// lost is when the gateway was heard last, or else when the node began;
	// nil while it is heard.
	lost atomic.Pointer[time.Time]
	// broke is true when a gateway that was heard has just been lost, and failed
	// how many rounds there were since in which none was heard. Only run uses them.
	broke  bool
	failed int
	// taken is true when a gateway took the node in the present round and then was
	// not heard over the mesh. Only run uses it.
	taken bool
	// asks are the names of the gateways that the present round has tried, and
	// troubles what the log was told of those before. Only run uses them.
	asks     []string
	troubles repeats

	mu sync.Mutex // guards the fields below
	// base and basePlan are what the gateway said, latest and plans the same with
	// the pairs of the node.
	base     *mesh.Snapshot
	basePlan mesh.Plan
	latest   *mesh.Snapshot
	plans    mesh.Plan
	changed  chan struct{} // closed and replaced at every publish
	joined   *v1.JoinResponse
	asked    *v1.JoinRequest // what joined answers
	// gateways are those of the mesh, as joined has them.
	gateways []*mesh.Node
}

func newFollower(n *Node, cfg Follow) (*follower, error) {
	if cfg.Public == nil || cfg.Mesh == nil || cfg.Refused == nil || cfg.Removed == nil {
		return nil, fmt.Errorf("%w: following needs a public and a mesh client, and the meaning of their errors", mesh.ErrInvalid)
	}
	if cfg.Paths && cfg.MeshPairs == nil {
		return nil, fmt.Errorf("%w: taking part in pairs needs a mesh client for them", mesh.ErrInvalid)
	}
	f := &follower{node: n, cfg: cfg, sessions: n.device, changed: make(chan struct{})}
	now := time.Now()
	f.lost.Store(&now)
	return f, nil
}

// run joins, subscribes, and does both again whenever the gateway is lost, at
// that one or at another. The data plane keeps its last plan meanwhile.
func (f *follower) run(ctx context.Context) error {
	if f.node.cfg.PrimaryEndpoint != "" {
		if err := f.node.openPort(ctx); err != nil {
			return err
		}
	}
	if err := f.load(); err != nil {
		return err
	}
	delay := backoffMin
	for {
		alive, err := f.follow(ctx)
		if ctx.Err() != nil {
			f.leave(ctx)
			if alive { // else nobody is there to be told
				f.stop(ctx)
			}
			return ctx.Err()
		}
		if err := f.final(err); err != nil {
			return err
		}
		if alive {
			delay = backoffMin
			f.failed = 0
			f.troubles.over()
			f.asks = f.asks[len(f.asks)-1:] // the one that was heard, and lost
		}
		if f.broke = alive; !alive {
			f.failed++
		}
		dur := delay/2 + rand.N(delay/2)
		f.complain(ctx, err, dur)
		if err := pause(ctx, dur); err != nil {
			return err
		}
		delay = min(2*delay, backoffMax)
	}
}

// complain tells the log of a round that failed because of err; the next one is
// after dur. What is not new is told now and then only.
func (f *follower) complain(ctx context.Context, err error, dur time.Duration) {
	trouble, why := f.trouble(err), f.explain(err)
	level := slog.LevelDebug
	n, due := f.troubles.failed(trouble+why, time.Now())
	if due {
		level = slog.LevelWarn
	}
	f.node.log.Log(ctx, level, trouble, "gateway", strings.Join(slices.Compact(f.asks), ", "), "err", why, "n", n, "dur", dur)
}

// follow runs one subscription to its end, after one round of attempts to get
// it: at the gateway that the node follows, over the mesh and then on its public
// address, at every other one, and at the one that the node was started with.
// alive tells that a gateway was heard.
func (f *follower) follow(ctx context.Context) (alive bool, err error) {
	asked := f.request()
	others := f.candidates()
	f.asks, f.taken = nil, false
	var errs []error
	// One that was lost just now is not waited for while there are others.
	if f.isMember() && f.known(asked) && !(f.broke && len(others) > 0) {
		if alive, err = f.subscribe(ctx); alive || ctx.Err() != nil {
			return alive, err
		}
		errs = append(errs, err)
	}
	for i, gate := range others {
		if i == 1 {
			if err := pause(ctx, rand.N(spread)); err != nil {
				return false, err
			}
		}
		// One that took the node and may not be reached is the one to stay with:
		// to move is a change of the mesh, and the others keep to the same rules.
		if alive, err = f.enter(ctx, gate, asked); alive || ctx.Err() != nil || errors.Is(err, errCutOff) || f.final(err) != nil {
			return alive, err
		}
		errs = append(errs, err)
	}
	alive, err = f.join(ctx, asked)
	if alive || ctx.Err() != nil {
		return alive, err
	}
	errs = append(errs, err)
	if f.isMember() && !f.known(asked) && f.knownBut(asked, withoutPaths) && f.final(err) == nil {
		if alive, err = f.subscribe(ctx); alive || ctx.Err() != nil {
			return alive, err
		}
		errs = append(errs, err)
	}
	return false, errors.Join(errs...)
}

// join joins at the gateway that the node was started with, and follows it.
func (f *follower) join(ctx context.Context, asked *v1.JoinRequest) (alive bool, err error) {
	f.asks = append(f.asks, f.cfg.Name)
	r, err := f.cfg.Public.Join(ctx, proto.CloneOf(asked), f.node.cfg.Key)
	if err != nil {
		return false, &joinError{error: err}
	}
	if err := f.take(asked, r); err != nil {
		return false, err
	}
	return f.subscribe(ctx)
}

// take makes the answer of a gateway what the node is, and asked what it has
// said of itself.
func (f *follower) take(asked *v1.JoinRequest, r *v1.JoinResponse) error {
	f.mu.Lock()
	f.asked = asked
	f.mu.Unlock()
	return f.accept(r)
}

// joinError is what a gateway said to a join, or to a node that asked to be
// adopted.
type joinError struct {
	error
	// gate is the gateway; empty for the one that the node was started with.
	gate mesh.NodeID
}

// Error names the gateway.
func (e *joinError) Error() string {
	if e.gate == "" {
		return e.error.Error()
	}
	return fmt.Sprintf("gateway %s: %v", e.gate, e.error)
}

func (e *joinError) Unwrap() error { return e.error }

// verdicts are the joinErrors in err.
func verdicts(err error) []*joinError {
	if e, ok := err.(*joinError); ok {
		return []*joinError{e}
	}
	var list []*joinError
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range several.Unwrap() {
			list = append(list, verdicts(e)...)
		}
	}
	return list
}

// final is an error when no further attempt can help, with what to do about it;
// nil when the node goes on trying. That the node was removed any gateway may
// say; what it may ask for is for the one to say that has its token.
func (f *follower) final(err error) error {
	for _, e := range verdicts(err) {
		switch {
		case f.isMember() && f.cfg.Removed(e.error):
			return fmt.Errorf("%w: node %q was removed from the mesh; if it shall be a member again, start it once with --again and a token",
				mesh.ErrNotFound, f.node.cfg.ID)
		case e.gate == "" && !f.isMember() && f.cfg.Distrusted != nil && f.cfg.Distrusted(e.error):
			return fmt.Errorf("join: %w", e.error)
		case e.gate != "" || !f.cfg.Refused(e.error):
		case !f.isMember():
			return fmt.Errorf("join: %w", e.error)
		case !f.knownBut(f.request(), withoutPaths):
			return fmt.Errorf("the settings of node %q have changed since it joined, and the gateway refuses the new ones "+
				"(start it once with a token that may make it join): %w", f.node.cfg.ID, e.error)
		}
	}
	return nil
}

// explain is err for people.
func (f *follower) explain(err error) string {
	if f.cfg.Explain == nil {
		return err.Error()
	}
	return f.cfg.Explain(err)
}

// trouble says in the log what err means for the node, which tries again.
func (f *follower) trouble(err error) string {
	if !f.isMember() {
		return "gateway not reached yet, trying again"
	}
	if f.taken {
		return "a gateway knows this node and does not answer on the mesh, trying again: see that packets of WireGuard get there, by UDP or by its relays"
	}
	for _, e := range verdicts(err) {
		if e.gate == "" && f.cfg.Refused(e.error) {
			return "gateway not heard on the mesh, and it refuses to let this node join again: if the node was removed, it needs a token and --again"
		}
	}
	return "gateway lost, trying again"
}

// request is the node as it wants to be known.
func (f *follower) request() *v1.JoinRequest {
	n := f.node
	self := mesh.NodeToProto(&mesh.Node{
		ID:                 n.cfg.ID,
		PublicKey:          n.cfg.Key.Public(),
		PrimaryEndpoint:    n.cfg.PrimaryEndpoint,
		WireGuardEndpoints: wireguardEndpoints(n.cfg.PrimaryEndpoint, n.cfg.OtherEndpoints, n.device.ListenPort()),
		Zone:               n.cfg.Zone,
		Features:           n.cfg.Features,
		Services:           services(n.cfg.Expose),
	})
	r := &v1.JoinRequest{
		Id:                 self.GetId(),
		PublicKey:          self.GetPublicKey(),
		PrimaryEndpoint:    self.GetPrimaryEndpoint(),
		WireguardEndpoints: self.GetWireguardEndpoints(),
		ZoneAwarenessId:    self.GetZoneAwarenessId(),
		AssignIpv4:         true,
		Features:           self.GetFeatures(),
		Services:           self.GetServices(),
		Paths:              f.cfg.Paths,
		Exit:               n.cfg.Exit,
	}
	for _, p := range n.cfg.Routes {
		r.Routes = append(r.Routes, p.String())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.MemberOf = f.joined.GetNetworkIpv6()
	return r
}

// known reports whether the gateway knows of the node what r says.
func (f *follower) known(r *v1.JoinRequest) bool { return f.knownBut(r, func(*v1.JoinRequest) {}) }

// knownBut is known but for what forget takes out of a request.
func (f *follower) knownBut(r *v1.JoinRequest, forget func(*v1.JoinRequest)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked == nil {
		return false
	}
	a, b := proto.CloneOf(f.asked), proto.CloneOf(r)
	for _, m := range []*v1.JoinRequest{a, b} {
		m.MemberOf = ""
		forget(m)
	}
	return proto.Equal(a, b)
}

// withoutPaths takes out whether a node takes part in pairs. One that cannot tell
// the mesh, as after an update of the program with a token that is good no more,
// does without.
func withoutPaths(r *v1.JoinRequest) { r.Paths = false }

func (f *follower) isMember() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined != nil
}

func (f *follower) wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		f.mu.Lock()
		s, changed := f.latest, f.changed
		f.mu.Unlock()
		if s != nil && s.Version > after {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func (f *follower) plan(_ *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error) {
	if id != f.node.cfg.ID {
		return mesh.Plan{}, errNoState
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plans, nil
}

func (f *follower) close() error { return nil }
