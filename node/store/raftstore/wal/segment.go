// SPDX-License-Identifier: Apache-2.0

package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/durable"
)

const (
	// segmentSize is the size of a file, in bytes. It is written once when the
	// file is made, so that an append changes nothing but its own bytes: it
	// needs no new space, and its sync no change of the file's description.
	segmentSize = 4 << 20
	// A file begins with magic, the index of its first entry, its size and the
	// checksum of these; entries begin after fileHeader bytes. The highest bit
	// of the size says that older files are void.
	magic      = "MGLOG\x00\x00\x01"
	fileHeader = 32
	fileSum    = 24
	voidBit    = 1 << 63
	// sector is what a disk writes whole or not at all, in bytes.
	sector = 512
)

// segment is a file of the log: the entries from base on.
type segment struct {
	path string
	file *os.File
	base uint64
	// offsets are where the entries begin; end is where the next one will.
	offsets []int64
	end     int64
	size    int64
	void    bool // older files are
}

func segmentName(base uint64) string { return fmt.Sprintf("%020d.log", base) }

// last returns the index of the last entry; base-1 if there is none.
func (s *segment) last() uint64 { return s.base + uint64(len(s.offsets)) - 1 }

// createSegment makes a file of a size, or with room for need bytes if that is
// more, for entries from base on. When there is no space for it, nothing is
// left behind.
func createSegment(dir string, base uint64, size, need int64, void bool) (*segment, error) {
	size = max(size, (fileHeader+need+sector-1)/sector*sector)
	return writeSegment(dir, base, size, void, nil)
}

// writeSegment makes a file of a size with records in it, in the place of one
// that begins with the same entry.
func writeSegment(dir string, base uint64, size int64, void bool, records []byte) (_ *segment, err error) {
	path := filepath.Join(dir, segmentName(base))
	unfinished := path + ".tmp"
	file, err := os.OpenFile(unfinished, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close(), os.Remove(unfinished))
		}
	}()
	head := make([]byte, 64<<10)
	copy(head, magic)
	binary.BigEndian.PutUint64(head[8:], base)
	field := uint64(size)
	if void {
		field |= voidBit
	}
	binary.BigEndian.PutUint64(head[16:], field)
	binary.BigEndian.PutUint32(head[fileSum:], checksum(head[:fileSum]))
	for written := int64(0); written < size; {
		n, err := file.WriteAt(head[:min(int64(len(head)), size-written)], written)
		if err != nil {
			return nil, err
		}
		if written == 0 {
			clear(head[:fileHeader])
		}
		written += int64(n)
	}
	if _, err := file.WriteAt(records, fileHeader); err != nil {
		return nil, err
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(unfinished, path); err != nil {
		return nil, err
	}
	return &segment{path: path, file: file, base: base, end: fileHeader, size: size, void: void}, durable.SyncDir(dir)
}

// openSegment opens a file and checks all that is in it. What an append left
// that the power cut short is removed from the newest file.
func openSegment(path string, base uint64, newest bool) (_ *segment, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", filepath.Base(path), errors.Join(err, file.Close()))
		}
	}()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, err
	}
	offsets, end, err := scan(data, base)
	if err != nil {
		return nil, err
	}
	field := binary.BigEndian.Uint64(data[16:])
	if size := field &^ voidBit; size != uint64(len(data)) {
		return nil, fmt.Errorf("%w: it has %d bytes, not %d", ErrDamaged, len(data), size)
	}
	s := &segment{path: path, file: file, base: base, offsets: offsets, end: end, size: info.Size(), void: field&voidBit != 0}
	torn, err := inspectTail(data[end:], end, s.last()+1)
	if err != nil {
		return nil, err
	}
	if torn == 0 {
		return s, nil
	}
	if !newest {
		return nil, fmt.Errorf("%w: entry %d", ErrDamaged, s.last()+1)
	}
	return s, s.blank(end, end+torn)
}

// voids says whether the file of a log makes older ones void. What is wrong
// with it is found when it is opened.
func voids(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	head := make([]byte, fileHeader)
	if _, err := io.ReadFull(file, head); err != nil {
		return false
	}
	return binary.BigEndian.Uint32(head[fileSum:]) == checksum(head[:fileSum]) && binary.BigEndian.Uint64(head[16:])&voidBit != 0
}

