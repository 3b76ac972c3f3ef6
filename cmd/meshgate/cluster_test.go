// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func newKey(t testing.TB) mesh.PublicKey {
	t.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// Before there is a state the pinned keys count, and then only the state.
func TestGatewayKeys_StateReplacesPins(t *testing.T) {
	gone, stays, added := newKey(t), newKey(t), newKey(t)
	k, err := newGatewayKeys(map[string]string{"gone": gone.Encode(), "stays": stays.Encode()})
	if err != nil {
		t.Fatal(err)
	}
	var state *mesh.Snapshot
	k.from(func() *mesh.Snapshot { return state }, func() []string { return nil })
	if id, ok := k.nodeOf(gone); !ok || id != "gone" {
		t.Errorf("a pinned key is that of %q, %v", id, ok)
	}
	keeps := []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER, Port: 8443}}
	state = &mesh.Snapshot{Nodes: mesh.NodesOf(
		&mesh.Node{ID: "stays", PublicKey: stays, Features: keeps},
		&mesh.Node{ID: "added", PublicKey: added, Features: keeps},
		&mesh.Node{ID: "laptop", PublicKey: newKey(t)},
		&mesh.Node{ID: "keyless", Features: keeps},
	)}
	if want := map[string]string{"stays": stays.Encode(), "added": added.Encode()}; !maps.Equal(k.pinned(), want) {
		t.Errorf("gateways: %v, want %v", k.pinned(), want)
	}
	if _, ok := k.nodeOf(gone); ok {
		t.Error("a gateway that the state does not know is known")
	}
	if key, ok := k.keyOf("added"); !ok || key != added {
		t.Errorf("key of a new gateway: %v, %v", key, ok)
	}
	if _, ok := k.keyOf("laptop"); ok {
		t.Error("a node that keeps no state passes for a gateway")
	}
}

// The key of a gateway that has a seat is known whatever its record says, and also
// when there is none: without it the others would not let that gateway in.
func TestGatewayKeys_OfSeatsAreNotForgotten(t *testing.T) {
	declared, silent, gone := newKey(t), newKey(t), newKey(t)
	k, err := newGatewayKeys(map[string]string{"gone": gone.Encode()})
	if err != nil {
		t.Fatal(err)
	}
	keeps := []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER, Port: 8443}}
	state := &mesh.Snapshot{Nodes: mesh.NodesOf(
		&mesh.Node{ID: "declared", PublicKey: declared, Features: keeps},
		&mesh.Node{ID: "silent", PublicKey: silent, Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}},
	)}
	seats := []string{"declared", "gone", "never-seen", "silent"}
	k.from(func() *mesh.Snapshot { return state }, func() []string { return seats })
	want := map[string]string{"declared": declared.Encode(), "silent": silent.Encode(), "gone": gone.Encode()}
	if got := k.pinned(); !maps.Equal(got, want) {
		t.Errorf("gateways: %v, want %v", got, want)
	}
	// Who loses its seat and says nothing of the state is one no more, though no
	// record changed.
	seats = []string{"declared"}
	if got := k.pinned(); len(got) != 1 || got["declared"] != declared.Encode() {
		t.Errorf("after seats were taken: %v", got)
	}
}

// Who may open the storage is on disk before it does: a gateway that is killed in
// the next moment knows it at its start.
func TestCluster_KeysAreKeptBeforeTheyAreUsed(t *testing.T) {
	added := newKey(t)
	l := &cluster{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	l.keys, _ = newGatewayKeys(nil)
	l.keys.from(func() *mesh.Snapshot {
		return &mesh.Snapshot{Nodes: mesh.NodesOf(&mesh.Node{ID: "gw2", PublicKey: added, Features: []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER, Port: 1}}})}
	}, func() []string { return nil })
	if _, ok := l.nodeOf(newKey(t)); ok {
		t.Error("a stranger is known")
	}
	if id, ok := l.nodeOf(added); !ok || id != "gw2" {
		t.Fatalf("the key is that of %q, %v", id, ok)
	}
	r, _, err := readClusterRecord(l.dir)
	if err != nil || r.Gateways["gw2"] != added.Encode() {
		t.Errorf("kept: %v, %v", r, err)
	}
}

