// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/wg"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// patience bounds every wait of a test; nothing should come near it.
const patience = time.Minute

var (
	errRefused = errors.New("refused")
	errRemoved = errors.New("removed")
)

// fakeGateway answers joins and subscriptions from a script.
type fakeGateway struct {
	answer *v1.JoinResponse
	// heard is closed at the first subscription.
	heard chan struct{}

	mu     sync.Mutex // guards the fields below
	refuse error      // of joins and adoptions
	deaf   bool       // subscriptions fail
	joins  []*v1.JoinRequest
	adopts int
	afters []uint64 // of subscriptions
	left   []string
	stops  int
	// config is what a subscription begins with; nil: the peers of answer.
	config *v1.PeerConfigurations
	cut    chan struct{} // closed when the subscriptions of now break
}

func newFakeGateway(t *testing.T) *fakeGateway {
	t.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return &fakeGateway{
		heard: make(chan struct{}), cut: make(chan struct{}),
		answer: &v1.JoinResponse{
			AddressIpv4: "172.16.0.2/32", NetworkIpv4: "172.16.0.0/12", NetworkIpv6: "fd00:1::/32", GatewayId: "gate",
			Peers: []*v1.WireGuardPeer{{
				Node: &v1.MeshNode{
					Id: "gate", PublicKey: key.Public().Encode(), PrivateIpv4: "172.16.0.1/32",
					Features: []*v1.FeaturePort{{Feature: v1.Feature_MEMBERSHIP, Port: 8443}},
				},
				AllowedIps: []string{"172.16.0.1/32"},
			}},
		},
	}
}

func (g *fakeGateway) Join(_ context.Context, r *v1.JoinRequest, _ mesh.PrivateKey) (*v1.JoinResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.joins = append(g.joins, proto.CloneOf(r))
	return g.answer, g.refuse
}

func (g *fakeGateway) Adopt(context.Context, string) (*v1.JoinResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.adopts++
	return g.answer, g.refuse
}

func (g *fakeGateway) Leave(_ context.Context, id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = append(g.left, id)
	return nil
}

// Stop implements stopper.
func (g *fakeGateway) Stop(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stops++
	return nil
}

func (g *fakeGateway) SubscribePeers(ctx context.Context, _ string, after uint64, each func(*v1.PeerConfigurations) error) error {
	g.mu.Lock()
	g.afters = append(g.afters, after)
	deaf, config, heard, cut := g.deaf, g.config, g.heard, g.cut
	g.mu.Unlock()
	if deaf {
		return errors.New("no way to the gateway")
	}
	if config == nil {
		config = &v1.PeerConfigurations{Peers: g.answer.GetPeers(), Gateways: g.answer.GetGateways(), Revision: g.answer.GetRevision()}
	}
	if err := each(config); err != nil {
		return err
	}
	close(heard)
	select {
	case <-cut:
		return errors.New("the gateway is gone")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *fakeGateway) script(refuse error, deaf bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse, g.deaf = refuse, deaf
	g.heard = make(chan struct{})
}

// dies ends the subscriptions and answers nothing from now on.
func (g *fakeGateway) dies() {
	g.script(errors.New("connection refused"), true)
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.cut)
	g.cut = make(chan struct{})
}

func (g *fakeGateway) requests() []*v1.JoinRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.joins
}

// followed is a running node.
type followed struct {
	t     *testing.T
	node  *Node
	stop  context.CancelFunc
	ended chan error
}

