// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// meshFile names, inside a data directory, the mesh whose state the directory
// holds. It is outside the state, so that a state that is lost is missed.
const meshFile = "mesh"

// checkState refuses to make a new mesh where another one was: its nodes would
// all be strangers. A gateway that was one of several gets its state from the
// others, which hold a newer one than any backup.
func checkState(dataDir, state string) error {
	name, err := os.ReadFile(filepath.Join(dataDir, meshFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read which mesh this is: %w", err)
	}
	if found, err := os.ReadDir(state); err == nil && len(found) > 0 {
		return nil
	}
	_, several, err := readClusterRecord(dataDir)
	if err != nil {
		return err
	}
	way := "Restore it from a backup"
	if several {
		way = "To get it from the other gateways, start this one with --cluster.join and --cluster.token-file; if none of them has it, restore it from a backup"
	}
	return fmt.Errorf("the state of the mesh %s is not in %s: is its volume mounted? %s; to make a new mesh instead, remove %s",
		strings.TrimSpace(string(name)), state, way, filepath.Join(dataDir, meshFile))
}

// markMesh remembers that the data directory holds this mesh.
func (p *gatewayProcess) markMesh() {
	if p.cfg.dataDir == "" {
		return
	}
	path := filepath.Join(p.cfg.dataDir, meshFile)
	if _, err := os.Stat(path); err == nil {
		return
	}
	if err := durable.WriteFile(path, []byte(p.node.Snapshot().IPv6.String()+"\n")); err != nil {
		p.log.Warn("a state that is lost will not be missed", "err", err)
	}
}

// tellFixed says which flags that were given have no effect, because the mesh was
// made with other values.
func (c *upConfig) tellFixed(s *mesh.Snapshot, log *slog.Logger) {
	for _, f := range []struct{ flag, want, have string }{
		{"mesh.admin", c.admin, registry.Admin(s)},
		{"mesh.domain", strings.TrimSuffix(c.meshDomain, "."), strings.TrimSuffix(s.Domain, ".")},
		{"mesh.ipv4-network", c.meshIPv4, s.IPv4.String()},
		{"mesh.default-network-policy", c.policy, registry.DefaultPolicy(s)},
	} {
		if c.given[f.flag] && f.want != f.have {
			log.Warn("the mesh was made with another value, which stays", "flag", "--"+f.flag, "value", f.have, "ignored", f.want)
		}
	}
}
