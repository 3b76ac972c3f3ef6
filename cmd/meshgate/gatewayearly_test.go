// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/store/raftstore/raftstoretest"
)

// stateOfTwo writes the state of gateway gw1 of a cluster with gw2.
func stateOfTwo(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
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
	gw1, gw2 := open("gw1", dir, false), open("gw2", "", true)
	if err := gw1.AddVoter(ctx, "gw2", "gw2.example.org:8443"); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*raftstore.Store{gw2, gw1} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A gateway that has no majority at its start answers probes, so that nobody
// kills it for being silent, and says whom it waits for.
func TestUp_AnswersProbesWithoutAMajority(t *testing.T) {
	dir := t.TempDir()
	stateOfTwo(t, filepath.Join(dir, stateDir))
	c, flags := &upConfig{}, pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(flags)
	err := flags.Parse([]string{
		"--data-dir", dir, "--id", "gw1", "--public-address", "127.0.0.1", "--cluster.address", "gw1.example.org:8443",
		"--listen", "127.0.0.1:0", "--metrics.listen", "127.0.0.1:0", "--ice.listen", "127.0.0.1:0", "--turn.listen", "",
		"--wireguard.mode", "netstack", "--wireguard.listen-port", "0",
	})
	if err != nil {
		t.Fatal(err)
	}
	var logs strings.Builder // read when the gateway has ended
	p, err := newGatewayProcess(t.Context(), c, slog.New(slog.NewTextHandler(&logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- p.run(ctx, func() error { return fmt.Errorf("served without a majority") })
	}()
	public, operators := "https://"+p.public.Addr().String(), "http://"+p.metrics.Addr().String()
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
	cancel()
	select {
	case err := <-ended:
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	if !strings.Contains(logs.String(), "gw2.example.org:8443") {
		t.Errorf("logs %q, want whom it waits for", logs.String())
	}
}

// probe asks once; what is not answered yet is waited for.
func probe(t *testing.T, url string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
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
