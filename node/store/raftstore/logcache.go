// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

const (
	// cachedLogs is how many of the latest entries are read from memory, at most,
	// and cachedBytes how many bytes of them.
	cachedLogs  = 512
	cachedBytes = 16 << 20
	// entryOverhead is what an entry takes besides its content, in bytes.
	entryOverhead = 128
)

// logCache is a raft.LogStore that reads the latest entries from memory. The
// cache of the library counts entries: 512 large ones take a quarter of a
// gigabyte, and nothing makes it let go of them. It is safe for concurrent use.
type logCache struct {
	raft.LogStore

	mu      sync.RWMutex // guards the fields below
	entries []*raft.Log  // one index after the other
	bytes   int
}

// StoreLog implements raft.LogStore.
func (c *logCache) StoreLog(log *raft.Log) error { return c.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (c *logCache) StoreLogs(logs []*raft.Log) error {
	if err := c.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, log := range logs {
		if n := len(c.entries); n > 0 && c.entries[n-1].Index+1 != log.Index {
			c.clearLocked()
		}
		c.entries = append(c.entries, log)
		c.bytes += sizeOf(log)
	}
	for len(c.entries) > cachedLogs || c.bytes > cachedBytes {
		c.bytes -= sizeOf(c.entries[0])
		c.entries[0] = nil // the array may stay for a while
		c.entries = c.entries[1:]
	}
	return nil
}

// GetLog implements raft.LogStore.
func (c *logCache) GetLog(index uint64, log *raft.Log) error {
	if cached := c.get(index); cached != nil {
		*log = *cached
		return nil
	}
	return c.LogStore.GetLog(index, log)
}

func (c *logCache) get(index uint64) *raft.Log {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.entries) == 0 || index < c.entries[0].Index || index-c.entries[0].Index >= uint64(len(c.entries)) {
		return nil
	}
	return c.entries[index-c.entries[0].Index]
}

// DeleteRange implements raft.LogStore.
func (c *logCache) DeleteRange(from, to uint64) error {
	c.mu.Lock()
	c.clearLocked()
	c.mu.Unlock()
	return c.LogStore.DeleteRange(from, to)
}

func (c *logCache) clearLocked() { c.entries, c.bytes = nil, 0 }

func sizeOf(log *raft.Log) int { return len(log.Data) + len(log.Extensions) + entryOverhead }
