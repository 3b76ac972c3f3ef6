// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// flowRegions and flowRegion bound the conversations that are remembered: 3 MiB
	// when full. A region takes memory, 2 KiB, from its first on. Where a conversation
	// goes is chosen by who opened it first, so that a node which opens very
	// many drives out its own, and those of one node in 128.
	flowRegions = 128
	flowRegion  = 256
	// flowWays is in how many places of its region a conversation may be.
	flowWays = 4
	// flowTimeout is how long after its last packet a conversation is
	// remembered: the time that RFC 4787 section 4.3 asks of NATs for UDP.
	flowTimeout = 2 * time.Minute
	// flowRefresh spares the memory of a busy conversation a write per packet.
	flowRefresh = time.Second
)

// Flows remembers who opened conversations of protocols whose packets do not
// tell, UDP above all, so that answers pass where only one direction is
// accepted. It outlives the filters of single snapshots. Nothing is remembered
// for TCP and ICMP, or between addresses for which ports make no difference.
//
// It is bounded: when there is no room, the conversation that was silent
// longest is forgotten. That costs its next answers, until the side that opened
// it sends again. It is safe for concurrent use.
type Flows struct {
	seed    maphash.Seed
	regions [flowRegions]atomic.Pointer[region]
}

// region is where the conversations are that some clients opened.
type region [flowRegion]atomic.Pointer[flow]

// NewFlows returns an empty memory.
func NewFlows() *Flows {
	return &Flows{seed: maphash.MakeSeed()}
}

// Sent remembers a packet that the node itself sent, where only answers to such
// are let in.
func (f *Flows) Sent(p mesh.Packet) {
	if p.Kind == mesh.PacketUnclear {
		f.note(p)
	}
}

// Answers reports whether p may be the answer to a packet that Sent was told of.
func (f *Flows) Answers(p mesh.Packet) bool {
	switch p.Kind {
	case mesh.PacketBroken, mesh.PacketOpens:
		return false
	case mesh.PacketUnclear:
		return f.answers(p)
	}
	return true
}

// flowKey names a conversation; client opened it.
type flowKey struct {
	client, server         netip.Addr
	clientPort, serverPort uint16
	protocol               mesh.Protocol
}

// flow is a remembered conversation.
type flow struct {
	key flowKey
	// last is when the last packet passed, in nanoseconds of Unix time.
	last atomic.Int64
}

// note remembers that the sender of p talks to its receiver.
func (f *Flows) note(p mesh.Packet) {
	key := flowKey{p.Src.Unmap(), p.Dst.Unmap(), p.SrcPort, p.DstPort, p.Protocol}
	now := time.Now().UnixNano()
	in, set := f.place(&key)
	places := f.made(in).set(set)
	victim, oldest := &places[0], now
	for i := range places {
		entry := places[i].Load()
		switch {
		case entry == nil:
			victim, oldest = &places[i], 0
		case entry.key == key:
			entry.touch(now)
			return
		case entry.last.Load() < oldest:
			victim, oldest = &places[i], entry.last.Load()
		}
	}
	entry := &flow{key: key}
	entry.last.Store(now)
	victim.Store(entry)
}

// answers reports whether the receiver of p has talked to its sender before,
// and keeps the conversation alive.
func (f *Flows) answers(p mesh.Packet) bool {
	key := flowKey{p.Dst.Unmap(), p.Src.Unmap(), p.DstPort, p.SrcPort, p.Protocol}
	in, set := f.place(&key)
	r := f.regions[in].Load()
	if r == nil {
		return false
	}
	now := time.Now().UnixNano()
	places := r.set(set)
	for i := range places {
		if entry := places[i].Load(); entry != nil && entry.key == key && now-entry.last.Load() < int64(flowTimeout) {
			entry.touch(now)
			return true
		}
	}
	return false
}

// touch notes a packet at now.
func (e *flow) touch(now int64) {
	if now-e.last.Load() > int64(flowRefresh) {
		e.last.Store(now)
	}
}

// place returns the region that key may be remembered in, and where there.
func (f *Flows) place(key *flowKey) (in, set uint64) {
	var raw [37]byte
	client, server := key.client.As16(), key.server.As16()
	copy(raw[:16], client[:])
	in = maphash.Bytes(f.seed, raw[:16]) % flowRegions
	copy(raw[16:32], server[:])
	binary.BigEndian.PutUint16(raw[32:], key.clientPort)
	binary.BigEndian.PutUint16(raw[34:], key.serverPort)
	raw[36] = byte(key.protocol)
	return in, maphash.Bytes(f.seed, raw[:]) % (flowRegion / flowWays)
}

// made returns a region, which it makes if it is not there.
func (f *Flows) made(in uint64) *region {
	at := &f.regions[in]
	if r := at.Load(); r != nil {
		return r
	}
	at.CompareAndSwap(nil, new(region)) // or another one was quicker
	return at.Load()
}

// set returns one of the sets of places of the region.
func (r *region) set(n uint64) []atomic.Pointer[flow] {
	return r[n*flowWays : (n+1)*flowWays]
}
