// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// enterTimeout is how long a gateway may take to let the node in. A new
	// leader of the state is elected within.
	enterTimeout = 4 * time.Second
	// spread is within what time nodes that lost their gateway go to the others.
	spread = 500 * time.Millisecond
)

// errCutOff says that the mesh's rules keep the node away from all gateways. It
// is so at each of them, and another one would change nothing.
var errCutOff = fmt.Errorf("%w: no gateway among this node's peers: the mesh's network ACLs do not let it reach one", mesh.ErrUnavailable)

// candidates are the gateways that the node can ask to be adopted by: first the
// one that it follows, which may be back, then the others in an order of the
// node's own, so that the nodes of a gateway that is gone spread over the rest.
func (f *follower) candidates() []*mesh.Node {
	if f.cfg.Other == nil {
		return nil
	}
	f.mu.Lock()
	list := slices.DeleteFunc(slices.Clone(f.gateways), func(g *mesh.Node) bool { return g.API.URL == "" })
	home := mesh.NodeID(f.joined.GetGatewayId())
	f.mu.Unlock()
	rank := func(g *mesh.Node) uint64 {
		if g.ID == home {
			return 0
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(f.node.cfg.ID + "\x00" + g.ID))
		return max(1, h.Sum64())
	}
	slices.SortFunc(list, func(a, b *mesh.Node) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.ID, b.ID)) })
	return list
}

// inPublic is the client of a gateway on its public address, where the node shows its
// key; nil where it has none, or with an error.
func (f *follower) inPublic(id mesh.NodeID) (Gateway, error) {
	list := f.candidates()
	i := slices.IndexFunc(list, func(g *mesh.Node) bool { return g.ID == id })
	if i < 0 {
		return nil, nil
	}
	f.mu.Lock()
	network := f.joined.GetNetworkIpv6()
	f.mu.Unlock()
	client, err := f.cfg.Other(network, list[i])
	if err != nil {
		return nil, err
	}
	return client, nil
}

// enter has a gateway adopt the node, or tells it what the node now is, and
// follows it.
func (f *follower) enter(ctx context.Context, gate *mesh.Node, asked *v1.JoinRequest) (alive bool, err error) {
	f.asks = append(f.asks, string(gate.ID))
	f.mu.Lock()
	network, home := f.joined.GetNetworkIpv6(), f.joined.GetGatewayId()
	f.mu.Unlock()
	client, err := f.cfg.Other(network, gate)
	if err != nil {
		return false, fmt.Errorf("gateway %s: %w", gate.ID, err)
	}
	r, err := f.ask(ctx, client, asked)
	if err != nil {
		return false, &joinError{error: err, gate: gate.ID}
	}
	if err := f.take(asked, r); err != nil {
		return false, fmt.Errorf("gateway %s: %w", gate.ID, err)
	}
	if string(gate.ID) != home {
		f.node.log.Info("gateway takes this node", "gateway", string(gate.ID), "url", gate.API.URL)
	}
	alive, err = f.subscribe(ctx)
	if !alive && !errors.Is(err, errCutOff) {
		f.taken = true
	}
	return alive, err
}

func (f *follower) ask(ctx context.Context, client Gateway, asked *v1.JoinRequest) (*v1.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	if f.known(asked) {
		return client.Adopt(ctx, asked.GetId())
	}
	return client.Join(ctx, proto.CloneOf(asked), f.node.cfg.Key)
}

// gateway is the gateway to subscribe to, with its mesh address: the one that
// took the node, else any peer with the membership service.
func (f *follower) gateway() (*mesh.Node, netip.AddrPort, error) {
	f.mu.Lock()
	peers, preferred := f.plans.Peers, mesh.NodeID(f.joined.GetGatewayId())
	f.mu.Unlock()
	var found *mesh.Node
	var at netip.AddrPort
	for p := range peers.All() {
		port, ok := p.Node.FeaturePort(v1.Feature_MEMBERSHIP)
		addrs := p.Node.Addrs()
		if !ok || len(addrs) == 0 || found != nil && p.Node.ID != preferred {
			continue
		}
		found, at = p.Node, netip.AddrPortFrom(addrs[0], port)
	}
	if found == nil {
		return nil, at, errCutOff
	}
	return found, at, nil
}