func TestClusterRecord_IsKept(t *testing.T) {
	dir := t.TempDir()
	if _, known, err := readClusterRecord(dir); known || err != nil {
		t.Fatalf("an empty directory: %v, %v", known, err)
	}
	if err := writeClusterRecord(dir, clusterRecord{Address: "gw:1", Joined: true, Gateways: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	r, known, err := readClusterRecord(dir)
	if err != nil || !known || r.Address != "gw:1" || !r.Joined || r.Admitted || r.Gateways["a"] != "b" {
		t.Errorf("read back: %+v, %v, %v", r, known, err)
	}
	if err := os.WriteFile(filepath.Join(dir, clusterFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readClusterRecord(dir); err == nil || !strings.Contains(err.Error(), clusterFile) {
		t.Errorf("a damaged file: %v", err)
	}
}

// A gateway that says nothing new at its start writes nothing: its disk may be
// full, and the others need it back.
func TestOpenCluster_WritesOnlyWhatIsNew(t *testing.T) {
	dir := t.TempDir()
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, clusterFile)
	start := func(address string) os.FileInfo {
		t.Helper()
		public, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p := &gatewayProcess{
			cfg: &upConfig{dataDir: dir, cluster: clusterConfig{address: address}},
			log: slog.New(slog.DiscardHandler), public: public, address: netip.MustParseAddr("192.0.2.1"),
		}
		l, err := p.openCluster(t.Context(), "gw1", key)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.close(); err != nil {
			t.Error(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := start("gw1.example.org:8443")
	if again := start("gw1.example.org:8443"); !os.SameFile(first, again) {
		t.Error("a start like the last one wrote the record again")
	}
	if moved := start("gw1.example.net:8443"); os.SameFile(first, moved) {
		t.Error("another address is not kept")
	}
}

// A record that cannot be written ends the first start only: later ones have
// what the file says.
func TestCluster_BeginsWithoutRoomToWrite(t *testing.T) {
	old := clusterRecord{Address: "gw1.example.org:8443", Gateways: map[string]string{}}
	moved := clusterRecord{Address: "gw1.example.net:8443", Gateways: map[string]string{}}
	for name, c := range map[string]struct {
		kept   *clusterRecord
		record clusterRecord
		text   string // of the error
		logs   string
	}{
		"the first start":    {record: old, text: "keep who the other gateways are"},
		"a start like it":    {kept: &old, record: old},
		"at another address": {kept: &old, record: moved, logs: "free space"},
	} {
		t.Run(name, func(t *testing.T) {
			var logs strings.Builder
			l := &cluster{
				dir: filepath.Join(t.TempDir(), "takes no files"), kept: c.kept, record: c.record,
				log: slog.New(slog.NewTextHandler(&logs, nil)),
			}
			l.keys, _ = newGatewayKeys(nil)
			err := l.begin()
			if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("begins with %v, want %q", err, c.text)
			}
			if (logs.Len() == 0) != (c.logs == "") || !strings.Contains(logs.String(), c.logs) {
				t.Errorf("logs %q, want %q", logs.String(), c.logs)
			}
			if l.record.Address != c.record.Address {
				t.Errorf("address %q, want %q", l.record.Address, c.record.Address)
			}
		})
	}
}

func TestPlace_SaysWhatToDo(t *testing.T) {
	const url = "https://gw1.example.org:8443"
	for name, c := range map[string]struct {
		state  bool // there is one
		record *clusterRecord
		join   string
		seat   bool   // is to be asked for
		text   string // of the error
	}{
		"a first gateway":                  {},
		"a gateway that joins":             {join: url, seat: true},
		"one that has joined":              {state: true, record: &clusterRecord{Joined: true, Admitted: true}},
		"one that has joined, same flags":  {state: true, record: &clusterRecord{Joined: true, Admitted: true}, join: url},
		"one that was cut short":           {state: true, record: &clusterRecord{Joined: true}, join: url, seat: true},
		"one that was cut short, no flags": {state: true, record: &clusterRecord{Joined: true}, text: "has not got its seat"},
		"one that lost its state":          {record: &clusterRecord{Joined: true, Admitted: true}, join: url, seat: true},
		"lost its state, no flags":         {record: &clusterRecord{Joined: true, Admitted: true}, text: "--cluster.join"},
		"the first one, told to join":      {state: true, record: &clusterRecord{}, join: url},
		"the first one, lost its state":    {record: &clusterRecord{}, join: url, seat: true},
		"a mesh of its own":                {state: true, join: url, text: "another --data-dir"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.state {
				if err := os.MkdirAll(filepath.Join(dir, stateDir, "log"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			l := &cluster{dir: dir}
			if c.record != nil {
				l.record = *c.record
			}
			up := &upConfig{dataDir: dir, cluster: clusterConfig{gateway: access{URL: c.join}}}
			err := l.place(up, c.record != nil)
			if c.text == "" && (err != nil || l.seatless() != c.seat) {
				t.Errorf("asks for a seat: %v, error %v", l.seatless(), err)
			}
			if c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("error %v, want %q", err, c.text)
			}
		})
	}
}

func TestUp_RefusesClusterFlagsThatCannotWork(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*upConfig)
		text   string
	}{
		"role":           {func(c *upConfig) { c.cluster.role = "king" }, "--cluster.role"},
		"dead at once":   {func(c *upConfig) { c.cluster.deadAfter = time.Second }, "--cluster.dead-after"},
		"dead before":    {func(c *upConfig) { c.cluster.deadAfter = -time.Hour }, "--cluster.dead-after"},
		"dev":            {func(c *upConfig) { c.dev, c.cluster.address = true, "gw:1" }, "--dev"},
		"no directory":   {func(c *upConfig) { c.dataDir, c.cluster.address = "", "gw:1" }, "--data-dir"},
		"no port":        {func(c *upConfig) { c.cluster.address = "gw" }, "HOST:PORT"},
		"no host":        {func(c *upConfig) { c.cluster.address = ":8443" }, "HOST:PORT"},
		"no port number": {func(c *upConfig) { c.cluster.address = "gw:0" }, "HOST:PORT"},
	} {
		u := &upConfig{dataDir: "/d", cluster: clusterConfig{role: roleVoter}}
		c.change(u)
		if err := u.validateCluster(); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %q", name, err, c.text)
		}
	}
}

// Who is told what by the storage: what may pass is never a final word.
func TestStorageError_SaysWhatMayPass(t *testing.T) {
	for _, tt := range []struct {
		err, want error
		not       error
	}{
		{fmt.Errorf("dial: %w: no key yet", mesh.ErrNotFound), mesh.ErrUnavailable, mesh.ErrNotFound},
		{fmt.Errorf("dial: %w: another key", mesh.ErrDenied), mesh.ErrUnavailable, mesh.ErrDenied},
		{store.ErrUncertain, mesh.ErrUnavailable, nil},
		{raftstore.ErrUnsafe, mesh.ErrPrecondition, nil},
		{raftstore.ErrOtherCluster, mesh.ErrPrecondition, nil},
		{raftstore.ErrNotMember, mesh.ErrNotFound, nil},
		{fmt.Errorf("x: %w", store.ErrInvalid), mesh.ErrInvalid, nil},
		{context.Canceled, context.Canceled, nil},
	} {
		got := storageError(tt.err)
		if !errors.Is(got, tt.want) || tt.not != nil && errors.Is(got, tt.not) {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
	if storageError(nil) != nil {
		t.Error("an error out of nothing")
	}
}

func FuzzClusterRecord(f *testing.F) {
	f.Add([]byte(`{"address":"gw1:8443","joined":true,"gateways":{"gw1":"x"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r clusterRecord
		if json.Unmarshal(raw, &r) != nil {
			return
		}
		k, err := newGatewayKeys(r.Gateways)
		if err != nil {
			return
		}
		for id, key := range k.pinned() {
			if got, ok := k.keyOf(mesh.NodeID(id)); !ok || got.Encode() != key {
				t.Errorf("%s: %v", id, got)
			}
		}
	})
}
