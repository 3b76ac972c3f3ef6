// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/turn/shard"
)

// The log names the error, once a minute however many packets are lost, and how many
// they were; those that had to stay whole it does not.
func TestUnsent_TellsOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		u := &unsent{log: slog.New(slog.NewTextHandler(&log, nil))}
		for range 1000 {
			u.tell(shard.TooLarge, syscall.EMSGSIZE)
		}
		if log.Len() > 0 {
			t.Errorf("of what had to stay whole: %s", log.String())
		}
		for range 3 * 60 {
			time.Sleep(time.Second) // the bubble's clock
			for range 10 {
				u.tell(shard.Denied, syscall.EPERM)
			}
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 3 || !strings.HasSuffix(lines[0], " n=1") || !strings.HasSuffix(lines[2], " n=600") {
			t.Errorf("told %q", lines)
		}
		for _, want := range []string{"level=WARN", "operation not permitted", "reason=not_permitted"} {
			if !strings.Contains(lines[0], want) {
				t.Errorf("%q does not say %s", lines[0], want)
			}
		}
	})
}
