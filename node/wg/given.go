// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// The library takes a call once, and so answers once. When a call comes again to
// which it has just given an answer, that got lost, and is sent again as it is.
const (
	// maxGiven bounds the answers that are remembered: 300 KB of them.
	maxGiven = 1024
	// givenTime is for how long a call may be repeated.
	givenTime = 3 * time.Second
	// maxSeen is how many calls of peers may come before the library has answered one.
	// In a flood of more, answers are not sent again.
	maxSeen = 256
)

// seen is what tells a call of a peer, of which the library may not have read
// anything yet, from others.
type seen struct {
	index uint32
	key   [device.NoisePublicKeySize]byte
}

// seenOf returns that of an initiation.
func seenOf(initiation []byte) seen {
	return seen{senderOf(initiation), [device.NoisePublicKeySize]byte(ephemeralOf(initiation))}
}

// note remembers a call that the library gets. The caller holds mu.
func (c *calls) note(initiation []byte) {
	if len(c.seen) < maxSeen {
		c.seen = append(c.seen, seenOf(initiation))
		return
	}
	c.seen[c.seenNext] = seenOf(initiation)
	c.seenNext = (c.seenNext + 1) % maxSeen
}

// given is an answer of ours.
type given struct {
	call    seen
	to      conn.Endpoint
	message [device.MessageResponseSize]byte
	until   time.Time
	// copies is how often it was sent again; due is set while it is to be.
	copies int
	due    bool
}

// keep remembers an answer. It reports whether it is a new one. The caller holds mu.
func (c *calls) keep(message []byte, to conn.Endpoint, now time.Time) (fresh bool) {
	index := receiverOf(message)
	if is := c.given[index]; is != nil && bytes.Equal(is.message[:], message) {
		return false
	}
	last := slices.IndexFunc(c.seen, func(s seen) bool { return s.index == index })
	if last >= 0 && len(c.given) < maxGiven && !c.shut {
		is := &given{call: c.seen[last], to: to, until: now.Add(givenTime)}
		copy(is.message[:], message)
		c.given[index] = is
		c.count()
		c.arm(is.until)
	}
	return true
}

// known reports whether the library has answered a call that comes in, and has the
// answer sent again. The caller holds mu.
func (c *calls) known(message []byte, from conn.Endpoint, now time.Time) bool {
	is := c.given[senderOf(message)]
	if is == nil || is.call != seenOf(message) || placeOf(is.to) != placeOf(from) {
		return false
	}
	if is.copies < len(repeatAfter) && !is.due {
		is.copies++
		is.due = true
		c.arm(now)
	}
	return true
}

// attendGiven finds out which answers are to be sent again, and forgets those that
// nobody can ask for any more. It returns when to look next; zero for never. The
// caller holds mu.
func (c *calls) attendGiven(now time.Time, todo *errands) (next time.Time) {
	for index, is := range c.given {
		if is.due {
			is.due = false
			todo.answers = append(todo.answers, is)
		}
		if !now.Before(is.until) {
			delete(c.given, index)
		} else if next.IsZero() || is.until.Before(next) {
			next = is.until
		}
	}
	return next
}

// receiverOf returns the number of the initiation that a response is to.
func receiverOf(response []byte) uint32 { return binary.LittleEndian.Uint32(response[8:]) }
