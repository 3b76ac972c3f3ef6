// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	joiners   = 64
	joinerIDs = 40
	// joinPatience is how long a joiner tries to get an answer.
	joinPatience = 60 * time.Second
)

// joiner is somebody with a key who wants to be two nodes at once: one too many.
type joiner struct {
	key mesh.PrivateKey
	ids [2]string
}

// membership is a join that a gateway acknowledged.
type membership struct{ id, key, ipv4, ipv6 string }

// newJoiners makes joiners who want the same few ids.
func newJoiners(t *testing.T, round int) []joiner {
	t.Helper()
	list := make([]joiner, joiners)
	for n := range list {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		list[n] = joiner{key, [2]string{joinerID(round, n), joinerID(round, 7*n+3)}}
	}
	return list
}

func joinerID(round, n int) string { return fmt.Sprintf("round-%d-node-%d", round, n%joinerIDs) }

// join asks gateways, one after the other, until one of them accepts or refuses.
func (all gates) join(ctx context.Context, j joiner, id string, random *rand.Rand) (*membership, error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	var err error
	for at := random.IntN(len(all)); ctx.Err() == nil; at = (at + 1) % len(all) {
		var answer *v1.JoinResponse
		if answer, err = all[at].joinOnce(ctx, j.key, id); err == nil {
			return &membership{id, j.key.Public().Encode(), answer.GetAddressIpv4(), answer.GetAddressIpv6()}, nil
		}
		if connect.CodeOf(err) == connect.CodeAlreadyExists {
			return nil, nil // it, or the key, is somebody else's
		}
		pause(ctx, time.Duration(random.IntN(50))*time.Millisecond)
	}
	return nil, fmt.Errorf("join as %s: %w", id, errors.Join(ctx.Err(), err))
}

func (g *gate) joinOnce(ctx context.Context, key mesh.PrivateKey, id string) (*v1.JoinResponse, error) {
	p, err := g.public()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return p.Member().Join(ctx, &v1.JoinRequest{Id: id, PublicKey: key.Public().Encode(), AssignIpv4: true}, key)
}

// joinAll has all joiners ask at once and returns what was acknowledged.
func (all gates) joinAll(ctx context.Context, list []joiner) ([]membership, error) {
	var mu sync.Mutex // guards the fields below
	var accepted []membership
	var errs []error
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for n, j := range list {
		for k, id := range j.ids {
			wg.Go(func() {
				<-begin
				m, err := all.join(ctx, j, id, rand.New(rand.NewPCG(uint64(n), uint64(k))))
				mu.Lock()
				defer mu.Unlock()
				if m != nil {
					accepted = append(accepted, *m)
				}
				errs = append(errs, err)
			})
		}
	}
	close(begin)
	wg.Wait()
	return accepted, errors.Join(errs...)
}

// unsettle changes the leader until stop is closed: mostly it is asked to hand
// over, once it is killed.
func (all gates) unsettle(ctx context.Context, stop <-chan struct{}) (transfers int, err error) {
	for n := 0; ; n++ {
		leader, err := all.leader(ctx, nil)
		if err != nil {
			return transfers, err
		}
		if n == 1 {
			leader.kill()
			pause(ctx, 100*time.Millisecond)
			if err := leader.start(ctx); err != nil {
				return transfers, err
			}
		} else if leader.handOver(ctx) == nil {
			transfers++
		}
		select {
		case <-stop:
			return transfers, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (g *gate) handOver(ctx context.Context) error {
	p, err := g.public()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = p.Cluster().TransferLeadership(ctx, connect.NewRequest(&meshgatev1.TransferLeadershipRequest{}))
	return err
}

// nodes are all members, as a gateway says.
func (g *gate) nodes(ctx context.Context) ([]membership, error) {
	p, err := g.public()
	if err != nil {
		return nil, err
	}
	answer, err := p.Mesh().ListNodes(ctx, connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		return nil, fmt.Errorf("nodes of %s: %w", g.id, err)
	}
	var list []membership
	for _, n := range answer.Msg.GetNodes() {
		list = append(list, membership{n.GetId(), n.GetPublicKey(), n.GetPrivateIpv4(), n.GetPrivateIpv6()})
	}
	return list, nil
}

// shared says what two of the nodes have in common.
func shared(list []membership) error {
	holders := map[string]string{}
	for _, m := range list {
		for _, what := range []string{"id " + m.id, "key " + m.key, "address " + m.ipv4, "address " + m.ipv6} {
			if other, ok := holders[what]; ok {
				return fmt.Errorf("%s and %s have the same %s", other, m.id, what)
			}
			holders[what] = m.id
		}
	}
	return nil
}

// Whoever joins while the leader changes and dies: no two nodes get the same
// id, key or address, and whoever was told that it is in is in, at every
// gateway, as it was told.
func TestJoins_ShareNothingWhileLeadersChange(t *testing.T) {
	const rounds = 2
	ctx := t.Context()
	all := startGates(t)
	var members []membership
	for round := range rounds {
		stop, unsettled := make(chan struct{}), make(chan error, 1)
		go func() {
			transfers, err := all.unsettle(ctx, stop)
			t.Logf("the leader handed over %d times", transfers)
			unsettled <- err
		}()
		list := newJoiners(t, round)
		accepted, err := all.joinAll(ctx, list)
		close(stop)
		if err := errors.Join(err, <-unsettled); err != nil {
			t.Fatal(err)
		}
		members = append(members, accepted...)
		t.Logf("%d of %d joins were accepted", len(accepted), 2*len(list))
		if len(accepted) < joinerIDs/2 || len(accepted) > joinerIDs {
			t.Errorf("%d joins were accepted, for %d ids", len(accepted), joinerIDs)
		}
		for _, g := range all {
			seen, err := g.nodes(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := shared(seen); err != nil {
				t.Errorf("%s says: %v", g.id, err)
			}
			for _, m := range members {
				if !slices.Contains(seen, m) {
					t.Errorf("%s does not have %+v", g.id, m)
				}
			}
			if want := len(members) + len(all); len(seen) != want {
				t.Errorf("%s has %d nodes, want %d", g.id, len(seen), want)
			}
		}
	}
}
