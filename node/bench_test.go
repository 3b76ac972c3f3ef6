// SPDX-License-Identifier: Apache-2.0

//go:build unix

package node

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// BenchmarkJoin lets a node join, gives it its plan, and lets it leave again at
// the only gateway of a mesh of a size, over a store in memory, and waits until
// the gateway's WireGuard device follows. Beside the time, in which the gateway
// rests between plans, it reports the CPU time, and the time until the plan.
func BenchmarkJoin(b *testing.B) {
	for _, size := range []int{100, 10_000} {
		for _, public := range []bool{false, true} {
			b.Run(fmt.Sprintf("public=%t/%d", public, size), func(b *testing.B) {
				n := benchMesh(b, size, public)
				key, err := mesh.GenerateKey()
				if err != nil {
					b.Fatal(err)
				}
				guest := benchNode("guest", key, benchEndpoint(size, public))
				var planned time.Duration
				b.ReportAllocs()
				before := cpuTime(b)
				for b.Loop() {
					began := time.Now()
					s, err := n.Join(b.Context(), mesh.JoinRequest{Node: guest, AssignIPv4: true})
					if err != nil {
						b.Fatal(err)
					}
					if _, err := n.Plan(s, "guest"); err != nil {
						b.Fatal(err)
					}
					planned += time.Since(began)
					if err := n.Applied(b.Context(), s.Version); err != nil {
						b.Fatal(err)
					}
					if err := n.Leave(b.Context(), "guest"); err != nil {
						b.Fatal(err)
					}
					if s, err = n.Sync(b.Context()); err != nil {
						b.Fatal(err)
					}
					if err := n.Applied(b.Context(), s.Version); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
				b.ReportMetric(float64(planned.Nanoseconds())/float64(b.N), "plan-ns/op")
			})
		}
	}
}

// benchMesh is the gateway of a mesh of size nodes, of which it is one. The
// others are all public, or none is.
func benchMesh(b *testing.B, size int, public bool) *Node {
	b.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	s := storetest.New()
	n, err := New(Config{
		ID: "gw", Key: key, PrimaryEndpoint: "127.0.0.1",
		Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}},
		Hold:     &Hold{Store: s, AcceptByDefault: true, AllowUnprovenJoins: true},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Errorf("run: %v", err)
		}
		if err := n.Close(); err != nil {
			b.Errorf("close: %v", err)
		}
	})
	<-n.Ready()
	var ops []store.Op
	for i := range size - 1 {
		if key, err = mesh.GenerateKey(); err != nil {
			b.Fatal(err)
		}
		leaf := benchNode(mesh.NodeID(fmt.Sprintf("leaf-%05d", i)), key, benchEndpoint(i, public))
		leaf.IPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)}), 32)
		leaf.IPv6 = mesh.NodeIPv6(n.Snapshot().IPv6, leaf.PublicKey.WireGuard())
		ops = append(ops,
			store.Op{Key: "/registry/nodes/" + string(leaf.ID), Value: benchJSON(b, mesh.NodeToProto(&leaf))},
			store.Op{Key: "/registry/edges/gw/" + string(leaf.ID), Value: fmt.Appendf(nil, `{"source":"gw","target":%q,"weight":1}`, leaf.ID)},
			store.Op{Key: "/registry/edges/" + string(leaf.ID) + "/gw", Value: fmt.Appendf(nil, `{"source":%q,"target":"gw","weight":1}`, leaf.ID)})
		if len(ops) < 1000 && i < size-2 {
			continue
		}
		if _, err := s.Apply(b.Context(), store.Batch{Ops: ops}); err != nil {
			b.Fatal(err)
		}
		ops = nil
	}
	// Nobody has told the registry of these changes, so that Sync knows of none.
	for after := uint64(0); ; {
		s, err := n.Wait(b.Context(), after)
		if err != nil {
			b.Fatal(err)
		}
		if after = s.Version; s.Nodes.Len() == size {
			break
		}
	}
	if err := n.Applied(b.Context(), n.Snapshot().Version); err != nil {
		b.Fatal(err)
	}
	return n
}

// benchNode is a node that others can dial at an endpoint, or cannot dial if that
// is zero.
func benchNode(id mesh.NodeID, key mesh.PrivateKey, at netip.Addr) mesh.Node {
	n := mesh.Node{ID: id, PublicKey: key.Public(), Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}}
	if at.IsValid() {
		n.PrimaryEndpoint = at.String()
		n.WireGuardEndpoints = []netip.AddrPort{netip.AddrPortFrom(at, 9)}
	}
	return n
}

// benchEndpoint is where the i-th node of a mesh of public ones is; zero in
// another mesh.
func benchEndpoint(i int, public bool) netip.Addr {
	if !public {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
}

func benchJSON(b *testing.B, m proto.Message) []byte {
	b.Helper()
	value, err := protojson.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return value
}

// cpuTime is what the process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
