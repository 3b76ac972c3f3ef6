// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/secrets"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/store/raftstore/raftstoretest"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// stateOfTwo writes the directory of gateway gw1 of a cluster with gw2, and of a
// mesh in which the tokens "current" and "revoked" were made for its admin.
func stateOfTwo(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hub := raftstoretest.NewHub()
	open := func(id, dir string, join bool) *raftstore.Store {
		address := id + ".example.org:8443"
		s, err := raftstore.Open(raftstore.Config{ID: id, Dir: dir, Network: hub.Endpoint(id, address), Address: address, Join: join})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	gw1, gw2 := open("gw1", filepath.Join(dir, stateDir), false), open("gw2", "", true)
	if err := gw1.AddVoter(ctx, "gw2", "gw2.example.org:8443"); err != nil {
		t.Fatal(err)
	}
	makeMesh(ctx, t, dir, gw1)
	for _, s := range []*raftstore.Store{gw2, gw1} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// makeMesh makes the mesh of the gateway in dir, whose state is s.
func makeMesh(ctx context.Context, t *testing.T, dir string, s *raftstore.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	r, shared := registry.New(s, nil), secrets.New(s, nil)
	running.Go(func() { _ = r.Run(ctx) })
	running.Go(func() { _ = shared.Run(ctx) })
	key, err := node.LoadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	gw1 := mesh.Node{ID: "gw1", PublicKey: key.Public(), Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}}}
	if err := r.Bootstrap(ctx, registry.Bootstrap{Self: gw1}); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"current", "revoked"} {
		if err := shared.PutToken(ctx, mesh.Token{Hash: sha256.Sum256([]byte(token)), Holder: registry.DefaultAdmin}); err != nil {
			t.Fatal(err)
		}
	}
	if err := shared.DeleteTokens(ctx, sha256.Sum256([]byte("revoked"))); err != nil {
		t.Fatal(err)
	}
}

// startAlone starts gateway gw1 in dir, which never serves, and returns where it
// answers early. It ends with the test.
func startAlone(t *testing.T, dir string, more ...string) (public, operators string, logs *lockedText) {
	t.Helper()
	c, flags := &upConfig{}, pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(flags)
	err := flags.Parse(append([]string{
		"--data-dir", dir, "--id", "gw1", "--public-address", "127.0.0.1",
		"--listen", "127.0.0.1:0", "--metrics.listen", "127.0.0.1:0", "--ice.listen", "127.0.0.1:0", "--turn.listen", "",
		"--wireguard.mode", "netstack", "--wireguard.listen-port", "0",
	}, more...))
	if err != nil {
		t.Fatal(err)
	}
	logs = &lockedText{}
	p, err := newGatewayProcess(t.Context(), c, slog.New(slog.NewTextHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- p.run(ctx, func() error { return fmt.Errorf("served without a majority") })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("it does not end")
		}
	})
	return "https://" + p.public.Addr().String(), "http://" + p.metrics.Addr().String(), logs
}

// lockedText is what several goroutines write.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A gateway that has no majority at its start answers probes, so that nobody
// kills it for being silent, and says whom it waits for.
func TestUp_AnswersProbesWithoutAMajority(t *testing.T) {
	dir := t.TempDir()
	stateOfTwo(t, dir)
	public, operators, logs := startAlone(t, dir, "--cluster.address", "gw1.example.org:8443")
	for _, want := range []struct {
		url    string
		status int
		says   string
	}{
		{operators + "/livez", http.StatusOK, "ok"},
		{operators + "/readyz", http.StatusServiceUnavailable, "gw2 (gw2.example.org:8443)"},
		{operators + "/metrics", http.StatusOK, "meshgate_store_"},
		{public + "/livez", http.StatusOK, "ok"},
		{public + "/readyz", http.StatusServiceUnavailable, "not ready"},
	} {
		if status, body := probe(t, want.url); status != want.status || !strings.Contains(body, want.says) {
			t.Errorf("%s: %d %q, want %d that says %q", want.url, status, body, want.status, want.says)
		}
	}
	if !strings.Contains(logs.String(), "gw2.example.org:8443") {
		t.Errorf("logs %q, want whom it waits for", logs)
	}
}

