// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/store/raftstore/wal"
)

const (
	// oldLogFile held the log in earlier versions: a bbolt database, whose
	// entries had a checksum at the end of their data.
	oldLogFile = "log.db"
	// migrateBatch is how many entries are copied at a time.
	migrateBatch = 256
)

// migrateLog brings the log of an earlier version into its present form. A
// process that dies meanwhile begins again.
func migrateLog(dir string) error {
	old, unfinished, path := filepath.Join(dir, oldLogFile), filepath.Join(dir, logDir+".new"), filepath.Join(dir, logDir)
	if !exists(old) {
		return nil
	}
	if !exists(path) {
		if err := os.RemoveAll(unfinished); err != nil {
			return err
		}
		if err := copyOldLog(old, unfinished); err != nil {
			return err
		}
		if err := os.Rename(unfinished, path); err != nil {
			return err
		}
	}
	return errors.Join(os.Remove(old), durable.SyncDir(dir))
}

func copyOldLog(old, dir string) (err error) {
	from, err := openBolt(old)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := wal.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	first, err := from.FirstIndex()
	if err != nil {
		return err
	}
	last, err := from.LastIndex()
	if err != nil {
		return err
	}
	var batch []*raft.Log
	for i := max(first, 1); i <= last; i++ {
		log := new(raft.Log)
		if err := from.GetLog(i, log); err != nil {
			return fmt.Errorf("%w: log entry %d: %w", ErrDamaged, i, err)
		}
		if err := unseal(i, log); err != nil {
			return err
		}
		if batch = append(batch, log); len(batch) == migrateBatch || i == last {
			if err := to.StoreLogs(batch); err != nil {
				return err
			}
			batch = nil
		}
	}
	return nil
}

// unseal checks the checksum of an old entry and removes it.
func unseal(index uint64, log *raft.Log) error {
	n := len(log.Data) - sumSize
	if n < 0 || log.Index != index || binary.BigEndian.Uint32(log.Data[n:]) != sum(log, log.Data[:n]) {
		return fmt.Errorf("%w: log entry %d has a wrong checksum", ErrDamaged, index)
	}
	log.Data = log.Data[:n:n]
	return nil
}

// sum is the CRC-32C of all that decides what an entry does.
func sum(log *raft.Log, data []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	var head [25]byte
	binary.BigEndian.PutUint64(head[0:], log.Index)
	binary.BigEndian.PutUint64(head[8:], log.Term)
	head[16] = byte(log.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(log.Extensions)))
	crc := crc32.Update(0, table, head[:])
	crc = crc32.Update(crc, table, log.Extensions)
	return crc32.Update(crc, table, data)
}
