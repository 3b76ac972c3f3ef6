// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/peer"
)

// A second process of one node would fight the first for its key: it ends before it
// opens anything.
func TestJoin_OneProcessForADataDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nodes", "nas")
	join := func(ctx context.Context) (int, string) {
		var stdout, stderr bytes.Buffer
		code := run(ctx, []string{"join", "http://127.0.0.1:1", "--token", "x", "--id", "nas", "--data-dir", dir,
			"--wireguard.mode", "netstack", "--ice.listen", "127.0.0.1:0"}, &stdout, &stderr)
		return code, stderr.String()
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan string, 1)
	go func() {
		_, text := join(ctx)
		first <- text
	}()
	for end := time.Now().Add(time.Minute); ; {
		if _, err := os.Stat(filepath.Join(dir, nodeKeyFile)); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the first process does not begin")
		}
		<-time.After(time.Millisecond)
	}
	if code, text := join(t.Context()); code != exitFailed || !strings.Contains(text, "another process runs from "+dir+": stop it first") {
		t.Errorf("a second process: exit code %d, %s", code, text)
	}
	cancel()
	if text := <-first; strings.Contains(text, "stop it first") {
		t.Errorf("the first process: %s", text)
	}
	lock, err := hold(dir, "nobody", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("after it has ended: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
}

func TestHold_SaysWhoHasTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	lock, err := hold(dir, "a gateway", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	_, err = hold(dir, "a gateway", slog.New(slog.DiscardHandler))
	if !errors.Is(err, durable.ErrInUse) || !strings.Contains(err.Error(), "a gateway runs from "+dir+": stop it first") {
		t.Errorf("got %v", err)
	}
	if none, err := hold("", "a gateway", slog.New(slog.DiscardHandler)); err != nil || none.Close() != nil {
		t.Errorf("without a directory: %v", err)
	}
}

// A join that is refused leaves neither a directory nor a key behind; what it found
// there stays, and so does a key that a gateway may know by now.
func TestJoin_LeavesNothingWhereItIsRefused(t *testing.T) {
	url, base := stranger(t), t.TempDir()
	old := filepath.Join(base, "old")
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	for dir, stays := range map[string]bool{filepath.Join(base, "nodes", "new"): false, old: true} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"join", url, "--token", "x", "--id", "nas", "--data-dir", dir,
			"--wireguard.mode", "netstack", "--ice.listen", "127.0.0.1:0"}, &stdout, &stderr)
		if code != exitFailed || !strings.Contains(stderr.String(), "--pin") {
			t.Fatalf("exit code %d, %s", code, &stderr)
		}
		if _, err := os.Stat(filepath.Join(dir, nodeKeyFile)); (err == nil) != stays {
			t.Errorf("%s: %v, want that the key stays: %v", dir, err, stays)
		}
		if _, err := os.Stat(dir); (err == nil) != stays {
			t.Errorf("%s: %v, want that it stays: %v", dir, err, stays)
		}
	}
	for name, tt := range map[string]struct {
		asked bool
		err   error
		stays bool
	}{
		"it was not asked yet": {err: errors.New("device busy")},
		"refused":              {asked: true, err: connect.NewError(connect.CodePermissionDenied, errors.New("no role"))},
		"no answer":            {asked: true, err: connect.NewError(connect.CodeUnavailable, errors.New("away")), stays: true},
		"ended":                {asked: true, stays: true},
	} {
		home, err := openHome(filepath.Join(base, name), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := loadKey(home.dir); err != nil {
			t.Fatal(err)
		}
		home.asked = tt.asked
		if err := home.close(tt.err); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(home.dir); (err == nil) != tt.stays {
			t.Errorf("%s: %v, want that it stays: %v", name, err, tt.stays)
		}
	}
}

// What a gateway would refuse is told before what this host lacks.
func TestForesee_TheGatewayBeforeTheHost(t *testing.T) {
	busy := errors.New("meshgate0: device or resource busy")
	at := &access{URL: stranger(t)}
	gate, err := at.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	o := &nodeOptions{gateway: gate, dataDir: t.TempDir()}
	if err := o.foresee(t.Context(), busy); !peer.Distrusted(err) || strings.Contains(err.Error(), "busy") {
		t.Errorf("one that is not believed: %v", err)
	}
	record := []byte(`{"node":"nas"}`)
	if err := os.WriteFile(filepath.Join(o.dataDir, "membership.json"), record, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.foresee(t.Context(), busy); !errors.Is(err, busy) {
		t.Errorf("of a member: %v", err)
	}
}
