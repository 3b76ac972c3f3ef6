// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// pinged is a Ways whose answers tests choose: answer is called for each ping, from 1.
type pinged struct {
	*fake
	n      int
	answer func(ctx context.Context, n int) (mesh.Pong, error)
	way    func(n int) mesh.Way
}

func (p *pinged) Ping(ctx context.Context, _ *mesh.Node) (mesh.Pong, error) {
	p.n++
	return p.answer(ctx, p.n)
}

func (p *pinged) WayTo(context.Context, *mesh.Node) (mesh.Way, error) { return p.way(p.n), nil }

func (p *pinged) RemotePaths(_ context.Context, id mesh.NodeID) (*meshgatev1.ListPathsResponse, error) {
	return &meshgatev1.ListPathsResponse{NodeId: string(id)}, nil
}

func (p *pinged) RemotePing(_ context.Context, from mesh.NodeID, r *meshgatev1.PingRequest, each func(*meshgatev1.PingResponse) error) error {
	if r.GetFromId() != "" {
		return errors.New("it would be asked to ask another one")
	}
	return each(&meshgatev1.PingResponse{NodeId: r.GetNodeId(), Reason: "from " + string(from)})
}

func newPinged(t *testing.T) *pinged {
	pong := mesh.Pong{Address: netip.MustParseAddr("10.9.0.2"), RTT: 3 * time.Millisecond}
	return &pinged{
		fake:   testFake(t),
		answer: func(context.Context, int) (mesh.Pong, error) { return pong, nil },
		way:    func(int) mesh.Way { return mesh.Way{Node: "phone", Kind: mesh.CarriedWay, Via: "gw2", Why: "so it is"} },
	}
}

func (p *pinged) service() *pathsService {
	return &pathsService{state: p, ways: p, remote: p}
}

// run is Ping without a stream.
func (p *pinged) run(ctx context.Context, m *meshgatev1.PingRequest) (list []*meshgatev1.PingResponse, err error) {
	plan, err := parsePing(m)
	if err != nil {
		return nil, err
	}
	s := p.service()
	o, err := s.ways.Locate(ctx, plan.node)
	if err != nil {
		return nil, err
	}
	if plan.until > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, plan.until, errPingOver)
		defer cancel()
	}
	err = s.ping(ctx, o, plan, func(r *meshgatev1.PingResponse) error {
		list = append(list, r)
		return nil
	})
	return list, err
}

func TestParsePing_NamesWhatIsWrong(t *testing.T) {
	for text, m := range map[string]*meshgatev1.PingRequest{
		"node_id is empty":                  {},
		"node_id: ":                         {NodeId: "no/id"},
		"count 1001: at most 1000":          {NodeId: "phone", Count: 1001},
		"interval 1ms: between":             {NodeId: "phone", Interval: durationpb.New(time.Millisecond)},
		"interval 5m0s: 4 answers take 20m": {NodeId: "phone", Count: 4, Interval: durationpb.New(5 * time.Minute)},
		"interval -1s: between":             {NodeId: "phone", Interval: durationpb.New(-time.Second)},
		"timeout 0s: more than 0":           {NodeId: "phone", UntilDirect: true, Timeout: durationpb.New(0)},
		"timeout 6m0s: more than":           {NodeId: "phone", UntilDirect: true, Timeout: durationpb.New(6 * time.Minute)},
		"timeout -2562047h47m16.854775808s": {NodeId: "phone", UntilDirect: true, Timeout: &durationpb.Duration{Seconds: -1 << 62}},
	} {
		if _, err := parsePing(m); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: %v, want %q", m, err, text)
		}
	}
	for _, name := range []string{"phone", "172.16.0.5", "fd00:1::5"} {
		if plan, err := parsePing(&meshgatev1.PingRequest{NodeId: name}); err != nil || plan.node != mesh.NodeID(name) {
			t.Errorf("%s: %v, %v", name, plan.node, err)
		}
	}
}

func TestPing_AsksAsOftenAsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t)
		began := time.Now()
		list, err := p.run(t.Context(), &meshgatev1.PingRequest{NodeId: "phone", Count: 3})
		if err != nil || len(list) != 3 || time.Since(began) != 2*time.Second {
			t.Fatalf("%d answers after %s, %v", len(list), time.Since(began), err)
		}
		m := list[2]
		if m.GetSequence() != 3 || m.GetAddress() != "10.9.0.2" || m.GetRoundTrip().AsDuration() != 3*time.Millisecond ||
			m.GetPath().GetVia() != "gw2" || m.GetPath().GetReason() != "so it is" {
			t.Errorf("%v", m)
		}
	})
}

func TestPing_EndsWithADirectPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t)
		p.way = func(n int) mesh.Way {
			if n < 3 {
				return mesh.Way{Node: "phone", Kind: mesh.RelayedWay, Via: "gw", Transport: "TLS"}
			}
			return mesh.Way{Node: "phone", Kind: mesh.DirectWay, Remote: netip.MustParseAddrPort("192.0.2.9:1")}
		}
		list, err := p.run(t.Context(), &meshgatev1.PingRequest{NodeId: "phone", UntilDirect: true})
		if err != nil || len(list) != 3 || list[2].GetPath().GetAddress() != "192.0.2.9:1" {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestPing_EndsWithoutADirectPathInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t)
		began := time.Now()
		list, err := p.run(t.Context(), &meshgatev1.PingRequest{NodeId: "phone", UntilDirect: true, Timeout: durationpb.New(3500 * time.Millisecond)})
		if err != nil || len(list) != 4 || time.Since(began) != 3500*time.Millisecond {
			t.Errorf("%d answers after %s, %v", len(list), time.Since(began), err)
		}
	})
}

