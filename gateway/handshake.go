// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Reasons of meshgate_gateway_tls_handshakes_failed_total.
const (
	shakenUntrusted = "certificate" // the client says that it does not take the certificate
	shakenAlert     = "alert"       // it ends the handshake and says another reason
	shakenClosed    = "closed"      // it closes the connection without a word
	shakenSilent    = "timeout"     // it is not done in time
	shakenNoTLS     = "no_tls"      // it speaks something else
	shakenLarge     = "too_large"   // it says too much
	shakenApart     = "mismatch"    // no version, suite or protocol is common to both, or it breaks the rules
)

// shakenReasons are all of them.
func shakenReasons() []string {
	return []string{shakenUntrusted, shakenAlert, shakenClosed, shakenSilent, shakenNoTLS, shakenLarge, shakenApart}
}

// handshakes counts those on the public port that fail, of HTTPS and TURN alike: which
// of the two it was to be is often not known. It is safe for concurrent use.
type handshakes struct {
	failed *prometheus.CounterVec
	log    *slog.Logger
	told   *rate.Limiter // bounds the log records
}

func newHandshakes(failed *prometheus.CounterVec, log *slog.Logger) *handshakes {
	for _, reason := range shakenReasons() {
		failed.WithLabelValues(reason) // zeros show
	}
	return &handshakes{failed: failed, log: log, told: rate.NewLimiter(strangersRate, strangersBurst)}
}

// fail counts a handshake with from that ended by err.
func (h *handshakes) fail(from net.Addr, err error) {
	reason := shakenWhy(err)
	h.failed.WithLabelValues(reason).Inc()
	if h.told.Allow() {
		h.log.Debug("TLS handshake failed", "addr", from.String(), "reason", reason, "err", err)
	}
}

// shakenWhy is the reason that an error of a handshake stands for.
func shakenWhy(err error) string {
	var op *net.OpError
	var header tls.RecordHeaderError
	switch {
	case errors.Is(err, errTooLarge):
		return shakenLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return shakenSilent
	case errors.As(err, &header):
		return shakenNoTLS
	case errors.As(err, &op) && op.Op == "remote error": // an alert, of a type that crypto/tls keeps to itself
		if strings.Contains(op.Err.Error(), "certificate") {
			return shakenUntrusted
		}
		return shakenAlert
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return shakenClosed
	default:
		return shakenApart
	}
}
