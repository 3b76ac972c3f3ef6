// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// Values of the label "result" of channel opens.
const (
	resultOK      = "ok"
	resultDenied  = "denied"
	resultInvalid = "invalid"
	resultLimit   = "limit"
	resultDial    = "dial_failed"
	resultError   = "error"
)

type metrics struct {
	started  *prometheus.CounterVec // by kind
	active   *prometheus.GaugeVec   // by kind
	failed   prometheus.Counter
	relayed  prometheus.Counter
	refused  prometheus.Counter
	connect  prometheus.Histogram
	opens    *prometheus.CounterVec // by protocol and result
	bytes    *prometheus.CounterVec // by direction
	drops    *prometheus.CounterVec // by reason
	renewals prometheus.Counter

	up, down prometheus.Counter // children of bytes
}

// newMetrics registers with r, unless it is nil. held and drops are asked for
// what channels hold in bytes, and for packets that were not handed on.
func newMetrics(r prometheus.Registerer, held func() int64, drops func() rtc.Drops) (*metrics, error) {
	const ns, sub = "meshgate", "signaling"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	m := &metrics{
		started: counters("sessions_started_total", "Peer connections that were established.", "kind"),
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: ns, Subsystem: sub, Name: "sessions_active", Help: "Peer connections that stand.",
		}, []string{"kind"}),
		failed:  counter("sessions_failed_total", "Peer connections that were answered but never established."),
		relayed: counter("relayed_total", "Negotiations that were relayed to another node."),
		refused: counter("negotiations_refused_total", "Negotiations that a limit refused."),
		connect: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Subsystem: sub, Name: "connect_seconds", Help: "Time from the answer to open channels.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		opens:    counters("channel_opens_total", "Channels that clients opened.", "protocol", "result"),
		bytes:    counters("channel_bytes_total", "Bytes carried, up to destinations and down to clients.", "direction"),
		drops:    counters("channel_drops_total", "Datagrams that were not carried.", "reason"),
		renewals: counter("renewals_total", "Peer connections that neared their DTLS record limit."),
	}
	m.up, m.down = m.bytes.WithLabelValues("up"), m.bytes.WithLabelValues("down")
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.started, m.active, m.failed, m.relayed, m.refused, m.connect, m.opens, m.bytes, m.drops, m.renewals,
	} {
		errs = append(errs, r.Register(c))
	}
	errs = append(errs, r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: ns, Subsystem: sub, Name: "memory_bytes", Help: "What peer connections hold of their memory budget.",
	}, func() float64 { return float64(held()) })))
	for reason, of := range map[string]func(rtc.Drops) uint64{
		"malformed": func(d rtc.Drops) uint64 { return d.Malformed },
		"stray":     func(d rtc.Drops) uint64 { return d.Stray },
		"forged":    func(d rtc.Drops) uint64 { return d.Forged },
		"overrun":   func(d rtc.Drops) uint64 { return d.Overrun },
		"paced":     func(d rtc.Drops) uint64 { return d.Paced },
	} {
		errs = append(errs, r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: ns, Subsystem: sub, Name: "packet_drops_total", ConstLabels: prometheus.Labels{"reason": reason},
			Help: "Packets of peer connections that were not handed on.",
		}, func() float64 { return float64(of(drops())) })))
	}
	return m, errors.Join(errs...)
}

// counter is how package bridge reports what it carries.
func (m *metrics) counter() bridge.Counter {
	return bridge.Counter{
		Up:   func(n int) { m.up.Add(float64(n)) },
		Down: func(n int) { m.down.Add(float64(n)) },
		Drop: func(reason string) { m.drops.WithLabelValues(reason).Inc() },
	}
}

// opened counts one attempt to open a channel.
func (m *metrics) opened(protocol, result string) {
	if protocol != "tcp" && protocol != "udp" && protocol != "wireguard" {
		protocol = "other"
	}
	m.opens.WithLabelValues(protocol, result).Inc()
}
