// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// What has ended is in the log, also what ended last, and no thread waits for it.
func TestRecord_TellsWhoHadARelay(t *testing.T) {
	var log bytes.Buffer
	r := newRecord(slog.New(slog.NewTextHandler(&log, nil)))
	at := netip.MustParseAddrPort("203.0.113.7:50123")
	for range maxEnded + 2 {
		r.leave(core.Info{User: "shop.alice", Relayed: [2]netip.AddrPort{at}, Since: time.Unix(1e9, 0)})
	}
	done := make(chan struct{})
	close(done)
	for len(r.left) > 0 {
		r.run(func(i core.Info) Allocation {
			return Allocation{User: i.User, Relayed: i.Relayed[:1], Since: i.Since, SentBytes: 7}
		}, done)
	}
	text := log.String()
	for _, want := range []string{"user=shop.alice", at.String(), "since=2001-09-09T01:46:40Z", "sent=7"} {
		if n := strings.Count(text, want); n != maxEnded {
			t.Errorf("%s is there %d times, want %d", want, n, maxEnded)
		}
	}
	if strings.Count(text, "too slow n=2")+strings.Count(text, `too slow" n=2`) != 1 {
		t.Error("it does not say that two are missing")
	}
}
