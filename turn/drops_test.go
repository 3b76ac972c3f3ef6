// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"maps"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/shard"
	"github.com/meshgate/meshgate/turn/stream"
)

// byLabel are the series of a metric with one label, those that are 0 left out.
func byLabel(t *testing.T, name string, of totals) map[string]int {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := newMetrics(func() totals { return of }).register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if v := int(m.GetCounter().GetValue()); f.GetName() == name && v != 0 {
				got[m.GetLabel()[0].GetValue()] = v
			}
		}
	}
	return got
}

// Each thing that is dropped is counted under the label that operators read of it in
// docs/turn.md, and under no other one.
func TestMetrics_DropsHaveTheirLabels(t *testing.T) {
	of := map[string]func(*totals) *uint64{}
	add := func(label string, f func(*totals) *uint64) { of[label] = f }
	for why, label := range map[core.DropReason]string{
		core.DropJunk: "malformed", core.DropUnanswered: "rate_limited", core.DropNoAllocation: "no_allocation", core.DropNoChannel: "no_channel",
		core.DropNoPermission: "no_permission", core.DropForbidden: "denied_peer", core.DropOversize: "oversize", core.DropRate: "bandwidth",
	} {
		add(label, func(t *totals) *uint64 { return &t.core.Dropped[why] })
	}
	for why, label := range map[shard.Loss]string{
		shard.NoRoute: "no_route", shard.Denied: "not_permitted", shard.NoRoom: "no_buffer", shard.TooLarge: "too_large", shard.Failed: "socket_error",
	} {
		add(label, func(t *totals) *uint64 { return &t.lost[why] })
	}
	add("queue_full", func(t *totals) *uint64 { return &t.overflowed })
	add("connections", func(t *totals) *uint64 { return &t.refused })
	add("silent", func(t *totals) *uint64 { return &t.silent })
	add("guessing", func(t *totals) *uint64 { return &t.guessing })
	if want := int(core.NumDropReasons) + int(shard.NumLosses) + 4; len(of) != want {
		t.Errorf("%d labels, want %d", len(of), want)
	}
	for label, count := range of {
		var v totals
		*count(&v) = 7
		if got := byLabel(t, "meshgate_turn_drops_total", v); !maps.Equal(got, map[string]int{label: 7}) {
			t.Errorf("%s is counted as %v", label, got)
		}
	}
}

// Each end of a connection has one of them, too.
func TestMetrics_EndsOfConnectionsHaveTheirLabels(t *testing.T) {
	for why, label := range map[stream.Reason]string{
		stream.Crowded: "connections", stream.Displaced: "connections", stream.Forged: "connections",
		stream.Garbage: "malformed", stream.Oversize: "oversize", stream.Silent: "silent",
		stream.Stuck: "queue_full", stream.Lagging: "queue_full", stream.Guessing: "guessing",
	} {
		var ended stream.Stats
		ended.Ended[why] = 5
		v := totals{overflowed: 1, refused: 1}
		v.core.Dropped[core.DropJunk], v.core.Dropped[core.DropOversize] = 1, 1
		v.addStreams(ended)
		want := map[string]int{"malformed": 1, "oversize": 1, "queue_full": 1, "connections": 1}
		want[label] += 5
		if got := byLabel(t, "meshgate_turn_drops_total", v); !maps.Equal(got, want) {
			t.Errorf("%v is counted as %v, want %v", why, got, want)
		}
	}
}

// So have refused credentials, and error responses.
func TestMetrics_FailuresHaveTheirLabels(t *testing.T) {
	for why, label := range map[core.Failure]string{
		core.FailedMismatch: "mismatch", core.FailedExpired: "expired", core.FailedRevoked: "revoked", core.FailedAwaited: "undecided",
		core.FailedTooFar: "too_far", core.FailedUnknown: "unknown", core.FailedGuessing: "guessing",
	} {
		var v totals
		v.core.Failed[why] = 3
		if got := byLabel(t, "meshgate_turn_auth_failures_total", v); !maps.Equal(got, map[string]int{label: 3}) {
			t.Errorf("%s is counted as %v", label, got)
		}
	}
	for i, label := range []string{"300", "400", "401", "403", "420", "437", "438", "440", "441", "442", "443", "446", "447", "486", "508"} {
		var v totals
		v.core.Errors[i] = 2
		if got := byLabel(t, "meshgate_turn_errors_total", v); !maps.Equal(got, map[string]int{label: 2}) {
			t.Errorf("%s is counted as %v", label, got)
		}
	}
}
