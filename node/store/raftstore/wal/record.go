// SPDX-License-Identifier: Apache-2.0

package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/hashicorp/raft"
)

// A record is a header and a payload, padded to a multiple of 8 bytes:
//
//	header   payload size u32, checksum of the payload u32, index u64, index of
//	         the first entry that may be lost with it u64, checksum of the header u32, 0 u32
//	payload  term u64, time of the append in Unix nanoseconds i64, type u8,
//	         size of the extensions u32, extensions, data
//
// Numbers have their highest byte first; checksums are CRC-32C.
const (
	headerSize  = 32
	headerSum   = 24
	payloadHead = 21
	alignment   = 8
	// maxPayload bounds an entry, in bytes; raft's are much smaller.
	maxPayload = 64 << 20
)

var errBadRecord = errors.New("wrong checksum")

// header is what a record says before its payload.
type header struct {
	size, sum uint32
	// first is the index of the first entry of the same append, or of an
	// earlier one that was not on disk yet: before it, everything was.
	index, first uint64
}

func checksum(data []byte) uint32 {
	return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
}

// recordSize returns the length of a record with a payload.
func recordSize(payload int) int64 {
	return (int64(headerSize+payload) + alignment - 1) / alignment * alignment
}

// sizeOf returns the length of the record of an entry.
func sizeOf(log *raft.Log) (int64, error) {
	n := int64(payloadHead) + int64(len(log.Extensions)) + int64(len(log.Data))
	if n > maxPayload {
		return 0, fmt.Errorf("log entry %d has %d bytes, the most is %d", log.Index, n, maxPayload)
	}
	return recordSize(int(n)), nil
}

// appendRecord appends the record of an entry to buf.
func appendRecord(buf []byte, log *raft.Log, first uint64) []byte {
	start := len(buf)
	buf = append(buf, make([]byte, headerSize)...)
	nanos := int64(math.MinInt64) // no time
	if !log.AppendedAt.IsZero() {
		nanos = log.AppendedAt.UnixNano()
	}
	buf = binary.BigEndian.AppendUint64(buf, log.Term)
	buf = binary.BigEndian.AppendUint64(buf, uint64(nanos))
	buf = append(buf, byte(log.Type))
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(log.Extensions)))
	buf = append(append(buf, log.Extensions...), log.Data...)
	payload := buf[start+headerSize:]
	head := buf[start : start+headerSize]
	binary.BigEndian.PutUint32(head[0:], uint32(len(payload)))
	binary.BigEndian.PutUint32(head[4:], checksum(payload))
	binary.BigEndian.PutUint64(head[8:], log.Index)
	binary.BigEndian.PutUint64(head[16:], first)
	binary.BigEndian.PutUint32(head[headerSum:], checksum(head[:headerSum]))
	for len(buf)%alignment != start%alignment {
		buf = append(buf, 0)
	}
	return buf
}

// decodeHeader reads a header. Its size is one that a payload may have.
func decodeHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, errBadRecord
	}
	h := header{
		size: binary.BigEndian.Uint32(b), sum: binary.BigEndian.Uint32(b[4:]),
		index: binary.BigEndian.Uint64(b[8:]), first: binary.BigEndian.Uint64(b[16:]),
	}
	if binary.BigEndian.Uint32(b[headerSum:]) != checksum(b[:headerSum]) || binary.BigEndian.Uint32(b[headerSum+4:]) != 0 ||
		h.size < payloadHead || h.size > maxPayload || h.first > h.index || h.index == 0 {
		return header{}, errBadRecord
	}
	return h, nil
}

// decodePayload reads an entry. The entry shares the memory of b.
func decodePayload(h header, b []byte, log *raft.Log) error {
	if len(b) != int(h.size) || len(b) < payloadHead || checksum(b) != h.sum {
		return errBadRecord
	}
	extensions := uint64(binary.BigEndian.Uint32(b[17:]))
	if extensions > uint64(len(b)-payloadHead) {
		return errBadRecord
	}
	*log = raft.Log{Index: h.index, Term: binary.BigEndian.Uint64(b), Type: raft.LogType(b[16])}
	if nanos := int64(binary.BigEndian.Uint64(b[8:])); nanos != math.MinInt64 {
		log.AppendedAt = time.Unix(0, nanos)
	}
	rest := b[payloadHead:]
	if extensions > 0 {
		log.Extensions = rest[:extensions:extensions]
	}
	if data := rest[extensions:]; len(data) > 0 {
		log.Data = data
	}
	return nil
}
