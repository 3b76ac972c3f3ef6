// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/internal/child"
	"github.com/meshgate/meshgate/internal/sample"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// shape is what the nodes of a mesh are.
type shape string

const (
	// hub: nodes without an address of their own, all behind the gateway.
	hub shape = "hub-and-spoke"
	// public: nodes that all others can dial, each linked to many.
	public shape = "public"
)

const (
	// together is how many nodes join at a time when the rate is measured.
	together = 16
	// batch is how many nodes join before they leave again, so that the mesh
	// keeps its size.
	batch = 50
	// chunk is for how many nodes requests are made before they join.
	chunk = 500
)

// world is a gateway with a mesh that grows.
type world struct {
	shape   shape
	dir     string // on the disk of the gateway
	gateway *child.Process
	api     *clients
	mesh    string // which mesh proofs are for
	size    int    // nodes that stay
	// keys are those of nodes by their numbers: an id stays with its first key.
	keys map[int]mesh.PrivateKey
}

// measureMesh lets a mesh grow and measures it at each size.
func measureMesh(ctx context.Context, b binaries, o options, s shape, r *report) error {
	largest := o.sizes[len(o.sizes)-1]
	ids := []string{admin}
	for i := range largest + batch {
		ids = append(ids, nodeName(i))
	}
	tokens := filepath.Join(b.dir, "tokens")
	if err := writeTokens(tokens, ids...); err != nil {
		return err
	}
	name := "gw-" + string(s)
	gateway, address, err := startGateway(ctx, b, name, "127.0.0.1", tokens)
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Join(b.dir, name))
	defer gateway.End()
	w := &world{shape: s, dir: b.dir, gateway: gateway, api: newClients("https://" + address), keys: map[int]mesh.PrivateKey{}}
	defer w.api.close()
	for _, size := range o.sizes {
		if err := w.measureAt(ctx, o, size, r); err != nil {
			return fmt.Errorf("%d nodes: %w: %s", size, err, gateway.Stderr())
		}
		if size == largest {
			if err := w.whole(ctx, o, r); err != nil {
				return fmt.Errorf("all of %d nodes: %w: %s", size, err, gateway.Stderr())
			}
		}
		if size < o.subscribers {
			continue
		}
		if err := w.subscribers(ctx, o, r); err != nil {
			return fmt.Errorf("subscribers of %d nodes: %w: %s", size, err, gateway.Stderr())
		}
	}
	return nil
}

// whole measures what the gateway holds of the mesh, and the lists of it.
func (w *world) whole(ctx context.Context, o options, r *report) (err error) {
	m := memory{Shape: w.shape, Nodes: w.size}
	if m.Now, m.Most, err = w.gateway.RSS(); err != nil {
		return err
	}
	r.Memory = append(r.Memory, m)
	return w.reads(ctx, o, r)
}

// measureAt fills the mesh and measures joins.
func (w *world) measureAt(ctx context.Context, o options, size int, r *report) error {
	began := time.Now()
	more := size - 1 - w.size // the gateway is one
	for w.size < size-1 {     // proofs are good for two minutes: not all at once
		n := min(chunk, size-1-w.size)
		if _, err := w.join(ctx, w.size, n, together); err != nil {
			return err
		}
		w.size += n
	}
	j := joins{Shape: w.shape, Nodes: size, Fill: float64(more) / time.Since(began).Seconds()}
	if _, err := w.timed(ctx, batch, 1, func(int) error { return nil }); err != nil { // connections, caches
		return err
	}
	d, err := openDisk(w.dir, 2*(o.joins+batch))
	if err != nil {
		return err
	}
	defer d.close()
	before, err := w.gateway.CPU()
	if err != nil {
		return err
	}
	one, err := w.timed(ctx, o.joins, 1, d.sync)
	if err != nil {
		return err
	}
	after, err := w.gateway.CPU()
	if err != nil {
		return err
	}
	j.CPU = (after - before).Seconds() * milliseconds / float64(o.joins)
	many, err := w.timed(ctx, o.joins, together, d.sync)
	if err != nil {
		return err
	}
	j.SyncP50, j.SyncP99 = sample.Quantile(d.took, .5), sample.Quantile(d.took, .99)
	j.PerSecond, j.P50, j.P99 = many.rate(), sample.Quantile(one.took, .5), sample.Quantile(one.took, .99)
	j.ManyP99 = sample.Quantile(many.took, .99)
	r.Joins = append(r.Joins, j)
	return nil
}

// timing is what joins took, in ms, and how long they took altogether.
type timing struct {
	took []float64
	all  time.Duration
}

