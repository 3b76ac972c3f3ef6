// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Fields of v1.RaftSnapshot, and of the entries of its map.
const (
	fieldKV      = 1
	fieldVersion = 100
	fieldKey     = 1
	fieldItem    = 2
)

// readSnapshot reads what writeSnapshot wrote, all of it or nothing, and returns
// its entries in the order of their keys. It holds one record beside them: a few
// megabytes may unpack to a thousand times as much. More entries than most it
// refuses when it meets them.
func readSnapshot(r io.Reader, most uint64) ([]store.Entry, uint64, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, 0, err
	}
	u := &unpacker{most: most}
	u.limit = io.LimitedReader{R: z, N: maxSnapshot + 1}
	u.r = bufio.NewReaderSize(&u.limit, 64<<10)
	for {
		err := u.field()
		if errors.Is(err, io.EOF) && u.limit.N > 0 { // the CRC at the end was right
			break
		}
		if u.limit.N <= 0 {
			err = fmt.Errorf("more than %d bytes unpacked", maxSnapshot)
		}
		if err != nil {
			return nil, 0, err
		}
	}
	byKey := func(a, b store.Entry) int { return strings.Compare(a.Key, b.Key) }
	if !slices.IsSortedFunc(u.entries, byKey) {
		slices.SortFunc(u.entries, byKey)
	}
	for i, e := range u.entries {
		if e.Version > u.version {
			return nil, 0, fmt.Errorf("key %q: version %d is not within 1 to %d", e.Key, e.Version, u.version)
		}
		if i > 0 && e.Key == u.entries[i-1].Key {
			return nil, 0, fmt.Errorf("key %q: it is there twice", e.Key)
		}
	}
	return u.entries, u.version, nil
}

// unpacker reads a snapshot field by field.
type unpacker struct {
	r       *bufio.Reader
	limit   io.LimitedReader
	most    uint64
	record  []byte // of the last field; used again
	entries []store.Entry
	version uint64
}

// field reads one field of the snapshot. It returns io.EOF where it ends.
func (u *unpacker) field() error {
	if _, err := u.r.Peek(1); err != nil {
		return err
	}
	tag, err := binary.ReadUvarint(u.r)
	if err != nil {
		return cut(err)
	}
	if tag > math.MaxUint32 {
		return errors.New("a field that makes no sense")
	}
	number, kind := protowire.DecodeTag(tag)
	switch {
	case !number.IsValid():
		return errors.New("a field that makes no sense")
	case kind == protowire.BytesType:
		if err := u.bytes(); err != nil || number != fieldKV {
			return err
		}
		return u.entry()
	case kind == protowire.VarintType:
		v, err := binary.ReadUvarint(u.r)
		if number == fieldVersion {
			u.version = v
		}
		return cut(err)
	case kind == protowire.Fixed32Type:
		_, err := u.r.Discard(4)
		return cut(err)
	case kind == protowire.Fixed64Type:
		_, err := u.r.Discard(8)
		return cut(err)
	}
	return fmt.Errorf("field %d has a form that makes no sense", number)
}

// cut is what an end within a field is.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// bytes reads the rest of a field of bytes into record.
func (u *unpacker) bytes() error {
	n, err := binary.ReadUvarint(u.r)
	if err != nil {
		return cut(err)
	}
	if n > maxRecord {
		return fmt.Errorf("a record of %d bytes, the most is %d", n, maxRecord)
	}
	u.record = slices.Grow(u.record[:0], int(n))[:n]
	_, err = io.ReadFull(u.r, u.record)
	return cut(err)
}

// entry takes over the entry in record.
func (u *unpacker) entry() error {
	if uint64(len(u.entries)) >= u.most {
		return fmt.Errorf("more than %d keys", u.most)
	}
	var key string
	var item v1.RaftDataItem
	for left := u.record; len(left) > 0; {
		number, kind, n := protowire.ConsumeField(left)
		if n < 0 {
			return protowire.ParseError(n)
		}
		field := left[:n]
		left = left[n:]
		if kind != protowire.BytesType {
			continue
		}
		_, _, tag := protowire.ConsumeTag(field)
		value, _ := protowire.ConsumeBytes(field[tag:])
		switch number {
		case fieldKey:
			if key = string(value); !utf8.ValidString(key) {
				return errors.New("a key that is no UTF-8")
			}
		case fieldItem:
			if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(value, &item); err != nil {
				return err
			}
		}
	}
	e, err := decodeItem(key, &item)
	if err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	u.entries = append(u.entries, e)
	return nil
}
