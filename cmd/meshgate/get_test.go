// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
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

// leaderless answers as a gateway that is left of three.
type leaderless struct {
	v1connect.UnimplementedMeshHandler
	meshgatev1connect.UnimplementedClusterHandler
}

func (leaderless) ListNodes(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.NodeList], error) {
	return nil, connect.NewError(connect.CodeUnavailable, errors.New("unavailable: no leader of the state answered within 5s"))
}

func (leaderless) Status(context.Context, *connect.Request[meshgatev1.StatusRequest]) (*connect.Response[meshgatev1.StatusResponse], error) {
	return connect.NewResponse(&meshgatev1.StatusResponse{
		GatewayId: "gw1", Trouble: "no leader: start gw2",
		Replicas: []*meshgatev1.Replica{{Id: "gw1", Voter: true, Alive: true}, {Id: "gw2", Voter: true, Leader: true}},
	}), nil
}

// Without a majority each command says so, fails, and says what to do next.
func TestWithoutALeader_SaysWhatToDo(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewMeshHandler(leaderless{}))
	mux.Handle(meshgatev1connect.NewClusterHandler(leaderless{}))
	s := httptest.NewUnstartedServer(mux)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	for _, tt := range []struct {
		line           string
		stdout, stderr []string
	}{
		{"get nodes", nil, []string{"no leader", "with --stale"}},
		{"cluster status", []string{"gw1 voter answers", "gw2 voter not known (out of reach)"}, []string{"no leader: start gw2"}},
		{"cluster status -o json", []string{`"trouble":`}, []string{"no leader: start gw2"}},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append(strings.Fields(tt.line), "--server", s.URL, "--token", "x"), &stdout, &stderr); code != exitFailed {
			t.Errorf("%s: exit code %d", tt.line, code)
		}
		for _, want := range tt.stdout {
			if !strings.Contains(strings.Join(strings.Fields(stdout.String()), " "), want) {
				t.Errorf("%s printed\n%swithout %q", tt.line, &stdout, want)
			}
		}
		for _, want := range tt.stderr {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%s said %q without %q", tt.line, &stderr, want)
			}
		}
	}
}
