// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
)

// unsettled is a store whose leader changes: some changes are refused, and of
// some nobody hears whether they were made, were not, or will be.
type unsettled struct {
	store.Store
	late sync.WaitGroup // changes that are made after their caller was told nothing

	mu     sync.Mutex // guards the field below
	random *rand.Rand
}

// draw returns a number below n.
func (u *unsettled) draw(n int) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.random.IntN(n)
}

// Apply implements store.Store.
func (u *unsettled) Apply(ctx context.Context, batch store.Batch) (uint64, error) {
	switch u.draw(12) {
	case 0:
		return 0, &store.NotLeaderError{}
	case 1:
		return 0, fmt.Errorf("leader lost, and the change with it: %w", store.ErrUncertain)
	case 2:
		_, _ = u.Store.Apply(ctx, batch)
		return 0, fmt.Errorf("leader lost after it: %w", store.ErrUncertain)
	case 3:
		wait := u.draw(50)
		u.late.Go(func() {
			for range wait {
				runtime.Gosched()
			}
			_, _ = u.Store.Apply(context.WithoutCancel(ctx), batch)
		})
		return 0, fmt.Errorf("leader lost before it: %w", store.ErrUncertain)
	}
	return u.Store.Apply(ctx, batch)
}

// admitted is a join that was accepted.
type admitted struct {
	id         mesh.NodeID
	key        mesh.PublicKey
	ipv4, ipv6 netip.Prefix
}

// joinAt asks gateways until one of them accepts or refuses.
func joinAt(ctx context.Context, gates []fixture, id mesh.NodeID, key mesh.PublicKey, random *rand.Rand) (*admitted, error) {
	for {
		g := gates[random.IntN(len(gates))]
		s, err := g.Join(ctx, mesh.JoinRequest{Node: mesh.Node{ID: id, PublicKey: key}, AssignIPv4: true})
		switch {
		case err == nil:
			n := s.Node(id)
			return &admitted{id, key, n.IPv4, n.IPv6}, nil
		case errors.Is(err, mesh.ErrExists), errors.Is(err, mesh.ErrExhausted):
			return nil, nil
		case errors.Is(err, mesh.ErrUnavailable), errors.Is(err, store.ErrNotLeader):
			runtime.Gosched()
		default:
			return nil, err
		}
	}
}

// 64 joiners at three gateways, each with one key for two of 40 ids, while the
// leader of the store changes all the time: no two nodes get the same id, key
// or address, and whoever was accepted is in as it was told.
func TestJoin_ManyForTheSameIDsAtSeveralGateways(t *testing.T) {
	const joiners, ids = 64, 40
	keys := make([]mesh.PublicKey, joiners)
	for i := range keys {
		keys[i] = newKey(t)
	}
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		network := rapid.SampledFrom([]string{"10.0.0.0/26", "10.0.0.0/27"}).Draw(rt, "network")
		memory := storetest.New()
		gates := make([]fixture, 0, 3)
		shaky := make([]*unsettled, 0, 3)
		for n := range uint64(3) {
			if n == 0 {
				r := newReplica(t, memory, "gw")
				if err := r.registry.Bootstrap(t.Context(), registry.Bootstrap{
					Self: mesh.Node{ID: "gw", PublicKey: newKey(t)}, IPv4: netip.MustParsePrefix(network),
				}); err != nil {
					rt.Fatal(err)
				}
			}
			u := &unsettled{Store: memory, random: rand.New(rand.NewPCG(seed, n))}
			shaky = append(shaky, u)
			gates = append(gates, newReplica(t, u, "gw"))
		}
		var mu sync.Mutex // guards the fields below
		var accepted []admitted
		var failed error
		var wg sync.WaitGroup
		for n, key := range keys {
			for k, id := range []int{n % ids, (7*n + 3) % ids} {
				wg.Go(func() {
					a, err := joinAt(t.Context(), gates, mesh.NodeID(fmt.Sprintf("node-%d", id)), key, rand.New(rand.NewPCG(uint64(n), uint64(k))))
					mu.Lock()
					defer mu.Unlock()
					if a != nil {
						accepted = append(accepted, *a)
					}
					failed = errors.Join(failed, err)
				})
			}
		}
		wg.Wait()
		for _, u := range shaky {
			u.late.Wait()
		}
		if failed != nil {
			rt.Fatal(failed)
		}
		s, err := gates[0].registry.Sync(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		checkUnique(rt, s)
		for _, a := range accepted {
			if n := s.Node(a.id); n == nil || n.PublicKey != a.key || n.IPv4 != a.ipv4 || n.IPv6 != a.ipv6 {
				rt.Fatalf("%+v was accepted, and there is %+v", a, n)
			}
		}
		if len(accepted) < 10 {
			rt.Fatalf("only %d joins were accepted", len(accepted))
		}
	})
}
