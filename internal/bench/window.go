// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"time"
)

// window is what of a transfer is counted: not its beginning, in which
// congestion control feels its way.
type window struct {
	Warm, Count time.Duration
}

// all is how long a transfer has to go on.
func (w window) all() time.Duration { return w.Warm + w.Count }

// meter counts the bytes that arrive in a window. It is used where bytes
// arrive, never where they are sent: what is sent may still be in a queue.
type meter struct {
	window
	first, from, last time.Time // of the first byte; of the first one that is warm; of the last that counts
	bytes             int64     // after from
}

// add counts n bytes that arrived now, and reports whether the window is over.
// What arrives first after its end still counts, so that a path which stalls
// has a rate too.
func (m *meter) add(n int) (over bool) {
	now := time.Now()
	switch {
	case m.first.IsZero():
		m.first = now
	case now.Sub(m.first) < m.Warm:
	case m.from.IsZero():
		m.from, m.last = now, now
	case m.last.Sub(m.from) < m.Count:
		m.bytes += int64(n)
		m.last = now
	}
	return m.last.Sub(m.from) >= m.Count
}

// rate is in bytes per second.
func (m *meter) rate() (float64, error) {
	if m.bytes == 0 || !m.last.After(m.from) {
		return 0, errors.New("too little arrived to tell a rate")
	}
	return float64(m.bytes) / m.last.Sub(m.from).Seconds(), nil
}

// result is a rate, or why there is none, as JSON.
type result struct {
	Rate  float64 `json:"rate"`
	Error string  `json:"error,omitempty"`
}

func (m *meter) result() result {
	rate, err := m.rate()
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{Rate: rate}
}

func (r result) get() (float64, error) {
	if r.Error != "" {
		return 0, errors.New(r.Error)
	}
	return r.Rate, nil
}
