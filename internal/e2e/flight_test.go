// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

const (
	// flightRate is how many numbered packets a flight sends each millisecond.
	flightRate = 2
	// flightMost is how many are under way at most: on a host that is busy with other
	// things a flight waits for those, in place of filling queues until they drop. What
	// has not come for flightLost does not come.
	flightMost = 100
	flightLost = time.Second
)

// flight sends numbered UDP packets from one node to another all the time.
type flight struct {
	sent  uint64
	mu    sync.Mutex // guards the fields below
	came  map[uint64]bool
	twice int
	// last is when something came last, and missed how many packets do not come.
	last   time.Time
	missed uint64
}

// fly runs a flight while something happens. What is on its way at the end may
// arrive.
func fly(t testing.TB, from, to *labNode, happen func(f *flight)) *flight {
	t.Helper()
	at := netip.AddrPortFrom(to.addr, streamPort)
	var in *net.UDPConn
	var out net.Conn
	must(t, to.side.Run(func() (err error) {
		in, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}))
	must(t, from.side.Run(func() (err error) { out, err = net.Dial("udp4", at.String()); return err }))
	must(t, patientSocket(in))
	for _, n := range []*labNode{from, to} {
		out, err := n.side.Exec(t.Context(), "ip", "link", "set", "dev", "meshgate0", "txqueuelen", "10000").CombinedOutput()
		if err != nil {
			t.Fatalf("lengthen the queue of %s: %v: %s", n.id, err, out)
		}
	}
	f := &flight{came: make(map[uint64]bool), last: time.Now()}
	var running sync.WaitGroup
	running.Go(func() { f.land(in) })
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		f.depart(t, out, ended)
	}()
	happen(f)
	close(ended)
	<-over
	// Nothing is on its way in a lab for longer than this.
	must(t, in.SetReadDeadline(time.Now().Add(time.Second)))
	running.Wait()
	_, _ = out.Close(), in.Close()
	return f
}

// patientSocket has a socket keep what comes while nobody reads, on a host that is
// busy with other things.
func patientSocket(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	failed := error(nil)
	err = raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 16<<20)
	})
	return errors.Join(err, failed)
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
			due := uint64(now.Sub(began)/time.Millisecond) * flightRate
			for due = min(due, f.sent+f.room(now)); f.sent < due; f.sent++ {
				binary.BigEndian.PutUint64(b, f.sent)
				if _, err := c.Write(b); err != nil {
					t.Errorf("packet %d: %v", f.sent, err)
					return
				}
			}
		}
	}
}

// room is how many packets may be sent.
func (f *flight) room(now time.Time) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	gone := min(uint64(len(f.came))+f.missed, f.sent) // what is late may come after all
	if now.Sub(f.last) > flightLost {
		f.missed += f.sent - gone
		gone, f.last = f.sent, now
	}
	return flightMost - min(f.sent-gone, flightMost)
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
		f.came[id], f.last = true, time.Now()
		f.mu.Unlock()
	}
}

// goOn waits until so many packets more have arrived of each flight.
func goOn(t testing.TB, packets int, flights ...*flight) {
	t.Helper()
	landed := func(f *flight) int { f.mu.Lock(); defer f.mu.Unlock(); return len(f.came) }
	for _, f := range flights {
		until := landed(f) + packets
		eventually(t, patience, func() (bool, string) {
			n := landed(f)
			return n >= until, fmt.Sprintf("%d packets have arrived, not %d", n, until)
		})
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

// Packets that are in flight while others take another way arrive as well: from the
// gateway to the pair, of which each end takes hold when it sees that it stands, and
// from one way of the pair to another. Nothing but what goes the way that has ended,
// until that is noticed, is lost on the way back.
func TestLife_NothingIsLost(t *testing.T) {
	m := newLabMesh(t)
	a, b := m.node(t, "ada", netlab.PortRestricted), m.node(t, "bob", netlab.CGNAT)
	must(t, a.side.Part(b.side))
	for _, n := range []*labNode{a, b} {
		m.enter(t, n)
		must(t, n.ping(m.gate.addr, patience))
	}
	awaitSaid(t, "gateway heard", a, b) // their ways to it are settled
	for _, c := range []struct {
		name   string
		happen func()
	}{
		{"from the gateway to a pair", func() { awaitSaid(t, "pair stands", a, b) }},
		{"from a relay to a direct way", func() { must(t, a.side.Meet(b.side)); awaitDirect(t, a, b) }},
	} {
		var back *flight
		there := fly(t, a, b, func(there *flight) {
			back = fly(t, b, a, func(back *flight) {
				c.happen()
				goOn(t, 1000*flightRate/2, there, back) // until the devices have been told, too
			})
		})
		for from, f := range map[string]*flight{"ada": there, "bob": back} {
			lost, runs := f.lost()
			t.Logf("%-30s from %s: %d packets of %d are lost, in runs of %v; %d came twice", c.name, from, lost, f.sent, runs, f.twice)
			if lost > 0 {
				t.Errorf("%s: from %s %d packets of %d are lost", c.name, from, lost, f.sent)
			}
		}
	}
}
