// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package wal

import "os"

// syncData has the bytes of a file on disk when it returns.
func syncData(f *os.File) error { return f.Sync() }
