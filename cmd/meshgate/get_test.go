// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// bigMesh answers with many nodes, and counts the calls.
type bigMesh struct {
	v1connect.UnimplementedMeshHandler
	nodes *v1.NodeList
	calls atomic.Int32
	stale atomic.Value // what x-meshgate-stale said last
}

func (b *bigMesh) ListNodes(_ context.Context, r *connect.Request[emptypb.Empty]) (*connect.Response[v1.NodeList], error) {
	b.calls.Add(1)
	b.stale.Store(r.Header().Get("X-Meshgate-Stale"))
	return connect.NewResponse(b.nodes), nil
}

// A mesh of ten thousand nodes, each with a long record, is one call.
func TestGet_TenThousandNodesInOneCall(t *testing.T) {
	b := &bigMesh{nodes: &v1.NodeList{}}
	for i := range 10_000 {
		b.nodes.Nodes = append(b.nodes.Nodes, &v1.MeshNode{
			Id: fmt.Sprintf("node-%05d", i), PublicKey: strings.Repeat("k", 64), PrivateIpv4: fmt.Sprintf("172.16.%d.%d/32", i/256, i%256),
			Multiaddrs: []string{strings.Repeat("m", 500)},
		})
	}
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewMeshHandler(b))
	s := httptest.NewUnstartedServer(mux)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, tt := range []struct {
		args  []string
		lines int
		stale string
	}{
		{[]string{"get", "nodes"}, 10_001, ""},
		{[]string{"get", "nodes", "--stale", "--output", "json"}, 1, "true"},
	} {
		var stdout, stderr bytes.Buffer
		before := b.calls.Load()
		if code := run(ctx, append(tt.args, "--server", s.URL, "--token", "x"), &stdout, &stderr); code != exitOK {
			t.Fatalf("%v: exit code %d: %s", tt.args, code, stderr.String())
		}
		if n := strings.Count(stdout.String(), "\n"); n != tt.lines {
			t.Errorf("%v printed %d lines, want %d", tt.args, n, tt.lines)
		}
		if calls := b.calls.Load() - before; calls != 1 || b.stale.Load() != tt.stale {
			t.Errorf("%v made %d calls, stale %q", tt.args, calls, b.stale.Load())
		}
	}
}
