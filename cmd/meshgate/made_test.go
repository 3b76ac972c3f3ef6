// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node/mesh"
)

// Of the flags that only count when the mesh is made, those that somebody has set
// to another value are told, and no default.
func TestTellFixed_WarnsOfWhatWasGiven(t *testing.T) {
	s := &mesh.Snapshot{Domain: "first.example.", IPv4: netip.MustParsePrefix("10.0.0.0/8")}
	file := filepath.Join(t.TempDir(), "up.yaml")
	if err := os.WriteFile(file, []byte("mesh:\n  ipv4-network: 10.0.0.0/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args, want []string
	}{
		"nothing":      {},
		"by a flag":    {args: []string{"--mesh.domain=second.example"}, want: []string{"--mesh.domain"}},
		"the same":     {args: []string{"--mesh.domain=first.example"}},
		"a default":    {args: []string{"--mesh.ipv4-network=172.16.0.0/12"}, want: []string{"--mesh.ipv4-network"}},
		"by the file":  {args: []string{"--config=" + file, "--mesh.admin=root"}, want: []string{"--mesh.admin"}},
		"development":  {args: []string{"--dev", "--listen=127.0.0.1:0"}},
		"in the other": {args: []string{"--dev", "--mesh.default-network-policy=accept"}, want: []string{"--mesh.default-network-policy"}},
	} {
		c := &upConfig{}
		f := pflag.NewFlagSet("up", pflag.ContinueOnError)
		c.register(f)
		if err := f.Parse(append([]string{"--public-address=192.0.2.1"}, tt.args...)); err != nil {
			t.Fatal(err)
		}
		if err := c.load(f); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		c.tellFixed(s, slog.New(slog.NewTextHandler(&log, nil)))
		if n := strings.Count(log.String(), "\n"); n != len(tt.want) || n > 0 && !strings.Contains(log.String(), "flag="+tt.want[0]) {
			t.Errorf("%s: want warnings of %q, got:\n%s", name, tt.want, log.String())
		}
	}
}

// The gateway that made the mesh is told to get its state from the others, if there
// are any: a backup would be older.
func TestCheckState_SaysWhereTheStateIs(t *testing.T) {
	const restore, join = "Restore it from a backup; to make", "--cluster.join and --cluster.token-file; if none of them has it, restore"
	for name, tt := range map[string]struct {
		record *clusterRecord
		state  bool
		want   string // of the error; empty: none
	}{
		"alone":              {want: restore},
		"one of several":     {record: &clusterRecord{Address: "gw1:8443", Gateways: map[string]string{"gw1": "a", "gw2": "b"}}, want: join},
		"alone, all there":   {state: true},
		"several, all there": {record: &clusterRecord{}, state: true},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, meshFile), []byte("fd00::/48\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if tt.record != nil {
			if err := writeClusterRecord(dir, *tt.record); err != nil {
				t.Fatal(err)
			}
		}
		state := filepath.Join(dir, stateDir)
		if tt.state {
			if err := os.MkdirAll(filepath.Join(state, "log"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		err := checkState(dir, state)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
