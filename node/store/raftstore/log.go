// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// stallLimit is how long a write to the log may take. Raft itself never gives
// up on a disk that hangs: its heartbeats go on while nothing is written.
const stallLimit = 5 * time.Second

// sumSize is the length of the checksum at the end of an entry's data on disk.
const sumSize = 4

// guardedLog is a raft.LogStore that adds a checksum to each entry on its way
// to disk, removes it on the way back, and watches how writes go.
type guardedLog struct {
	raft.LogStore
	metrics *metrics
	failure *failure
}

// StoreLog implements raft.LogStore.
func (g *guardedLog) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. It leaves the given logs alone: raft
// goes on using them.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	sealed := make([]raft.Log, len(logs))
	pointers := make([]*raft.Log, len(logs))
	for i, log := range logs {
		sealed[i] = *log
		data := make([]byte, 0, len(log.Data)+sumSize)
		sealed[i].Data = binary.BigEndian.AppendUint32(append(data, log.Data...), sum(log))
		pointers[i] = &sealed[i]
	}
	start := time.Now()
	watchdog := time.AfterFunc(stallLimit, func() {
		g.failure.fail(fmt.Errorf("%w: a write to the log takes more than %v", ErrDisk, stallLimit))
	})
	err := g.LogStore.StoreLogs(pointers)
	watchdog.Stop()
	g.metrics.logWrite.Observe(time.Since(start).Seconds())
	if err != nil {
		err = fmt.Errorf("%w: write log: %w", ErrDisk, err)
		g.failure.fail(err)
	}
	return err
}

// GetLog implements raft.LogStore.
func (g *guardedLog) GetLog(index uint64, log *raft.Log) error {
	*log = raft.Log{} // the decoder leaves what a damaged entry does not name
	if err := g.LogStore.GetLog(index, log); err != nil {
		return err
	}
	n := len(log.Data) - sumSize
	if n < 0 {
		return fmt.Errorf("%w: log entry %d is cut short", ErrDamaged, index)
	}
	stored := binary.BigEndian.Uint32(log.Data[n:])
	log.Data = log.Data[:n:n]
	if log.Index != index || stored != sum(log) {
		return fmt.Errorf("%w: log entry %d has a wrong checksum", ErrDamaged, index)
	}
	return nil
}

// sum is the CRC-32C of all that decides what an entry does.
func sum(log *raft.Log) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	var head [25]byte
	binary.BigEndian.PutUint64(head[0:], log.Index)
	binary.BigEndian.PutUint64(head[8:], log.Term)
	head[16] = byte(log.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(log.Extensions)))
	crc := crc32.Update(0, table, head[:])
	crc = crc32.Update(crc, table, log.Extensions)
	return crc32.Update(crc, table, log.Data)
}
