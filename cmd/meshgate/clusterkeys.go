// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/mesh"
)

// clusterFile keeps, inside a data directory, what a gateway of several has to
// know to start before it hears any of the others.
const clusterFile = "cluster.json"

// clusterRecord is what the file holds.
type clusterRecord struct {
	// Address is where the others reached this gateway at its last start.
	Address string `json:"address"`
	// Joined is true when another gateway made the mesh, and Admitted when this
	// one has got its seat.
	Joined   bool `json:"joined,omitempty"`
	Admitted bool `json:"admitted,omitempty"`
	// Gateways are the keys of all gateways by their ids.
	Gateways map[string]string `json:"gateways,omitempty"`
}

func (r clusterRecord) equal(other clusterRecord) bool {
	return r.Address == other.Address && r.Joined == other.Joined && r.Admitted == other.Admitted && maps.Equal(r.Gateways, other.Gateways)
}

// readClusterRecord reads the file; known is false when there is none.
func readClusterRecord(dir string) (r clusterRecord, known bool, err error) {
	if dir == "" {
		return r, false, nil
	}
	raw, err := os.ReadFile(filepath.Join(dir, clusterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("read who the other gateways are: %w", err)
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, false, fmt.Errorf("parse %s: %w; restore it from a backup of the directory", filepath.Join(dir, clusterFile), err)
	}
	return r, true, nil
}

// writeClusterRecord keeps the record.
func writeClusterRecord(dir string, r clusterRecord) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, clusterFile), append(raw, '\n')); err != nil {
		return fmt.Errorf("keep who the other gateways are: %w", err)
	}
	return nil
}

// gatewayKeys knows the gateways of the mesh by their keys: from the state, and
// before there is one, as they were pinned. It is safe for concurrent use.
type gatewayKeys struct {
	mu   sync.Mutex // guards the fields below
	byID map[mesh.NodeID]mesh.PublicKey
	of   mesh.Nodes // the nodes that byID was read from; the zero value: pinned
	held []string   // the seats that byID was read with
	// state is the latest state; nil before there can be one.
	state func() *mesh.Snapshot
	// seats are the ids of those that have a part in the storage, sorted.
	seats func() []string
}

// from makes state what counts, as soon as it returns one, with the gateways
// that have seats, whatever the state says of them. Neither may call k.
func (k *gatewayKeys) from(state func() *mesh.Snapshot, seats func() []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state, k.seats = state, seats
}

func newGatewayKeys(pinned map[string]string) (*gatewayKeys, error) {
	k := &gatewayKeys{byID: make(map[mesh.NodeID]mesh.PublicKey, len(pinned))}
	for name, text := range pinned {
		id, err := mesh.ParseNodeID(name)
		if err != nil {
			return nil, fmt.Errorf("gateway %q: %w", name, err)
		}
		if k.byID[id], err = mesh.ParsePublicKey(text); err != nil {
			return nil, fmt.Errorf("gateway %q: %w", name, err)
		}
	}
	return k, nil
}

// keyOf is the key of a gateway.
func (k *gatewayKeys) keyOf(id mesh.NodeID) (mesh.PublicKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refreshLocked()
	key, ok := k.byID[id]
	return key, ok
}

// nodeOf is the gateway that has a key.
func (k *gatewayKeys) nodeOf(key mesh.PublicKey) (mesh.NodeID, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refreshLocked()
	for id, have := range k.byID {
		if have == key {
			return id, true
		}
	}
	return "", false
}

// pin replaces what is known, until there is a state.
func (k *gatewayKeys) pin(keys map[mesh.NodeID]mesh.PublicKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.byID, k.of, k.held = keys, mesh.Nodes{}, nil
}

// pinned is what is known, as it is kept.
func (k *gatewayKeys) pinned() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refreshLocked()
	out := make(map[string]string, len(k.byID))
	for id, key := range k.byID {
		out[string(id)] = key.Encode()
	}
	return out
}

// refreshLocked takes the gateways from the state. A node is one when it says
// that it keeps the state, which takes a role, or has a seat: without the key of
// one that has, the storage may have no majority, and nothing could be mended.
func (k *gatewayKeys) refreshLocked() {
	if k.state == nil {
		return
	}
	s := k.state()
	if s == nil {
		return
	}
	seats := k.seats()
	if s.Nodes == k.of && slices.Equal(seats, k.held) {
		return
	}
	found := map[mesh.NodeID]mesh.PublicKey{}
	for id, n := range s.Nodes.All() {
		if n.KeepsLog() && !n.PublicKey.IsZero() {
			found[id] = n.PublicKey
		}
	}
	for _, seat := range seats {
		id := mesh.NodeID(seat)
		if n, ok := s.Nodes.Get(id); ok && !n.PublicKey.IsZero() {
			found[id] = n.PublicKey
		} else if key, ok := k.byID[id]; ok {
			found[id] = key // the state has no record of it, or one without a key
		}
	}
	k.byID, k.of, k.held = found, s.Nodes, seats
}
