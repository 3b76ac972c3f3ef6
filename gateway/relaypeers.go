// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"
)

const (
	// maxRelayNamers bounds who names addresses to a user, and maxRelayPeers what
	// one of them has named to it. A new one takes the place of the oldest, so that
	// no namer displaces what another one has named to the same user.
	maxRelayNamers, maxRelayPeers = 64, 16
	// maxNamed bounds what all have named to all users: with the longest of names,
	// 34 MiB. Beyond it, who has named most loses the oldest of it.
	maxNamed = 1 << 16
)

// relayPeer is an address that a namer has named to a user.
type relayPeer struct {
	at    netip.AddrPort
	until time.Time
	user  *relayUser
	by    *relayNamer
	// prev and next are its neighbours in the two lists that it is in.
	prev, next [2]*relayPeer
}

// relayNamer is who has named addresses of its own.
type relayNamer struct {
	name  string
	held  int      // how many it has named that are remembered
	peers peerList // these, the oldest first
	index int      // in heaviest
}

// namedBy is what one namer has named to a user.
type namedBy struct {
	by    *relayNamer
	peers []*relayPeer // the newest last
}

// namings are all that was named, by whom and to whom. RelayUsers.mu guards them,
// and what they point to.
type namings struct {
	byName   map[string]*relayNamer
	heaviest heaviest // the namers
	all      peerList // the oldest, which ends first, in front
	n, most  int      // of all, and the bound of it
}

func newNamings() namings {
	return namings{byName: make(map[string]*relayNamer), all: peerList{which: 1}, most: maxNamed}
}

// add remembers that a namer has named at to k.
func (m *namings) add(k *relayUser, namer string, at netip.AddrPort, until time.Time) {
	by, known := m.byName[namer]
	if !known {
		by = &relayNamer{name: namer, index: -1}
		m.byName[namer] = by
	}
	if n := k.by(by); n != nil {
		if i := slices.IndexFunc(n.peers, func(p *relayPeer) bool { return p.at == at }); i >= 0 {
			m.drop(n.peers[i]) // it is named anew
			m.byName[namer] = by
		}
	}
	p := &relayPeer{at: at, until: until, user: k, by: by}
	k.last(by, p)
	by.peers.push(p)
	m.all.push(p)
	m.n++
	by.held++
	if by.index < 0 {
		heap.Push(&m.heaviest, by)
	} else {
		heap.Fix(&m.heaviest, by.index)
	}
	if n := k.by(by); len(n.peers) > maxRelayPeers {
		m.drop(n.peers[0])
	}
	if len(k.named) > maxRelayNamers {
		m.dropAll(k.named[0].peers)
	}
	if m.n > m.most {
		m.drop(m.heaviest[0].peers.first)
	}
}

// drop forgets p.
func (m *namings) drop(p *relayPeer) {
	p.user.forget(p)
	p.by.peers.remove(p)
	m.all.remove(p)
	m.n--
	if p.by.held--; p.by.held > 0 {
		heap.Fix(&m.heaviest, p.by.index)
		return
	}
	heap.Remove(&m.heaviest, p.by.index)
	delete(m.byName, p.by.name)
}

func (m *namings) dropAll(list []*relayPeer) {
	for _, p := range slices.Clone(list) {
		m.drop(p)
	}
}

// expire forgets what counts no more.
func (m *namings) expire(now time.Time) {
	for p := m.all.first; p != nil && !now.Before(p.until); p = m.all.first {
		m.drop(p)
	}
}

// by is what a namer has named to k; nil: nothing.
func (k *relayUser) by(by *relayNamer) *namedBy {
	if i := slices.IndexFunc(k.named, func(n namedBy) bool { return n.by == by }); i >= 0 {
		return &k.named[i]
	}
	return nil
}

// last makes by the last one to name something to k, which is p.
func (k *relayUser) last(by *relayNamer, p *relayPeer) {
	n := namedBy{by: by}
	if i := slices.IndexFunc(k.named, func(n namedBy) bool { return n.by == by }); i >= 0 {
		n = k.named[i]
		k.named = slices.Delete(k.named, i, i+1)
	}
	n.peers = append(n.peers, p)
	k.named = append(k.named, n)
}

// forget removes p from what was named to k.
func (k *relayUser) forget(p *relayPeer) {
	i := slices.IndexFunc(k.named, func(n namedBy) bool { return n.by == p.by })
	n := &k.named[i]
	n.peers = slices.DeleteFunc(n.peers, func(o *relayPeer) bool { return o == p })
	if len(n.peers) == 0 {
		k.named = slices.Delete(k.named, i, i+1)
	}
}

// has says whether anybody has named such a peer to k.
func (k *relayUser) has(such func(*relayPeer) bool) bool {
	return slices.ContainsFunc(k.named, func(n namedBy) bool { return slices.ContainsFunc(n.peers, such) })
}

// peerList is a list of peers, each of which is in one list of its kind.
type peerList struct {
	which       int // of prev and next
	first, last *relayPeer
}

// push puts p behind the others.
func (l *peerList) push(p *relayPeer) {
	if p.prev[l.which] = l.last; l.last == nil {
		l.first = p
	} else {
		l.last.next[l.which] = p
	}
	l.last = p
}

// remove takes p, which is in l, out.
func (l *peerList) remove(p *relayPeer) {
	before, behind := p.prev[l.which], p.next[l.which]
	if before == nil {
		l.first = behind
	} else {
		before.next[l.which] = behind
	}
	if behind == nil {
		l.last = before
	} else {
		behind.prev[l.which] = before
	}
	p.prev[l.which], p.next[l.which] = nil, nil
}

// heaviest is a heap of namers, the one that has named most in front; it is for
// container/heap.
type heaviest []*relayNamer

func (h heaviest) Len() int           { return len(h) }
func (h heaviest) Less(i, j int) bool { return h[i].held > h[j].held }
func (h heaviest) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *heaviest) Push(x any) {
	n := x.(*relayNamer)
	n.index = len(*h)
	*h = append(*h, n)
}

// Pop implements heap.Interface.
func (h *heaviest) Pop() any {
	old := *h
	n := old[len(old)-1]
	n.index = -1
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return n
}
