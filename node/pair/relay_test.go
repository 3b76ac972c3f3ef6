// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// fakeRelay is a relay whose packets are those of its address.
type fakeRelay struct {
	n    *testNode
	at   netip.AddrPort
	done chan struct{}
	// draining is closed when its server says that it drains.
	draining chan struct{}
	once     sync.Once
	// gone says that the server does not know it, and mute since when it does not
	// answer. The lab guards them.
	gone bool
	mute time.Time
}

func (n *testNode) allocate(ctx context.Context, url, _, _ string) (Relay, error) {
	n.lab.mu.Lock()
	n.lab.relays++
	at := netip.AddrPortFrom(netip.MustParseAddr("10.0.9.9"), uint16(49152+n.lab.relays))
	n.lab.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(5 * time.Millisecond):
	}
	if url == "turn:nowhere" {
		return nil, errors.New("no answer")
	}
	r := &fakeRelay{n: n, at: at, done: make(chan struct{}), draining: make(chan struct{})}
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	n.lab.given = append(n.lab.given, r)
	return r, nil
}

// gone reports whether the server has lost a relay.
func (l *lab) gone(r *fakeRelay) bool { l.mu.Lock(); defer l.mu.Unlock(); return r.gone }

func (l *lab) silence(r *fakeRelay) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.mute.IsZero() {
		return 0
	}
	return time.Since(r.mute)
}

func (r *fakeRelay) Relayed() netip.AddrPort   { return r.at }
func (r *fakeRelay) SetCredential(_, _ string) {}
func (r *fakeRelay) Draining() <-chan struct{} { return r.draining }
func (r *fakeRelay) Done() <-chan struct{}     { return r.done }
func (r *fakeRelay) Check() {
	if r.n.lab.gone(r) {
		_ = r.Close()
	}
}
func (r *fakeRelay) Silent() time.Duration { return r.n.lab.silence(r) }
func (r *fakeRelay) Close() error          { r.once.Do(func() { close(r.done) }); return nil }
func (r *fakeRelay) ReadBatch([][]byte, []int, []netip.AddrPort) (int, error) {
	<-r.done
	return 0, net.ErrClosed
}
func (r *fakeRelay) WriteBatch([][]byte, netip.AddrPort) error { return nil }