// It shows what it knew when it ended, to who might see it then.
func TestUp_AnswersStaleReadsWithoutAMajority(t *testing.T) {
	dir := t.TempDir()
	stateOfTwo(t, dir)
	public, _, _ := startAlone(t, dir, "--cluster.address", "gw1.example.org:8443")
	admin, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if err != nil {
		t.Fatal(err)
	}
	local, stale := strings.TrimSpace(string(admin)), map[string]string{api.HeaderStale: "true"}
	for name, tt := range map[string]struct {
		procedure, token string
		headers          map[string]string
		status           int
		says             string
	}{
		"with the token of this host":      {v1connect.MeshListNodesProcedure, local, stale, http.StatusOK, `"id":"gw1"`},
		"with a token of the mesh":         {v1connect.MeshListNodesProcedure, "current", stale, http.StatusOK, `"id":"gw1"`},
		"with one that was revoked before": {v1connect.MeshListNodesProcedure, "revoked", stale, http.StatusUnauthorized, "unauthenticated"},
		"without asking for stale":         {v1connect.MeshListNodesProcedure, local, nil, http.StatusServiceUnavailable, "unavailable"},
		"status of the cluster":            {meshgatev1connect.ClusterStatusProcedure, local, nil, http.StatusOK, "start gw2"},
		"a change":                         {v1connect.MembershipLeaveProcedure, local, nil, http.StatusServiceUnavailable, "meshgate cluster status"},
	} {
		headers := map[string]string{"Authorization": "Bearer " + tt.token, "Content-Type": "application/json"}
		maps.Copy(headers, tt.headers)
		if status, body := request(t, http.MethodPost, public+tt.procedure, headers); status != tt.status || !strings.Contains(body, tt.says) {
			t.Errorf("%s: %d %q, want %d that says %q", name, status, body, tt.status, tt.says)
		}
	}
}

// What it holds can be taken from it, by who could have taken it when it ended,
// and nobody is sent elsewhere for it.
func TestUp_IsBackedUpWithoutAMajority(t *testing.T) {
	dir := t.TempDir()
	stateOfTwo(t, dir)
	public, _, _ := startAlone(t, dir, "--cluster.address", "gw1.example.org:8443")
	probe(t, public+"/livez")                                                                                   // it answers
	conn, err := tls.Dial("tcp", strings.TrimPrefix(public, "https://"), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // its key is what is asked for
	if err != nil {
		t.Fatal(err)
	}
	pin := peer.PinOf(conn.ConnectionState().PeerCertificates[0])
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "mesh.backup")
	at := []string{"--server", public, "--pin", fmt.Sprintf("sha256:%x", pin)}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{append(at, "backup", file, "--token", "current"), exitFailed, "take what this gateway holds with --stale"},
		{append(at, "backup", file, "--token", "revoked", "--stale"), exitFailed, "unknown or no longer valid"},
		{[]string{"backup", file, "--data-dir", dir, "--offline"}, exitFailed, "ask the gateway with --stale"},
		{append(at, "backup", file, "--token", "current", "--stale"), exitOK, "this is what the gateway held"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), tt.args, &stdout, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%v: exit code %d, %s, want %d with %q", tt.args, code, &stderr, tt.code, tt.want)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, entries, err := raftstore.ReadBackup(f)
	if err != nil {
		t.Fatal(err)
	}
	if s := registry.SnapshotOf(entries, info.Version); !s.Node("gw1").HoldsState() {
		t.Errorf("the backup has no gateway gw1 in %d keys", info.Keys)
	}
}

// A backup that cannot be had says which way is left.
func TestStaleAdvice_NamesTheWayThatIsLeft(t *testing.T) {
	silent := connect.NewError(connect.CodeUnavailable, errors.New("dial tcp 192.0.2.1:8443: connect: connection refused"))
	waits := connect.NewError(connect.CodeUnavailable, errors.New("this gateway has just started"))
	for _, tt := range []struct {
		err   error
		stale bool
		want  string
	}{
		{silent, false, "if that gateway does not start, take what it holds with --offline"},
		{silent, true, "if that gateway does not start, take what it holds with --offline"},
		{waits, false, "with --stale, or --offline while it does not run"},
		{waits, true, "stop it, and use --offline"},
		{connect.NewError(connect.CodePermissionDenied, errors.New("no role")), true, ""},
	} {
		got := strings.TrimPrefix(staleAdvice(backupOptions{stale: tt.stale}, tt.err).Error(), tt.err.Error())
		if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%v, stale %v: %q, want %q", tt.err, tt.stale, got, tt.want)
		}
	}
}

// A gateway that waits for its first seat is no less alive, and says at its probes
// what it waits for.
func TestUp_AnswersProbesWithoutASeat(t *testing.T) {
	gone, err := net.Listen("tcp4", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	url := "https://" + gone.Addr().String()
	public, operators, _ := startAlone(t, t.TempDir(), "--cluster.join", url, "--cluster.pin", "sha256:"+strings.Repeat("ab", sha256.Size))
	for _, want := range []struct {
		url    string
		status int
		says   string
	}{
		{operators + "/livez", http.StatusOK, "ok"},
		{operators + "/readyz", http.StatusServiceUnavailable, "waits for gateway " + url + ", to join"},
		{operators + "/metrics", http.StatusOK, "meshgate_store_"},
		{public + "/livez", http.StatusOK, "ok"},
		{public + "/readyz", http.StatusServiceUnavailable, "not ready"},
	} {
		if status, body := probe(t, want.url); status != want.status || !strings.Contains(body, want.says) {
			t.Errorf("%s: %d %q, want %d that says %q", want.url, status, body, want.status, want.says)
		}
	}
}

// probe asks once; what is not answered yet is waited for.
func probe(t *testing.T, url string) (status int, body string) {
	t.Helper()
	return request(t, http.MethodGet, url, nil)
}

func request(t *testing.T, method, url string, headers map[string]string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range headers {
		r.Header.Set(key, value)
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // who answers is not the question
	}}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}
