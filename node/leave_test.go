// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// leftGateway is one address of a gateway, which answers who leaves there or not.
type leftGateway struct {
	*fakeGateway
	name   string
	err    error
	silent bool
	asked  *[]string
}

func (g *leftGateway) Leave(ctx context.Context, _ string) error {
	*g.asked = append(*g.asked, g.name)
	if g.silent {
		<-ctx.Done()
		return ctx.Err()
	}
	return g.err
}

// A node that keeps nothing leaves at the public address of its gateway: over the
// mesh the answer gets lost with the peer. Where that fails it does so all the same.
func TestLeave_AsksThePublicAddressFirst(t *testing.T) {
	both := []string{"public", "mesh"}
	for name, tt := range map[string]struct {
		public leftGateway
		change func(*follower)
		takes  time.Duration
		want   []string
	}{
		"it answers":         {want: both[:1]},
		"it refuses":         {public: leftGateway{err: errRefused}, want: both},
		"it does not answer": {public: leftGateway{silent: true}, takes: leaveFirst, want: both},
		"there is no way to it": {change: func(f *follower) {
			f.cfg.Other = func(string, *mesh.Node) (Gateway, error) { return nil, errors.New("no") }
		}, want: both[1:]},
		"there is none":            {change: func(f *follower) { f.gateways = nil }, want: both[1:]},
		"the node keeps its state": {change: func(f *follower) { f.cfg.DataDir = "/" }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGateway(t)
				gate := proto.CloneOf(g.answer.Peers[0].Node)
				gate.ApiUrl = "https://192.0.2.1"
				g.answer.Gateways = []*v1.MeshNode{gate}
				f, _ := subscriber(t, &slowGateway{fakeGateway: g})
				var asked []string
				public := tt.public
				public.name, public.asked = "public", &asked
				f.cfg.Mesh = func(netip.AddrPort) Gateway { return &leftGateway{name: "mesh", asked: &asked} }
				f.cfg.Other = func(string, *mesh.Node) (Gateway, error) { return &public, nil }
				if tt.change != nil {
					tt.change(f)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				began := time.Now()
				f.leave(ctx)
				if took := time.Since(began); took != tt.takes || !slices.Equal(asked, tt.want) {
					t.Errorf("asked %v in %v, want %v in %v", asked, took, tt.want, tt.takes)
				}
			})
		})
	}
}
