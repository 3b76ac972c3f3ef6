// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// pairMesh is the test mesh at a version, in which laptop and desk may be a pair.
// change may be nil.
func pairMesh(key mesh.PrivateKey, version uint64, change func(*mesh.Snapshot)) *mesh.Snapshot {
	return changed(version, func(s *mesh.Snapshot) {
		laptop := *s.Node("laptop")
		laptop.PublicKey, laptop.Paths = key.Public(), true
		desk := &mesh.Node{
			ID: "desk", PublicKey: mesh.PublicKey{2}, Paths: true, IPv4: netip.MustParsePrefix("127.0.0.5/32"),
			IPv6: netip.MustParsePrefix("fd00:1:2:5::/112"), Features: laptop.Features,
		}
		gate := *s.Node("gw-1")
		gate.PublicKey = mesh.PublicKey{1}
		s.Nodes = s.Nodes.With(&gate).With(&laptop).With(desk)
		s.Edges = s.Edges.With(mesh.Edge{Source: "gw-1", Target: "laptop", Weight: 1}).With(mesh.Edge{Source: "desk", Target: "gw-1", Weight: 1})
		s.ACLs = []mesh.ACL{{Name: "all", Accept: true}}
		if change != nil {
			change(s)
		}
	})
}

func nodeKey(t testing.TB) mesh.PrivateKey {
	t.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// inPairMesh lets nodes of the pair mesh show their keys to a gateway.
func inPairMesh(key mesh.PrivateKey, servers func(context.Context, string) []*v1.ICEServer) func(*Config) {
	return func(c *Config) {
		node := c.Node.(*fakeNode)
		node.set(pairMesh(key, 7, nil))
		c.Access.Authenticators = append([]Authenticator{NewNodeKeys(node)}, c.Access.Authenticators...)
		c.RelayServers = servers
	}
}

// pairStream is a node's end of Follow.
type pairStream struct {
	*connect.BidiStreamForClient[meshgatev1.FollowPairsRequest, meshgatev1.FollowPairsResponse]
	received[meshgatev1.FollowPairsResponse]
	cancel context.CancelFunc
}

// followPairsAs calls Follow as laptop, by its key.
func followPairsAs(t *testing.T, p *pipes, key mesh.PrivateKey, first *meshgatev1.FollowPairsRequest) *pairStream {
	t.Helper()
	s := openPairs(t, p, key, first)
	go func() {
		for {
			m, err := s.Receive()
			if err != nil {
				s.end <- err
				return
			}
			s.messages <- m
		}
	}()
	return s
}

// openPairs is followPairsAs for a client that does not read.
func openPairs(t *testing.T, p *pipes, key mesh.PrivateKey, first *meshgatev1.FollowPairsRequest) *pairStream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	token := mesh.SignCredential(key, pairMesh(key, 7, nil).IPv6.String(), "laptop", "gw-1", time.Now())
	client := meshgatev1connect.NewPairsClient(withHeader(p.client(t, true), "Authorization", "Bearer "+token), "http://gate", connect.WithGRPC())
	s := &pairStream{BidiStreamForClient: client.Follow(ctx)}
	s.cancel = func() { // the transport waits for the end of the request, too
		cancel()
		_ = s.CloseRequest()
	}
	s.messages, s.end = make(chan *meshgatev1.FollowPairsResponse, 100), make(chan error, 1)
	if err := s.Send(first); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *pairStream) ask(t *testing.T, m *meshgatev1.FollowPairsRequest) {
	t.Helper()
	if err := s.Send(m); err != nil {
		t.Fatal(err)
	}
}

// answers are the pairs that have come, as texts, by what was wanted.
func (s *pairStream) answers() map[string]string {
	out := map[string]string{}
	for _, m := range s.now() {
		for _, p := range m.GetPairs() {
			out[p.GetWanted()] = p.GetGoneReason()
			if w := p.GetPeer(); w != nil {
				out[p.GetWanted()] = fmt.Sprintf("%s %s %s at %q %s", w.GetNode().GetId(), w.GetProto(), strings.Join(w.GetAllowedIps(), ","), w.GetNode().GetPrimaryEndpoint(), p.GetGoneReason())
			}
		}
	}
	return out
}

