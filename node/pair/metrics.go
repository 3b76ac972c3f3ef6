// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/path"
)

// carrier is who carries the packets to a node, and a value of the label "way".
type carrier uint8

const (
	// byGateway is a pair whose session does not stand. Of the way to a gateway it
	// says that the gateway has not answered at its WireGuard port, or over a relay.
	byGateway carrier = iota
	directly
	byRelay
	carriers
)

// dropReason is a value of the label "reason".
type dropReason string

const (
	dropSeek   dropReason = "seek_queue_full"
	dropPacket dropReason = "packet_queue_full"
	dropWanted dropReason = "too_many_pairs"
	dropCaller dropReason = "too_many_callers"
)

// metrics are the counters of one Pairs. All of them may be used at any time.
type metrics struct {
	// pairs and gateways are how many there are, by who carries the packets.
	pairs, gateways [carriers]prometheus.Gauge
	switches        [carriers]prometheus.Counter
	sent, received  prometheus.Counter // signals
	relays          [path.TLS + 1]prometheus.Gauge
	// made and failed count allocations.
	made, failed [path.TLS + 1]prometheus.Counter
	lost         prometheus.Counter
	dropped      map[dropReason]prometheus.Counter
}

// newMetrics makes the metrics and registers them with r, which may be nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	pairs := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "meshgate_pair_pairs",
		Help: "Nodes with which this one has a WireGuard session of its own, or is making one, by how packets get there: direct, relay, or gateway, which carries them meanwhile.",
	}, []string{"way"})
	gateways := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "meshgate_pair_gateways",
		Help: "Gateways that this node sends to, by how packets get there: direct, relay, or none while none answers.",
	}, []string{"way"})
	switches := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshgate_pair_switches_total",
		Help: "Times that the packets of a pair began to go another way, by the new one.",
	}, []string{"way"})
	signals := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshgate_pair_signals_total",
		Help: "Signals exchanged with other nodes on how to reach each other.",
	}, []string{"direction"})
	relays := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "meshgate_pair_relays",
		Help: "TURN allocations that this node holds at gateways, by transport.",
	}, []string{"transport"})
	allocations := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshgate_pair_allocations_total",
		Help: "Attempts at a TURN allocation at a gateway, by transport and result.",
	}, []string{"transport", "result"})
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshgate_pair_dropped_total",
		Help: "What was not looked at, by reason: destinations of packets and STUN messages that came too fast, destinations beyond the bound of pairs, and calls of nodes that are not known yet.",
	}, []string{"reason"})
	m := &metrics{
		sent: signals.WithLabelValues("sent"), received: signals.WithLabelValues("received"),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_pair_relays_lost_total",
			Help: "TURN allocations that ended although this node still held them.",
		}),
		dropped: make(map[dropReason]prometheus.Counter),
	}
	for c, way := range [carriers]string{"gateway", "direct", "relay"} {
		m.pairs[c], m.switches[c] = pairs.WithLabelValues(way), switches.WithLabelValues(way)
	}
	for c, way := range [carriers]string{"none", "direct", "relay"} {
		m.gateways[c] = gateways.WithLabelValues(way)
	}
	for _, t := range []path.Transport{path.UDP, path.TCP, path.TLS} {
		name := strings.ToLower(t.String())
		m.relays[t] = relays.WithLabelValues(name)
		m.made[t], m.failed[t] = allocations.WithLabelValues(name, "made"), allocations.WithLabelValues(name, "failed")
	}
	for _, reason := range []dropReason{dropSeek, dropPacket, dropWanted, dropCaller} {
		m.dropped[reason] = dropped.WithLabelValues(string(reason))
	}
	return m, register(r, pairs, gateways, switches, signals, relays, allocations, m.lost, dropped)
}

// register registers all collectors, or none. r may be nil.
func register(r prometheus.Registerer, all ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for i, c := range all {
		if err := r.Register(c); err != nil {
			for _, done := range all[:i] {
				r.Unregister(done)
			}
			return fmt.Errorf("register metrics of pairs: %w", err)
		}
	}
	return nil
}

// drop counts something that was not looked at.
func (m *metrics) drop(reason dropReason) { m.dropped[reason].Inc() }

// carrier is who carries the packets of a link now.
func (l *link) carrier() carrier {
	switch {
	case l.kind != gateway && l.stands && !l.last.Standing:
		return l.counted // until it is found again, or given up
	case !l.stands || !l.last.Standing:
		return byGateway
	case l.last.Direct:
		return directly
	}
	return byRelay
}

// count makes the gauges what the links are, and counts those that have moved.
func (p *Pairs) count() {
	var pairs, gateways [carriers]int
	for _, l := range p.links {
		now := l.carrier()
		if l.kind == gateway {
			gateways[now]++
			continue
		}
		pairs[now]++
		if now != l.counted {
			l.counted = now
			p.metrics.switches[now].Inc()
		}
	}
	for c := range carriers {
		p.metrics.pairs[c].Set(float64(pairs[c]))
		p.metrics.gateways[c].Set(float64(gateways[c]))
	}
}
