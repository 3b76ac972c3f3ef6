// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/store"
)

// Reasons for which a gateway gave no answer.
const (
	reasonUnreachable = "unreachable"
	reasonBehind      = "behind"
	reasonMalformed   = "malformed"
	reasonRefused     = "refused"
)

// metrics of a Store; docs/metrics.md lists them.
type metrics struct {
	failovers  prometheus.Counter
	reconnects prometheus.Counter
	failures   *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		failovers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_remote_failovers_total",
			Help: "Times that a reader of the state moved to another gateway.",
		}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_remote_reconnects_total",
			Help: "Watches of the state that were resumed after a break.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_remote_failures_total",
			Help: "Calls that a gateway did not serve, by reason: unreachable, behind, malformed or refused.",
		}, []string{"reason"}),
	}
	for _, reason := range []string{reasonUnreachable, reasonBehind, reasonMalformed, reasonRefused} {
		m.failures.WithLabelValues(reason)
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.failovers, m.reconnects, m.failures} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) failed(reason string) { m.failures.WithLabelValues(reason).Inc() }

// reasonOf is the reason for which another gateway is asked.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errBehind):
		return reasonBehind
	case errors.Is(err, store.ErrMalformed):
		return reasonMalformed
	}
	return reasonUnreachable
}
