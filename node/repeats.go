// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strings"
	"time"
	"unicode"
)

const (
	// repeatFirst is how long after a record another one of the same trouble
	// follows. Each takes twice as long as the one before it, up to repeatLast.
	repeatFirst, repeatLast = time.Minute, time.Hour
	// maxTroubles bounds the troubles that are told apart until it is over.
	maxTroubles = 16
)

// repeats decides which of the attempts that fail again and again the log tells
// of: the first of each trouble, and then some, so that who looks sees that it
// goes on. The zero value is ready. It is for one goroutine.
type repeats struct {
	n    int // attempts that failed
	seen map[string]bool
	pace time.Duration
	next time.Time // when the next record is due
}

// failed counts an attempt that failed now because of what text says, and reports
// whether it is due in the log. Texts that differ in numbers only, such as the
// port of a connection or how long it took, are the same trouble.
func (r *repeats) failed(text string, now time.Time) (n int, due bool) {
	r.n++
	kind := strings.Map(func(c rune) rune {
		if unicode.IsDigit(c) {
			return -1
		}
		return c
	}, text)
	switch {
	case !r.seen[kind] && len(r.seen) < maxTroubles:
		if r.seen == nil {
			r.seen = map[string]bool{}
		}
		r.seen[kind] = true
		r.pace = repeatFirst
	case now.Before(r.next):
		return r.n, false
	default:
		r.pace = min(2*r.pace, repeatLast)
	}
	r.next = now.Add(r.pace)
	return r.n, true
}

// over forgets what was said: the next trouble is a new one.
func (r *repeats) over() { *r = repeats{} }
