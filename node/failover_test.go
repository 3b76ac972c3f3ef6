// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// gates are gateways of one mesh, each with the others in its answers.
type gates map[mesh.NodeID]*fakeGateway

// newGates makes gateways gw1 to gwN, whose state is at the given revision.
func newGates(t *testing.T, n int, revision uint64) gates {
	t.Helper()
	list := gates{}
	var records []*v1.MeshNode
	for i := 1; i <= n; i++ {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		g := newFakeGateway(t)
		address := fmt.Sprintf("172.16.1.%d/32", i)
		record := &v1.MeshNode{
			Id: fmt.Sprintf("gw%d", i), PublicKey: key.Public().Encode(), PrivateIpv4: address,
			PrimaryEndpoint: fmt.Sprintf("192.0.2.%d", i), ApiUrl: fmt.Sprintf("https://192.0.2.%d", i),
			Features: []*v1.FeaturePort{{Feature: v1.Feature_MEMBERSHIP, Port: 8443}, {Feature: v1.Feature_NODES, Port: 8443}},
		}
		records = append(records, record)
		g.answer.GatewayId, g.answer.Revision = record.GetId(), revision
		peer := proto.CloneOf(record)
		peer.PrimaryEndpoint += ":51820"
		g.answer.Peers = []*v1.WireGuardPeer{{Node: peer, AllowedIps: []string{address}}}
		list[mesh.NodeID(record.GetId())] = g
	}
	for _, g := range list {
		g.answer.Gateways = records
	}
	return list
}

// follow runs a node that was told of gw1; change may alter its configuration.
func (l gates) follow(t *testing.T, dir string, change ...func(*Config)) *followed {
	t.Helper()
	return follow(t, l["gw1"], dir, func(c *Config) {
		for _, f := range change {
			f(c)
		}
		c.Follow.Mesh = func(at netip.AddrPort) Gateway {
			return l[mesh.NodeID(fmt.Sprintf("gw%d", at.Addr().As4()[3]))]
		}
		c.Follow.Other = func(network string, gate *mesh.Node) (Gateway, error) {
			if network != "fd00:1::/32" || gate.API.URL == "" {
				return nil, errors.New("no way there")
			}
			return l[gate.ID], nil
		}
	})
}

func (g *fakeGateway) adopted() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.adopts
}

// poll waits until done.
func poll(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen")
		}
	}
}

func (g *fakeGateway) subscriptions() []uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]uint64(nil), g.afters...)
}

func TestFollower_GoesToAnotherGatewayWhenItsOwnIsGone(t *testing.T) {
	l, dir := newGates(t, 2, 5), t.TempDir()
	n := l.follow(t, dir)
	hears(t, l["gw1"])
	if gates := n.node.Snapshot().Nodes; gates.Len() != 3 {
		t.Errorf("it knows %d nodes: itself and two gateways were expected", gates.Len())
	}
	l["gw1"].dies()
	hears(t, l["gw2"])
	if got := l["gw2"].subscriptions(); len(got) != 1 || got[0] != 5 {
		t.Errorf("gw2 was asked for states after %d", got)
	}
	if n := len(l["gw2"].requests()); n != 0 {
		t.Errorf("%d joins at gw2", n)
	}
	n.end()

	// Its first gateway is gone for good, and it starts again.
	l["gw2"].script(nil, false)
	n = l.follow(t, dir)
	hears(t, l["gw2"])
	n.end()
	if got := l["gw2"].adopted(); got != 1 {
		t.Errorf("gw2 has adopted it %d times", got)
	}
	// The second one, too, but the first is back.
	l["gw2"].dies()
	l["gw1"].script(nil, false)
	n = l.follow(t, dir)
	hears(t, l["gw1"])
	n.end()
	if joins := l["gw1"].requests(); len(joins) != 1 {
		t.Errorf("%d joins at gw1", len(joins))
	}
}

// A gateway that is back within a moment keeps its nodes.
func TestFollower_PrefersItsOwnGateway(t *testing.T) {
	l := newGates(t, 3, 5)
	n := l.follow(t, "")
	hears(t, l["gw1"])
	l["gw1"].dies()
	l["gw1"].script(nil, false)
	hears(t, l["gw1"])
	n.end()
	if l["gw1"].adopted() != 1 || l["gw2"].adopted()+l["gw3"].adopted() != 0 {
		t.Errorf("adopted by gw1 %d times, by others %d times", l["gw1"].adopted(), l["gw2"].adopted()+l["gw3"].adopted())
	}
}

// A node that ACLs keep away from all gateways stays with its own: each move
// would be a change of the mesh.
func TestFollower_StaysWhereItIsCutOff(t *testing.T) {
	l := newGates(t, 3, 5)
	for _, g := range l {
		g.answer.Peers = nil
	}
	n := l.follow(t, "")
	poll(t, func() bool { return l["gw1"].adopted() >= 3 })
	n.end()
	if moves := l["gw2"].adopted() + l["gw3"].adopted(); moves != 0 {
		t.Errorf("adopted by others %d times", moves)
	}
}