// follow runs a node behind g; change may alter its configuration.
func follow(t *testing.T, g *fakeGateway, dir string, change func(*Config)) *followed {
	t.Helper()
	key, err := mesh.GenerateKey()
	if dir != "" {
		key, err = LoadKey(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		ID: "nas", Key: key, Mode: wg.ModeNetstack,
		Follow: &Follow{
			Public: g, Mesh: func(netip.AddrPort) Gateway { return g }, DataDir: dir,
			Refused: func(err error) bool { return errors.Is(err, errRefused) || errors.Is(err, errRemoved) },
			Removed: func(err error) bool { return errors.Is(err, errRemoved) },
		},
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &followed{t: t, node: n, stop: cancel, ended: make(chan error, 1)}
	go func() { f.ended <- n.Run(ctx) }()
	return f
}

// wait waits until the node ends by itself, and tells why.
func (f *followed) wait() error {
	f.t.Helper()
	defer f.stop()
	select {
	case err := <-f.ended:
		return errors.Join(err, f.node.Close())
	case <-time.After(patience):
		f.t.Fatal("the node does not end")
		return nil
	}
}

// end ends the node in peace.
func (f *followed) end() {
	f.t.Helper()
	f.stop()
	if err := f.wait(); err != nil {
		f.t.Fatal(err)
	}
}

func hears(t *testing.T, g *fakeGateway) {
	t.Helper()
	g.mu.Lock()
	heard := g.heard
	g.mu.Unlock()
	select {
	case <-heard:
	case <-time.After(patience):
		t.Fatal("the node does not subscribe")
	}
}

func TestFollower_RestartNeedsNoJoin(t *testing.T) {
	g, dir := newFakeGateway(t), t.TempDir()
	n := follow(t, g, dir, nil)
	hears(t, g)
	n.end()
	if id := SavedID(dir); id != "nas" {
		t.Errorf("the directory is that of %q", id)
	}
	g.script(errRefused, false)
	n = follow(t, g, dir, nil)
	hears(t, g)
	n.end()
	if n := len(g.requests()); n != 1 || g.requests()[0].GetMemberOf() != "" {
		t.Errorf("%d joins, the first as a member of %q", n, g.requests()[0].GetMemberOf())
	}
	if len(g.left) != 0 || g.stops != 2 {
		t.Errorf("a node that keeps its identity left: %v; it said %d times that it stops, want each time", g.left, g.stops)
	}
}

// The first join tells where the node is reached, before there is a plan.
func TestFollower_TellsItsPortAtTheFirstJoin(t *testing.T) {
	g := newFakeGateway(t)
	n := follow(t, g, "", func(c *Config) { c.PrimaryEndpoint = "127.0.0.1" })
	hears(t, g)
	port := n.node.device.ListenPort()
	n.end()
	told, err := mesh.ParseAddrPorts(g.requests()[0].GetWireguardEndpoints())
	if err != nil || len(told) != 1 || told[0] != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) {
		t.Errorf("told %v, %v; want port %d", g.requests()[0].GetWireguardEndpoints(), err, port)
	}
}

func TestFollower_ChangedSettingsAreTold(t *testing.T) {
	g, dir := newFakeGateway(t), t.TempDir()
	n := follow(t, g, dir, nil)
	hears(t, g)
	n.end()
	moved := func(c *Config) {
		c.Zone = "z1"
		c.Expose = []Expose{{Protocol: "tcp", Port: 81, Target: "127.0.0.1:3000"}}
	}
	g.script(errRefused, false)
	err := follow(t, g, dir, moved).wait()
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "settings") || !strings.Contains(err.Error(), "token") {
		t.Errorf("new settings without a right to them: %v", err)
	}
	g.script(nil, false)
	n = follow(t, g, dir, moved)
	hears(t, g)
	n.end()
	last := g.requests()[2]
	if last.GetZoneAwarenessId() != "z1" || len(last.GetServices()) != 1 || last.GetMemberOf() != "fd00:1::/32" {
		t.Errorf("the gateway was told %v", last)
	}
}

// noPairs is a gateway that does not answer what nodes ask for pairs.
type noPairs struct{}

func (noPairs) FollowPairs(context.Context) peer.Call[meshgatev1.FollowPairsResponse, meshgatev1.FollowPairsRequest] {
	return noCall[meshgatev1.FollowPairsResponse, meshgatev1.FollowPairsRequest]{}
}

func (noPairs) SignalPaths(context.Context) peer.Call[v1.WebRTCSignal, v1.WebRTCSignal] {
	return noCall[v1.WebRTCSignal, v1.WebRTCSignal]{}
}

// noCall is a call that has failed.
type noCall[In, Out any] struct{}

func (noCall[In, Out]) Receive() (*In, error) { return nil, mesh.ErrUnavailable }
func (noCall[In, Out]) Send(*Out) error       { return mesh.ErrUnavailable }
func (noCall[In, Out]) CloseSend() error      { return nil }

