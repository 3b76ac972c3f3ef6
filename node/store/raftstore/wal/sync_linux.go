// SPDX-License-Identifier: Apache-2.0

package wal

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncData has the bytes of a file on disk when it returns. Its size does not
// change, so its description needs no sync.
func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
