// SPDX-License-Identifier: Apache-2.0

package raftstore

// Snapshot makes raft take a snapshot now.
func (s *Store) Snapshot() error { return s.raft.Snapshot().Error() }
