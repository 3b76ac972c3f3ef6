// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package netlab_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

// punch sends to the address at which another socket was seen, answers to where
// it hears from, sends there from then on, and reports whether an answer came.
func punch(c *net.UDPConn, to netip.AddrPort, within time.Duration) bool {
	b := make([]byte, 8)
	answered := false
	for end := time.Now().Add(within); time.Now().Before(end); {
		_, _ = c.WriteToUDPAddrPort([]byte("hello"), to)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				continue // what ICMP told
			}
			if string(b[:n]) == "hello" {
				_, _ = c.WriteToUDPAddrPort([]byte("answer"), from)
				to = from
				continue
			}
			// The other one may still need answers of ours: half the time is left for that.
			if !answered {
				answered, end = true, time.Now().Add(within/2)
			}
		}
	}
	return answered
}

// meet tries to connect two sides over one IP version.
func meet(addrs [2]netip.Addr, sides [2]*netlab.Side, m *mirror) (bool, error) {
	var socks [2]*net.UDPConn
	var seen [2]netip.AddrPort
	for i := range 2 {
		if !addrs[i].IsValid() {
			return false, nil
		}
		var err error
		if socks[i], err = open(sides[i], netip.AddrPortFrom(addrs[i], 0)); err != nil {
			return false, err
		}
		defer socks[i].Close()
		if seen[i], err = ask(socks[i], m.first, 2*quiet); err != nil {
			return false, nil
		}
	}
	other := make(chan bool, 1)
	go func() { other <- punch(socks[1], seen[0], time.Second) }()
	one := punch(socks[0], seen[1], time.Second)
	return <-other && one, nil
}

// The theory of who can reach whom directly is what happens: 66 pairs, all at
// the same time.
func TestDirect_IsWhatHappens(t *testing.T) {
	lab := netlab.New(t)
	server := lab.Server("mirror")
	four, six := newMirror(t, server, server.Addr4()), newMirror(t, server, server.Addr6())
	var lefts, rights []*netlab.Side
	for _, kind := range netlab.Kinds() {
		lefts = append(lefts, lab.Side(kind.String()+"-1", kind))
		rights = append(rights, lab.Side(kind.String()+"-2", kind))
	}
	var wg sync.WaitGroup
	pairs, direct := 0, 0
	for i, a := range lefts {
		for _, b := range rights[i:] {
			want := netlab.Direct(a.Kind(), b.Kind())
			pairs++
			if want {
				direct++
			}
			if netlab.Direct(b.Kind(), a.Kind()) != want {
				t.Errorf("%s and %s: the theory depends on who is asked first", a.Kind(), b.Kind())
			}
			wg.Go(func() {
				sides := [2]*netlab.Side{a, b}
				got4, err4 := meet([2]netip.Addr{a.Addr4(), b.Addr4()}, sides, four)
				got6, err6 := meet([2]netip.Addr{a.Addr6(), b.Addr6()}, sides, six)
				if err := errors.Join(err4, err6); err != nil || (got4 || got6) != want {
					t.Errorf("%s and %s: IPv4 %v, IPv6 %v; in theory %v: %v", a.Kind(), b.Kind(), got4, got6, want, err)
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d pairs, %d of them direct", pairs, direct)
	if pairs != 66 {
		t.Errorf("%d pairs, want 66", pairs)
	}
}
