// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"bytes"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"
)

const (
	// reclaimDelay is the wait for other sessions that end with the first, and
	// reclaimPause the least time between two collections of reclaim.
	reclaimDelay = time.Second
	reclaimPause = 10 * time.Second
)

// reclaim returns memory to the system after sessions that held much have
// ended. An idle process would keep it: what nobody allocates, nobody collects,
// and Go's own clock for that is two minutes.
func (s *Service) reclaim() {
	wait := func(d time.Duration) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-s.ctx.Done():
			return false
		}
	}
	for {
		select {
		case <-s.freed:
		case <-s.ctx.Done():
			return
		}
		if !wait(reclaimDelay) {
			return
		}
		runtime.GC() // pools give up what they hold at the second one
		debug.FreeOSMemory()
		if !wait(reclaimPause) {
			return
		}
	}
}

// availableMemory is what the process may use, in bytes: the least of Go's own
// limit, that of the container, and what the machine has. Where none is known
// it is math.MaxInt64.
func availableMemory() int64 {
	least := debug.SetMemoryLimit(-1)
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		least = min(least, parseLimit(b, 1))
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if _, rest, ok := bytes.Cut(b, []byte("MemTotal:")); ok {
			line, _, _ := bytes.Cut(rest, []byte(" kB"))
			least = min(least, parseLimit(line, 1<<10))
		}
	}
	return least
}

// parseLimit reads a number of units; what is none is no limit.
func parseLimit(b []byte, unit int64) int64 {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/unit {
		return math.MaxInt64
	}
	return n * unit
}
