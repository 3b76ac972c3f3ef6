// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"time"
)

// ErrInUse says that another process has locked a directory.
var ErrInUse = errors.New("data directory is in use by another process")

const (
	// lockTimeout is how long LockDir waits for a process that is just ending.
	lockTimeout = time.Second
	// lockPause is the pause between its attempts.
	lockPause = 20 * time.Millisecond
)
