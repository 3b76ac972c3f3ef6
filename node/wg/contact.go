// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/tai64n"
)

// contactState says where a configured peer is kept.
type contactState uint32

const (
	// stateLost: not in the library, and packets for the peer could go nowhere.
	// It has to call first.
	stateLost contactState = iota
	// stateIdle: not in the library, until there is a packet for the peer or it
	// calls.
	stateIdle
	// stateLeaving: in the library, and quiet for so long that the next sweep
	// takes it out. A packet that was let pass before the peer began to leave has
	// long been counted by then.
	stateLeaving
	// stateActive: in the library.
	stateActive
)

// contact is what the device knows of a configured peer beside its
// configuration. It stays the same as long as the peer is configured.
type contact struct {
	key mesh.WireGuardKey
	// state is changed under Device.changing and may be read without.
	state atomic.Uint32
	// leads is the path that OpenPath gave the peer last, which may be closed, or
	// nil. It may be read without a lock.
	leads atomic.Pointer[path]

	// The next fields are guarded by Device.changing.

	// endpoint is where packets for an idle peer go, as the library writes it;
	// "" when nowhere.
	endpoint string
	// attached is the connection that AttachPeer gave the peer, if any.
	attached *attachment
	// path is the one that OpenPath gave the peer, if any; hasPath says whether it
	// is still open.
	path *path
	// before is the traffic of earlier stays in the library, which begins each
	// time from zero.
	before traffic
	// seen is the traffic of this stay that a sweep saw last, and since when it
	// has been that.
	seen  traffic
	since time.Time

	// The next fields belong to the doorman, covered aside.

	// newest is the timestamp of the newest initiation that was let in: what the
	// library forgets when the peer leaves, and what an older initiation that
	// somebody kept is refused by.
	newest tai64n.Timestamp
	// admitted is when that was.
	admitted time.Time
	// covered is true when no initiation of the peer can be newer than newest
	// and known to somebody: the doorman has seen all of them, or a later one.
	// The library keeps a peer that is not covered.
	covered atomic.Bool
}

// traffic is what the library counts of a peer.
type traffic struct {
	rx, tx    uint64
	handshake time.Time
}

// plus returns the traffic of two stays in the library, later coming last.
func (t traffic) plus(later traffic) traffic {
	sum := traffic{rx: t.rx + later.rx, tx: t.tx + later.tx, handshake: t.handshake}
	if later.handshake.After(sum.handshake) {
		sum.handshake = later.handshake
	}
	return sum
}

// trafficOf returns what the library counted.
func trafficOf(p *mesh.PeerStats) traffic {
	return traffic{rx: p.ReceiveBytes, tx: p.TransmitBytes, handshake: p.LastHandshake}
}

// at returns the state.
func (c *contact) at() contactState { return contactState(c.state.Load()) }

// resident reports whether the library has the peer.
func (c *contact) resident() bool { return c.at() >= stateLeaving }

// hasPath reports whether the peer is at an open path. The caller holds
// Device.changing.
func (c *contact) hasPath() bool {
	if c.path != nil && c.path.ended.Load() {
		c.path = nil
	}
	return c.path != nil
}

// roster finds configured peers by key, also while they change.
type roster struct {
	mu       sync.RWMutex // guards contacts
	contacts map[mesh.WireGuardKey]*contact
}

// find returns the contact of a configured peer, or nil.
func (r *roster) find(key mesh.WireGuardKey) *contact {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.contacts[key]
}

// take notes that changes were made.
func (r *roster) take(ch *changes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.contacts == nil {
		r.contacts = make(map[mesh.WireGuardKey]*contact, len(ch.peers))
	}
	for _, key := range ch.removed {
		delete(r.contacts, key)
	}
	for i := range ch.peers {
		r.contacts[ch.peers[i].Key] = ch.peers[i].contact
	}
}
