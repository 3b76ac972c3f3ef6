// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"container/list"
	"net/netip"
	"sync"
)

// places counts connections of clients, in total and by source. When all are
// taken, a new one displaces the oldest of those without an allocation: who holds
// many connections open does not keep others out. It is safe for concurrent use.
type places struct {
	total, perSource int

	mu        sync.Mutex // guards the fields below
	count     int
	bySource  map[netip.Addr]int
	strangers list.List // of *place, the oldest in front
}

// place is the place of one connection.
type place struct {
	owner  ender
	source netip.Addr
	held   bool
	among  *list.Element // of the strangers; nil: it has an allocation
}

// enter gives p a place, or says that there is none. displaced has lost its own
// and must be ended; it may be nil.
func (s *places) enter(p *place, client netip.Addr) (displaced ender, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.source = sourceOf(client)
	if s.bySource[p.source] >= s.perSource {
		return nil, false
	}
	if s.count >= s.total {
		oldest := s.strangers.Front()
		if oldest == nil {
			return nil, false
		}
		v := oldest.Value.(*place)
		s.leaveLocked(v)
		displaced = v.owner
	}
	s.count++
	s.bySource[p.source]++
	p.held, p.among = true, s.strangers.PushBack(p)
	return displaced, true
}

// settle notes whether the client of p has an allocation. One that has lost it
// is a new stranger.
func (s *places) settle(p *place, holds bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !p.held:
	case holds && p.among != nil:
		s.strangers.Remove(p.among)
		p.among = nil
	case !holds && p.among == nil:
		p.among = s.strangers.PushBack(p)
	}
}

// leave gives the place of p back, if it has one.
func (s *places) leave(p *place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked(p)
}

func (s *places) leaveLocked(p *place) {
	if !p.held {
		return
	}
	p.held = false
	if p.among != nil {
		s.strangers.Remove(p.among)
		p.among = nil
	}
	s.count--
	if s.bySource[p.source]--; s.bySource[p.source] == 0 {
		delete(s.bySource, p.source)
	}
}

func (s *places) used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// sourceOf returns what one machine can make up addresses from: a /64 counts as one source.
func sourceOf(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		p, _ := addr.Prefix(64) // 64 bits fit
		return p.Addr()
	}
	return addr
}