func (t timing) rate() float64 { return float64(len(t.took)) / t.all.Seconds() }

// timed lets n nodes join, some at a time, which leave again batch by batch.
// For each batch it calls beside, to time something else as often.
func (w *world) timed(ctx context.Context, n, parallel int, beside func(n int) error) (t timing, err error) {
	for done := 0; done < n; {
		k := min(batch, n-done)
		one, err := w.join(ctx, w.size, k, parallel)
		if err != nil {
			return t, err
		}
		t.took, t.all, done = append(t.took, one.took...), t.all+one.all, done+k
		for i := range k {
			id := nodeName(w.size + i)
			if _, err := w.api.membership.Leave(ctx, as(id, &v1.LeaveRequest{Id: id})); err != nil {
				return t, fmt.Errorf("leave of %s: %w", id, err)
			}
		}
		if err := beside(k); err != nil {
			return t, err
		}
	}
	return t, nil
}

// join lets nodes from, from+1, ... join, some at a time. Only Join itself is
// timed; keys and proofs are made before.
func (w *world) join(ctx context.Context, from, n, parallel int) (timing, error) {
	requests := make([]*v1.JoinRequest, n)
	for i := range requests {
		var err error
		if requests[i], err = w.request(ctx, from+i); err != nil {
			return timing{}, err
		}
	}
	t := timing{took: make([]float64, n)}
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, r := range requests {
		group.Go(func() error {
			begin := time.Now()
			if _, err := w.api.membership.Join(ctx, as(r.GetId(), r)); err != nil {
				return fmt.Errorf("join of %s: %w", r.GetId(), err)
			}
			t.took[i] = time.Since(begin).Seconds() * milliseconds
			return nil
		})
	}
	err := group.Wait()
	t.all = time.Since(start)
	return t, err
}

func nodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

// request makes the request of a node, with its key and the proof that it has
// it. What it says of its mesh and the time, it asked for when it was first
// needed: proofs are good for two minutes.
func (w *world) request(ctx context.Context, i int, features ...*v1.FeaturePort) (*v1.JoinRequest, error) {
	id := nodeName(i)
	if w.mesh == "" {
		challenge, err := w.api.enrolment.GetChallenge(ctx, as(id, &meshgatev1.GetChallengeRequest{Id: id}))
		if err != nil {
			return nil, fmt.Errorf("challenge: %w", err)
		}
		w.mesh = challenge.Msg.GetMesh()
	}
	key, ok := w.keys[i]
	if !ok {
		var err error
		if key, err = mesh.GenerateKey(); err != nil {
			return nil, err
		}
		w.keys[i] = key
	}
	r := &v1.JoinRequest{
		Id: id, PublicKey: key.Public().Encode(), AssignIpv4: true,
		Features: append(features, &v1.FeaturePort{Feature: v1.Feature_NODES, Port: 8443}),
	}
	if w.shape == public {
		// Port 9 discards: nobody listens there, and nothing leaves the host.
		r.PrimaryEndpoint = fmt.Sprintf("127.1.%d.%d", i>>8, i&0xff)
		r.WireguardEndpoints = []string{r.PrimaryEndpoint + ":9"}
	}
	mesh.ProveJoin(r, key, w.mesh, time.Now())
	return r, nil
}

// reads times the lists of all nodes.
func (w *world) reads(ctx context.Context, o options, r *report) error {
	for _, rpc := range []struct {
		name string
		call func() (proto.Message, error)
	}{
		{"ListNodes", func() (proto.Message, error) {
			res, err := w.api.mesh.ListNodes(ctx, as(admin, &emptypb.Empty{}))
			if err != nil {
				return nil, err
			}
			return res.Msg, nil
		}},
		{"GetMeshGraph", func() (proto.Message, error) {
			res, err := w.api.mesh.GetMeshGraph(ctx, as(admin, &emptypb.Empty{}))
			if err != nil {
				return nil, err
			}
			return res.Msg, nil
		}},
	} {
		read := read{Shape: w.shape, RPC: rpc.name, Nodes: w.size + 1}
		var took []float64
		for range o.reads {
			start := time.Now()
			m, err := rpc.call()
			if err != nil {
				return fmt.Errorf("%s: %w", rpc.name, err)
			}
			took = append(took, time.Since(start).Seconds()*1000)
			read.Bytes = proto.Size(m)
		}
		read.P50, read.Most = sample.Median(took), slices.Max(took)
		r.Reads = append(r.Reads, read)
	}
	return nil
}
