// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// The layout of a bbolt file, in the byte order of the machine. A page starts
// with id u64, flags u16, count u16 and overflow u32: the number of pages that
// follow and belong to it. Then come elements, which point at keys and values
// by an offset from the element itself:
//
//	branch page   offset u32, key size u32, child page u64
//	leaf page     flags u32, offset u32, key size u32, value size u32
//	free list     page id u64; if count is 0xffff the first one is the count
//	meta page     magic, version, page size, flags u32; root page, sequence,
//	              free list page, number of pages, transaction, checksum u64
//
// Each meta page lies within one disk sector, so that a torn write cannot
// break it: a wrong checksum is damage, where bbolt would fall back to the
// transaction before.
const (
	pageHeader    = 16
	branchElement = 16
	leafElement   = 16
	metaSize      = 64
	metaSum       = 56

	branchPage   = 0x01
	leafPage     = 0x02
	freeListPage = 0x10
	bucketLeaf   = 0x01
	inlineHeader = 16 // root page and sequence, before a bucket within a value

	// maxDepth is more than a tree of any size has.
	maxDepth = 32
)

// pageCheck walks all pages of a bbolt file, each once.
type pageCheck struct {
	file     io.ReaderAt
	pageSize uint64
	pages    uint64 // in use, from the start of the file
	seen     []bool
}

// checkPages checks how the pages of a bbolt file hang together: each belongs
// to one place, all that an element points at lies in its page, and keys are
// in order. What the values say is not its business.
func checkPages(file io.ReaderAt, size int64) error {
	root, freeList, c, err := readMetas(file, size)
	if err != nil {
		return err
	}
	c.seen[0], c.seen[1] = true, true
	if err := c.free(freeList); err != nil {
		return err
	}
	if err := c.tree(root, nil, nil, 0); err != nil {
		return err
	}
	for id, seen := range c.seen {
		if !seen {
			return fmt.Errorf("page %d belongs to nothing", id)
		}
	}
	return nil
}

func readMetas(file io.ReaderAt, size int64) (root, freeList uint64, c *pageCheck, err error) {
	newest := uint64(0)
	c = &pageCheck{file: file}
	for id := range uint64(2) {
		var buf [metaSize]byte
		if _, err := file.ReadAt(buf[:], int64(id*c.pageSize+pageHeader)); err != nil {
			return 0, 0, nil, fmt.Errorf("meta page %d: %w", id, err)
		}
		hash := fnv.New64a()
		hash.Write(buf[:metaSum])
		if hash.Sum64() != u64(buf[metaSum:]) {
			return 0, 0, nil, fmt.Errorf("meta page %d has a wrong checksum", id)
		}
		c.pageSize = uint64(u32(buf[8:]))
		if transaction := u64(buf[48:]); id == 0 || transaction > newest {
			newest, root, freeList, c.pages = transaction, u64(buf[16:]), u64(buf[32:]), u64(buf[40:])
		}
	}
	if c.pageSize < 512 || c.pages < 2 || c.pages > uint64(size)/c.pageSize {
		return 0, 0, nil, fmt.Errorf("%d bytes are not %d pages of %d bytes", size, c.pages, c.pageSize)
	}
	c.seen = make([]bool, c.pages)
	return root, freeList, c, nil
}

// page reads a page of one of the given kinds with its overflow.
func (c *pageCheck) page(id uint64, kinds uint16) ([]byte, error) {
	if id >= c.pages || c.seen[id] {
		return nil, fmt.Errorf("page %d is out of place", id)
	}
	var header [pageHeader]byte
	if _, err := c.file.ReadAt(header[:], int64(id*c.pageSize)); err != nil {
		return nil, err
	}
	flags, overflow := u16(header[8:]), uint64(u32(header[12:]))
	if u64(header[:]) != id || flags&(flags-1) != 0 || flags&kinds == 0 || overflow >= c.pages-id {
		return nil, fmt.Errorf("page %d has a bad header", id)
	}
	for i := id; i <= id+overflow; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("page %d belongs to two places", i)
		}
		c.seen[i] = true
	}
	buf := make([]byte, (overflow+1)*c.pageSize)
	_, err := c.file.ReadAt(buf, int64(id*c.pageSize))
	return buf, err
}