func wants(list ...string) *meshgatev1.FollowPairsRequest {
	return &meshgatev1.FollowPairsRequest{NodeId: "laptop", Add: list}
}

const deskPair = `desk CONNECT_ICE 127.0.0.5/32 at "" `

func TestFollowPairs_TellsOfEachAndOfItsChanges(t *testing.T) {
	key := nodeKey(t)
	bubble(t, inPairMesh(key, nil), func(t *testing.T, s *served, p *pipes) {
		f := followPairsAs(t, p, key, wants("127.0.0.5", "desk", "127.0.0.77", "gw-1", "laptop", "web-1", "10.0.0.1"))
		first := f.answers()
		for wanted, want := range map[string]string{
			"127.0.0.5": deskPair, "desk": deskPair,
			"127.0.0.77": `no node that "laptop" may reach holds the address 127.0.0.77 or offers a route to it`,
			"10.0.0.1":   `no node that "laptop" may reach holds the address 10.0.0.1 or offers a route to it`,
			"gw-1":       `node "gw-1" takes no part in pairs: it runs no Meshgate, or one that cannot, or is a gateway`,
			"laptop":     `"laptop" is the node itself`,
			"web-1":      `node "web-1" has no key yet`,
		} {
			if first[wanted] != want {
				t.Errorf("%s: %q", wanted, first[wanted])
			}
		}
		version := uint64(7)
		for _, c := range []struct {
			what   string
			change func(*mesh.Snapshot)
			want   map[string]string
		}{
			{"another node", func(s *mesh.Snapshot) {
				s.Nodes = s.Nodes.With(&mesh.Node{ID: "new", IPv4: netip.MustParsePrefix("127.0.0.9/32")})
			}, nil},
			{"an ACL that makes no difference", func(s *mesh.Snapshot) { s.ACLs = append(s.ACLs, mesh.ACL{Name: "more", Accept: true}) }, nil},
			{"an ACL that takes it away", func(s *mesh.Snapshot) { s.ACLs = []mesh.ACL{{Name: "none"}} }, map[string]string{
				"127.0.0.5": `no network ACL lets nodes "laptop" and "desk" reach each other`, "desk": `no network ACL lets nodes "laptop" and "desk" reach each other`,
			}},
			{"and gives it back", nil, map[string]string{"127.0.0.5": deskPair, "desk": deskPair}},
			{"a node with a wanted address", func(s *mesh.Snapshot) {
				s.Nodes = s.Nodes.With(&mesh.Node{ID: "new", PublicKey: mesh.PublicKey{3}, Paths: true, IPv4: netip.MustParsePrefix("127.0.0.77/32")})
			}, map[string]string{"127.0.0.77": `new CONNECT_ICE 127.0.0.77/32 at "" `}},
			{"that leaves", nil, map[string]string{"127.0.0.77": first["127.0.0.77"]}},
			{"an edge between the two", func(s *mesh.Snapshot) { s.Edges = s.Edges.With(mesh.Edge{Source: "desk", Target: "laptop"}) }, nil}, // a pair all the same
			{"an edge to one that can be called", func(s *mesh.Snapshot) {
				n := *s.Node("desk")
				n.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:4")}
				s.Nodes = s.Nodes.With(&n)
				s.Edges = s.Edges.With(mesh.Edge{Source: "desk", Target: "laptop"})
			}, map[string]string{
				"127.0.0.5": `nodes "laptop" and "desk" are neighbours, and have each other for peers already`, "desk": `nodes "laptop" and "desk" are neighbours, and have each other for peers already`,
			}},
			{"a route", func(s *mesh.Snapshot) {
				s.Routes = []mesh.Route{{Name: "r", Node: "desk", Destinations: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
			}, map[string]string{
				"127.0.0.5": `desk CONNECT_ICE 10.0.0.0/8,127.0.0.5/32 at "" `, "desk": `desk CONNECT_ICE 10.0.0.0/8,127.0.0.5/32 at "" `, "10.0.0.1": `desk CONNECT_ICE 10.0.0.0/8,127.0.0.5/32 at "" `,
			}},
			{"another record", func(s *mesh.Snapshot) {
				n := *s.Node("desk")
				n.PrimaryEndpoint = "192.0.2.7"
				n.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:4")}
				s.Nodes = s.Nodes.With(&n)
			}, nil}, // public nodes are neighbours of the gateway, and of each other
			{"the other leaves", func(s *mesh.Snapshot) { s.Nodes = s.Nodes.Without("desk") }, nil},
		} {
			version++
			s.node.set(pairMesh(key, version, func(s *mesh.Snapshot) {
				if c.change != nil {
					c.change(s)
				}
			}))
			pass(100 * time.Millisecond)
			got := f.answers()
			if c.what == "another record" {
				if !strings.Contains(got["desk"], `at "192.0.2.7:4"`) && !strings.Contains(got["desk"], "neighbours") {
					t.Errorf("%s: %q", c.what, got)
				}
				continue
			}
			if c.what == "the other leaves" {
				if got["desk"] != `no node "desk" in the mesh` || !strings.HasPrefix(got["127.0.0.5"], "no node that") {
					t.Errorf("%s: %q", c.what, got)
				}
				continue
			}
			if len(got) != len(c.want) {
				t.Errorf("%s: told %q", c.what, got)
			}
			for wanted, want := range c.want {
				if got[wanted] != want {
					t.Errorf("%s: %s: %q", c.what, wanted, got[wanted])
				}
			}
		}
		s.node.set(pairMesh(key, version+1, func(s *mesh.Snapshot) { s.Nodes = s.Nodes.Without("laptop") }))
		if err := <-f.end; connect.CodeOf(err) != connect.CodeNotFound && connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("the node that asks is removed: %v", err)
		}
	})
}

func TestFollowPairs_AskingAgainAndDropping(t *testing.T) {
	key := nodeKey(t)
	bubble(t, inPairMesh(key, nil), func(t *testing.T, s *served, p *pipes) {
		f := followPairsAs(t, p, key, &meshgatev1.FollowPairsRequest{NodeId: "laptop"})
		if got := f.now(); len(got) != 1 || len(got[0].GetPairs()) != 0 {
			t.Errorf("a node that wants nothing yet is greeted with %v", got)
		}
		for _, again := range []bool{false, true} {
			f.ask(t, &meshgatev1.FollowPairsRequest{Add: []string{"desk"}})
			if got := f.answers(); got["desk"] != deskPair {
				t.Errorf("again %v: %q", again, got)
			}
		}
		f.ask(t, &meshgatev1.FollowPairsRequest{Drop: []string{"desk", "never"}})
		synctest.Wait()
		s.node.set(pairMesh(key, 8, func(s *mesh.Snapshot) { s.ACLs = nil }))
		pass(time.Minute)
		if got := f.now(); len(got) != 0 {
			t.Errorf("of what was dropped: %v", got)
		}
		// Whoever half-closes wants nothing more, and is told on.
		f.ask(t, wants("desk"))
		f.answers()
		if err := f.CloseRequest(); err != nil {
			t.Fatal(err)
		}
		s.node.set(pairMesh(key, 9, nil))
		pass(100 * time.Millisecond)
		if got := f.answers(); got["desk"] != deskPair {
			t.Errorf("after the half-close: %q", got)
		}
	})
}

func TestFollowPairs_BadInput(t *testing.T) {
	key := nodeKey(t)
	many := make([]string, 513)
	for i := range many {
		many[i] = fmt.Sprintf("10.0.%d.%d", i/256, i%256)
	}
	for name, c := range map[string]struct {
		first, next *meshgatev1.FollowPairsRequest
		code        connect.Code
		text        string
	}{
		"no node":         {first: &meshgatev1.FollowPairsRequest{}, code: connect.CodeInvalidArgument, text: "node_id is empty"},
		"another node":    {first: &meshgatev1.FollowPairsRequest{NodeId: "desk"}, code: connect.CodePermissionDenied, text: `only node "desk" itself, by its key, may ask for its pairs, not "laptop"`},
		"another one yet": {first: wants(), next: &meshgatev1.FollowPairsRequest{NodeId: "desk"}, code: connect.CodeInvalidArgument, text: `node_id: "desk" asks in a stream of node "laptop"`},
		"an empty one":    {first: wants("desk", ""), code: connect.CodeInvalidArgument, text: "add[1]: neither an IP address nor the id of a node"},
		"no id":           {first: wants("a/b"), code: connect.CodeInvalidArgument, text: "add[0]: neither an IP address nor the id of a node"},
		"a long one":      {first: wants(strings.Repeat("x", 254)), code: connect.CodeInvalidArgument, text: "add[0]: neither an IP address nor the id of a node"},
		"a zone":          {first: wants("fe80::1%eth0"), code: connect.CodeInvalidArgument, text: "add[0]: an address of the mesh has no zone"},
		"513 at once":     {first: wants(many...), code: connect.CodeResourceExhausted, text: `add: node "laptop" wants to reach more than 512 at a time; drop some`},
		"513 in turn":     {first: wants(many[:512]...), next: wants("desk"), code: connect.CodeResourceExhausted, text: "more than 512 at a time"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, inPairMesh(key, nil), func(t *testing.T, _ *served, p *pipes) {
				f := followPairsAs(t, p, key, c.first)
				if c.next != nil {
					f.ask(t, c.next)
				}
				if err := <-f.end; connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestFollowPairs_StreamsAreBounded(t *testing.T) {
	key := nodeKey(t)
	bubble(t, inPairMesh(key, nil), func(t *testing.T, _ *served, p *pipes) {
		var streams []*pairStream
		for range 4 {
			f := followPairsAs(t, p, key, wants("desk"))
			if got := f.answers(); got["desk"] != deskPair {
				t.Fatal(got)
			}
			streams = append(streams, f)
		}
		f := followPairsAs(t, p, key, wants("desk"))
		if err := <-f.end; connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), `node "laptop" follows its pairs 4 times; end one of these streams`) {
			t.Errorf("a fifth one: %v", err)
		}
		streams[0].cancel()
		<-streams[0].end
		synctest.Wait()
		if got := followPairsAs(t, p, key, wants("desk")).answers(); got["desk"] != deskPair {
			t.Errorf("after one has ended: %q", got)
		}
	})
}

func TestFollowPairs_MintsServersBeforeTheOldOnesExpire(t *testing.T) {
	key := nodeKey(t)
	var minted atomic.Int32
	servers := func(_ context.Context, user string) []*v1.ICEServer {
		return []*v1.ICEServer{{Urls: []string{"stun:192.0.2.1:3478"}}, {
			Urls: []string{"turn:192.0.2.1:3478"}, Username: user, Credential: fmt.Sprint(minted.Add(1)), ExpiresAt: timestamppb.New(time.Now().Add(10 * time.Minute)),
		}}
	}
	bubble(t, inPairMesh(key, servers), func(t *testing.T, _ *served, p *pipes) {
		f := followPairsAs(t, p, key, wants("desk"))
		for n := range 3 {
			got := f.now()
			if len(got) != 1 || len(got[0].GetIceServers()) != 2 || got[0].GetIceServers()[1].GetUsername() != "laptop" ||
				got[0].GetIceServers()[1].GetCredential() != fmt.Sprint(n+1) || (len(got[0].GetPairs()) > 0) != (n == 0) {
				t.Fatalf("list %d: %v", n, got)
			}
			pass(4*time.Minute + 57*time.Second)
			if got := f.now(); len(got) != 0 {
				t.Errorf("long before: %v", got)
			}
			pass(3 * time.Second)
		}
	})
}

// A node that does not read holds up nobody, and gets what is true when it reads.
func TestFollowPairs_ASlowReaderHoldsUpItselfAlone(t *testing.T) {
	key := nodeKey(t)
	bubble(t, inPairMesh(key, nil), func(t *testing.T, s *served, p *pipes) {
		var many []string
		for i := range 500 {
			many = append(many, fmt.Sprintf("unknown-%d-%s", i, strings.Repeat("x", 200)))
		}
		slow := openPairs(t, p, key, wants(append(many, "desk")...))
		quick := followPairsAs(t, p, key, wants("desk"))
		if got := quick.answers(); got["desk"] != deskPair {
			t.Fatal(got)
		}
		for version := uint64(8); version < 40; version++ {
			deny := version%2 == 0
			s.node.set(pairMesh(key, version, func(s *mesh.Snapshot) {
				if deny {
					s.ACLs = nil
				}
			}))
			pass(100 * time.Millisecond)
			if got := quick.answers(); (got["desk"] == deskPair) == deny || len(got) != 1 {
				t.Fatalf("version %d: %q", version, got)
			}
		}
		messages, last := 0, ""
		s.node.set(pairMesh(key, 40, func(s *mesh.Snapshot) { s.ACLs = []mesh.ACL{{Name: "all", Accept: true}, {Name: "the last"}} }))
		s.node.set(pairMesh(key, 41, func(s *mesh.Snapshot) { s.ACLs = nil }))
		for !strings.Contains(last, "no network ACL") {
			m, err := slow.Receive()
			if err != nil {
				t.Fatal(err)
			}
			messages++
			for _, one := range m.GetPairs() {
				if one.GetWanted() == "desk" {
					last = one.GetGoneReason()
				}
			}
		}
		if messages > 3 {
			t.Errorf("%d messages for one that did not read", messages)
		}
	})
}

// A gateway that ends does not wait for streams that end never, and the next one
// needs nothing of the one before.
func TestFollowPairs_EndsWithTheGateway(t *testing.T) {
	key := nodeKey(t)
	bubble(t, inPairMesh(key, nil), func(t *testing.T, s *served, p *pipes) {
		f := followPairsAs(t, p, key, wants("desk"))
		f.answers()
		signals, cancel := pathCall(t, p, key)
		defer cancel()
		if _, err := signals.Receive(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > drainTimeout/2 {
			t.Errorf("it took %s", took)
		}
		if err := <-f.end; connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("the stream ended with %v", err)
		}
		if _, err := signals.Receive(); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("the signals ended with %v", err)
		}
	})
	bubble(t, inPairMesh(key, nil), func(t *testing.T, _ *served, p *pipes) {
		if got := followPairsAs(t, p, key, wants("desk")).answers(); got["desk"] != deskPair {
			t.Errorf("from the next one: %q", got)
		}
	})
}

func testPath() *v1.PathSignal {
	return &v1.PathSignal{Ufrag: "ufrag", Password: strings.Repeat("secret", 4), Session: 1}
}

// pathCall signals a path to desk as laptop, by its key.
func pathCall(t *testing.T, p *pipes, key mesh.PrivateKey) (*connect.BidiStreamForClient[v1.WebRTCSignal, v1.WebRTCSignal], context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	token := mesh.SignCredential(key, pairMesh(key, 7, nil).IPv6.String(), "laptop", "gw-1", time.Now())
	call := v1connect.NewWebRTCClient(withHeader(p.client(t, true), "Authorization", "Bearer "+token), "http://gate", connect.WithGRPC()).StartSignalChannel(ctx)
	if err := call.Send(&v1.WebRTCSignal{NodeId: "desk", Path: testPath()}); err != nil {
		t.Fatal(err)
	}
	return call, func() {
		cancel()
		_ = call.CloseRequest()
	}
}

// What an ACL takes away ends the signals, too, and the other end sees who called
// whatever the caller says.
func TestPathSignals_EndWithTheRightToThem(t *testing.T) {
	key := nodeKey(t)
	bubble(t, inPairMesh(key, nil), func(t *testing.T, s *served, p *pipes) {
		call, cancel := pathCall(t, p, key)
		defer cancel()
		if m, err := call.Receive(); err != nil || m.GetCaller() != "laptop" {
			t.Fatalf("%v, %v", m, err)
		}
		pass(time.Minute)
		s.node.set(pairMesh(key, 8, func(s *mesh.Snapshot) { s.ACLs = nil }))
		began := time.Now()
		if _, err := call.Receive(); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "no network ACL lets nodes") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took > reviewInterval {
			t.Errorf("after %s", took)
		}
	})
}

// Who may signal paths, and follow pairs: nodes by their keys, and nobody by a
// token, whatever its roles and headers.
func TestPairs_WhoMay(t *testing.T) {
	key := nodeKey(t)
	s := serve(t, inPairMesh(key, nil))
	node := func(id mesh.NodeID, gate mesh.NodeID) string {
		return mesh.SignCredential(key, pairMesh(key, 7, nil).IPv6.String(), id, gate, time.Now())
	}
	follow := func(id string) *meshgatev1.FollowPairsRequest { return &meshgatev1.FollowPairsRequest{NodeId: id} }
	signal := func(to string, path *v1.PathSignal) *v1.WebRTCSignal {
		return &v1.WebRTCSignal{NodeId: to, Caller: "desk", Path: path}
	}
	for name, c := range map[string]struct {
		token, from string
		headers     []string
		follow      *meshgatev1.FollowPairsRequest
		signal      *v1.WebRTCSignal
		code        connect.Code
		text        string
	}{
		"a node, by its key":        {token: node("laptop", "gw-1"), follow: follow("laptop")},
		"a node, over the mesh":     {from: "127.0.0.2", follow: follow("laptop")},
		"for another one":           {from: "127.0.0.2", follow: follow("desk"), code: connect.CodePermissionDenied, text: `only node "desk" itself`},
		"a gateway for a node":      {from: "127.0.0.3", follow: follow("laptop"), code: connect.CodePermissionDenied, text: `only node "laptop" itself`},
		"a user with every right":   {token: tokenOf("admin"), follow: follow("laptop"), code: connect.CodePermissionDenied, text: `not "admin"`},
		"a user under its own name": {token: tokenOf("admin"), follow: follow("admin"), code: connect.CodePermissionDenied, text: `only node "admin" itself`},
		"a user who names nobody":   {token: tokenOf("nobody"), follow: follow(""), code: connect.CodePermissionDenied, text: `not "nobody"`},
		"a user for a node":         {token: tokenOf("nobody"), headers: []string{"X-Webmesh-Proxied-For", "laptop"}, follow: follow("laptop"), code: connect.CodePermissionDenied},
		"another node's id":         {token: node("desk", "gw-1"), follow: follow("desk"), code: connect.CodeNotFound},
		"for another gateway":       {token: node("laptop", "gw-2"), follow: follow("laptop"), code: connect.CodePermissionDenied, text: "the credential is for gateway"},
		"a stranger":                {follow: follow("laptop"), code: connect.CodeUnauthenticated},
		"a stranger on the mesh":    {from: "127.0.0.77", follow: follow("laptop"), code: connect.CodeUnauthenticated},

		"a path of a node":            {token: node("laptop", "gw-1"), signal: signal("desk", testPath())},
		"a path over the mesh":        {from: "127.0.0.2", signal: signal("desk", testPath())},
		"the other way":               {from: "127.0.0.5", signal: signal("laptop", testPath())},
		"to one that cannot":          {from: "127.0.0.2", signal: signal("web-1", testPath()), code: connect.CodeFailedPrecondition, text: `node "web-1" has no key yet`},
		"to nobody":                   {from: "127.0.0.2", signal: signal("x", testPath()), code: connect.CodeNotFound, text: `no node "x"`},
		"to itself":                   {from: "127.0.0.2", signal: signal("laptop", testPath()), code: connect.CodeFailedPrecondition},
		"without a name":              {from: "127.0.0.2", signal: signal("", testPath()), code: connect.CodeInvalidArgument, text: "node_id is empty"},
		"to no id":                    {from: "127.0.0.2", signal: signal("a/b", testPath()), code: connect.CodeInvalidArgument},
		"of a user with every right":  {token: tokenOf("admin"), signal: signal("desk", testPath()), code: connect.CodePermissionDenied, text: "only nodes, by their keys, signal paths"},
		"of a user for a node":        {token: tokenOf("admin"), headers: []string{"X-Webmesh-Proxied-For", "laptop"}, signal: signal("desk", testPath()), code: connect.CodePermissionDenied},
		"a node without a path":       {from: "127.0.0.2", signal: signal("desk", nil), code: connect.CodePermissionDenied, text: "no role that grants"},
		"a user with every right can": {token: tokenOf("admin"), signal: signal("desk", nil)},
	} {
		t.Run(name, func(t *testing.T) {
			client, at := httpClient(t, true, c.from, nil), s.public
			if c.from != "" {
				at = s.mesh
			}
			if c.token != "" {
				client = withHeader(client, "Authorization", "Bearer "+c.token)
			}
			if len(c.headers) > 0 {
				client = withHeader(client, c.headers[0], c.headers[1])
			}
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			var err error
			if c.follow != nil {
				call := meshgatev1connect.NewPairsClient(client, "http://"+at, connect.WithGRPC()).Follow(ctx)
				_ = call.Send(c.follow)
				_, err = call.Receive()
				_ = call.CloseRequest()
			} else {
				call := v1connect.NewWebRTCClient(client, "http://"+at, connect.WithGRPC()).StartSignalChannel(ctx)
				_ = call.Send(c.signal)
				var m *v1.WebRTCSignal
				m, err = call.Receive()
				_ = call.CloseRequest()
				if err == nil && m.GetCaller() == "desk" && c.from != "127.0.0.5" {
					t.Errorf("the caller's own word on who it is came through: %v", m)
				}
			}
			if c.code == 0 && err != nil || c.code != 0 && (connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("got %v, want %v %q", err, c.code, c.text)
			}
		})
	}
}

// An answer to a join has relay servers for nodes that take part in pairs.
func TestJoin_AnswersWithRelayServers(t *testing.T) {
	key := nodeKey(t)
	servers := func(_ context.Context, user string) []*v1.ICEServer {
		return []*v1.ICEServer{{Urls: []string{"stun:192.0.2.1:3478"}, Username: user}}
	}
	s := serve(t, inPairMesh(key, servers))
	client := v1connect.NewMembershipClient(bearer(httpClient(t, true, "", nil), "admin"), "http://"+s.public)
	for _, paths := range []bool{true, false} {
		answer, err := client.Join(testContext(t), connect.NewRequest(&v1.JoinRequest{Id: "tablet", PublicKey: key.Public().Encode(), Paths: paths}))
		if err != nil {
			t.Fatal(err)
		}
		if got := answer.Msg.GetRelayServers(); (len(got) == 1 && got[0].GetUsername() == "tablet") != paths {
			t.Errorf("paths %v: %v", paths, got)
		}
	}
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	if !slices.EqualFunc(s.node.joined, []bool{true, false}, func(r mesh.JoinRequest, paths bool) bool { return r.Node.Paths == paths }) {
		t.Errorf("joined: %v", s.node.joined)
	}
}
