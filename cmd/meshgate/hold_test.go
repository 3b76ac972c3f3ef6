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

	"github.com/meshgate/meshgate/node/durable"
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
