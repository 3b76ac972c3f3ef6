// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// counter returns how many packets were dropped for a reason.
func counter(tb testing.TB, m *metrics, reason dropReason) float64 {
	tb.Helper()
	var out dto.Metric
	if err := m.dropped[reason].Write(&out); err != nil {
		tb.Fatal(err)
	}
	return out.GetCounter().GetValue()
}

// gauge returns the value of a gauge.
func gauge(tb testing.TB, g prometheus.Gauge) float64 {
	tb.Helper()
	var out dto.Metric
	if err := g.Write(&out); err != nil {
		tb.Fatal(err)
	}
	return out.GetGauge().GetValue()
}
