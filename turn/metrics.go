// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Why a packet went no further: the values of the reason label.
const (
	dropMalformed   = "malformed"     // not a well-formed STUN or ChannelData message
	dropUnexpected  = "unexpected"    // well-formed, but nothing that a server is sent
	dropOversize    = "oversize"      // larger than the engine relays
	dropRate        = "rate_limited"  // a stranger whose prefix had its share of answers
	dropNoRelay     = "no_allocation" // data from a client without an allocation
	dropPeer        = "denied_peer"   // to a peer that the policy forbids
	dropSource      = "denied_source" // from a peer that the policy forbids
	dropSocket      = "socket_error"  // the kernel refused it
	dropConnections = "connections"   // a stream connection beyond the limits
)

// Directions of relayed traffic: the values of the direction label.
const (
	toPeer   = "to_peer"
	toClient = "to_client"
)

// metrics are the counters of one server. All label values are known before the
// first packet comes, so an attacker cannot grow them and zeros show.
type metrics struct {
	allocations, connections prometheus.Gauge
	most                     prometheus.Gauge
	created                  prometheus.Counter
	packets, bytes           map[string]prometheus.Counter
	drops, failures, refused map[string]prometheus.Counter
}

// newMetrics registers with reg; nil leaves the metrics unregistered.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		allocations: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_turn_allocations", Help: "TURN allocations that exist now.",
		}),
		most: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_turn_allocations_limit", Help: "TURN allocations that may exist at a time: no more than there are relay ports.",
		}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_turn_connections", Help: "TCP and TLS connections of TURN clients that are open now.",
		}),
		created: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_turn_allocations_total", Help: "TURN allocations made.",
		}),
	}
	own := []prometheus.Collector{m.allocations, m.most, m.connections, m.created}
	family := func(name, help, label string, values ...string) map[string]prometheus.Counter {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		own = append(own, vec)
		counters := make(map[string]prometheus.Counter, len(values))
		for _, v := range values {
			counters[v] = vec.WithLabelValues(v)
		}
		return counters
	}
	m.packets = family("meshgate_turn_relayed_packets_total", "Packets relayed.", "direction", toPeer, toClient)
	m.bytes = family("meshgate_turn_relayed_bytes_total", "Payload bytes relayed.", "direction", toPeer, toClient)
	m.drops = family("meshgate_turn_drops_total", "Packets and connections dropped.", "reason",
		dropMalformed, dropUnexpected, dropOversize, dropRate, dropNoRelay, dropPeer, dropSource, dropSocket, dropConnections)
	m.failures = family("meshgate_turn_auth_failures_total", "Requests whose credential was refused.", "reason",
		string(mismatch), string(expired), string(revoked), string(undecided))
	m.refused = family("meshgate_turn_errors_total", "Error responses sent.", "code",
		"400", "401", "403", "420", "437", "438", "440", "441", "442", "443", "486", "508", otherCode)
	if reg == nil {
		return m, nil
	}
	for _, c := range own {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// otherCode stands for error codes that this package does not expect to send.
const otherCode = "other"

func (m *metrics) drop(reason string) { m.drops[reason].Inc() }

func (m *metrics) refuse(code int) {
	c, ok := m.refused[strconv.Itoa(code)]
	if !ok {
		c = m.refused[otherCode]
	}
	c.Inc()
}

func (m *metrics) relayed(direction string, n int) {
	m.packets[direction].Inc()
	m.bytes[direction].Add(float64(n))
}
