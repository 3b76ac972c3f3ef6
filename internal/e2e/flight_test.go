// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

// flightRate is how many numbered packets a flight sends each millisecond.
const flightRate = 2

// flight sends numbered UDP packets from one node to another all the time.
type flight struct {
	sent  uint64
	mu    sync.Mutex // guards came and twice
	came  map[uint64]bool
	twice int
}

// fly runs a flight while something happens. What is on its way at the end may
// arrive.
func fly(t testing.TB, from, to *labNode, happen func()) *flight {
	t.Helper()
	at := netip.AddrPortFrom(to.addr, streamPort)
	var in *net.UDPConn
	var out net.Conn
	must(t, to.side.Run(func() (err error) {
		in, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}))
	must(t, from.side.Run(func() (err error) { out, err = net.Dial("udp4", at.String()); return err }))
	_ = in.SetReadBuffer(4 << 20)
	f := &flight{came: make(map[uint64]bool)}
	var running sync.WaitGroup
	running.Go(func() { f.land(in) })
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		f.depart(t, out, ended)
	}()
	happen()
	close(ended)
	<-over
	// Nothing is on its way in a lab for longer than this.
	must(t, in.SetReadDeadline(time.Now().Add(time.Second)))
	running.Wait()
	_, _ = out.Close(), in.Close()
	return f
}

// depart sends until ended. A tick that was late sends what was missed.
func (f *flight) depart(t testing.TB, c net.Conn, ended <-chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	b := make([]byte, recordSize)
	began := time.Now()
	for {
		select {
		case <-ended:
			return
		case now := <-tick.C:
			for due := uint64(now.Sub(began)/time.Millisecond) * flightRate; f.sent < due; f.sent++ {
				binary.BigEndian.PutUint64(b, f.sent)
				if _, err := c.Write(b); err != nil {
					t.Errorf("packet %d: %v", f.sent, err)
					return
				}
			}
		}
	}
}

// land counts what arrives until the deadline of c.
func (f *flight) land(c *net.UDPConn) {
	b := make([]byte, 2*recordSize)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if n != recordSize {
			continue
		}
		f.mu.Lock()
		id := binary.BigEndian.Uint64(b)
		if f.came[id] {
			f.twice++
		}
		f.came[id] = true
		f.mu.Unlock()
	}
}

// lost are the runs of packets that did not arrive, by the first one.
func (f *flight) lost() (n int, runs [][2]uint64) {
	for id := range f.sent {
		switch last := len(runs) - 1; {
		case f.came[id]:
			continue
		case last >= 0 && runs[last][0]+runs[last][1] == id:
			runs[last][1]++
		default:
			runs = append(runs, [2]uint64{id, 1})
		}
		n++
	}
	return n, runs
}

// Packets that are in flight while others take another way arrive as well. From the
// gateway to the pair a few do not: WireGuard takes the packets of an address from
// one peer alone, and both ends change that on their own.
func TestLife_LittleIsLost(t *testing.T) {
	m := newLabMesh(t)
	a, b := m.node(t, "ada", netlab.PortRestricted), m.node(t, "bob", netlab.CGNAT)
	must(t, a.side.Part(b.side))
	for _, n := range []*labNode{a, b} {
		m.enter(t, n)
		must(t, n.ping(m.gate.addr, patience))
	}
	for _, c := range []struct {
		name   string
		most   int
		happen func()
	}{
		{"from the gateway to a pair", 100 * flightRate, func() { awaitSaid(t, "pair stands", a, b) }},
		{"from a relay to a direct way", 0, func() { must(t, a.side.Meet(b.side)); awaitDirect(t, a, b) }},
	} {
		f := fly(t, a, b, c.happen)
		lost, runs := f.lost()
		t.Logf("%-44s %d packets of %d are lost, in runs of %v; %d came twice", c.name, lost, f.sent, runs, f.twice)
		if lost > c.most {
			t.Errorf("%s: %d packets of %d are lost, want at most %d", c.name, lost, f.sent, c.most)
		}
	}
}
