// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"
)

// recordSize is about what a join adds to the log, in bytes.
const recordSize = 1 << 10

// disk is a file beside those of the gateway, which is written as the gateway
// writes its log: what a sync takes is what no join can be faster than.
type disk struct {
	file *os.File
	next int64
	took []float64 // ms
}

// openDisk makes the file with all the space that n syncs need.
func openDisk(dir string, n int) (*disk, error) {
	file, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		return nil, err
	}
	if _, err := file.Write(make([]byte, n*recordSize)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &disk{file: file}, file.Sync()
}

// sync writes and times n records.
func (d *disk) sync(n int) error {
	record := make([]byte, recordSize)
	for range n {
		start := time.Now()
		if _, err := d.file.WriteAt(record, d.next); err != nil {
			return err
		}
		if err := d.file.Sync(); err != nil {
			return err
		}
		d.took = append(d.took, time.Since(start).Seconds()*milliseconds)
		d.next += recordSize
	}
	return nil
}

func (d *disk) close() { _ = errors.Join(d.file.Close(), os.Remove(d.file.Name())) }