// free checks the list of free pages.
func (c *pageCheck) free(id uint64) error {
	buf, err := c.page(id, freeListPage)
	if err != nil {
		return err
	}
	count, ids := uint64(u16(buf[10:])), buf[pageHeader:]
	if count == math.MaxUint16 {
		count, ids = u64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return fmt.Errorf("free list of %d pages does not fit", count)
	}
	for i := range count {
		id := u64(ids[8*i:])
		if id >= c.pages || c.seen[id] {
			return fmt.Errorf("page %d is free and in use", id)
		}
		c.seen[id] = true
	}
	return nil
}

// tree checks the pages below one, whose keys are in [low, high); a nil high
// is no limit.
func (c *pageCheck) tree(id uint64, low, high []byte, depth int) error {
	if depth > maxDepth {
		return errors.New("pages are nested too deep")
	}
	buf, err := c.page(id, branchPage|leafPage)
	if err != nil {
		return err
	}
	if u16(buf[8:]) == leafPage {
		return c.leaf(buf, low, high, depth)
	}
	count := int(u16(buf[10:]))
	if count == 0 {
		return fmt.Errorf("branch page %d is empty", id)
	}
	keys, err := elements(buf, count, branchElement, low, high, func(e []byte) (offset, key, value uint32) {
		return u32(e), u32(e[4:]), 0
	})
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	for i, key := range keys {
		end := high
		if i+1 < count {
			end = keys[i+1]
		}
		if err := c.tree(u64(buf[pageHeader+i*branchElement+8:]), key, end, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks a leaf page and the buckets in it.
func (c *pageCheck) leaf(buf, low, high []byte, depth int) error {
	count := int(u16(buf[10:]))
	keys, err := elements(buf, count, leafElement, low, high, func(e []byte) (offset, key, value uint32) {
		return u32(e[4:]), u32(e[8:]), u32(e[12:])
	})
	if err != nil {
		return fmt.Errorf("leaf page %d: %w", u64(buf), err)
	}
	for i, key := range keys {
		element := pageHeader + i*leafElement
		e := buf[element:]
		switch flags := u32(e); {
		case flags == 0:
			continue
		case flags != bucketLeaf || u32(e[12:]) < inlineHeader || depth > maxDepth:
			return fmt.Errorf("leaf page %d: element %d has bad flags", u64(buf), i)
		}
		start := element + int(u32(e[4:])) + len(key)
		bucket := buf[start : start+int(u32(e[12:]))]
		if root := u64(bucket); root != 0 {
			err = c.tree(root, nil, nil, depth+1)
		} else if inline := bucket[inlineHeader:]; len(inline) < pageHeader || u16(inline[8:]) != leafPage {
			err = fmt.Errorf("leaf page %d: bucket %q is no page", u64(buf), key)
		} else {
			err = c.leaf(inline, nil, nil, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// elements returns the keys of a page after a check that they ascend within
// [low, high) and that keys and values lie in the page.
func elements(buf []byte, count, size int, low, high []byte, at func(element []byte) (offset, key, value uint32)) ([][]byte, error) {
	if pageHeader+count*size > len(buf) {
		return nil, fmt.Errorf("%d elements do not fit", count)
	}
	keys := make([][]byte, count)
	for i := range keys {
		element := pageHeader + i*size
		offset, key, value := at(buf[element:])
		start := uint64(element) + uint64(offset)
		if uint64(offset) < uint64((count-i)*size) || start+uint64(key)+uint64(value) > uint64(len(buf)) {
			return nil, fmt.Errorf("element %d lies outside", i)
		}
		keys[i] = buf[start : start+uint64(key)]
		after := bytes.Compare(low, keys[i])
		if after > 0 || i > 0 && after == 0 || high != nil && bytes.Compare(keys[i], high) >= 0 {
			return nil, fmt.Errorf("key %d is out of order", i)
		}
		low = keys[i]
	}
	return keys, nil
}

func u16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
func u32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func u64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
