// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// heldRelays are Relays in memory.
type heldRelays struct {
	mu   sync.Mutex
	list []Allocation
}

func (r *heldRelays) Allocations() []Allocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

func (r *heldRelays) remove(which func(Allocation) bool) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.list)
	r.list = slices.DeleteFunc(r.list, which)
	return before - len(r.list)
}

func (r *heldRelays) CloseAllocation(id string) bool {
	return r.remove(func(a Allocation) bool { return a.ID == id }) == 1
}

func (r *heldRelays) CloseUser(user string) int {
	return r.remove(func(a Allocation) bool { return a.User == user })
}

// relayGateways are the services of other gateways, by their ids. One that is nil
// does not answer until the call ends, and one with an error answers that.
type relayGateways struct {
	services map[mesh.NodeID]*turnService
	errs     map[mesh.NodeID]error
	between  time.Duration // two parts of a list
}

func (g *relayGateways) RemoteAllocations(ctx context.Context, id mesh.NodeID, user string, each func([]*meshgatev1.Allocation) error) error {
	if err := g.errs[id]; err != nil {
		return err
	}
	if g.services[id] == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return g.services[id].list(ctx, &meshgatev1.ListAllocationsRequest{User: user, Own: true}, func(m *meshgatev1.ListAllocationsResponse) error {
		select {
		case <-time.After(g.between):
			return each(m.GetAllocations())
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func (g *relayGateways) RemoteClose(ctx context.Context, id mesh.NodeID, allocation, user string) (int, error) {
	if err := g.errs[id]; err != nil {
		return 0, err
	}
	if g.services[id] == nil {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	res, err := g.services[id].CloseAllocations(ctx, connect.NewRequest(&meshgatev1.CloseAllocationsRequest{Id: allocation, User: user, Own: true}))
	if errors.Is(err, mesh.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return int(res.Msg.GetClosed()), nil
}

// relayCrew is the service of gw1, whose others are gw2 and gw3, each with
// allocations of the given users; without an entry it serves no TURN. There is a
// node, too.
func relayCrew(t *testing.T, users map[mesh.NodeID][]string) (*turnService, *relayGateways) {
	f := crew(t, "a")
	others := &relayGateways{services: map[mesh.NodeID]*turnService{}, errs: map[mesh.NodeID]error{}}
	for id, list := range users {
		r := &heldRelays{}
		for i, user := range list {
			r.list = append(r.list, Allocation{ID: fmt.Sprint("id", i), User: user, Transport: "UDP"})
		}
		at := *f
		at.self = id
		others.services[id] = &turnService{state: &at, relays: r}
		n := *f.snap.Node(id)
		n.Features = append(slices.Clone(n.Features), mesh.Feature{Kind: v1.Feature_TURN_SERVER, Port: 3478})
		f.snap.Nodes = f.snap.Nodes.With(&n)
	}
	for _, s := range others.services {
		s.state.(*fake).snap = f.snap
	}
	s := others.services["gw1"]
	if s == nil {
		s = &turnService{state: f}
	}
	s.remote = others
	return s, others
}

// listed writes a list in short: "gw1/id0 bob".
func listed(t *testing.T, s *turnService, r *meshgatev1.ListAllocationsRequest) (list, silent []string, err error) {
	t.Helper()
	err = s.list(t.Context(), r, func(m *meshgatev1.ListAllocationsResponse) error {
		if n := len(m.GetAllocations()); n > relaysPart {
			t.Errorf("a part of %d", n)
		}
		for _, a := range m.GetAllocations() {
			list = append(list, a.GetId()+" "+a.GetUser())
		}
		for _, g := range m.GetSilent() {
			silent = append(silent, g.GetGatewayId()+": "+g.GetReason())
		}
		return nil
	})
	slices.Sort(list)
	return list, silent, err
}

func TestTurn_ListsThoseOfAllGateways(t *testing.T) {
	users := map[mesh.NodeID][]string{"gw1": {"bob", "eve"}, "gw2": {"bob"}, "gw3": {"eve"}}
	for name, tt := range map[string]struct {
		ask  *meshgatev1.ListAllocationsRequest
		want []string
		err  error
	}{
		"all":                 {ask: &meshgatev1.ListAllocationsRequest{}, want: []string{"gw1/id0 bob", "gw1/id1 eve", "gw2/id0 bob", "gw3/id0 eve"}},
		"of a user":           {ask: &meshgatev1.ListAllocationsRequest{User: "bob"}, want: []string{"gw1/id0 bob", "gw2/id0 bob"}},
		"of one gateway":      {ask: &meshgatev1.ListAllocationsRequest{GatewayId: "gw3"}, want: []string{"gw3/id0 eve"}},
		"of this one":         {ask: &meshgatev1.ListAllocationsRequest{GatewayId: "gw1", User: "eve"}, want: []string{"gw1/id1 eve"}},
		"its own":             {ask: &meshgatev1.ListAllocationsRequest{Own: true}, want: []string{"gw1/id0 bob", "gw1/id1 eve"}},
		"of nobody":           {ask: &meshgatev1.ListAllocationsRequest{User: "nobody"}},
		"of a node":           {ask: &meshgatev1.ListAllocationsRequest{GatewayId: "a"}, err: mesh.ErrPrecondition},
		"of a stranger":       {ask: &meshgatev1.ListAllocationsRequest{GatewayId: "gw9"}, err: mesh.ErrNotFound},
		"of what is no id":    {ask: &meshgatev1.ListAllocationsRequest{GatewayId: "../x"}, err: mesh.ErrInvalid},
		"of an id of another": {ask: &meshgatev1.ListAllocationsRequest{GatewayId: "gw1/id0"}, err: mesh.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := relayCrew(t, users)
			list, silent, err := listed(t, s, tt.ask)
			if !slices.Equal(list, tt.want) || len(silent) > 0 || !errors.Is(err, tt.err) {
				t.Errorf("%q, silent %q, %v; want %q, %v", list, silent, err, tt.want, tt.err)
			}
		})
	}
}

// A gateway without TURN is not asked, and named alone it says so.
func TestTurn_GatewaysWithoutTURN(t *testing.T) {
	s, _ := relayCrew(t, map[mesh.NodeID][]string{"gw2": {"bob"}})
	if list, silent, err := listed(t, s, &meshgatev1.ListAllocationsRequest{}); !slices.Equal(list, []string{"gw2/id0 bob"}) || len(silent) > 0 || err != nil {
		t.Errorf("%q, silent %q, %v", list, silent, err)
	}
	for _, id := range []string{"gw1", "gw3"} {
		if _, _, err := listed(t, s, &meshgatev1.ListAllocationsRequest{GatewayId: id}); !errors.Is(err, mesh.ErrPrecondition) || !strings.Contains(err.Error(), "--turn.listen") {
			t.Errorf("%s: %v", id, err)
		}
	}
	if list, _, err := listed(t, s, &meshgatev1.ListAllocationsRequest{Own: true}); len(list) > 0 || err != nil {
		t.Errorf("its own: %q, %v", list, err)
	}
	s.state.(*fake).self = "a"
	if _, _, err := listed(t, s, &meshgatev1.ListAllocationsRequest{}); !errors.Is(err, mesh.ErrUnsupported) {
		t.Errorf("a node: %v", err)
	}
	if _, err := s.CloseAllocations(t.Context(), connect.NewRequest(&meshgatev1.CloseAllocationsRequest{User: "bob"})); !errors.Is(err, mesh.ErrUnsupported) {
		t.Errorf("a node: %v", err)
	}
}

// A gateway that does not answer holds up nobody for longer than its patience, and
// is told; one that takes its time with many parts is heard to the end.
func TestTurn_SilentGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, others := relayCrew(t, map[mesh.NodeID][]string{"gw1": {"bob"}, "gw2": make([]string, 5*relaysPart), "gw3": {"eve"}})
		others.services["gw3"] = nil
		others.between = relaysPatience - time.Millisecond
		began := time.Now()
		list, silent, err := listed(t, s, &meshgatev1.ListAllocationsRequest{})
		if len(list) != 5*relaysPart+1 || !slices.Equal(silent, []string{"gw3: no answer within 2s"}) || err != nil {
			t.Errorf("%d, silent %q, %v", len(list), silent, err)
		}
		if took := time.Since(began); took != 5*others.between {
			t.Errorf("it took %v", took)
		}
		if _, _, err := listed(t, s, &meshgatev1.ListAllocationsRequest{GatewayId: "gw3"}); !errors.Is(err, mesh.ErrUnavailable) || !strings.Contains(err.Error(), "gateway gw3: no answer within 2s") {
			t.Errorf("alone: %v", err)
		}
		others.errs["gw2"] = fmt.Errorf("%w: it is older", mesh.ErrUnavailable)
		if _, silent, err := listed(t, s, &meshgatev1.ListAllocationsRequest{}); !slices.Equal(silent, []string{"gw2: it is older", "gw3: no answer within 2s"}) || err != nil {
			t.Errorf("silent %q, %v", silent, err)
		}
	})
}

// A caller that reads slowly makes no gateway silent, and one that goes ends all.
func TestTurn_SlowCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, others := relayCrew(t, map[mesh.NodeID][]string{"gw1": nil, "gw2": make([]string, 2*relaysPart), "gw3": nil})
		n := 0
		err := s.list(t.Context(), &meshgatev1.ListAllocationsRequest{}, func(m *meshgatev1.ListAllocationsResponse) error {
			<-time.After(10 * relaysPatience)
			n += len(m.GetAllocations())
			if len(m.GetSilent()) > 0 {
				t.Errorf("silent: %v", m.GetSilent())
			}
			return nil
		})
		if n != 2*relaysPart || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		others.services["gw3"] = nil
		began, gone := time.Now(), errors.New("the caller is gone")
		if err := s.list(t.Context(), &meshgatev1.ListAllocationsRequest{}, func(*meshgatev1.ListAllocationsResponse) error { return gone }); !errors.Is(err, gone) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("another gateway was waited for for %v", took)
		}
	})
}

