// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An operator hears of a disk that hangs while it is opened, again and again, and of
// one that does not, nothing.
func TestTellSlow(t *testing.T) {
	for took, want := range map[time.Duration]string{
		4 * time.Second:  "",
		16 * time.Second: "after=5s after=15s ",
		3 * time.Minute:  "after=5s after=15s after=35s after=1m15s after=2m15s ",
	} {
		synctest.Test(t, func(t *testing.T) {
			var buf bytes.Buffer
			stop := tellSlow(slog.New(slog.NewTextHandler(&buf, nil)), "/state")
			<-time.After(took)
			stop()
			said := ""
			for line := range strings.Lines(buf.String()) {
				if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "dir=/state") {
					t.Errorf("it says %s", line)
				}
				said += line[strings.Index(line, "after="):len(line)-1] + " "
			}
			if said != want {
				t.Errorf("within %s it says %q, want %q", took, said, want)
			}
		})
	}
}
