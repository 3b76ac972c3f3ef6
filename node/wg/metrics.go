// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// dropReason is a value of the label "reason".
type dropReason string

const (
	// Packets between peers and us.
	reasonMalformed dropReason = "malformed"
	reasonMartian   dropReason = "martian"
	reasonDenied    dropReason = "denied"
	reasonNoRoute   dropReason = "no_route"
	reasonTTL       dropReason = "ttl_expired"
	reasonQueueFull dropReason = "queue_full"
	reasonLost      dropReason = "no_endpoint"
	// Datagrams on attached connections.
	reasonAttachGarbage   dropReason = "attached_garbage"
	reasonAttachOversize  dropReason = "attached_oversize"
	reasonAttachHandshake dropReason = "attached_handshake_rate"
	reasonAttachReceive   dropReason = "attached_receive_queue_full"
	reasonAttachSend      dropReason = "attached_send_queue_full"
	// Handshake messages, while peers are idle.
	reasonHandshakeQueue    dropReason = "handshake_queue_full"
	reasonHandshakeGarbage  dropReason = "handshake_garbage"
	reasonHandshakeCookie   dropReason = "handshake_without_cookie"
	reasonHandshakeRate     dropReason = "handshake_rate"
	reasonHandshakeStranger dropReason = "handshake_stranger"
	reasonHandshakeForged   dropReason = "handshake_forged"
	reasonHandshakeReplay   dropReason = "handshake_replay"
)

// metrics are the counters of one Device.
type metrics struct {
	dropped   map[dropReason]prometheus.Counter
	forwarded prometheus.Counter
	peers     prometheus.Gauge
	active    prometheus.Gauge
	attached  prometheus.Gauge

	registerer prometheus.Registerer
	collectors []prometheus.Collector
}

// newMetrics makes the metrics and registers them with r, which may be nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshgate_wg_dropped_packets_total",
		Help: "Packets and datagrams that the WireGuard interface threw away, by reason.",
	}, []string{"reason"})
	m := &metrics{
		dropped: make(map[dropReason]prometheus.Counter),
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_wg_forwarded_packets_total",
			Help: "Packets from one peer that were sent on towards another.",
		}),
		peers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_wg_peers",
			Help: "Configured WireGuard peers.",
		}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_wg_active_peers",
			Help: "Configured WireGuard peers that are ready to send and receive. The rest costs less memory, and joins them when there is a packet.",
		}),
		attached: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_wg_attached_conns",
			Help: "Packet connections that carry WireGuard besides UDP.",
		}),
		registerer: r,
	}
	for _, reason := range []dropReason{
		reasonMalformed, reasonMartian, reasonDenied, reasonNoRoute, reasonTTL, reasonQueueFull, reasonLost,
		reasonAttachGarbage, reasonAttachOversize, reasonAttachHandshake, reasonAttachReceive, reasonAttachSend,
		reasonHandshakeQueue, reasonHandshakeGarbage, reasonHandshakeCookie, reasonHandshakeRate,
		reasonHandshakeStranger, reasonHandshakeForged, reasonHandshakeReplay,
	} {
		m.dropped[reason] = dropped.WithLabelValues(string(reason))
	}
	m.collectors = []prometheus.Collector{dropped, m.forwarded, m.peers, m.active, m.attached}
	if r == nil {
		return m, nil
	}
	for i, c := range m.collectors {
		if err := r.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			m.unregister()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// unregister takes the metrics back from the registerer.
func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}

// drop counts one packet that was thrown away.
func (m *metrics) drop(reason dropReason) { m.dropped[reason].Inc() }
