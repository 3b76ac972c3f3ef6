// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"net"

	"github.com/prometheus/client_golang/prometheus"
)

// Reasons of meshgate_gateway_auth_failures_total.
const (
	reasonNone      = "none"      // no credentials where some are needed
	reasonMalformed = "malformed" // several, or not well formed
	reasonRefused   = "refused"   // wrong, expired or unknown
	reasonLimited   = "limited"   // too many failures before
	reasonAddress   = "address"   // a mesh address that no node holds
	reasonFailed    = "failed"    // the check itself failed
)

// Listeners of meshgate_gateway_connections_refused_total.
const (
	listenerPublic = "public"
	listenerMesh   = "mesh"
	listenerTURN   = "turn" // on the public port
)

// metrics are the gateway's. Labels come from closed sets: procedures of the
// rules, RPC codes, the reasons and listeners above.
type metrics struct {
	started      *prometheus.CounterVec
	handled      *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	inFlight     prometheus.Gauge
	panics       prometheus.Counter
	sockets      prometheus.Gauge
	displaced    prometheus.Counter
	refused      *prometheus.CounterVec // connections, by listener
	madeRoom     *prometheus.CounterVec // public connections, by limit
	nameless     prometheus.Counter     // requests
	lent         prometheus.Gauge       // public connections that speak TURN
	shaken       *prometheus.CounterVec // TLS handshakes that failed, by reason
	revoked      prometheus.Counter
	decoding     prometheus.Gauge   // bytes
	overfed      prometheus.Counter // messages
	authFailures *prometheus.CounterVec
}

// newMetrics makes the metrics and registers them with r, unless it is nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_gateway_rpc_started_total",
			Help: "RPC calls begun.",
		}, []string{"rpc"}),
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_gateway_rpc_handled_total",
			Help: "RPC calls ended, by code.",
		}, []string{"rpc", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "meshgate_gateway_rpc_unary_seconds",
			Help:    "Time to answer a unary call.",
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 5, 10},
		}, []string{"rpc"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_gateway_rpc_in_flight",
			Help: "RPC calls being served.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_gateway_panics_total",
			Help: "Handlers that panicked; each is a bug.",
		}),
		sockets: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_gateway_websockets",
			Help: "Open WebSockets, one per call.",
		}),
		displaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_gateway_websockets_displaced_total",
			Help: "WebSockets closed before they began, to make room for newer ones of their network.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_gateway_connections_refused_total",
			Help: "Connections closed at once: their network or member held too many, the listener was full and nobody could make room, or a stranger said too much without a request.",
		}, []string{"listener"}),
		madeRoom: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_gateway_connections_displaced_total",
			Help: "Public connections without a call by somebody known, or a relay, closed to make room for newer ones, by the limit that was reached.",
		}, []string{"limit"}),
		nameless: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_gateway_requests_displaced_total",
			Help: "Requests without credentials ended to make room for newer ones, of their network or of all.",
		}),
		lent: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_gateway_connections_turn",
			Help: "Open public connections that speak TURN over TLS.",
		}),
		shaken: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_gateway_tls_handshakes_failed_total",
			Help: "TLS handshakes on the public port that failed, by reason; certificate: the client does not take the one that it is shown.",
		}, []string{"reason"}),
		revoked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_gateway_calls_revoked_total",
			Help: "Calls ended because their credentials, membership or roles were gone.",
		}),
		decoding: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshgate_gateway_intake_bytes",
			Help: "What messages that are being decoded count.",
		}),
		overfed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshgate_gateway_intake_refused_total",
			Help: "Messages refused because too many bytes were being decoded.",
		}),
		authFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshgate_gateway_auth_failures_total",
			Help: "Callers that could not be authenticated, by reason.",
		}, []string{"reason"}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.started, m.handled, m.seconds, m.inFlight, m.panics, m.sockets, m.displaced, m.refused, m.madeRoom, m.nameless, m.lent, m.shaken, m.revoked, m.decoding, m.overfed, m.authFailures} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// registerCertificate adds the end of the certificate that the public listener
// shows to r, unless it is nil; c is nil without TLS.
func registerCertificate(r prometheus.Registerer, c *certificates) error {
	if r == nil {
		return nil
	}
	return r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_gateway_certificate_end_timestamp_seconds",
		Help: "When the public certificate ends, in seconds since 1970; 0 without TLS.",
	}, func() float64 {
		if c == nil {
			return 0
		}
		return float64(c.current().Leaf.NotAfter.Unix())
	}))
}

// registerFront adds what the front that l belongs to refused to r, unless it is
// nil.
func registerFront(r prometheus.Registerer, l net.Listener) error {
	if r == nil {
		return nil
	}
	front, ok := l.(frontListener)
	return r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "meshgate_gateway_front_refused_total",
		Help: "Connections closed before it was known what they want: too many, too slow or cut short; 0 for a gateway that is alone.",
	}, func() float64 {
		if !ok {
			return 0
		}
		return float64(front.front.refused.Load())
	}))
}