// scan returns where the entries of a file begin, and where they end.
func scan(data []byte, base uint64) (offsets []int64, end int64, err error) {
	if len(data) < fileHeader || string(data[:8]) != magic || binary.BigEndian.Uint64(data[8:]) != base ||
		binary.BigEndian.Uint32(data[fileSum:]) != checksum(data[:fileSum]) || !blank(data[fileSum+4:fileHeader]) {
		return nil, 0, fmt.Errorf("%w: it does not begin as it should", ErrDamaged)
	}
	for end = fileHeader; ; {
		h, err := decodeHeader(data[end:])
		size := recordSize(int(h.size))
		if err != nil || size > int64(len(data))-end || h.index != base+uint64(len(offsets)) {
			return offsets, end, nil
		}
		body := data[end+headerSize : end+size]
		var log raft.Log
		if decodePayload(h, body[:h.size], &log) != nil || !blank(body[h.size:]) {
			return offsets, end, nil
		}
		offsets = append(offsets, end)
		end += size
	}
}

// inspectTail decides what stands behind the last whole record, at an offset
// of the file: nothing; or an append that was cut short, whose length it
// returns; or damage. An append that was cut short was never acknowledged. It
// is told by a sector that was not written, and by no entry behind it that was
// appended when it was on disk.
func inspectTail(rest []byte, offset int64, next uint64) (torn int64, err error) {
	used := int64(len(rest))
	for used >= zeroBlock && blank(rest[used-zeroBlock:used]) {
		used -= zeroBlock
	}
	for used > 0 && rest[used-1] == 0 {
		used--
	}
	if used == 0 {
		return 0, nil
	}
	for i := int64(0); i < used; i += alignment {
		if h, err := decodeHeader(rest[i:]); err == nil && h.first > next {
			return 0, fmt.Errorf("%w: entry %d, but not %d", ErrDamaged, next, h.index)
		}
	}
	// A record that is not whole has a sector that is not there: within its
	// length, or, when the header does not tell, within what was written.
	end := max(used, min(headerSize, int64(len(rest))))
	if h, err := decodeHeader(rest); err == nil && h.index == next {
		end = min(recordSize(int(h.size)), int64(len(rest)))
	}
	for start := int64(0); start < end; {
		stop := min((offset+start)/sector*sector+sector-offset, end)
		if blank(rest[start:stop]) {
			return used, nil
		}
		start = stop
	}
	return 0, fmt.Errorf("%w: entry %d", ErrDamaged, next)
}

// zeroBlock is how many bytes are compared with zeros at a time.
const zeroBlock = 4 << 10

func blank(b []byte) bool {
	var zeros [zeroBlock]byte
	for len(b) > zeroBlock {
		if !bytes.Equal(b[:zeroBlock], zeros[:]) {
			return false
		}
		b = b[zeroBlock:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// blank writes zeros over a part of the file.
func (s *segment) blank(from, to int64) error {
	zeros := make([]byte, min(to-from, 64<<10))
	for from < to {
		n, err := s.file.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return syncData(s.file)
}

// read reads the entry with an index that the file has.
func (s *segment) read(index uint64, log *raft.Log) error {
	i := index - s.base
	start, stop := s.offsets[i], s.end
	if i+1 < uint64(len(s.offsets)) {
		stop = s.offsets[i+1]
	}
	buf := make([]byte, stop-start)
	if _, err := s.file.ReadAt(buf, start); err != nil {
		return err
	}
	h, err := decodeHeader(buf)
	if err != nil || h.index != index || recordSize(int(h.size)) != int64(len(buf)) {
		return fmt.Errorf("%w: entry %d", ErrDamaged, index)
	}
	if err := decodePayload(h, buf[headerSize:headerSize+h.size], log); err != nil {
		return fmt.Errorf("%w: entry %d", ErrDamaged, index)
	}
	return nil
}

// cut returns a file without the entries from an index on, in the place of
// this one, which the caller closes. It is written anew: what a crash left of
// a removed entry would look like damage.
func (s *segment) cut(dir string, index uint64) (*segment, error) {
	i := index - s.base
	records := make([]byte, s.offsets[i]-fileHeader)
	if _, err := s.file.ReadAt(records, fileHeader); err != nil {
		return nil, err
	}
	short, err := writeSegment(dir, s.base, s.size, s.void, records)
	if err != nil {
		return nil, err
	}
	short.offsets, short.end = slices.Clone(s.offsets[:i]), s.offsets[i]
	return short, nil
}

// remove closes the file and removes it.
func (s *segment) remove() error { return errors.Join(os.Remove(s.path), s.file.Close()) }
