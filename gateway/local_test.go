// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// local serves a gateway with a socket, and makes a client of that.
func local(t *testing.T) (*served, *http.Client) {
	t.Helper()
	return localWith(t, func(*Config) {})
}

// localWith is local of a gateway with changes.
func localWith(t *testing.T, change func(*Config)) (*served, *http.Client) {
	t.Helper()
	dir, err := os.MkdirTemp("", "local")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(c *Config) { c.Local = l; change(c) })
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return s, &http.Client{Transport: tr}
}

// The operator of a node's host reads what the node knows, and nothing else, of
// every procedure that there is.
func TestLocal_OnlyWhatTheNodeTellsOfItself(t *testing.T) {
	s, c := local(t)
	open := map[string]bool{
		"/v1.Node/GetStatus": true, "/meshgate.v1.Watch/WatchMesh": true,
		"/meshgate.v1.Paths/ListPaths": true, "/meshgate.v1.Paths/Ping": true, "/meshgate.v1.Paths/ListServers": true,
		"/meshgate.v1.Paths/UseExit":         true,
		"/meshgate.v1.Presence/ListPresence": true,
	}
	for _, m := range everyMethod(t) {
		ctx, cancel := context.WithCancel(testContext(t))
		err := callAny(ctx, c, "http://localhost", m)
		cancel()
		denied := connect.CodeOf(err) == connect.CodePermissionDenied && err != nil
		if denied == open[procedureOf(m)] {
			t.Errorf("%s: %v", procedureOf(m), err)
		}
		if denied && !strings.Contains(err.Error(), "ask a gateway") {
			t.Errorf("%s does not say what to do: %v", procedureOf(m), err)
		}
	}
	if n := s.node.writes(); n != 0 {
		t.Errorf("%d changes reached the node", n)
	}
}

// What a page or a header says makes nobody the operator, nor the operator somebody.
func TestLocal_BelievesNoHeaders(t *testing.T) {
	_, c := local(t)
	ask := func(c *http.Client) error {
		_, err := meshgatev1connect.NewPathsClient(c, "http://localhost", connect.WithGRPC()).ListPaths(testContext(t), connect.NewRequest(&meshgatev1.ListPathsRequest{}))
		return err
	}
	if err := ask(c); err != nil {
		t.Fatal(err)
	}
	if err := ask(withHeader(c, "Origin", "http://localhost")); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a page: %v", err)
	}
	admin := withHeader(c, "Authorization", "Bearer "+tokenOf("admin"))
	_, err := meshgatev1connect.NewClusterClient(admin, "http://localhost", connect.WithGRPC()).Status(testContext(t), connect.NewRequest(&meshgatev1.StatusRequest{}))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("the admin's token at the socket: %v", err)
	}
}

// Commands try what a node does not tell: that is nothing for its log, and who asks has
// no address.
func TestLocal_WhatIsDeniedIsDetail(t *testing.T) {
	var log lockedBuffer
	_, c := localWith(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	_, err := meshgatev1connect.NewClusterClient(c, "http://localhost", connect.WithGRPC()).Status(testContext(t), connect.NewRequest(&meshgatev1.StatusRequest{}))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Fatal(err)
	}
	found := false
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "rpc=/meshgate.v1.Cluster/Status code=permission_denied") {
			found = strings.Contains(line, "level=DEBUG") && strings.Contains(line, "addr=local ")
			t.Log(line)
		}
	}
	if !found {
		t.Errorf("want a record at DEBUG of a caller at local")
	}
}
