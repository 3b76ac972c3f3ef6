// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"math"
	"strings"
	"testing"
)

func TestIntakeOf(t *testing.T) {
	for limit, want := range map[int64]int64{
		math.MaxInt64: 64 << 20, 1 << 30: 64 << 20, 256 << 20: 32 << 20, 1 << 20: 16 << 20, 0: 16 << 20,
	} {
		if got := intakeOf(limit); got != want {
			t.Errorf("of %d bytes: %d, want %d", limit, got, want)
		}
	}
}

// An operator hears of a limit that keeps connections out.
func TestShareOf_SaysWhenItIsLittle(t *testing.T) {
	for files, says := range map[uint64]bool{0: false, 1 << 20: false, enoughFiles: false, 1024: true} {
		var log strings.Builder
		share := shareOf(files, slog.New(slog.NewTextHandler(&log, nil)))
		if strings.Contains(log.String(), "LimitNOFILE") != says || share.Connections == 0 {
			t.Errorf("of %d files: %+v, log %q", files, share, log.String())
		}
	}
}
