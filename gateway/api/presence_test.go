// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// others are gateways that answer with what they have heard; those that are not
// there do not answer until the call ends.
type others struct {
	heard    map[mesh.NodeID][]*meshgatev1.NodePresence
	followed mesh.NodeID
	asked    atomic.Int32
}

func (o *others) RemotePresence(ctx context.Context, id mesh.NodeID, own bool) ([]*meshgatev1.NodePresence, error) {
	o.asked.Add(1)
	list, ok := o.heard[id]
	if !ok || own == (o.followed != "") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return list, nil
}

func (o *others) Followed() (mesh.NodeID, error) {
	if o.followed == "" {
		return "", mesh.ErrUnsupported
	}
	return o.followed, nil
}

// heardReplicas are Replicas of which each is heard as list says.
type heardReplicas struct {
	fakeReplicas
	list []Replica
}

func (r *heardReplicas) Replicas(context.Context) []Replica { return r.list }

// crew are three gateways and nodes at them; gw1 is the one under test. All nodes
// have a key.
func crew(t *testing.T, nodes ...mesh.NodeID) *fake {
	gate := []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}}
	list := []*mesh.Node{
		{ID: "gw1", PublicKey: testKey(t), Features: gate}, {ID: "gw2", PublicKey: testKey(t), Features: gate}, {ID: "gw3", PublicKey: testKey(t), Features: gate},
	}
	for _, id := range nodes {
		list = append(list, &mesh.Node{ID: id, PublicKey: testKey(t), Features: gate[:1]})
	}
	return &fake{self: "gw1", snap: &mesh.Snapshot{Version: 1, Nodes: mesh.NodesOf(list...), Edges: mesh.EdgesOf(mesh.Edge{Source: "c", Target: "gw3"})}}
}

func presencesOf(f *fake, o *others) *presences {
	return newPresences(&Config{State: f, Presence: o}, &links{source: f, ways: f})
}

// toldOf writes presence in short: "gw3 down 3m0s stopped".
func toldOf(list []*meshgatev1.NodePresence) map[string]string {
	told := map[string]string{}
	for _, m := range list {
		text := map[meshgatev1.PresenceState]string{0: "unknown", 1: "up", 2: "down", 3: "never"}[m.GetState()]
		if m.GetGatewayId() != "" {
			text = m.GetGatewayId() + " " + text
		}
		if m.GetLastHeard() != nil {
			text += fmt.Sprint(" ", time.Since(m.GetLastHeard().AsTime()))
		}
		if m.GetStopped() {
			text += " stopped"
		}
		told[m.GetNodeId()] = text
	}
	return told
}

func TestPresence_TheGatewayThatHeardANodeLastDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := crew(t, "a", "b", "c", "d", "e")
		ago := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }
		const up, down = meshgatev1.PresenceState_PRESENCE_STATE_UP, meshgatev1.PresenceState_PRESENCE_STATE_DOWN
		f.stats.Peers = []mesh.PeerStats{ // gw1 has heard both a moment ago, before they moved
			{PublicKey: f.snap.Node("b").PublicKey.WireGuard(), LastHandshake: time.Now().Add(-2 * time.Minute)},
			{PublicKey: f.snap.Node("c").PublicKey.WireGuard(), LastHandshake: time.Now().Add(-2 * time.Minute)},
		}
		o := &others{heard: map[mesh.NodeID][]*meshgatev1.NodePresence{
			"gw2": {{NodeId: "a", State: up}, {NodeId: "stranger", State: up}, {NodeId: "gw3", State: down}},
			"gw3": {
				{NodeId: "a", State: down, LastHeard: ago(time.Second)},
				{NodeId: "b", State: up},
				{NodeId: "c", State: down, Stopped: true, LastHeard: ago(time.Minute)},
				{NodeId: "d", State: down, LastHeard: ago(-time.Hour)}, // its clock is ahead
			},
		}}
		p := presencesOf(f, o)
		list, err := p.all(t.Context())
		want := map[string]string{
			"gw1": "up", "gw2": "up", "gw3": "up", "a": "gw2 up", "b": "gw3 up", "c": "gw3 down 1m0s stopped", "d": "gw3 down 0s", "e": "never",
		}
		if diff := cmp.Diff(want, toldOf(list)); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		// A second question within presenceAge asks nobody.
		if _, err := p.all(t.Context()); err != nil || o.asked.Load() != 2 {
			t.Errorf("asked %d times, %v", o.asked.Load(), err)
		}
	})
}

