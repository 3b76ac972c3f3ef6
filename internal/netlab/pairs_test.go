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

// puncher is one of two sockets that want to reach each other.
type puncher struct {
	c        *net.UDPConn
	to       netip.AddrPort // where the other one was seen
	answered chan struct{}  // closed when an answer came
}

// punch sends to the other one, answers to where it hears from, sends there from
// then on, and ends when both got an answer.
func (p *puncher) punch(other *puncher, within time.Duration) {
	b := make([]byte, 8)
	for end := time.Now().Add(within); time.Now().Before(end) && !(p.done() && other.done()); {
		_, _ = p.c.WriteToUDPAddrPort([]byte("hello"), p.to)
		_ = p.c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		for {
			n, from, err := p.c.ReadFromUDPAddrPort(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				continue // what ICMP told
			}
			if string(b[:n]) == "hello" {
				_, _ = p.c.WriteToUDPAddrPort([]byte("answer"), from)
				p.to = from
			} else if !p.done() {
				close(p.answered)
			}
		}
	}
}

func (p *puncher) done() bool {
	select {
	case <-p.answered:
		return true
	default:
		return false
	}
}

// meet tries to connect two sides over one IP version. What should be there
// only says how long it is worth to wait.
func meet(addrs [2]netip.Addr, sides [2]*netlab.Side, nats [2]netlab.NAT, m *mirror, direct bool) (bool, error) {
	var ends [2]*puncher
	var seen [2]netip.AddrPort
	for i := range 2 {
		if !addrs[i].IsValid() {
			return false, nil
		}
		c, err := open(sides[i], netip.AddrPortFrom(addrs[i], 0))
		if err != nil {
			return false, err
		}
		defer c.Close()
		if seen[i], err = ask(c, m.first, patience(nats[i])); err != nil {
			return false, nil
		}
		ends[i] = &puncher{c: c, answered: make(chan struct{})}
	}
	within := 500 * time.Millisecond
	if direct {
		within = late
	}
	ends[0].to, ends[1].to = seen[1], seen[0]
	var wg sync.WaitGroup
	wg.Go(func() { ends[0].punch(ends[1], within) })
	wg.Go(func() { ends[1].punch(ends[0], within) })
	wg.Wait()
	return ends[0].done() && ends[1].done(), nil
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
			pairs++
			if netlab.Direct(a.Kind(), b.Kind()) {
				direct++
			}
			for _, v := range []struct {
				addrs [2]netip.Addr
				nats  [2]netlab.NAT
				m     *mirror
			}{
				{[2]netip.Addr{a.Addr4(), b.Addr4()}, [2]netlab.NAT{a.Kind().IPv4(), b.Kind().IPv4()}, four},
				{[2]netip.Addr{a.Addr6(), b.Addr6()}, [2]netlab.NAT{a.Kind().IPv6(), b.Kind().IPv6()}, six},
			} {
				want := v.nats[0].Meets(v.nats[1])
				if v.nats[1].Meets(v.nats[0]) != want {
					t.Errorf("%v and %v: the theory depends on who is asked first", v.nats[0], v.nats[1])
				}
				wg.Go(func() {
					got, err := meet(v.addrs, [2]*netlab.Side{a, b}, v.nats, v.m, want)
					if err != nil || got != want {
						t.Errorf("%s %s and %s %s: direct is %v, in theory %v: %v", a.Kind(), v.addrs[0], b.Kind(), v.addrs[1], got, want, err)
					}
				})
			}
		}
	}
	wg.Wait()
	t.Logf("%d pairs, %d of them direct", pairs, direct)
	if pairs != 66 {
		t.Errorf("%d pairs, want 66", pairs)
	}
}
