// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// lookUpEach is how often names are looked up again.
	lookUpEach = 30 * time.Second
	// lookUpTimeout bounds one lookup.
	lookUpTimeout = 5 * time.Second
	// maxLookedUp is how many addresses of one name count.
	maxLookedUp = 16
)

// lookups knows the addresses that a list of "host:port" means, of names as of the
// last time that they were found. A nil one knows none. It is safe for concurrent
// use.
type lookups struct {
	// list may change from call to call. It does not block.
	list func() []string
	look func(ctx context.Context, name string) ([]netip.Addr, error)
	log  *slog.Logger

	mu    sync.Mutex // guards the fields below
	found map[string][]netip.Addr
	// lost are the names that were not found the last time, which the log was told.
	lost map[string]bool
}

// newLookups makes lookups of list; nil when it is. A nil look asks the resolver of
// the host.
func newLookups(list func() []string, look func(context.Context, string) ([]netip.Addr, error), log *slog.Logger) *lookups {
	if list == nil {
		return nil
	}
	if look == nil {
		look = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	return &lookups{list: list, look: look, log: log}
}

// addrs are the addresses of now. It does not block.
func (l *lookups) addrs() []netip.Addr {
	if l == nil {
		return nil
	}
	var list []netip.Addr
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.list() {
		if addr, ok := addrOf(at); ok {
			list = append(list, addr)
		} else if name, ok := nameOf(at); ok {
			list = append(list, l.found[name]...)
		}
	}
	return list
}

// names are those in the list.
func (l *lookups) names() []string {
	if l == nil {
		return nil
	}
	var list []string
	for _, at := range l.list() {
		if name, ok := nameOf(at); ok && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// run looks names up, again and again until ctx ends.
func (l *lookups) run(ctx context.Context) error {
	for {
		l.lookUp(ctx)
		if err := pause(ctx, lookUpEach); err != nil {
			return err
		}
	}
}

// lookUp looks each name up once. One that is not found keeps the addresses that it
// had: its gateway may be reached there still.
func (l *lookups) lookUp(ctx context.Context) {
	found, lost := map[string][]netip.Addr{}, map[string]bool{}
	for _, name := range l.names() {
		addrs, err := l.lookUpOne(ctx, name)
		if err == nil {
			found[name] = addrs
			continue
		}
		if ctx.Err() != nil {
			return
		}
		lost[name] = true
		l.mu.Lock()
		found[name] = l.found[name]
		told := l.lost[name]
		l.mu.Unlock()
		if !told {
			l.log.Warn("a gateway's name is not found: a route could take in the address behind it", "addr", name, "err", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found, l.lost = found, lost
}

func (l *lookups) lookUpOne(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	addrs, err := l.look(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(addrs) > maxLookedUp {
		addrs = addrs[:maxLookedUp]
	}
	list := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		list[i] = a.Unmap().WithZone("")
	}
	return list, nil
}

// nameOf returns the host of a "host:port" that is no address.
func nameOf(at string) (string, bool) {
	host, _, err := net.SplitHostPort(at)
	if err != nil || host == "" {
		return "", false
	}
	_, err = netip.ParseAddr(host)
	return host, err != nil
}