func TestTurn_Closes(t *testing.T) {
	users := map[mesh.NodeID][]string{"gw1": {"bob", "eve", "bob"}, "gw2": {"bob"}, "gw3": {"eve"}}
	for name, tt := range map[string]struct {
		ask    *meshgatev1.CloseAllocationsRequest
		down   mesh.NodeID
		closed uint32
		silent int
		left   int
		err    error
	}{
		"one here":             {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw1/id1"}, closed: 1, left: 4},
		"one there":            {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw3/id0"}, closed: 1, left: 4},
		"of a user":            {ask: &meshgatev1.CloseAllocationsRequest{User: "bob"}, closed: 3, left: 2},
		"of a user somewhere":  {ask: &meshgatev1.CloseAllocationsRequest{User: "bob", GatewayId: "gw1"}, closed: 2, left: 3},
		"its own":              {ask: &meshgatev1.CloseAllocationsRequest{User: "bob", Own: true}, closed: 2, left: 3},
		"none there":           {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw3/id1"}, err: mesh.ErrNotFound, left: 5},
		"none here":            {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw1/id9"}, err: mesh.ErrNotFound, left: 5},
		"another's as its own": {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw3/id0", Own: true}, err: mesh.ErrNotFound, left: 5},
		"of nobody":            {ask: &meshgatev1.CloseAllocationsRequest{User: "nobody"}, err: mesh.ErrNotFound, left: 5},
		"nothing":              {ask: &meshgatev1.CloseAllocationsRequest{}, err: mesh.ErrInvalid, left: 5},
		"everything":           {ask: &meshgatev1.CloseAllocationsRequest{Own: true}, err: mesh.ErrInvalid, left: 5},
		"both":                 {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw1/id0", User: "bob"}, err: mesh.ErrInvalid, left: 5},
		"no id":                {ask: &meshgatev1.CloseAllocationsRequest{Id: "id0"}, err: mesh.ErrInvalid, left: 5},
		"half an id":           {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw1/"}, err: mesh.ErrInvalid, left: 5},
		"an id elsewhere":      {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw1/id0", GatewayId: "gw2"}, err: mesh.ErrInvalid, left: 5},
		"an id of a stranger":  {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw9/id0"}, err: mesh.ErrNotFound, left: 5},
		"some do not answer":   {ask: &meshgatev1.CloseAllocationsRequest{User: "bob"}, down: "gw3", closed: 3, silent: 1, left: 1},
		"who has it is silent": {ask: &meshgatev1.CloseAllocationsRequest{User: "nobody"}, down: "gw3", err: mesh.ErrUnavailable, left: 4},
		"it is silent":         {ask: &meshgatev1.CloseAllocationsRequest{Id: "gw3/id0"}, down: "gw3", err: mesh.ErrUnavailable, left: 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, others := relayCrew(t, users)
				if tt.down != "" {
					others.services[tt.down] = nil
				}
				res, err := s.CloseAllocations(t.Context(), connect.NewRequest(tt.ask))
				if !errors.Is(err, tt.err) || err == nil && (res.Msg.GetClosed() != tt.closed || len(res.Msg.GetSilent()) != tt.silent) {
					t.Errorf("%v, %v", res, err)
				}
				if list, _, _ := listed(t, s, &meshgatev1.ListAllocationsRequest{}); len(list) != tt.left {
					t.Errorf("left: %q", list)
				}
			})
		})
	}
}

func TestTurn_ShowsAllOfAnAllocation(t *testing.T) {
	since := time.Unix(1e9, 0)
	got := allocationToProto("gw1", &Allocation{
		ID: "x", User: "b\xffb", Client: netip.MustParseAddrPort("[2001:db8::7]:4000"), Transport: "TLS",
		Relayed: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:50000"), netip.MustParseAddrPort("[2001:db8::1]:50001")}, TCP: true,
		Since: since, Expires: since.Add(time.Minute), Permissions: 1, Channels: 2, Connections: 3,
		SentPackets: 4, SentBytes: 5, ReceivedPackets: 6, ReceivedBytes: 7,
	})
	want := &meshgatev1.Allocation{
		Id: "gw1/x", GatewayId: "gw1", User: "b\uFFFDb", ClientAddress: "[2001:db8::7]:4000", Transport: "TLS",
		RelayedAddresses: []string{"192.0.2.1:50000", "[2001:db8::1]:50001"}, RelayTransport: "TCP",
		Since: timestamppb.New(since), ExpiresAt: timestamppb.New(since.Add(time.Minute)), Permissions: 1, Channels: 2, Connections: 3,
		SentPackets: 4, SentBytes: 5, ReceivedPackets: 6, ReceivedBytes: 7,
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if m := allocationToProto("gw1", &Allocation{}); m.GetSince() != nil || m.GetExpiresAt() != nil || m.GetRelayTransport() != "UDP" {
		t.Errorf("of what is not known: %v", m)
	}
}
