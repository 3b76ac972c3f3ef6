// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// BenchmarkJoin lets one node after another into a mesh of a size, over a store
// in memory: what is left is the cost of deciding and of publishing. It reports
// the 99th percentile beside the mean.
func BenchmarkJoin(b *testing.B) {
	for _, public := range []bool{true, false} {
		for _, size := range []int{100, 1000, 10_000} {
			kind := "hub"
			if public {
				kind = "public"
			}
			b.Run(fmt.Sprintf("%s-%d", kind, size), func(b *testing.B) {
				f := benchMesh(b, size, public)
				requests := make([]mesh.JoinRequest, b.N)
				for i := range requests {
					requests[i] = benchRequest(b, size+i, public)
				}
				took := make([]time.Duration, b.N)
				b.ReportAllocs()
				b.ResetTimer()
				for i, r := range requests {
					start := time.Now()
					if _, err := f.Join(b.Context(), r); err != nil {
						b.Fatal(err)
					}
					took[i] = time.Since(start)
				}
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
			})
		}
	}
}

// benchMesh is a mesh of n nodes that were there when the registry started.
func benchMesh(b *testing.B, n int, public bool) fixture {
	b.Helper()
	s := storetest.New()
	seed := registry.New(s, nil)
	run := func(r *registry.Registry) {
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		b.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				b.Errorf("run: %v", err)
			}
		})
		<-r.Ready()
	}
	run(seed)
	self := mesh.Node{ID: "gw", PublicKey: newKey(b), PrimaryEndpoint: "192.0.2.1",
		Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}}}
	if err := seed.Bootstrap(b.Context(), registry.Bootstrap{Self: self}); err != nil {
		b.Fatal(err)
	}
	var ops []store.Op
	write := func() {
		if _, err := s.Apply(b.Context(), store.Batch{Ops: ops}); err != nil {
			b.Fatal(err)
		}
		ops = nil
	}
	for i := range n - 1 {
		node := benchRequest(b, i, public).Node
		raw := [4]byte{172, 16, byte((i + 2) >> 8), byte(i + 2)}
		node.IPv4 = netip.PrefixFrom(netip.AddrFrom4(raw), 32)
		node.IPv6 = mesh.NodeIPv6(seed.Snapshot().IPv6, node.PublicKey.WireGuard())
		ops = append(ops,
			store.Op{Key: "/registry/nodes/" + string(node.ID), Value: benchJSON(b, mesh.NodeToProto(&node))},
			store.Op{Key: "/registry/edges/gw/" + string(node.ID), Value: fmt.Appendf(nil, `{"source":"gw","target":%q,"weight":1}`, node.ID)},
			store.Op{Key: "/registry/edges/" + string(node.ID) + "/gw", Value: fmt.Appendf(nil, `{"source":%q,"target":"gw","weight":1}`, node.ID)})
		if len(ops) > 1000 {
			write()
		}
	}
	if len(ops) > 0 {
		write()
	}
	r := registry.New(s, nil)
	run(r)
	if got := r.Snapshot().Nodes.Len(); got != n {
		b.Fatalf("%d nodes, want %d", got, n)
	}
	m, err := member.New(member.Config{Registry: r, Self: "gw", AllowUnproven: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	return fixture{m, b, s, r}
}

func benchJSON(b *testing.B, m proto.Message) []byte {
	b.Helper()
	value, err := protojson.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return value
}

func benchRequest(b *testing.B, i int, public bool) mesh.JoinRequest {
	b.Helper()
	r := request(b, mesh.NodeID(fmt.Sprintf("node-%06d", i)))
	r.Node.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}
	if public {
		r.Node.PrimaryEndpoint = "198.51.100.7"
		r.Node.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:51820")}
	}
	return r
}
