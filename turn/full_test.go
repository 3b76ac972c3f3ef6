// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/core"
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
			if got := s.totals().limit; got != 1 {
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
			if strings.Count(text, "a client is refused") != 1 || !strings.Contains(text, tt.want) || !strings.Contains(text, "--turn.relay-ports") {
				t.Errorf("three refusals in the log:\n%s", text)
			}
		})
	}
}

// Metrics say that there is no room for more whatever clients ask for: those of both
// families have two relays each.
func TestMetrics_ShowThatItIsFull(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	s := newServer(t, func(c *Config) {
		c.Relay.Public6, c.Relay.Bind6 = netip.IPv6Loopback(), netip.IPv6Loopback()
		c.Limits.Relays, c.Registerer = 4, registry
	})
	for _, user := range []string{"a", "b"} {
		dialUDP(t, s, s.secrets.Mint(user, time.Minute)).allocate(transportUDP, bothFamilies)
	}
	if got := code(dialUDP(t, s, s.secrets.Mint("c", time.Minute)).login().request(stun.MethodAllocate, transportUDP)); got != 508 {
		t.Errorf("got %d, want 508", got)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{"meshgate_turn_allocations": 2, "meshgate_turn_relays": 4, "meshgate_turn_allocations_limit": 4}
	for _, f := range families {
		if n, ok := want[f.GetName()]; ok && f.GetMetric()[0].GetGauge().GetValue() == n {
			delete(want, f.GetName())
		}
	}
	if len(want) > 0 {
		t.Errorf("without %v", want)
	}
}

func TestFullness_TellsAgainLater(t *testing.T) {
	var log bytes.Buffer
	f := &fullness{log: slog.New(slog.NewTextHandler(&log, nil)), use: func() (int, int) { return 2, 2 }}
	now := time.Now()
	for i := range 4 {
		f.refuse(now.Add(time.Duration(i)*fullEach/2), noRoom(core.Relays))
	}
	if text := log.String(); strings.Count(text, "used=2 limit=2") != 2 || !strings.Contains(text, "n=1") || !strings.Contains(text, "n=2") {
		t.Errorf("told:\n%s", text)
	}
}
