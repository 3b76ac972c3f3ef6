// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/store"
)

const (
	// maxGreeting bounds a hello and a welcome, in bytes.
	maxGreeting = 4 << 10
	// maxFrame bounds a request and a response, in bytes: the largest batch,
	// and what protobuf adds to the most operations and conditions.
	maxFrame = store.MaxBatch + 64*store.MaxOps
)

// writeFrame writes a message with its length before it, in one Write.
func writeFrame(w io.Writer, m proto.Message, limit int) error {
	data, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4, 64), m)
	if err != nil {
		return err
	}
	n := len(data) - 4
	if n > limit {
		return fmt.Errorf("message of %d bytes, the most is %d", n, limit)
	}
	binary.BigEndian.PutUint32(data, uint32(n))
	_, err = w.Write(data)
	return err
}

// readFrame reads a message that writeFrame wrote and returns its length. The
// memory that it takes grows with what arrives, not with what was announced.
func readFrame(r io.Reader, m proto.Message, limit int) (int, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > int64(limit) {
		return 0, fmt.Errorf("message of %d bytes, the most is %d", n, limit)
	}
	data, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return 0, err
	}
	if int64(len(data)) < n {
		return 0, io.ErrUnexpectedEOF
	}
	return len(data), proto.Unmarshal(data, m)
}