// The nodes of a gateway that is gone do not all go to the same one.
func TestFollower_SpreadsOverTheOthers(t *testing.T) {
	l := newGates(t, 3, 5)
	to := map[mesh.NodeID]int{}
	for i := range 40 {
		f := &follower{node: &Node{cfg: Config{ID: mesh.NodeID(fmt.Sprintf("node-%d", i))}}, cfg: Follow{Other: func(string, *mesh.Node) (Gateway, error) { return nil, nil }}}
		f.joined = l["gw1"].answer
		for _, w := range f.joined.GetGateways() {
			g, err := mesh.NodeFromProto(w)
			if err != nil {
				t.Fatal(err)
			}
			f.gateways = append(f.gateways, g)
		}
		list := f.candidates()
		if len(list) != 3 || list[0].ID != "gw1" {
			t.Fatalf("candidates %v", list)
		}
		to[list[1].ID]++
	}
	if to["gw2"] < 10 || to["gw3"] < 10 {
		t.Errorf("after gw1 they go to %v", to)
	}
}

// A gateway that lags behind is not followed back in time; one whose state was
// restored is, once it has adopted the node.
func TestFollower_TakesNoOlderState(t *testing.T) {
	l := newGates(t, 2, 9)
	old := &v1.PeerConfigurations{Revision: 4, GatewayId: "gw2"}
	l["gw2"].config = old
	n := l.follow(t, "")
	hears(t, l["gw1"])
	l["gw1"].dies()
	poll(t, func() bool { return len(l["gw2"].subscriptions()) > 0 })
	if s := n.node.Snapshot(); s.Nodes.Len() != 3 {
		t.Error("the old configuration, in which there is nobody, was taken")
	}
	l["gw2"].mu.Lock()
	l["gw2"].answer = proto.CloneOf(l["gw2"].answer)
	l["gw2"].answer.Revision = 3
	l["gw2"].mu.Unlock()
	hears(t, l["gw2"])
	n.end()
}

// Any gateway's word that the node was removed counts, because it has shown its
// key; that one refuses it does not.
func TestFollower_RemovedIsFinalAtAnyGateway(t *testing.T) {
	l := newGates(t, 2, 5)
	n := l.follow(t, t.TempDir())
	hears(t, l["gw1"])
	l["gw2"].script(errRefused, true)
	l["gw1"].dies()
	poll(t, func() bool { return l["gw2"].adopted() > 1 })
	l["gw2"].script(errRemoved, true)
	if err := n.wait(); !errors.Is(err, mesh.ErrNotFound) || !strings.Contains(err.Error(), "--again") {
		t.Errorf("a removed node ends with %v", err)
	}
}

// The log names the gateway that was tried, which need not be the one that the node
// was started with.
func TestFollower_NamesTheGatewayThatItLost(t *testing.T) {
	l := newGates(t, 2, 5)
	var log lockedBuffer
	n := l.follow(t, t.TempDir(), func(c *Config) {
		c.Follow.Name, c.Logger = "https://start", slog.New(slog.NewTextHandler(&log, nil))
	})
	hears(t, l["gw1"])
	l["gw1"].dies()
	hears(t, l["gw2"])
	l["gw2"].dies()
	poll(t, func() bool { return strings.Contains(log.String(), "gw1, https://start") })
	n.end()
	var warned []string
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "level=WARN") {
			_, rest, _ := strings.Cut(line, " gateway=")
			name, _, _ := strings.Cut(rest, " err=")
			warned = append(warned, name)
		}
	}
	if want := []string{"gw1", "gw2", `"gw2, gw1, https://start"`}; !slices.Equal(warned, want) {
		t.Errorf("the log names %q, want %q:\n%s", warned, want, log.String())
	}
}

// A node that a gateway takes is a member: where no packet of WireGuard gets there,
// the log does not have it join again.
func TestFollower_AGatewayThatIsNotHeardIsNoRefusal(t *testing.T) {
	l, dir := newGates(t, 1, 5), t.TempDir()
	n := l.follow(t, dir)
	hears(t, l["gw1"])
	n.end()
	l["gw1"].script(nil, true)
	noToken := newFakeGateway(t)
	noToken.script(errRefused, true)
	var log lockedBuffer
	n = l.follow(t, dir, func(c *Config) {
		c.Follow.Public, c.Logger = noToken, slog.New(slog.NewTextHandler(&log, nil))
	})
	poll(t, func() bool { return strings.Contains(log.String(), "level=WARN") })
	n.end()
	if said := log.String(); !strings.Contains(said, "a gateway knows this node and does not answer on the mesh") || strings.Contains(said, "--again") {
		t.Errorf("the log says:\n%s", said)
	}
}

// A node whose gateway stays away says so, and then says little.
func TestFollower_RepeatsItselfRarely(t *testing.T) {
	var log lockedBuffer
	f := &follower{node: &Node{log: slog.New(slog.NewTextHandler(&log, nil))}, asks: []string{"gw1", "gw1", "gw2"}}
	for i := range 10 {
		f.complain(t.Context(), fmt.Errorf("read 127.0.0.1:%d: refused", 40000+i), time.Second)
	}
	f.complain(t.Context(), errors.New("something else"), time.Second)
	if said := log.String(); strings.Count(said, "\n") != 2 || !strings.Contains(said, `gateway="gw1, gw2" err="read 127.0.0.1:40000: refused" n=1 dur=1s`) ||
		!strings.Contains(said, `err="something else" n=11`) {
		t.Errorf("the log says:\n%s", said)
	}
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex // guards the field below
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
