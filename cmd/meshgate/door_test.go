// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "door")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListenDoor_IsForItsOwner(t *testing.T) {
	path := filepath.Join(shortDir(t), doorFile)
	// One that a process left behind makes room.
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := listenDoor(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	if !answers(t.Context(), path) {
		t.Error("the owner cannot connect")
	}
	if err := <-accepted; err != nil {
		t.Error(err)
	}
	if _, err := listenDoor(t.Context(), path); err == nil || !strings.Contains(err.Error(), "two nodes must not share a data directory") {
		t.Errorf("a second process: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

func TestDoor_FindsTheNodeOfThisHost(t *testing.T) {
	dir := shortDir(t)
	open := func(parts ...string) string {
		path := filepath.Join(append([]string{dir}, parts...)...)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := listenDoor(context.Background(), filepath.Join(path, doorFile))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return filepath.Join(path, doorFile)
	}
	given := open("given")
	c := access{dataDir: filepath.Join(dir, "given"), given: true}
	if got, err := c.door(t.Context()); got != given || err != nil {
		t.Errorf("in a directory that was given: %q, %v; want %q", got, err, given)
	}
	c = access{dataDir: filepath.Join(dir, "empty"), given: true}
	if got, err := c.door(t.Context()); got != "" || err != nil {
		t.Errorf("in an empty directory: %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "given", localFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	c = access{dataDir: filepath.Join(dir, "given"), given: true}
	if got, err := c.door(t.Context()); got != "" || err != nil {
		t.Errorf("in a gateway's directory: %q, %v", got, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := (&access{}).door(ended); got != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("after the command has ended: %q, %v", got, err)
	}
}
