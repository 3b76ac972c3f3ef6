// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/shard"
	"github.com/meshgate/meshgate/turn/stream"
	"github.com/meshgate/meshgate/turn/xdp"
)

// Directions of relayed traffic: the values of the direction label.
const (
	toPeer   = "to_peer"
	toClient = "to_client"

	// Of datagrams, as a socket sees them.
	received = "received"
	sent     = "sent"
)

// dropLabels are the values of the reason label of drops, by reason of core.
func dropLabels() [core.NumDropReasons]string {
	return [core.NumDropReasons]string{
		core.DropJunk:         "malformed",     // no message that a server takes
		core.DropUnanswered:   "rate_limited",  // a stranger whose prefix had its share of answers
		core.DropNoAllocation: "no_allocation", // data from a client without an allocation
		core.DropNoChannel:    "no_channel",    // data on a channel that is not bound
		core.DropNoPermission: "no_permission", // data to or from an address without permission
		core.DropForbidden:    "denied_peer",   // to or from a peer that the policy forbids
		core.DropOversize:     "oversize",      // does not fit a datagram with its header
		core.DropRate:         "bandwidth",     // beyond what the user may relay
	}
}

// More reasons, of which core knows nothing, beside those of shard.Loss.
const (
	dropQueue       = "queue_full"  // the kernel had no room for it, or a client does not read
	dropConnections = "connections" // a stream connection beyond the limits, or of a proxy without its header
	dropGuessing    = "guessing"    // a stream connection that tried too many credentials
	dropSilent      = "silent"      // a stream connection that sent no request in time
)

// totals are what all parts of a server have counted.
type totals struct {
	core        core.Stats
	kernel      xdp.Stats
	sockets     shard.Stats // those of all shards
	relays      int         // ports that clients hold
	limit       int         // of relays
	connections int         // of clients, open now
	draining    int         // 1 while new clients are sent on
	// refused, silent and guessing connections, overflowed datagrams or frames.
	refused, silent, guessing, overflowed uint64
	lost                                  [shard.NumLosses]uint64 // datagrams that were not sent
}

// metrics show what a server has counted. All label values are known before the
// first packet comes, so an attacker cannot grow them and zeros show.
type metrics struct {
	totals func() totals

	allocations, relays, limit              *prometheus.Desc
	connections, created, draining          *prometheus.Desc
	packets, bytes, drops, failures, errors *prometheus.Desc
	refusals                                *prometheus.Desc
	datagrams, calls, switched, broken      *prometheus.Desc // of shards
	kernel                                  kernelMetrics
}

func newMetrics(now func() totals) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &metrics{
		totals:      now,
		allocations: desc("meshgate_turn_allocations", "TURN allocations that exist now."),
		relays:      desc("meshgate_turn_relays", "Relay ports that TURN clients hold now: an allocation of both families, or with a reserved port, holds two."),
		limit:       desc("meshgate_turn_allocations_limit", "Relay ports that TURN clients may hold at a time: meshgate_turn_relays gets no higher."),
		connections: desc("meshgate_turn_connections", "TCP and TLS connections of TURN clients that are open now."),
		draining:    desc("meshgate_turn_draining", "1 while new TURN clients are sent on to other gateways, because this one ends; else 0."),
		created:     desc("meshgate_turn_allocations_total", "TURN allocations made."),
		packets:     desc("meshgate_turn_relayed_packets_total", "Packets relayed.", "direction"),
		bytes:       desc("meshgate_turn_relayed_bytes_total", "Payload bytes relayed.", "direction"),
		drops:       desc("meshgate_turn_drops_total", "Packets and connections dropped.", "reason"),
		failures:    desc("meshgate_turn_auth_failures_total", "Requests whose credential was refused.", "reason"),
		errors:      desc("meshgate_turn_errors_total", "Error responses sent.", "code"),
		refusals:    desc("meshgate_turn_refusals_total", "Relays, permissions, channels and connections that clients were refused, by whose bound was reached.", "resource", "bound"),
		datagrams:   desc("meshgate_turn_datagrams_total", "Datagrams that the UDP sockets of TURN received and sent: clients and peers, requests and data.", "direction"),
		calls:       desc("meshgate_turn_socket_calls_total", "System calls that received and sent these datagrams: the fewer for as many, the larger the batches.", "direction"),
		switched:    desc("meshgate_turn_switched_packets_total", "Packets from one TURN relay to another that no socket had to carry."),
		broken:      desc("meshgate_turn_relay_failures_total", "Relay ports that could not be opened, or that broke."),
		kernel:      newKernelMetrics(desc),
	}
}

