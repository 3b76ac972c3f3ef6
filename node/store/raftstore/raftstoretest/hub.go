// SPDX-License-Identifier: Apache-2.0

// Package raftstoretest has a network in memory for tests of replicated
// stores, whose directions can be cut.
package raftstoretest

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/store/raftstore"
)

// Hub is a network of replicas. What it carries is reliable and ordered, as
// TCP is: a cut direction holds bytes back until it is healed, and whoever
// dials meanwhile waits. It owns no goroutine and works under
// testing/synctest. NewHub makes one.
type Hub struct {
	mu        sync.Mutex           // guards the fields below
	endpoints map[string]*Endpoint // by address
	cut       map[direction]bool
	changed   chan struct{} // closed and replaced with each change of cut
	lag       func() time.Duration
}

type direction struct{ from, to string }

// NewHub returns a network without replicas in which nothing is cut.
func NewHub() *Hub {
	return &Hub{endpoints: map[string]*Endpoint{}, cut: map[direction]bool{}, changed: make(chan struct{})}
}

// Lag has each direction of each connection that is made from now on take its
// time: as long as lag says when it is made.
func (h *Hub) Lag(lag func() time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lag = lag
}

// Endpoint returns the network of the replica with an id, dialled at an
// address. It takes the place of an earlier one at that address.
func (h *Hub) Endpoint(id, address string) *Endpoint {
	e := &Endpoint{hub: h, id: id, incoming: make(chan arrival, 64), done: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endpoints[address] = e
	return e
}

// Cut holds back what is sent from one replica to another.
func (h *Hub) Cut(from, to string) { h.set(func() { h.cut[direction{from, to}] = true }) }

// Part cuts both directions between each of some replicas and each of others.
func (h *Hub) Part(some, others []string) {
	h.set(func() {
		for _, a := range some {
			for _, b := range others {
				h.cut[direction{a, b}], h.cut[direction{b, a}] = true, true
			}
		}
	})
}

// Heal ends all cuts.
func (h *Hub) Heal() { h.set(func() { clear(h.cut) }) }

func (h *Hub) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	close(h.changed)
	h.changed = make(chan struct{})
}

// flows says whether bytes get through, and returns a channel that is closed
// when that may have changed.
func (h *Hub) flows(from, to string) (bool, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.cut[direction{from, to}], h.changed
}

// Endpoint is the network of one replica.
type Endpoint struct {
	hub      *Hub
	id       string
	incoming chan arrival
	done     chan struct{}
	once     sync.Once
}

var _ raftstore.Network = (*Endpoint)(nil)

type arrival struct {
	conn net.Conn
	peer string
}

// Accept implements raftstore.Network.
func (e *Endpoint) Accept() (net.Conn, string, error) {
	select {
	case a := <-e.incoming:
		return a.conn, a.peer, nil
	case <-e.done:
		return nil, "", net.ErrClosed
	}
}

// Dial implements raftstore.Network.
func (e *Endpoint) Dial(ctx context.Context, id, address string) (net.Conn, error) {
	for _, d := range []direction{{e.id, id}, {id, e.id}} {
		for {
			flows, changed := e.hub.flows(d.from, d.to)
			if flows {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	e.hub.mu.Lock()
	far := e.hub.endpoints[address]
	var there, back time.Duration
	if e.hub.lag != nil {
		there, back = e.hub.lag(), e.hub.lag()
	}
	e.hub.mu.Unlock()
	if far == nil || far.id != id {
		return nil, fmt.Errorf("connect to %q: nobody of that name is at %q", id, address)
	}
	near, other := pipe(e.hub, e.id, id)
	near.out.lag, near.in.lag = there, back
	select {
	case <-far.done:
	default:
		select {
		case far.incoming <- arrival{other, e.id}:
			return near, nil
		case <-far.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("connect to %q: connection refused", id)
}

// Close implements raftstore.Network.
func (e *Endpoint) Close() error {
	e.once.Do(func() { close(e.done) })
	for {
		select {
		case a := <-e.incoming:
			_ = a.conn.Close()
		default:
			return nil
		}
	}
}
