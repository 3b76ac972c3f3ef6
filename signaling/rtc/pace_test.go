// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// checking is a peer that wants a check on each of its paths every 50 ms, as
// ICE does.
type checking struct {
	*checks
	paths []path
	sent  int
}

func newChecking(p *pacer, caller string, n int) *checking {
	c := &checking{checks: newChecks(p, caller, testPassword, func() {})}
	for i := range n {
		c.paths = append(c.paths, path{to: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 9)})
	}
	return c
}

func (c *checking) tick(now time.Time) {
	for _, on := range c.paths {
		if c.allow(on, now) {
			c.sent++
		}
	}
}

func TestChecks_OneFloodingCallerIsSlow(t *testing.T) {
	p := newPacer()
	now := time.Unix(1, 0)
	var peers []*checking
	for range 64 {
		peers = append(peers, newChecking(p, "mallory", MaxRemoteCandidates))
	}
	const seconds = 12
	for range seconds * 20 {
		for _, c := range peers {
			c.tick(now)
		}
		now = now.Add(50 * time.Millisecond)
	}
	total := 0
	for _, c := range peers {
		total += c.sent
	}
	if most := firstBurst + seconds*(callerFirstRate+callerCheckRate); total > most {
		t.Errorf("%d checks in %d s, at most %d", total, seconds, most)
	}
	if total < firstBurst {
		t.Errorf("only %d checks", total)
	}
}

func TestChecks_ManyCallersShareTheEngine(t *testing.T) {
	p := newPacer()
	now := time.Unix(1, 0)
	var peers []*checking
	for i := range 50 {
		peers = append(peers, newChecking(p, fmt.Sprint("caller-", i), 4))
	}
	step := func(seconds int) {
		for range seconds * 20 {
			for _, c := range peers {
				c.tick(now)
			}
			now = now.Add(50 * time.Millisecond)
		}
	}
	step(1) // the first checks
	for i, c := range peers {
		if c.sent < 4 {
			t.Errorf("peer %d: %d of its 4 first checks", i, c.sent)
		}
		c.sent = 0
	}
	step(10)
	total, least := 0, peers[0].sent
	for _, c := range peers {
		total, least = total+c.sent, min(least, c.sent)
	}
	if total > 10*checkRate {
		t.Errorf("%d checks in 10 s", total)
	}
	if fair := 10 * checkRate / 50; least < fair/2 {
		t.Errorf("one of the peers sent only %d checks, fair are %d", least, fair)
	}
}

// Beside a caller that floods, another still checks at once and often.
func TestChecks_FloodLeavesTheirShareToOthers(t *testing.T) {
	p := newPacer()
	now := time.Unix(1, 0)
	var flood []*checking
	for range 64 {
		flood = append(flood, newChecking(p, "mallory", MaxRemoteCandidates))
	}
	honest := newChecking(p, "alice", 3)
	for i := range 20 * 5 {
		for _, c := range flood {
			c.tick(now)
		}
		if i >= 20 {
			honest.tick(now)
		}
		if i == 20 && honest.sent != 3 {
			t.Fatalf("%d of 3 first checks went out at once", honest.sent)
		}
		now = now.Add(50 * time.Millisecond)
	}
	if honest.sent < 4*callerCheckRate*8/10 {
		t.Errorf("%d checks in 4 s", honest.sent)
	}
}

// Pairs take turns: the first ones of ICE's list do not take all.
func TestChecks_PathsOfAPeerTakeTurns(t *testing.T) {
	c := newChecks(newPacer(), "alice", testPassword, func() {})
	now := time.Unix(1, 0)
	sent := map[uint16]int{}
	for range 20 * 5 {
		for port := range uint16(12) {
			if c.allow(path{to: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), port)}, now) {
				sent[port]++
			}
		}
		now = now.Add(50 * time.Millisecond)
	}
	for port := range uint16(12) {
		if n := sent[port]; n < 18 || n > 26 { // 25 by the rate, on a grid of 50 ms
			t.Errorf("path %d: %d checks", port, n)
		}
	}
}

