// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"
)

// An operator whose relay ports run out finds it in the log, though not once for
// each client that asks.
func TestServer_SaysThatItIsFull(t *testing.T) {
	for name, tt := range map[string]struct {
		others int // ports of the range that others hold
		want   string
	}{
		"all relays are in use": {want: "all relays are in use"},
		"others hold the port":  {others: 1, want: "no relay port could be opened"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			squatter, addr := listenUDP(t)
			s := newServer(t, func(c *Config) {
				c.Relay.MinPort, c.Relay.MaxPort = addr.Port(), addr.Port()
				c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			})
			if got := value(s.metrics.most); got != 1 {
				t.Errorf("a limit of %d", got)
			}
			if tt.others == 0 {
				squatter.Close()
				dialUDP(t, s, s.secrets.Mint("first", time.Minute)).allocate()
			}
			for range 3 {
				c := dialUDP(t, s, s.secrets.Mint("late", time.Minute)).login()
				if got := code(c.request(stun.MethodAllocate, transportUDP)); got != 508 {
					t.Errorf("got %d, want 508", got)
				}
			}
			s.Close()
			text := log.String()
			if strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, tt.want) || !strings.Contains(text, "--turn.relay-ports") {
				t.Errorf("three refusals in the log:\n%s", text)
			}
		})
	}
}

func TestFullness_TellsAgainLater(t *testing.T) {
	var log bytes.Buffer
	f := &fullness{log: slog.New(slog.NewTextHandler(&log, nil)), relays: &relays{count: 2, total: 2}}
	now := time.Now()
	for i := range 4 {
		f.refuse(now.Add(time.Duration(i) * fullEach / 2))
	}
	if text := log.String(); strings.Count(text, "used=2 limit=2") != 2 || !strings.Contains(text, "n=1") || !strings.Contains(text, "n=2") {
		t.Errorf("told:\n%s", text)
	}
}
