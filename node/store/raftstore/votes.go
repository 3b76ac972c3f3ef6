// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
)

// The keys of raft's own in the votes file.
var (
	keyTerm      = []byte("CurrentTerm")
	keyVoteTerm  = []byte("LastVoteTerm")
	keyCandidate = []byte("LastVoteCand")
)

// sumSize is the length of the checksum at the end of a value, in bytes.
const sumSize = 4

// guardedVotes is a raft.StableStore that adds a checksum to what it keeps: a
// vote that changes on disk could be given twice. It watches how writes go.
type guardedVotes struct {
	raft.StableStore
	failure *failure
}

// Set implements raft.StableStore.
func (g guardedVotes) Set(key, value []byte) error {
	sealed := append(make([]byte, 0, len(value)+sumSize), value...)
	defer g.failure.limit("a write of a vote")()
	return g.StableStore.Set(key, binary.BigEndian.AppendUint32(sealed, voteSum(key, value)))
}

// Get implements raft.StableStore.
func (g guardedVotes) Get(key []byte) ([]byte, error) {
	sealed, err := g.StableStore.Get(key)
	if err != nil {
		return nil, err
	}
	n := len(sealed) - sumSize
	if n < 0 || binary.BigEndian.Uint32(sealed[n:]) != voteSum(key, sealed[:n]) {
		return nil, fmt.Errorf("%w: %s has a wrong checksum", ErrDamaged, key)
	}
	return sealed[:n:n], nil
}

// SetUint64 implements raft.StableStore.
func (g guardedVotes) SetUint64(key []byte, value uint64) error {
	return g.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore.
func (g guardedVotes) GetUint64(key []byte) (uint64, error) {
	value, err := g.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("%w: %s is no number", ErrDamaged, key)
	}
	return binary.BigEndian.Uint64(value), nil
}

func voteSum(key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Update(0, table, key), table, value)
}
