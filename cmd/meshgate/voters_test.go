// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/store/raftstore"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// fourGateways answers as a leader of four voters, one of which can be demoted.
type fourGateways struct {
	meshgatev1connect.UnimplementedClusterHandler
	demoted, lost bool
}

func (g *fourGateways) Status(context.Context, *connect.Request[meshgatev1.StatusRequest]) (*connect.Response[meshgatev1.StatusResponse], error) {
	return connect.NewResponse(&meshgatev1.StatusResponse{Replicas: []*meshgatev1.Replica{
		{Id: "gw1", Voter: true, Leader: true, Alive: true},
		{Id: "gw2", Voter: true, Alive: true}, {Id: "gw3", Voter: true, Alive: !g.lost}, {Id: "gw4", Voter: !g.demoted, Alive: true},
	}}), nil
}

func (g *fourGateways) Demote(context.Context, *connect.Request[meshgatev1.DemoteRequest]) (*connect.Response[meshgatev1.DemoteResponse], error) {
	g.demoted = true
	return connect.NewResponse(&meshgatev1.DemoteResponse{}), nil
}

func TestCluster_SaysHowManyMayFail(t *testing.T) {
	const more = "; have an odd number (meshgate cluster promote, demote, or another gateway)"
	for n, want := range map[int]string{
		1: "1 voter, none may fail",
		2: "2 voters, none may fail: no more than with 1" + more,
		3: "3 voters, 1 may fail",
		4: "4 voters, 1 may fail: no more than with 3" + more,
		5: "5 voters, 2 may fail",
	} {
		if got := votersText(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
	mux := http.NewServeMux()
	gates := &fourGateways{}
	mux.Handle(meshgatev1connect.NewClusterHandler(gates))
	s := httptest.NewUnstartedServer(mux)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	for _, tt := range []struct{ line, want string }{
		{"cluster status", votersText(4) + "\n"},
		{"cluster status -o json", ""},
		{"cluster demote gw4", votersText(3) + "\n"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append(strings.Fields(tt.line), "--server", s.URL, "--token", "x"), &stdout, &stderr); code != exitOK || stderr.String() != tt.want {
			t.Errorf("%s: exit code %d, %q", tt.line, code, &stderr)
		}
	}
	gates.lost = true
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"cluster", "status", "--server", s.URL, "--token", "x"}, &stdout, &stderr)
	if want := votersText(3) + "; out of reach now: gw3, so that none more may\n"; code != exitOK || stderr.String() != want {
		t.Errorf("a voter out of reach: exit code %d, %q", code, &stderr)
	}
}

// A fourth voter that joins adds nothing, and its log says so.
func TestLogVoters_WarnsOfAnEvenNumber(t *testing.T) {
	var list []raftstore.Replica
	for _, want := range []string{"INFO", "WARN", "INFO", "WARN"} {
		list = append(list, raftstore.Replica{Voter: true})
		var log bytes.Buffer
		logVoters(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), append(list, raftstore.Replica{}))
		if !strings.Contains(log.String(), "level="+want) || !strings.Contains(log.String(), votersText(len(list))) {
			t.Errorf("%d voters: %s", len(list), &log)
		}
	}
}
