// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The file of a mark: magic, index u64, CRC-32C of both u32, the highest byte of
// a number first.
const (
	markFile  = "committed"
	markMagic = "MGCOMMIT"
	markSize  = len(markMagic) + 8 + 4
	// markInterval is how often the mark is raised while changes are made.
	markInterval = time.Second
)

// mark says on disk how far the log is known to be committed. Raft has that in
// memory only: after a start without a leader nothing but the last snapshot would
// be known for sure. It is written after the fact and never synced, so that it
// costs no change anything: what it says may be too little, never too much.
type mark struct {
	mu    sync.Mutex // guards the fields below
	file  *os.File
	index uint64
}

// openMark opens or makes the mark in dir. One that makes no sense says nothing.
func openMark(dir string) (*mark, error) {
	f, err := os.OpenFile(filepath.Join(dir, markFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	data := make([]byte, markSize+1)
	n, err := f.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, f.Close())
	}
	index, _ := decodeMark(data[:n])
	return &mark{file: f, index: index}, nil
}

// at is the last entry that is known to be committed; 0 when none is. A nil mark
// knows nothing.
func (m *mark) at() uint64 {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.index
}

// raise notes that the log is committed up to index. Less than is known already
// changes nothing.
func (m *mark) raise(index uint64) error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.index {
		return nil
	}
	// In place: a name that changes would be work for the next sync of the log.
	if _, err := m.file.WriteAt(encodeMark(index), 0); err != nil {
		return err
	}
	m.index = index
	return nil
}

// Close implements io.Closer.
func (m *mark) Close() error { return m.file.Close() }

func encodeMark(index uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte(markMagic), index)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func decodeMark(data []byte) (index uint64, err error) {
	end := markSize - 4
	if len(data) != markSize || string(data[:len(markMagic)]) != markMagic ||
		binary.BigEndian.Uint32(data[end:]) != crc32.Checksum(data[:end], crc32.MakeTable(crc32.Castagnoli)) {
		return 0, fmt.Errorf("%w: %s", ErrDamaged, markFile)
	}
	return binary.BigEndian.Uint64(data[len(markMagic):]), nil
}

// noteCommitted raises the mark, from time to time and when the store ends.
func (s *Store) noteCommitted() {
	ticker := time.NewTicker(markInterval)
	defer ticker.Stop()
	for ended := false; !ended; {
		select {
		case <-ticker.C:
		case <-s.stop:
			ended = true
		}
		if err := s.disk.mark.raise(s.raft.AppliedIndex()); err != nil {
			s.logger.Debug("not noted how far the log is committed", "err", err)
		}
	}
}
