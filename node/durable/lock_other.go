// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin

package durable

import (
	"io"
	"os"
)

// LockDir locks nothing here.
func LockDir(dir string) (io.Closer, error) { return os.Open(dir) }