func TestPing_GoesOnWhereNothingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t)
		p.answer = func(ctx context.Context, _ int) (mesh.Pong, error) {
			<-ctx.Done()
			return mesh.Pong{Address: netip.MustParseAddr("10.9.0.2")}, fmt.Errorf("%w: silence", mesh.ErrUnavailable)
		}
		list, err := p.run(t.Context(), &meshgatev1.PingRequest{NodeId: "phone", Count: 2})
		if err != nil || len(list) != 2 || list[1].GetRoundTrip() != nil || !strings.Contains(list[1].GetReason(), "silence") {
			t.Errorf("%v, %v", list, err)
		}
		// Who asked is gone.
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		began := time.Now()
		if list, err := p.run(ctx, &meshgatev1.PingRequest{NodeId: "phone", Count: 2}); err == nil || len(list) != 0 || time.Since(began) != 500*time.Millisecond {
			t.Errorf("%v, %v after %s", list, err, time.Since(began))
		}
	})
}

func TestPing_ANodeThatCannotBeAsked(t *testing.T) {
	p := newPinged(t)
	p.answer = func(context.Context, int) (mesh.Pong, error) {
		return mesh.Pong{}, fmt.Errorf("%w: it is the node itself", mesh.ErrInvalid)
	}
	if list, err := p.run(t.Context(), &meshgatev1.PingRequest{NodeId: "phone", Count: 2}); !errors.Is(err, mesh.ErrInvalid) || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := p.run(t.Context(), &meshgatev1.PingRequest{NodeId: "absent"}); !errors.Is(err, mesh.ErrNotFound) {
		t.Errorf("a node that is not there: %v", err)
	}
}

func TestListPaths(t *testing.T) {
	p := newPinged(t)
	p.ways = []mesh.Way{{Node: "phone", Kind: mesh.DirectWay, Remote: netip.MustParseAddrPort("192.0.2.9:1"), RTT: time.Millisecond, Since: time.Unix(1e9, 0)}}
	s := p.service()
	ask := func(id string) (*meshgatev1.ListPathsResponse, error) {
		res, err := s.ListPaths(t.Context(), connect.NewRequest(&meshgatev1.ListPathsRequest{NodeId: id}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	for _, id := range []string{"", "gw"} {
		got, err := ask(id)
		if err != nil || got.GetNodeId() != "gw" || len(got.GetPaths()) != 1 {
			t.Fatalf("%q: %v, %v", id, got, err)
		}
		m := got.GetPaths()[0]
		if m.GetNodeId() != "phone" || m.GetKind() != meshgatev1.PathKind_PATH_KIND_DIRECT || m.GetAddress() != "192.0.2.9:1" ||
			m.GetRoundTrip().AsDuration() != time.Millisecond || m.GetSince().GetSeconds() != 1e9 {
			t.Errorf("%v", m)
		}
	}
	if got, err := ask("gw-dns"); err != nil || got.GetNodeId() != "gw-dns" {
		t.Errorf("another node: %v, %v", got, err)
	}
	for id, want := range map[string]error{"phone": mesh.ErrPrecondition, "absent": mesh.ErrNotFound, "no/id": mesh.ErrInvalid} {
		if _, err := ask(id); !errors.Is(err, want) || !strings.Contains(err.Error(), "node_id") {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestListServers_NamesTheGateways(t *testing.T) {
	p := newPinged(t)
	gw := *p.snap.Node("gw")
	gw.WireGuardEndpoints, gw.API = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}, mesh.API{URL: "https://gate.example.org", Pin: [32]byte{1}}
	p.snap.Nodes = p.snap.Nodes.With(&gw)
	s := p.service()
	s.servers = func(_ context.Context, node string) []*v1.ICEServer { return []*v1.ICEServer{{Username: node}} }
	res, err := s.ListServers(WithCaller(t.Context(), Caller{ID: "alice"}), connect.NewRequest(&meshgatev1.ListServersRequest{}))
	if err != nil || len(res.Msg.GetIceServers()) != 1 || res.Msg.GetIceServers()[0].GetUsername() != "alice" {
		t.Fatalf("%v, %v", res, err)
	}
	for _, g := range res.Msg.GetGateways() {
		if g.GetId() == "gw" && g.GetApiUrl() == "https://gate.example.org" && strings.HasPrefix(g.GetApiPin(), "sha256:01") && g.GetWireguardEndpoints()[0] == "192.0.2.1:51820" {
			return
		}
	}
	t.Errorf("%v", res.Msg.GetGateways())
}

func TestListServers_TellsTheOperatorWhomTheNodeBelieves(t *testing.T) {
	s := newPinged(t).service()
	s.trust = &meshgatev1.GatewayTrust{Url: "https://gate.example.org"}
	for caller, want := range map[*Caller]string{{Local: true}: s.trust.Url, {ID: "alice"}: ""} {
		res, err := s.ListServers(WithCaller(t.Context(), *caller), connect.NewRequest(&meshgatev1.ListServersRequest{}))
		if err != nil || res.Msg.GetTrust().GetUrl() != want {
			t.Errorf("%+v: %v, %v", *caller, res, err)
		}
	}
}
