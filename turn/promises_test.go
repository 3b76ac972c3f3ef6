// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// A right that ends by the clock ends without a word: verdicts do not last, and
// neither does what is remembered of users who hold nothing.
func TestServer_LooksAgainByItself(t *testing.T) {
	_, addr := listenAt(t, "127.0.0.2:0")
	var allowed atomic.Bool
	s := newServer(t, func(c *Config) {
		c.AllowPeer = func(string, netip.AddrPort) bool { return allowed.Load() }
	})
	allowed.Store(true)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(addr))
	known := func() int {
		s.rates.mu.Lock()
		defer s.rates.mu.Unlock()
		return len(s.rates.users)
	}
	for i, right := range []bool{true, false} {
		allowed.Store(right)
		s.keepFresh()
		before := s.dropped(core.DropForbidden)
		c.send([]byte("\x40\x00\x00\x01x"))
		c.binding()
		if refused := s.dropped(core.DropForbidden) > before; refused == right || known() != 1 {
			t.Errorf("%d: refused %t, %d rates", i, refused, known())
		}
	}
	c.request(stun.MethodRefresh, lifetimeSeconds(0))
	if s.keepFresh(); known() != 0 {
		t.Errorf("%d rates of nobody", known())
	}
}

// Who came by TCP reads the end of the connection when the allocation is closed.
func TestServer_ClosesConnectionsOfWhatItEnds(t *testing.T) {
	for name, end := range map[string]func(s *testServer) bool{
		"closed":  func(s *testServer) bool { return s.CloseAllocation(s.Allocations()[0].ID) },
		"evicted": func(s *testServer) bool { return s.Evict("u") == 1 },
	} {
		s := newServer(t, func(*Config) {})
		c := dialTCP(t, s, s.secrets.Mint("u", time.Minute))
		c.allocate()
		if !end(s) {
			t.Errorf("%s: there was none", name)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v, want the end", name, err)
		}
		if last := s.totals(); last.core.Ended != 1 {
			t.Errorf("%s: %d ended", name, last.core.Ended)
		}
		s.Close()
		if last := s.totals(); last.core.Ended != 1 || last.core.Allocated != 1 {
			t.Errorf("%s: counted %+v at last", name, last.core)
		}
	}
}

// Limits that are set reach what answers strangers, and the threads.
func TestServer_SetLimitsEverywhere(t *testing.T) {
	s := newServer(t, func(*Config) {})
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	if err := s.SetLimits(Limits{AnswersPerSecond: 1, Lifetime: 20 * time.Second, MaxLifetime: 20 * time.Second}); err != nil {
		t.Fatal(err)
	}
	v, err := c.request(stun.MethodRefresh).Get(stun.AttrLifetime)
	if err != nil || string(v) != "\x00\x00\x00\x14" {
		t.Errorf("a lifetime of %x (%v), want 20 seconds", v, err)
	}
	answers, stranger := s.answers.Load(), netip.MustParseAddr("192.0.2.7")
	taken := 0
	for range 6 {
		if answers.Take(stranger) {
			taken++
		}
	}
	if taken == 6 {
		t.Error("strangers get more than a burst of three and one a second")
	}
}

// fakeSocket counts those that are open.
type fakeSocket struct{ open *int }

func (s fakeSocket) Close() error { *s.open--; return nil }

// Whatever ports others have, nothing is left open but what is returned, and the
// thread that looks for one gives up in time.
func TestOpenRelay_LeavesNothingOpen(t *testing.T) {
	secrets, err := NewSecrets(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		a     core.Action
		low   uint16
		high  uint16
		taken func(port uint16) bool
		open  int // of the sockets
	}{
		"one":                       {low: 4000, high: 4001, open: 1},
		"two":                       {a: core.Action{Second: 7}, low: 4000, high: 4003, open: 2},
		"even, by the kernel":       {a: core.Action{Even: true}, open: 1},
		"no neighbour is free":      {a: core.Action{Second: 7}, low: 4000, high: 4003, taken: func(p uint16) bool { return p%2 == 1 }},
		"one neighbour is":          {a: core.Action{Second: 7}, low: 4000, high: 4003, taken: func(p uint16) bool { return p == 4001 }, open: 2},
		"others have a whole range": {low: 1, high: 65535, taken: func(uint16) bool { return true }},
	} {
		rs := newRelays(Relay{Public: loopback, MinPort: tt.low, MaxPort: tt.high}, secrets)
		tt.a.Family = core.IPv4
		open, tries, next := 0, 0, uint16(5001)
		_, _, addr, err := openRelay(rs, tt.a, func(at netip.AddrPort) (fakeSocket, uint16, error) {
			tries++
			port := at.Port()
			if port == 0 {
				port, next = next, next+1
			}
			if tt.taken != nil && tt.taken(port) {
				return fakeSocket{}, 0, net.ErrClosed
			}
			open++
			return fakeSocket{&open}, port, nil
		})
		if open != tt.open || (err == nil) != (tt.open > 0) || tries > 2*maxTries {
			t.Errorf("%s: %d are open after %d tries, want %d (%v)", name, open, tries, tt.open, err)
		}
		if counted := int(rs.sides[0].open[0][addr.Port()].Load() + rs.sides[0].open[0][addr.Port()+1].Load()); counted != tt.open {
			t.Errorf("%s: %d ports are counted", name, counted)
		}
	}
}
