// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// earlyProcedures are those that a gateway answers before it has entered the mesh
// since its start. Each shows the mesh as it was to who might see it then; none
// opens a way in, makes credentials or goes on when its right has ended.
func earlyProcedures() []string {
	return []string{
		v1connect.AdminGetEdgeProcedure, v1connect.AdminListEdgesProcedure,
		v1connect.AdminGetGroupProcedure, v1connect.AdminListGroupsProcedure,
		v1connect.AdminGetNetworkACLProcedure, v1connect.AdminListNetworkACLsProcedure,
		v1connect.AdminGetRoleProcedure, v1connect.AdminListRolesProcedure,
		v1connect.AdminGetRoleBindingProcedure, v1connect.AdminListRoleBindingsProcedure,
		v1connect.AdminGetRouteProcedure, v1connect.AdminListRoutesProcedure,
		v1connect.MembershipGetStorageConfigurationProcedure,
		v1connect.MeshGetMeshGraphProcedure, v1connect.MeshGetNodeProcedure, v1connect.MeshListNodesProcedure,
		v1connect.StorageQueryServiceQueryProcedure,
		meshgatev1connect.ClusterBackupProcedure,
		meshgatev1connect.ClusterStatusProcedure,
		meshgatev1connect.WatchWatchMeshProcedure,
	}
}

func TestRules_EarlyAreReadsOnly(t *testing.T) {
	var early []string
	for procedure, r := range newRules(true) {
		if !r.early {
			continue
		}
		early = append(early, procedure)
		if r.access != identified || r.needs == nil || r.writes || r.channel || r.seated || r.fresh == always {
			t.Errorf("%s is no read by somebody whose roles are asked", procedure)
		}
	}
	slices.Sort(early)
	if want := slices.Sorted(slices.Values(earlyProcedures())); !slices.Equal(early, want) {
		t.Errorf("early are\n%s\nwant\n%s", strings.Join(early, "\n"), strings.Join(want, "\n"))
	}
}

// oneReplica is the gateway alone, where two are needed.
type oneReplica struct{ anyReplicas }

// Replicas implements api.Replicas.
func (oneReplica) Replicas(context.Context) []api.Replica {
	return []api.Replica{{ID: "gw-1", Voter: true, Answers: true}, {ID: "gw-2", Voter: true}}
}

// Leads implements api.Replicas.
func (oneReplica) Leads() bool { return false }

// BackupStale implements api.Replicas.
func (oneReplica) BackupStale(w io.Writer) error {
	_, err := io.WriteString(w, "what is held")
	return err
}

// serveEarly answers from s until the test ends and returns where.
func serveEarly(t *testing.T, s *mesh.Snapshot) (url string) {
	t.Helper()
	front := NewFront(t.Context(), listen(t), nil, ShareOf(0), nil)
	early := &Early{
		Public: front.Loan(), Self: "gw-1", Reason: func() error { return errors.New("waits for gw-2") },
		Known: &Known{
			State: s, Keys: newFakeNode(s), Replicas: oneReplica{},
			Access:  Access{Authenticators: []Authenticator{testTokens(t)}},
			Console: fstest.MapFS{"index.html": {Data: []byte("<!doctype html>console")}},
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- early.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, front.Close()); err != nil {
			t.Error(err)
		}
	})
	return "http://" + front.Listener().Addr().String()
}

// Without a majority since its start a gateway shows what it knows to who might
// see it, and lets nobody do anything, whoever it is: people and members that it
// knows may have been removed since.
func TestEarly_AnswersReadsOfOneMomentAndNothingElse(t *testing.T) {
	s, key := keyed(t)
	url := serveEarly(t, s)
	plain := httpClient(t, true, "", nil)
	stale := func(c *http.Client) *http.Client { return withHeader(c, api.HeaderStale, "true") }
	admin := bearer(plain, "admin")
	member := withHeader(plain, "Authorization", "Bearer "+mesh.SignCredential(key, s.IPv6.String(), "laptop", "gw-1", time.Now()))
	early, rules := earlyProcedures(), newRules(false)
	for _, m := range everyMethod(t) {
		procedure := procedureOf(m)
		isEarly := slices.Contains(early, procedure)
		for name, tt := range map[string]struct {
			client *http.Client
			stale  bool
			want   connect.Code // of an early one; 0: it is answered
		}{
			"admin, stale":    {stale(admin), true, 0},
			"admin":           {admin, false, 0},
			"member, stale":   {stale(member), true, connect.CodePermissionDenied},
			"nobody, stale":   {stale(bearer(plain, "nobody")), true, connect.CodePermissionDenied},
			"stranger, stale": {stale(plain), true, connect.CodeUnauthenticated},
		} {
			want := tt.want
			if !isEarly || !tt.stale && rules[procedure].fresh == unlessStale {
				want = connect.CodeUnavailable
			}
			err := callAny(testContext(t), tt.client, url, m)
			got := connect.CodeOf(err)
			if want == 0 {
				if err != nil && got != connect.CodeInvalidArgument && got != connect.CodeNotFound {
					t.Errorf("%s, %s: %v, want an answer", procedure, name, err)
				}
				continue
			}
			if got != want {
				t.Errorf("%s, %s: %v, want %v", procedure, name, err, want)
			}
			if want == got && got == connect.CodeUnavailable && !strings.Contains(err.Error(), "meshgate cluster status") {
				t.Errorf("%s, %s: %q does not say what to do", procedure, name, err)
			}
		}
	}
}

// The answers are those of the moment, and the console is there to show them.
func TestEarly_TellsWhatItKnows(t *testing.T) {
	url := serveEarly(t, testSnapshot())
	viewer := bearer(httpClient(t, false, "", nil), "viewer")
	for _, tt := range []struct {
		procedure string
		headers   []string // and values
		status    int
		says      string
	}{
		{v1connect.MeshListNodesProcedure, []string{api.HeaderStale, "true"}, http.StatusOK, "web-1"},
		{v1connect.MeshListNodesProcedure, nil, http.StatusServiceUnavailable, "meshgate get --stale"},
		{meshgatev1connect.ClusterStatusProcedure, nil, http.StatusOK, "start gw-2, or, once that is gone for good, "},
		{v1connect.MembershipJoinProcedure, nil, http.StatusServiceUnavailable, "waits for a majority"},
	} {
		a := ask(t, viewer, http.MethodPost, url+tt.procedure, "{}", append(tt.headers, "Content-Type", "application/json")...)
		if a.StatusCode != tt.status || !strings.Contains(a.text, tt.says) {
			t.Errorf("%s %v: %d %q, want %d that says %q", tt.procedure, tt.headers, a.StatusCode, a.text, tt.status, tt.says)
		}
	}
	if status, body := askEarly(t, http.MethodGet, url+"/"); status != http.StatusOK || !strings.Contains(body, "console") {
		t.Errorf("the console: %d %q", status, body)
	}
	if status, _ := askEarly(t, http.MethodGet, url+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("it says that it is ready: %d", status)
	}
}

// Who watches a gateway that waits for a majority is told so at once, before it
// takes what it is shown for the present.
func TestEarly_WatchersKnowAtOnceThatNobodyLeads(t *testing.T) {
	s, _ := keyed(t)
	url := serveEarly(t, s)
	client := withHeader(bearer(httpClient(t, true, "", nil), "admin"), api.HeaderStale, "true")
	stream, err := meshgatev1connect.NewWatchClient(client, url).WatchMesh(testContext(t), connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	if !stream.Receive() || !stream.Msg().GetLeaderless() {
		t.Errorf("the first message is %v, %v", stream.Msg(), stream.Err())
	}
}
