// SPDX-License-Identifier: Apache-2.0

// Package core is the state machine of a TURN and STUN server (RFC 8656, RFC
// 8489, RFC 6062, RFC 5780) without sockets, clock, goroutines and locks:
// events go in, actions come out, and time is an argument. DESIGN.md beside
// this file tells the life of a packet.
//
// A Core belongs to one goroutine at a time. A server has one per thread: under
// SO_REUSEPORT a client's 5-tuple stays with one socket, and the relays of a
// client belong to the thread of that socket. What cores share (quotas,
// credentials, policy, the key of nonces) is behind the hooks of Config.
package core

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"time"
)

// Core is the state of a TURN server. New makes one.
type Core struct {
	cfg      Config
	epoch    time.Time // of all int64 times within, in nanoseconds
	nonces   *nonces
	indicate *mathrand.ChaCha8 // transaction ids of indications
	decoy    Key               // what a request of an unknown user is checked with

	flows        map[flowKey]*allocation
	relays       relays
	reservations map[token]*reservation
	connections  map[ConnectionID]*connection
	timers       timers
	owed         map[flowKey]*Rate // of what has ended and another path was told of

	policy uint32 // generation: verdicts of older ones are asked for again
	drain  drain
	serial uint64 // of the next allocation; the first one is random

	req    request // the request at hand
	lookup peer    // a peer that found no room in a table
	stats  Stats
}

// New returns a core without allocations. now and all later times should have a
// monotonic reading (time.Now): only the expiry of nonces and of credentials
// follows the wall clock.
func New(now time.Time, cfg Config) (*Core, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Random == nil {
		cfg.Random = func(b []byte) { rand.Read(b) } // never fails (crypto/rand)
	}
	if cfg.NonceKey == nil {
		cfg.NonceKey = make([]byte, 32)
		cfg.Random(cfg.NonceKey)
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("turn core: %w", err)
	}
	var seed [32]byte
	cfg.Random(seed[:])
	c := &Core{
		cfg:          cfg,
		epoch:        now,
		nonces:       newNonces(cfg.NonceKey, cfg.Limits.NonceLifetime),
		indicate:     mathrand.NewChaCha8(seed),
		flows:        make(map[flowKey]*allocation),
		relays:       relays{all: make([]*relay, 1), byAddr: make(map[socketKey]RelayID)},
		reservations: make(map[token]*reservation),
		connections:  make(map[ConnectionID]*connection),
		owed:         make(map[flowKey]*Rate),
		policy:       1,
	}
	decoy := make([]byte, 16+8)
	cfg.Random(decoy)
	c.decoy, c.serial = Key{MD5: [16]byte(decoy)}, binary.BigEndian.Uint64(decoy[16:])
	return c, nil
}

// SetLimits changes the limits: what is granted from now on obeys them, what was
// granted stays. NonceLifetime holds for nonces that are out already. On an
// error nothing has changed.
func (c *Core) SetLimits(l Limits) error {
	cfg := c.cfg
	cfg.Limits = l.withDefaults()
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("turn core: %w", err)
	}
	c.cfg = cfg
	c.nonces.lifetime = int64(cfg.Limits.NonceLifetime / time.Second)
	return nil
}

// at is now in the core's own time.
func (c *Core) at(now time.Time) int64 { return int64(now.Sub(c.epoch)) }
