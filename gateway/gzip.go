// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"compress/gzip"
	"io"

	"connectrpc.com/connect"
)

// withBoundedGzip replaces connect's gzip. That one unpacks the whole of a
// message that is too large, only to tell its size: a megabyte of zeros packed
// tightly is a gigabyte of work. limit is the largest message, in bytes.
func withBoundedGzip(limit int) connect.HandlerOption {
	return connect.WithCompression("gzip",
		func() connect.Decompressor { return &boundedGzip{limit: limit} },
		func() connect.Compressor { return gzip.NewWriter(io.Discard) })
}

// boundedGzip ends after one byte more than a message may have.
type boundedGzip struct {
	gzip.Reader
	limit, left int
}

// Reset implements connect.Decompressor.
func (b *boundedGzip) Reset(r io.Reader) error {
	b.left = b.limit + 1
	return b.Reader.Reset(r)
}

// Read implements io.Reader.
func (b *boundedGzip) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.Reader.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