// Where the gateway that would know does not answer, nobody guesses.
func TestPresence_AGatewayThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := crew(t, "b", "c")
		f.stats.Peers = []mesh.PeerStats{{PublicKey: f.snap.Node("c").PublicKey.WireGuard(), LastHandshake: time.Now().Add(-4 * time.Minute)}}
		p := presencesOf(f, &others{heard: map[mesh.NodeID][]*meshgatev1.NodePresence{"gw2": nil}})
		p.replicas = &heardReplicas{list: []Replica{{ID: "gw1", Known: true}, {ID: "gw2", Known: true}, {ID: "gw3", Known: true, LastContact: time.Minute}}}
		began := time.Now()
		list, err := p.all(t.Context())
		want := map[string]string{"gw1": "up", "gw2": "up", "gw3": fmt.Sprint("down ", time.Minute+presencePatience), "b": "never", "c": "gw3 unknown"}
		if diff := cmp.Diff(want, toldOf(list)); err != nil || diff != "" || time.Since(began) > presencePatience {
			t.Errorf("%v after %v (-want +got):\n%s", err, time.Since(began), diff)
		}
		// Who does not wait spoils the answer for nobody.
		<-time.After(presenceAge)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.all(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		if _, recent := p.recent(); recent {
			t.Error("the answer of a call that was ended is kept")
		}
	})
}

// A node that follows the gateway is up; one that says so is down at once, and one
// whose stream breaks once it has had the time to come back.
func TestPresence_FollowersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := crew(t, "a", "b")
		f.snap.Edges = mesh.Edges{}
		o := &others{heard: map[mesh.NodeID][]*meshgatev1.NodePresence{"gw2": nil, "gw3": nil}}
		p := presencesOf(f, o)
		service := &presenceService{p}
		expect := func(what, a, b string) {
			t.Helper()
			res, err := service.ListPresence(t.Context(), connect.NewRequest(&meshgatev1.ListPresenceRequest{Own: true}))
			if err != nil {
				t.Fatal(err)
			}
			if told := toldOf(res.Msg.GetNodes()); told["a"] != a || told["b"] != b {
				t.Errorf("%s: %v; want a %s, b %s", what, told, a, b)
			}
		}
		expect("before", "", "")
		leaveA, leaveB := p.attendance.enter(f.snap, "a"), p.attendance.enter(f.snap, "b")
		expect("both follow", "up", "up")
		again := p.attendance.enter(f.snap, "b")
		leaveB()
		expect("b has another stream", "up", "up")
		again()
		self := WithCaller(t.Context(), Caller{ID: "a", Node: f.snap.Node("a")})
		if _, err := service.Stop(self, connect.NewRequest(&meshgatev1.StopRequest{})); err != nil {
			t.Fatal(err)
		}
		expect("a stops", "down 0s stopped", "up 0s")
		leaveA()
		<-time.After(returnTime)
		expect("b is gone", "down 10s stopped", "down 10s")
		f.stats.Peers = []mesh.PeerStats{{PublicKey: f.snap.Node("b").PublicKey.WireGuard(), LastHandshake: time.Now().Add(-time.Second)}}
		<-time.After(statsAge)
		expect("b shakes hands", "down 11s stopped", "up 2s")
		defer p.attendance.enter(f.snap, "a")()
		expect("a is back", "up", "up 2s")
		if _, err := service.Stop(t.Context(), connect.NewRequest(&meshgatev1.StopRequest{})); !errors.Is(err, mesh.ErrDenied) {
			t.Errorf("somebody else: %v", err)
		}
	})
}

