// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"net/netip"
	"time"
)

const (
	// seekEvery is how often Config.Seek is told of a destination at most.
	seekEvery = time.Second
	// A seeker remembers 256 destinations, in sets of which each has room for
	// some that look alike.
	seekBits = 6
	seekWays = 4
)

// seeker remembers which destinations Config.Seek was told of. It belongs to
// Read.
type seeker struct {
	began time.Time
	table [1 << seekBits][seekWays]sought
	// last is the one that was looked up last: packets come in batches to few.
	last sought
}

// sought is a destination, and when it was told last.
type sought struct {
	dst netip.Addr
	at  time.Duration
}

// observe tells Config.Seek of the destinations of our own packets.
func (s *seeker) observe(rules *rules, bufs [][]byte, sizes []int, offset int) {
	if s.began.IsZero() {
		s.began = time.Now()
	}
	now := time.Since(s.began)
	for i, size := range sizes {
		src, dst, ok := addresses(bufs[i][offset : offset+size])
		if ok && dst == s.last.dst && now-s.last.at < seekEvery {
			continue
		}
		if ok && rules.ownAddr(src) && !rules.ownAddr(dst) && !martian(dst) && s.due(dst, now) {
			rules.seek(dst)
		}
	}
}

// due reports whether a destination is to be told, and notes that it is.
func (s *seeker) due(dst netip.Addr, now time.Duration) bool {
	set := &s.table[spread(dst)>>(64-seekBits)]
	oldest := &set[0]
	for i := range set {
		is := &set[i]
		if is.dst == dst {
			told := now-is.at < seekEvery
			if !told {
				is.at = now
			}
			s.last = *is
			return !told
		}
		if is.at < oldest.at || !is.dst.IsValid() && oldest.dst.IsValid() {
			oldest = is
		}
	}
	*oldest = sought{dst: dst, at: now}
	s.last = *oldest
	return true
}

// spread returns a number in whose upper bits addresses that are near each other
// differ.
func spread(a netip.Addr) uint64 {
	b := a.As16()
	return (binary.BigEndian.Uint64(b[:]) ^ binary.BigEndian.Uint64(b[8:])) * 0x9e3779b97f4a7c15
}
