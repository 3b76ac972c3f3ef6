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
	// Datagrams on packet sockets and paths.
	reasonSocketGarbage   dropReason = "socket_garbage"
	reasonSocketOversize  dropReason = "socket_oversize"
	reasonSocketStranger  dropReason = "socket_stranger"
	reasonSocketHandshake dropReason = "socket_handshake_rate"
	reasonSocketSend      dropReason = "socket_send"
	reasonPathNowhere     dropReason = "path_nowhere"
	// Handshake messages, while peers are idle.
	reasonHandshakeQueue    dropReason = "handshake_queue_full"
	reasonHandshakeGarbage  dropReason = "handshake_garbage"
	reasonHandshakeCookie   dropReason = "handshake_without_cookie"
	reasonHandshakeRate     dropReason = "handshake_rate"
	reasonHandshakeStranger dropReason = "handshake_stranger"
	reasonHandshakeForged   dropReason = "handshake_forged"
	reasonHandshakeReplay   dropReason = "handshake_replay"
	// Handshake messages that crossed ours.
	reasonHandshakeCrossed dropReason = "handshake_crossed"
)

// socketKind is a value of the label "socket".
type socketKind uint8

const (
	// kindNative is the UDP port, kindAttached attached connections, kindRelay
	// packet sockets.
	kindNative socketKind = iota
	kindAttached
	kindRelay
	socketKinds
)

// String returns the value of the label.
func (k socketKind) String() string { return [socketKinds]string{"udp", "attached", "relay"}[k] }

// metrics are the counters of one Device.
type metrics struct {
	dropped map[dropReason]prometheus.Counter
	// in and out count datagrams of WireGuard, stunIn and stunOut STUN messages.
	in, out, stunIn, stunOut [socketKinds]prometheus.Counter

	forwarded prometheus.Counter
	// repeated counts handshake messages that were sent again, renewed calls made anew.
	repeated, renewed prometheus.Counter
	peers             prometheus.Gauge
	active            prometheus.Gauge
	attached          prometheus.Gauge
	sockets           prometheus.Gauge
	paths             prometheus.Gauge

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
		repeated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_wg_repeated_handshake_messages_total",
			Help: "Handshake messages that were sent again as they were, since the first ones seem to be lost.",
		}),
		renewed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_wg_renewed_handshakes_total",
			Help: "Handshakes that were begun anew before WireGuard would do so: two had crossed and undone each other, or one was asked for too soon after another.",
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
		sockets: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_wg_packet_sockets",
			Help: "Virtual UDP sockets, such as TURN allocations, that carry WireGuard besides UDP.",
		}),
		paths: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_wg_paths",
			Help: "Paths to peers that are open, whatever they lead over.",
		}),
		registerer: r,
	}
	datagrams, stun := m.countDatagrams()
	for _, reason := range []dropReason{
		reasonMalformed, reasonMartian, reasonDenied, reasonNoRoute, reasonTTL, reasonQueueFull, reasonLost,
		reasonAttachGarbage, reasonAttachOversize, reasonAttachHandshake, reasonAttachReceive, reasonAttachSend,
		reasonSocketGarbage, reasonSocketOversize, reasonSocketStranger, reasonSocketHandshake, reasonSocketSend, reasonPathNowhere,
		reasonHandshakeQueue, reasonHandshakeGarbage, reasonHandshakeCookie, reasonHandshakeRate,
		reasonHandshakeStranger, reasonHandshakeForged, reasonHandshakeReplay, reasonHandshakeCrossed,
	} {
		m.dropped[reason] = dropped.WithLabelValues(string(reason))
	}
	m.collectors = []prometheus.Collector{
		dropped, datagrams, stun, m.forwarded, m.repeated, m.renewed, m.peers, m.active, m.attached, m.sockets, m.paths,
	}
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

// countDatagrams makes the counters of what goes through sockets.
func (m *metrics) countDatagrams() (datagrams, stun *prometheus.CounterVec) {
	labels := []string{"direction", "socket"}
	datagrams = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshgate_wg_datagrams_total",
		Help: "WireGuard datagrams received and sent, by kind of socket: the UDP port, attached connections, relays.",
	}, labels)
	stun = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshgate_wg_stun_datagrams_total",
		Help: "STUN messages received and sent on WireGuard's sockets, by kind of socket.",
	}, labels)
	for k := range socketKinds {
		m.in[k], m.out[k] = datagrams.WithLabelValues("received", k.String()), datagrams.WithLabelValues("sent", k.String())
		if k != kindAttached {
			m.stunIn[k], m.stunOut[k] = stun.WithLabelValues("received", k.String()), stun.WithLabelValues("sent", k.String())
		}
	}
	return datagrams, stun
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

// dropMany counts n packets that were thrown away.
func (m *metrics) dropMany(reason dropReason, n int) { m.dropped[reason].Add(float64(n)) }
