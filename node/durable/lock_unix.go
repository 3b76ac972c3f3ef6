// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package durable

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// LockDir keeps others that lock the directory out of it until what it returns is
// closed, or the process is gone. It leaves no file behind, and holds the directory
// itself: one that is renamed takes its lock along. It waits a second for a process
// that is just ending; then the error wraps ErrInUse.
func LockDir(dir string) (io.Closer, error) {
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
