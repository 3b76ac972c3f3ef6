// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// hostAddrsAge is how old the list of the host's addresses may be.
const hostAddrsAge = 10 * time.Second

// hostAddrs are the addresses of this host's interfaces, for questions that are
// asked for every packet. The zero value is ready; it is safe for concurrent use.
type hostAddrs struct {
	reading sync.Mutex // held while the list is made anew
	last    atomic.Pointer[hostAddrList]
}

type hostAddrList struct {
	addrs []netip.Addr
	read  time.Time
}

// has reports whether an interface of this host has addr.
func (h *hostAddrs) has(addr netip.Addr) bool {
	l := h.last.Load()
	if l == nil {
		h.reading.Lock()
		l = h.readLocked()
		h.reading.Unlock()
	} else if time.Since(l.read) > hostAddrsAge && h.reading.TryLock() {
		l = h.readLocked()
		h.reading.Unlock()
	}
	return slices.Contains(l.addrs, addr.Unmap().WithZone(""))
}

// readLocked makes the list anew; what cannot be read stays as it was.
func (h *hostAddrs) readLocked() *hostAddrList {
	l := &hostAddrList{read: time.Now()}
	list, err := net.InterfaceAddrs()
	if before := h.last.Load(); err != nil && before != nil {
		l.addrs = before.addrs
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			l.addrs = append(l.addrs, p.Addr().Unmap().WithZone(""))
		}
	}
	h.last.Store(l)
	return l
}
