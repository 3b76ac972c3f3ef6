// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// meshBackup writes the backup of a mesh of these nodes.
func meshBackup(t *testing.T, nodes ...*mesh.Node) string {
	t.Helper()
	s, err := raftstore.Open(raftstore.Config{ID: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for _, n := range nodes {
		raw, err := protojson.Marshal(mesh.NodeToProto(n))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "/registry/nodes/" + string(n.ID), Value: raw}}}); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := s.Backup(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mesh.backup")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Whoever the backup does not know as this gateway could not start with it: it
// is refused before anything is written, so that the next attempt can succeed.
func TestRestore_OnlyAsAGatewayOfTheBackup(t *testing.T) {
	keeps := []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER, Port: 8443}}
	dirs := map[string]string{}
	var nodes []*mesh.Node
	for id, features := range map[mesh.NodeID][]mesh.Feature{"gw1": {{Kind: v1.Feature_MEMBERSHIP, Port: 8443}}, "gw2": keeps, "nas": nil, "stranger": nil} {
		dirs[string(id)] = t.TempDir()
		key, err := node.LoadKey(dirs[string(id)])
		if err != nil {
			t.Fatal(err)
		}
		if id != "stranger" {
			nodes = append(nodes, &mesh.Node{ID: id, PublicKey: key.Public(), Features: features})
		}
	}
	file := meshBackup(t, nodes...)
	for _, tt := range []struct {
		key, id, want string // of the error
	}{
		{"gw1", "gw2", "is the key of gw1, not of gw2"},
		{"nas", "nas", "the backup knows no gateway of this name; restore it as one of its gateways, with that one's node.key: gw1, gw2"},
		{"gw1", "gw9", "the backup knows no gateway of this name"},
		{"nas", "gw1", "is the key of nas, not of gw1"},
		{"stranger", "gw1", "is not the key of gw1 in the backup"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"restore", file, "--data-dir", dirs[tt.key], "--id", tt.id}, &stdout, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("the key of %s as %s: exit code %d, %s", tt.key, tt.id, code, &stderr)
		}
		if left, err := os.ReadDir(dirs[tt.key]); err != nil || len(left) != 1 {
			t.Errorf("the key of %s as %s left %v, %v", tt.key, tt.id, left, err)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"restore", file, "--data-dir", dirs["gw1"], "--id", "gw1"}, &stdout, &stderr); code != exitOK {
		t.Errorf("exit code %d, %s", code, &stderr)
	}
}

// What root restores belongs to the user that the gateway runs as.
func TestOwners_AreThatOfTheDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"state/log/1", "node.key", "other"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var changed []string
	o := owners{
		of: func(info fs.FileInfo) (owner, bool) {
			if info.Name() == filepath.Base(dir) || info.Name() == "log" {
				return owner{7, 8}, true
			}
			return owner{0, 0}, true
		},
		change: func(path string, o owner) error {
			rest, err := filepath.Rel(dir, path)
			if o != (owner{7, 8}) {
				t.Errorf("%s is given to %v", path, o)
			}
			changed = append(changed, rest)
			return err
		},
	}
	if err := o.hand(dir, "state", "cluster.json", "node.key"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"state", "state/log/1", "node.key"}, changed); diff != "" {
		t.Error(diff)
	}
	o.change = func(string, owner) error { return fs.ErrPermission }
	if err := o.hand(dir, "state"); err == nil {
		t.Error("an error is lost")
	}
	if is, known := ownerOf(statOf(t, dir)); known && is.user != os.Geteuid() {
		t.Errorf("the owner of a new directory is %v", is)
	}
}

func statOf(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
