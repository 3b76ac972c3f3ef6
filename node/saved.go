// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// membershipFile keeps the membership inside the data directory, so that a
// restart needs neither the token nor the public URL.
const membershipFile = "membership.json"

// membershipRecord is what the file holds.
type membershipRecord struct {
	// Node is whose membership it is.
	Node mesh.NodeID `json:"node"`
	// Request is the last join that a gateway accepted, as protojson.
	Request json.RawMessage `json:"request"`
	// Answer is the last that a gateway said, as protojson.
	Answer json.RawMessage `json:"answer"`
}

// SavedID is the id of the node whose membership dir keeps; empty when there is
// none, or none that can be read.
func SavedID(dir string) mesh.NodeID {
	r, err := readMembership(dir)
	if err != nil {
		return ""
	}
	return r.Node
}

func readMembership(dir string) (membershipRecord, error) {
	raw, err := os.ReadFile(filepath.Join(dir, membershipFile))
	if err != nil {
		return membershipRecord{}, err
	}
	var r membershipRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return membershipRecord{}, fmt.Errorf("parse %s: %w", membershipFile, err)
	}
	return r, nil
}

// load takes the membership of an earlier run, if there is one. A file that
// makes no sense is worth a warning: the node joins again. One of another node
// is an error.
func (f *follower) load() error {
	if f.cfg.DataDir == "" || f.cfg.Again {
		return nil
	}
	r, err := readMembership(f.cfg.DataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && r.Node != f.node.cfg.ID:
		return fmt.Errorf("%w: %s belongs to node %q, not to %q; start with that id, or give this node a directory of its own",
			mesh.ErrPrecondition, f.cfg.DataDir, r.Node, f.node.cfg.ID)
	case err == nil:
		err = f.restore(r)
	}
	if err != nil {
		f.node.log.Warn("saved membership not used", "err", err)
	}
	return nil
}

// restore makes a saved membership the present one.
func (f *follower) restore(r membershipRecord) error {
	asked, answer := &v1.JoinRequest{}, &v1.JoinResponse{}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	if err := lenient.Unmarshal(r.Request, asked); err != nil {
		return fmt.Errorf("request in %s: %w", membershipFile, err)
	}
	if err := lenient.Unmarshal(r.Answer, answer); err != nil {
		return fmt.Errorf("answer in %s: %w", membershipFile, err)
	}
	if err := f.publish(answer); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = asked
	return nil
}

// save keeps the answer of a gateway for the next start.
func (f *follower) save(answer *v1.JoinResponse) error {
	if f.cfg.DataDir == "" {
		return nil
	}
	f.mu.Lock()
	asked := f.asked
	f.mu.Unlock()
	r := membershipRecord{Node: f.node.cfg.ID}
	var err error
	if r.Request, err = protojson.Marshal(asked); err != nil {
		return err
	}
	kept := proto.CloneOf(answer)
	kept.RelayServers = nil // credentials, which end within minutes
	if r.Answer, err = protojson.Marshal(kept); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(f.cfg.DataDir, membershipFile), append(raw, '\n')); err != nil {
		return fmt.Errorf("keep membership: %w", err)
	}
	return nil
}
