// SPDX-License-Identifier: Apache-2.0

package core

import (
	"maps"
	"slices"
	"sync"
)

// Resource is what quotas count.
type Resource uint8

// The resources. A relay is one port: an allocation of two families holds two,
// and so does one with a reservation, until the reservation ends.
const (
	Relays Resource = iota
	Permissions
	Channels
	Connections // of relays of TCP to peers, those that are being made included
	NumResources
)

// String is the resource as a label.
func (r Resource) String() string {
	return [...]string{"relays", "permissions", "channels", "connections"}[r]
}

// Bound is whose bound a request has reached.
type Bound uint8

// The bounds.
const (
	BoundAllocation Bound = iota // of one allocation (Limits)
	BoundUser                    // of one user (Quota)
	BoundTotal                   // of all users together (Quota), or of this core (Limits)
	NumBounds
)

// String is the bound as a label.
func (b Bound) String() string { return [...]string{"allocation", "user", "total"}[b] }

// Grant is the answer of a Quota.
type Grant uint8

// The answers.
const (
	Granted   Grant = iota
	UserFull        // the user holds all that one user may
	TotalFull       // all users together hold all there is
)

// Quota counts what users hold over all cores. It is safe for concurrent use if
// cores share it, and does not block.
type Quota interface {
	// Take counts n more for user, all or nothing.
	Take(user string, what Resource, n int) Grant
	// Give takes n back that were granted.
	Give(user string, what Resource, n int)
}

// Counts has a number for each resource; 0 means no limit.
type Counts struct{ Relays, Permissions, Channels, Connections int }

// Of is the number of a resource.
func (c Counts) Of(what Resource) int {
	return [NumResources]int{c.Relays, c.Permissions, c.Channels, c.Connections}[what]
}

// Ledger is a Quota that counts in memory. It is safe for concurrent use. It
// is asked by requests, never by packets.
type Ledger struct {
	mu             sync.Mutex // guards the fields below
	perUser, total Counts
	held           [NumResources]int
	users          map[string]*[NumResources]int
}

// NewLedger returns a ledger that nobody holds anything of.
func NewLedger(perUser, total Counts) *Ledger {
	return &Ledger{perUser: perUser, total: total, users: make(map[string]*[NumResources]int)}
}

// SetLimits changes the limits. Who holds more keeps it.
func (l *Ledger) SetLimits(perUser, total Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.perUser, l.total = perUser, total
}

// Take counts n more for user, all or nothing.
func (l *Ledger) Take(user string, what Resource, n int) Grant {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.users[user]
	mine := 0
	if u != nil {
		mine = u[what]
	}
	if limit := l.perUser.Of(what); limit > 0 && mine+n > limit {
		return UserFull
	}
	if limit := l.total.Of(what); limit > 0 && l.held[what]+n > limit {
		return TotalFull
	}
	if u == nil {
		u = new([NumResources]int)
		l.users[user] = u
	}
	u[what] += n
	l.held[what] += n
	return Granted
}

// Give takes n back that were granted.
func (l *Ledger) Give(user string, what Resource, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.users[user]
	if u == nil {
		return
	}
	u[what] -= n
	l.held[what] -= n
	if *u == [NumResources]int{} {
		delete(l.users, user)
	}
}

// Users lists who holds relays, in no order.
func (l *Ledger) Users() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	users := slices.Collect(maps.Keys(l.users))
	return slices.DeleteFunc(users, func(u string) bool { return l.users[u][Relays] == 0 })
}

// Total returns what all users hold of a resource.
func (l *Ledger) Total(what Resource) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[what]
}

// Held returns what a user holds of a resource.
func (l *Ledger) Held(user string, what Resource) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.users[user]; u != nil {
		return u[what]
	}
	return 0
}
