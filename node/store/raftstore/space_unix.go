// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package raftstore

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPause is the pause between attempts to lock a directory.
const lockPause = 20 * time.Millisecond

// lockDir keeps other processes out of a directory until it is closed.
func lockDir(dir string) (io.Closer, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for until := time.Now().Add(lockTimeout); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(err, f.Close())
		case time.Now().After(until):
			return nil, errors.Join(ErrInUse, f.Close())
		}
		<-time.After(lockPause)
	}
}

// freeSpace returns what an ordinary user may still write at dir, in bytes.
func freeSpace(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}
