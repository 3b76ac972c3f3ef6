// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// churnOrder has clients come and go: each group allocates, binds, sends and
// receives; half of it ends its allocations, the other half falls silent.
type churnOrder struct {
	Login login
	PID   int
	Peers netip.Addr // as of connectOrder
	// Group is how many clients come at a time, and Length for how long there
	// are others.
	Group  int
	Length time.Duration
	// Streams is how many more come over TCP then, and as many over TLS.
	Streams int
	// Every is how often another group comes, so that there are always as many; a
	// machine that is too slow for it has fewer.
	Every time.Duration
	// Lifetime is that of allocations.
	Lifetime time.Duration
}

// silent are clients that fell silent: their ports are not used again before
// their allocations have ended.
type silent struct {
	clients []*client
	until   time.Time
}

// churn does that and tells of all transfers together, and of how many groups.
func (l *load) churn(o churnOrder) (sum transferred, groups int, err error) {
	// A tick that comes while a group is there waits for its end, and no more than one.
	tick := time.NewTicker(o.Every)
	defer tick.Stop()
	for begin := time.Now(); time.Since(begin) < o.Length; <-tick.C {
		for len(l.silent) > 0 && time.Now().After(l.silent[0].until) {
			forget(l.silent[0].clients)
			l.silent = l.silent[1:]
		}
		one, err := l.comeAndGo(o)
		if err != nil {
			return sum, groups, err
		}
		groups++
		sum.Sent += one.Sent
		sum.Delivered += one.Delivered + one.Late
		sum.Took += one.Took
		sum.CPU += one.CPU
	}
	return sum, groups, nil
}

// comeAndGo is the life of one group.
func (l *load) comeAndGo(o churnOrder) (sum transferred, err error) {
	list, _, err := l.connect(connectOrder{Login: o.Login, PID: o.PID, Clients: o.Group, Window: window(o.Group), Peers: o.Peers}, 0)
	if err != nil {
		forget(list)
		return sum, err
	}
	leave, stay := list[:len(list)/2], list[len(list)/2:]
	defer func() { l.silent = append(l.silent, silent{stay, time.Now().Add(o.Lifetime + time.Second)}) }()
	for _, down := range []bool{false, true} {
		one, err := l.transfer(list, transferOrder{
			cell: cell{Down: down, Size: 200, Allocations: o.Group, Burst: 2}, PID: o.PID,
			Count: 50 * time.Millisecond, Window: 64,
		}, nil)
		if err != nil {
			return sum, fmt.Errorf("a new allocation does not relay: %w", err)
		}
		sum.Sent += one.Sent
		sum.Delivered += one.Delivered
		sum.Late += one.Late
		sum.Took += one.Took
		sum.CPU += one.CPU
	}
	return sum, errors.Join(l.leave(leave), l.streams(o))
}

// window is how many of so many clients wait for an answer at a time.
func window(clients int) int { return min(clients, 32) }
