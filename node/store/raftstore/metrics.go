// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/store"
)

// metrics of a Store; docs/metrics.md lists them.
type metrics struct {
	apply    prometheus.Histogram
	failures prometheus.Counter
	logWrite prometheus.Histogram
	// forwards counts calls that went to the leader, by how they ended.
	forwards       *prometheus.CounterVec
	leaderChanges  prometheus.Counter
	streamsRefused *prometheus.CounterVec
	buried         prometheus.Counter
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
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_store_forwards_total",
			Help: "Calls sent on to the leader, by result: done, refused, unknown or not_sent.",
		}, []string{"result"}),
		leaderChanges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_store_leader_changes_total", Help: "Times that this replica saw another leader, or none.",
		}),
		streamsRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_store_streams_refused_total",
			Help: "Streams of other replicas that were refused, by reason: not_member, malformed or limit.",
		}, []string{"reason"}),
		buried: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_store_dead_replicas_total", Help: "Dead replicas that this one removed or replaced while it led.",
		}),
	}
	if registerer == nil {
		return m, nil
	}
	holds := func() bool { return s.state.Version() > 0 }
	keys := newKnownGauge("meshgate_store_keys", "Keys of the replicated state; left out while this replica has none of it.",
		holds, func() float64 { return float64(s.state.Len()) })
	version := newKnownGauge("meshgate_store_version", "Version of the last change that this replica holds; left out while it has none of the state.",
		holds, func() float64 { return float64(s.state.Version()) })
	leader := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_store_leader", Help: "1 while this replica leads.",
	}, func() float64 {
		if _, self := s.Leader(); self {
			return 1
		}
		return 0
	})
	free := newKnownGauge("meshgate_store_free_bytes", "Free space where the state is kept, left out when it is in memory; changes are refused below 16 MiB.", func() bool {
		return s.runs() && s.disk.dir != ""
	}, func() float64 {
		n, err := s.disk.free(s.disk.dir)
		if err != nil {
			return 0
		}
		return float64(n)
	})
	term := newKnownGauge("meshgate_store_term", "Raft's term: it grows with every election.",
		s.runs, func() float64 { return float64(s.raft.CurrentTerm()) })
	has := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_store_has_leader",
		Help: "1 while this replica knows who leads; without a leader changes and fresh reads wait.",
	}, func() float64 {
		if id, _ := s.Leader(); id != "" {
			return 1
		}
		return 0
	})
	absent := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_store_voters_out_of_reach",
		Help: "Voters that the leader has not heard from for four election timeouts, or that store nothing of what they are sent, as with a full disk; 0 on other replicas.",
	}, func() float64 { return s.watch(func() float64 { return float64(s.votersAbsent()) }) })
	behind := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_store_max_lag",
		Help: "Log entries that the replica furthest behind is not known to hold, of those that the leader hears from; 0 on other replicas.",
	}, func() float64 { return s.watch(func() float64 { return float64(s.maxBehind()) }) })
	collectors := []prometheus.Collector{
		m.apply, m.failures, m.logWrite, m.forwards, m.leaderChanges, m.streamsRefused, m.buried, has, absent, behind,
		keys, version, leader, free, term, memberGauge(s, "voters", true), memberGauge(s, "observers", false),
	}
	for _, c := range collectors {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// memberGauge counts the replicas with or without a vote.
func memberGauge(s *Store, name string, voters bool) prometheus.Collector {
	return newKnownGauge("meshgate_store_"+name, "Replicas of the cluster that are "+name+".", s.runs, func() float64 {
		servers := s.servers()
		n := len(votersOf(servers))
		if !voters {
			n = len(servers) - n
		}
		return float64(n)
	})
}

// knownGauge is a gauge that is left out while its value is not known: a 0 would
// say that there is nothing, as of a mesh that was lost.
type knownGauge struct {
	desc  *prometheus.Desc
	known func() bool
	value func() float64
}

var _ prometheus.Collector = (*knownGauge)(nil)

func newKnownGauge(name, help string, known func() bool, value func() float64) *knownGauge {
	return &knownGauge{prometheus.NewDesc(name, help, nil, nil), known, value}
}

// Describe implements prometheus.Collector.
func (g *knownGauge) Describe(to chan<- *prometheus.Desc) { to <- g.desc }

// Collect implements prometheus.Collector.
func (g *knownGauge) Collect(to chan<- prometheus.Metric) {
	if g.known() {
		to <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value())
	}
}

// runs reports whether raft was started.
func (s *Store) runs() bool {
	select {
	case <-s.started:
		return true
	default:
		return false
	}
}

// watch reads a number from raft, or 0 before it was started.
func (s *Store) watch(read func() float64) float64 {
	if !s.runs() {
		return 0
	}
	return read()
}

// forwarded counts a call that was sent on to the leader.
func (m *metrics) forwarded(err error) {
	result := "refused"
	switch {
	case err == nil:
		result = "done"
	case errors.Is(err, errNotSent):
		result = "not_sent"
	case errors.Is(err, store.ErrUncertain):
		result = "unknown"
	}
	m.forwards.WithLabelValues(result).Inc()
}

func (m *metrics) applied(start time.Time, err error) {
	m.apply.Observe(time.Since(start).Seconds())
	if err != nil {
		m.failures.Inc()
	}
}
