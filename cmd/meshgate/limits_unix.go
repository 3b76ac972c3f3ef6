// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import "syscall"

// openFiles is how many files this process may have open; 0 when that is not to
// be found out. The runtime has raised the limit as far as it may.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur)
}