// Those that left the mesh are forgotten some time.
func TestAttendance_IsBounded(t *testing.T) {
	f, a := crew(t), attendance{}
	for i := range 1000 {
		a.enter(f.snap, mesh.NodeID(fmt.Sprint("n", i)))()
	}
	if len(a.nodes) > 2*f.snap.Nodes.Len()+spareAttendees+1 {
		t.Errorf("%d are remembered", len(a.nodes))
	}
}

func TestPresence_ANodeAsksItsGateway(t *testing.T) {
	f := crew(t, "a")
	f.self = "a"
	want := []*meshgatev1.NodePresence{{NodeId: "c"}}
	o := &others{followed: "gw2", heard: map[mesh.NodeID][]*meshgatev1.NodePresence{"gw2": want}}
	if list, err := presencesOf(f, o).all(t.Context()); err != nil || len(list) != 1 || list[0].GetNodeId() != "c" {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := presencesOf(f, &others{}).all(t.Context()); !errors.Is(err, mesh.ErrUnsupported) {
		t.Errorf("without a gateway: %v", err)
	}
	if _, err := (&presenceService{presencesOf(f, o)}).Stop(t.Context(), nil); !errors.Is(err, mesh.ErrUnsupported) {
		t.Errorf("a node takes no such call: %v", err)
	}
}

// A node that said that it stops is not asked how it is, and of one that does not
// answer is said what is known of it.
func TestNode_StatusOfANodeThatIsDown(t *testing.T) {
	f := crew(t, "a", "c")
	f.snap.Edges = mesh.Edges{}
	p := presencesOf(f, &others{heard: map[mesh.NodeID][]*meshgatev1.NodePresence{
		"gw2": {{NodeId: "c", State: meshgatev1.PresenceState_PRESENCE_STATE_DOWN, LastHeard: timestamppb.New(time.Now().Add(-5 * time.Minute))}},
		"gw3": {{NodeId: "a", State: meshgatev1.PresenceState_PRESENCE_STATE_DOWN, Stopped: true, LastHeard: timestamppb.Now()}},
	}})
	n := &nodeService{Config: Config{State: f, Remote: f}, presences: p}
	ask := func(id, want string) {
		t.Helper()
		_, err := n.GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{Id: id}))
		if !errors.Is(err, mesh.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", id, err, want)
		}
	}
	ask("a", "a stopped ")
	f.err = fmt.Errorf("%w: no answer", mesh.ErrUnavailable)
	p.at = time.Now().Add(time.Hour) // what was heard stays as it is
	ask("c", "c is down: it was last heard 5m0s ago by gw2")
}

// A link on which nothing was sent is no fault where the node is up.
func TestExcuse(t *testing.T) {
	now := time.Now()
	none := func() *meshgatev1.Path {
		return &meshgatev1.Path{Kind: meshgatev1.PathKind_PATH_KIND_NONE, Reason: "off"}
	}
	links := []*meshgatev1.Link{
		{NodeId: "old", LastHandshake: timestamppb.New(now.Add(-4*time.Minute - 10*time.Second)), Path: none()},
		{NodeId: "new", Path: none()},
		{NodeId: "called", TransmitBytes: 148, Path: none()},
		{NodeId: "dead", Path: none()},
	}
	const up = meshgatev1.PresenceState_PRESENCE_STATE_UP
	excuse(links, []*meshgatev1.NodePresence{{NodeId: "old", State: up}, {NodeId: "new", State: up}, {NodeId: "called", State: up}}, now)
	var reasons []string
	for _, l := range links {
		reasons = append(reasons, l.GetPath().GetReason())
	}
	if diff := cmp.Diff([]string{"nothing was sent for 4m", "nothing was sent yet", "off", "off"}, reasons); diff != "" {
		t.Error(diff)
	}
}
