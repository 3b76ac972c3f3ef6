// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package raftstore

import "golang.org/x/sys/unix"

// freeSpace returns what an ordinary user may still write at dir, in bytes.
func freeSpace(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}