// A node that takes part in pairs since an update tells the mesh so. When it may
// not, it stays a member without.
func TestFollower_TellsThatItTakesPartInPairs(t *testing.T) {
	g, dir := newFakeGateway(t), t.TempDir()
	n := follow(t, g, dir, nil)
	hears(t, g)
	n.end()
	pairs := func(c *Config) {
		c.Follow.Paths = true
		c.Follow.MeshPairs = func(netip.AddrPort) PairGateway { return noPairs{} }
	}
	g.script(errRefused, false)
	n = follow(t, g, dir, pairs)
	hears(t, g)
	n.end()
	g.script(nil, false)
	g.answer.RelayServers = []*v1.ICEServer{{Urls: []string{"turn:192.0.2.1"}, Credential: "secret-of-minutes"}}
	n = follow(t, g, dir, pairs)
	hears(t, g)
	if got := n.node.RelayServers(); len(got) != 1 {
		t.Errorf("relay servers: %v", got)
	}
	if self := n.node.Snapshot().Node("nas"); !self.Paths {
		t.Error("the node does not know that it takes part")
	}
	n.end()
	for i, want := range []bool{false, true, true} {
		if got := g.requests()[i].GetPaths(); got != want {
			t.Errorf("join %d: %v", i, got)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, membershipFile))
	if err != nil || strings.Contains(string(raw), "secret-of-minutes") {
		t.Errorf("kept with a credential: %v", err)
	}
	if _, err := New(Config{ID: "nas", Mode: wg.ModeNetstack, Follow: &Follow{
		Public: g, Mesh: func(netip.AddrPort) Gateway { return g }, Refused: n.node.cfg.Follow.Refused, Removed: n.node.cfg.Follow.Removed, Paths: true,
	}}); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), "needs a mesh client") {
		t.Errorf("without a client: %v", err)
	}
}

func TestFollower_RemovedNodeEndsAndJoinsOnlyWhenTold(t *testing.T) {
	g, dir := newFakeGateway(t), t.TempDir()
	n := follow(t, g, dir, nil)
	hears(t, g)
	n.end()
	for range 2 { // a supervisor starts it again
		g.script(errRemoved, true)
		if err := follow(t, g, dir, nil).wait(); !errors.Is(err, mesh.ErrNotFound) || !strings.Contains(err.Error(), "--again") {
			t.Fatalf("a removed node: %v", err)
		}
	}
	g.script(nil, false)
	n = follow(t, g, dir, func(c *Config) { c.Follow.Again = true })
	hears(t, g)
	n.end()
	if last := g.requests()[len(g.requests())-1]; last.GetMemberOf() != "" {
		t.Errorf("it joined as a member of %q", last.GetMemberOf())
	}
}

func TestFollower_DirectoryOfAnotherNodeIsRefused(t *testing.T) {
	g, dir := newFakeGateway(t), t.TempDir()
	n := follow(t, g, dir, nil)
	hears(t, g)
	n.end()
	n = follow(t, g, dir, func(c *Config) { c.ID = "cam" })
	if err := n.wait(); !errors.Is(err, mesh.ErrPrecondition) || !strings.Contains(err.Error(), `"nas"`) {
		t.Errorf("the directory of nas as cam: %v", err)
	}
	if len(g.requests()) != 1 {
		t.Errorf("it joined all the same")
	}
}

func TestFollower_WithoutADirectoryItLeavesAtTheEnd(t *testing.T) {
	g := newFakeGateway(t)
	n := follow(t, g, "", nil)
	hears(t, g)
	n.end()
	if len(g.left) != 1 || g.left[0] != "nas" {
		t.Errorf("left: %v", g.left)
	}
}

func TestFollower_IsUnhealthyOnceNoGatewayIsHeard(t *testing.T) {
	g := newFakeGateway(t)
	n := follow(t, g, "", nil)
	hears(t, g)
	if err := n.node.Healthy(); err != nil {
		t.Errorf("while the gateway is heard: %v", err)
	}
	f := n.node.source.(*follower)
	for _, tt := range []struct {
		ago     time.Duration
		healthy bool
	}{{lostGrace - time.Second, true}, {lostGrace + time.Second, false}} {
		at := time.Now().Add(-tt.ago)
		f.lost.Store(&at)
		if err := n.node.Healthy(); (err == nil) != tt.healthy {
			t.Errorf("%s after the gateway was lost: %v", tt.ago, err)
		}
	}
	n.end()
}
