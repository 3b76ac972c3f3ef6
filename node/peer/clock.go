// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"net/http"
	"sync/atomic"
	"time"
)

// clock is that of a server, as its answers tell it, so that a node whose own is
// wrong can sign what is good for a moment only. The zero value is this host's.
type clock struct{ ahead atomic.Int64 } // nanoseconds

// now is the server's time, to a second.
func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// set takes the time of an answer that began to come now.
func (c *clock) set(h http.Header) {
	at, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return
	}
	// The header has no fraction of the second.
	if ahead := time.Until(at.Add(time.Second / 2)); ahead.Abs() > 2*time.Second {
		c.ahead.Store(int64(ahead))
	} else {
		c.ahead.Store(0)
	}
}

// keepsTime tells a clock what every answer says of the time. Who answers has
// shown a certificate.
type keepsTime struct {
	next  http.RoundTripper
	clock *clock
}

// RoundTrip implements http.RoundTripper.
func (k keepsTime) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := k.next.RoundTrip(r)
	if err == nil {
		k.clock.set(res.Header)
	}
	return res, err
}