// register registers with reg; nil leaves the metrics unregistered.
func (m *metrics) register(reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	return reg.Register(m)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.allocations, m.relays, m.limit, m.connections, m.draining, m.created, m.packets, m.bytes, m.drops, m.failures, m.errors,
		m.refusals, m.datagrams, m.calls, m.switched, m.broken,
	} {
		ch <- d
	}
	m.kernel.describe(ch)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	t := m.totals()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(m.allocations, t.core.Allocations)
	gauge(m.relays, t.relays)
	gauge(m.limit, t.limit)
	gauge(m.connections, t.connections)
	gauge(m.draining, t.draining)
	counter(m.created, t.core.Allocated)
	counter(m.packets, t.core.Relayed.SentPackets, toPeer)
	counter(m.packets, t.core.Relayed.ReceivedPackets, toClient)
	counter(m.bytes, t.core.Relayed.SentBytes, toPeer)
	counter(m.bytes, t.core.Relayed.ReceivedBytes, toClient)
	for i, label := range dropLabels() {
		counter(m.drops, t.core.Dropped[i], label)
	}
	for i, n := range t.lost {
		counter(m.drops, n, shard.Loss(i).String())
	}
	counter(m.drops, t.overflowed, dropQueue)
	counter(m.drops, t.refused, dropConnections)
	counter(m.drops, t.silent, dropSilent)
	counter(m.drops, t.guessing, dropGuessing)
	for i, n := range t.core.Failed {
		counter(m.failures, n, core.Failure(i).String())
	}
	for i, code := range core.ErrorCodes() {
		counter(m.errors, t.core.Errors[i], strconv.Itoa(code))
	}
	for what, bounds := range t.core.Full {
		for whose, n := range bounds {
			counter(m.refusals, n, core.Resource(what).String(), core.Bound(whose).String())
		}
	}
	counter(m.datagrams, t.sockets.Received, received)
	counter(m.datagrams, t.sockets.Sent, sent)
	counter(m.calls, t.sockets.Receives, received)
	counter(m.calls, t.sockets.Sends, sent)
	counter(m.switched, t.sockets.Handed)
	counter(m.broken, t.sockets.RelaysFailed)
	m.kernel.collect(t.kernel, gauge, counter)
}

// totals returns what the server has counted, at last before it was closed.
func (s *Server) totals() totals {
	if t := s.last.Load(); t != nil {
		return *t
	}
	return s.count()
}

func (s *Server) count() totals {
	var t totals
	s.each(func(_ time.Time, c *core.Core, _ *core.Output) { t.core.Add(c.Stats()) })
	for i := range s.shards {
		if sh := s.shards[i].Load(); sh != nil {
			v := sh.Stats()
			for why, n := range v.Lost {
				t.lost[why] += n
			}
			t.sockets.Received += v.Received
			t.sockets.Sent += v.Sent
			t.sockets.Receives += v.Receives
			t.sockets.Sends += v.Sends
			t.sockets.Handed += v.Handed
			t.sockets.RelaysFailed += v.RelaysFailed
			t.overflowed += v.Overflowed + v.Uncarried
			t.core.Dropped[core.DropOversize] += v.Truncated
		}
	}
	t.kernel = s.kernel.Stats()
	t.core.Dropped[core.DropRate] += t.kernel.Packets[xdp.Limited]
	t.relays, t.limit = s.use(core.Relays)
	if s.draining.Load() {
		t.draining = 1
	}
	t.refused = s.forged.Load()
	if s.streams != nil {
		t.addStreams(s.streams.Stats())
	}
	return t
}

// addStreams adds what became of connections and their frames.
func (t *totals) addStreams(v stream.Stats) {
	t.connections = v.Connections
	t.core.Dropped[core.DropJunk] += v.Ended[stream.Garbage]
	t.core.Dropped[core.DropOversize] += v.Ended[stream.Oversize]
	t.silent, t.guessing = v.Ended[stream.Silent], v.Ended[stream.Guessing]
	t.refused += v.Ended[stream.Crowded] + v.Ended[stream.Displaced] + v.Ended[stream.Forged]
	t.overflowed += v.Ended[stream.Lagging] + v.Ended[stream.Stuck]
}