func TestChecks_ProvenAddressesAreFree(t *testing.T) {
	c := newChecks(newPacer(), "alice", testPassword, func() {})
	now, to := time.Unix(1, 0), netip.MustParseAddrPort("192.0.2.1:9")
	if !c.allow(path{to: to}, now) || c.allow(path{to: to}, now) {
		t.Fatal("the first check goes at once, the second waits")
	}
	request := sealedRequest(t, "alpha", testPassword)
	b, _ := parseBinding(request)
	if !c.verify(request, &b, to) {
		t.Fatal("not verified")
	}
	for range 1000 {
		if !c.allow(path{to: to}, now) {
			t.Fatal("a check to a proven address was held back")
		}
	}
	for i := range 2 * maxProven {
		c.verify(request, &b, netip.AddrPortFrom(to.Addr(), uint16(i)))
	}
	for i := range 2 * maxTried {
		c.allow(path{socket: i, to: netip.MustParseAddrPort("192.0.2.2:9")}, now.Add(time.Duration(i)*time.Second))
	}
	if len(c.proven) > maxProven || len(c.tried) > maxTried {
		t.Fatalf("%d proven, %d tried", len(c.proven), len(c.tried))
	}
}

// Who hangs up and calls again has no new burst.
func TestChecks_CallerIsRemembered(t *testing.T) {
	p := newPacer()
	now := time.Unix(1, 0)
	sent := 0
	for range 100 { // ten calls a second
		c := newChecking(p, "mallory", MaxRemoteCandidates)
		c.tick(now)
		sent += c.sent
		c.finish()
		c.finish() // again
		now = now.Add(100 * time.Millisecond)
	}
	if most := firstBurst + 10*callerFirstRate + 1; sent > most {
		t.Errorf("%d checks in 10 s, at most %d", sent, most)
	}
	now = now.Add(2 * callerMemory)
	newChecking(p, "alice", 1).tick(now)
	if len(p.callers) != 1 {
		t.Errorf("%d callers are remembered", len(p.callers))
	}
}

// A few answers that name many addresses of a third party, over real sockets.
func TestEngine_ChecksAreNoFlood(t *testing.T) {
	e, _ := sharedSocket(t, Config{})
	own := newEngine(t, Config{}) // with a socket for each peer
	for name, e := range map[string]*Engine{"shared socket": e, "own sockets": own} {
		t.Run(name, func(t *testing.T) {
			var got atomic.Int64
			var lines []string
			for i := range MaxRemoteCandidates {
				host := fmt.Sprintf("127.0.0.%d", 2+i/MaxRemotePorts)
				c, err := net.ListenPacket("udp4", host+":0")
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					buf := make([]byte, 2048)
					for {
						if _, _, err := c.ReadFrom(buf); err != nil {
							return
						}
						got.Add(1)
					}
				}()
				t.Cleanup(func() { _ = c.Close(); <-done })
				lines = append(lines, fmt.Sprintf("candidate:1 1 udp 1 %s %d typ host", host, c.LocalAddr().(*net.UDPAddr).Port))
			}
			begin := time.Now()
			mallory := newEngine(t, Config{})
			for range 8 {
				p := newPeer(t, e)
				offer, err := p.Offer()
				if err != nil {
					t.Fatal(err)
				}
				answer, err := newPeer(t, mallory).Answer(offer)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.SetAnswer(answer); err != nil {
					t.Fatal(err)
				}
				for _, l := range lines {
					if err := p.AddCandidate(l); err != nil {
						t.Fatal(err)
					}
				}
			}
			until(t, "ICE wanted 3000 checks more", func() bool { return e.Drops().Paced > 3000 })
			most := firstBurst + time.Since(begin).Seconds()*(callerFirstRate+callerCheckRate) + 8
			if n := got.Load(); n == 0 || float64(n) > most {
				t.Errorf("%d packets in %s, at most %.0f", n, time.Since(begin), most)
			}
		})
	}
}
