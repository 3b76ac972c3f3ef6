// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a Store; docs/metrics.md lists them.
type metrics struct {
	apply    prometheus.Histogram
	failures prometheus.Counter
	logWrite prometheus.Histogram
}

func newMetrics(registerer prometheus.Registerer, s *Store) (*metrics, error) {
	buckets := prometheus.ExponentialBuckets(0.0005, 2, 15) // 0.5 ms to 8 s
	m := &metrics{
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshgate_store_apply_seconds", Buckets: buckets,
			Help: "Time from the proposal of a change to its answer.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_store_apply_failures_total",
			Help: "Changes that were refused or whose outcome is unknown.",
		}),
		logWrite: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshgate_store_log_write_seconds", Buckets: buckets,
			Help: "Time of a synced write to the log.",
		}),
	}
	if registerer == nil {
		return m, nil
	}
	keys := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_store_keys", Help: "Keys of the replicated state.",
	}, func() float64 { return float64(s.state.Len()) })
	version := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_store_version", Help: "Version of the last change that this replica holds.",
	}, func() float64 { return float64(s.state.Version()) })
	leader := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_store_leader", Help: "1 while this replica leads.",
	}, func() float64 {
		if _, self := s.Leader(); self {
			return 1
		}
		return 0
	})
	for _, c := range []prometheus.Collector{m.apply, m.failures, m.logWrite, keys, version, leader} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) applied(start time.Time, err error) {
	m.apply.Observe(time.Since(start).Seconds())
	if err != nil {
		m.failures.Inc()
	}
}
