// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn"
)

const (
	// flowEvery is how often a packet leaves in each direction: a thousand a second, some
	// of them at once where the machine was elsewhere.
	flowEvery = time.Millisecond
	// flowWindow is how many are on their way at most, which all buffers hold: on a
	// machine that is busy a packet waits, and none is lost but by who drains.
	flowWindow = 64
	// flowPart is how many go before the drain, and as many after the move.
	flowPart = 300
)

// flow is the numbered packets of one direction.
type flow struct {
	mu            sync.Mutex // guards the fields below
	sent, arrived uint32
	seen          map[uint32]bool
	twice         int
}

// next is the next packet, some time after the first; nil while none is due, or as many
// are on their way as may.
func (f *flow) next(passed time.Duration) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent-f.arrived >= flowWindow || time.Duration(f.sent)*flowEvery > passed {
		return nil
	}
	f.sent++
	return binary.BigEndian.AppendUint32(nil, f.sent-1)
}

// take notes a packet that has arrived. Those that are no numbers are others.
func (f *flow) take(b []byte) (number uint32, ok bool) {
	if len(b) != 4 {
		return 0, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if number = binary.BigEndian.Uint32(b); f.seen[number] {
		f.twice++
		return number, true
	}
	f.seen[number] = true
	f.arrived++
	return number, true
}

func (f *flow) counts() (sent, arrived uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent, f.arrived
}

func (f *flow) doubles() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.twice
}

// all reports whether the first n packets have arrived.
func (f *flow) all(n uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		if !f.seen[i] {
			return false
		}
	}
	return true
}

// roamer is a peer that sends to where the newest packet came from, as WireGuard does,
// and answers what is no number.
type roamer struct {
	*net.UDPConn
	up, down *flow
	to       atomic.Pointer[netip.AddrPort]
}

func (r *roamer) listen() {
	buf := make([]byte, 2048)
	for newest := uint32(0); ; {
		n, from, err := r.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		number, ok := r.up.take(buf[:n])
		switch {
		case !ok:
			_, _ = r.WriteToUDPAddrPort(buf[:n], from) // asked again
		case number >= newest:
			newest = number
			r.to.Store(&from)
		}
	}
}

// moves has numbered packets go both ways between a client and a peer.
type moves struct {
	testing.TB
	peer     *roamer
	at       netip.AddrPort // of the peer
	up, down flow
	now      atomic.Pointer[Allocation] // over which the client sends
	running  sync.WaitGroup
	stop     chan struct{}
	halt     func() // closes stop
}

func newMoves(t testing.TB) *moves {
	m := &moves{TB: t, up: flow{seen: map[uint32]bool{}}, down: flow{seen: map[uint32]bool{}}, stop: make(chan struct{})}
	m.halt = sync.OnceFunc(func() { close(m.stop) })
	socket, at := listenUDP(t, loopback)
	m.at, m.peer = at, &roamer{UDPConn: socket, up: &m.up, down: &m.down}
	m.running.Go(m.peer.listen)
	m.pace(&m.down, func() bool { return m.peer.to.Load() != nil }, func(b []byte) error {
		_, err := socket.WriteToUDPAddrPort(b, *m.peer.to.Load())
		return err
	})
	m.pace(&m.up, func() bool { return m.now.Load() != nil }, func(b []byte) error { return m.now.Load().WriteTo(b, at) })
	t.Cleanup(func() { m.halt(); socket.Close(); m.running.Wait() })
	return m
}

// pace sends the packets of a flow once there is somewhere to send them.
func (m *moves) pace(f *flow, ready func() bool, send func([]byte) error) {
	m.running.Go(func() {
		tick := time.NewTicker(flowEvery)
		defer tick.Stop()
		for began := time.Now(); ; {
			select {
			case <-m.stop:
				return
			case <-tick.C:
			}
			if !ready() {
				began = time.Now()
				continue
			}
			for b := f.next(time.Since(began)); b != nil; b = f.next(time.Since(began)) {
				if err := send(b); err != nil {
					m.Error(err)
					return
				}
			}
		}
	})
}

// reach has a permission stand for the peer, as a check of the way does: it waits for
// the permission, and its answer says that packets go both ways. From then on it
// reads what comes, and returns how many packets with numbers that are.
func (m *moves) reach(a *Allocation) *atomic.Int32 {
	m.Helper()
	numbers, others := new(atomic.Int32), new(atomic.Int32)
	m.running.Go(func() {
		buf, sizes, from := make([]byte, MaxPacket), make([]int, 1), make([]netip.AddrPort, 1)
		for {
			if _, err := a.ReadBatch([][]byte{buf}, sizes, from); err != nil {
				return // it was closed
			}
			if _, ok := m.down.take(buf[:sizes[0]]); ok {
				numbers.Add(1)
			} else {
				others.Add(1)
			}
		}
	})
	if err := a.WriteTo([]byte("do you hear me?"), m.at); err != nil {
		m.Fatal(err)
	}
	eventually(m, "the peer answers", func() bool { return others.Load() > 0 })
	return numbers
}

// more waits for so many more packets of both directions.
func (m *moves) more(what string, n uint32) {
	m.Helper()
	_, up := m.up.counts()
	_, down := m.down.counts()
	eventually(m, what, func() bool {
		_, nowUp := m.up.counts()
		_, nowDown := m.down.counts()
		return nowUp >= up+n && nowDown >= down+n
	})
}

// A client that follows a server which drains loses nothing, in neither direction, of
// a thousand packets a second: it hears of the drain, has another allocation with a
// permission at the server where it was sent to, goes over, and lets go of the first
// one when nothing comes there any more.
func TestAllocation_FollowsADrainWithoutLoss(t *testing.T) {
	for _, transport := range transports() {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			first, second := startServer(t, nil), startServer(t, nil)
			second.tls.RootCAs.AddCert(first.certificate)
			cfg := first.config(transport, "mover")
			cfg.TLS = second.tls
			m := newMoves(t)
			a := mustAllocate(t, cfg)
			m.reach(a)
			m.now.Store(a)
			began := time.Now()
			m.more("packets go both ways", flowPart)
			if isClosed(a.Draining()) {
				t.Error("the server drains from the beginning")
			}
			first.Drain(alternatesAt(second))
			select {
			case <-a.Draining():
			case <-time.After(patience):
				t.Fatal("the client does not hear of the drain")
			}
			b := mustAllocate(t, cfg)
			if one, other := len(first.Allocations()), len(second.Allocations()); one != 1 || other != 1 {
				t.Fatalf("%d allocations at the server that drains and %d at the other one", one, other)
			}
			numbers := m.reach(b)
			m.now.Store(b)
			eventually(t, "the peer sends by way of the other server", func() bool { return numbers.Load() > 0 })
			up, _ := m.up.counts()
			down, _ := m.down.counts()
			eventually(t, "what was on its way arrives", func() bool { return m.up.all(up) && m.down.all(down) })
			a.Close()
			m.more("packets go both ways after it", flowPart)
			took := time.Since(began)
			m.halt()
			for what, f := range map[string]*flow{"up": &m.up, "down": &m.down} {
				eventually(t, "all packets arrive "+what, func() bool { sent, arrived := f.counts(); return sent == arrived })
				sent, arrived := f.counts()
				if twice := f.doubles(); twice != 0 {
					t.Errorf("%s: %d packets came twice", what, twice)
				}
				t.Logf("%s: %d of %d packets arrived, %.0f a second", what, arrived, sent, float64(arrived)/took.Seconds())
			}
			if got := [2]Stats{a.Stats(), b.Stats()}; got != [2]Stats{} {
				t.Errorf("lost: %+v", got)
			}
			if channel := func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.core.peers[m.at].hasChannel(time.Now()) }; !channel() {
				t.Error("the channel has not moved")
			}
			eventually(t, "the server that drains is empty", func() bool { return len(first.Allocations()) == 0 })
			b.Close()
		})
	}
}

// alternatesAt are all the places of a server.
func alternatesAt(s *testServer) []turn.Alternate {
	return []turn.Alternate{
		{Addr: s.at[UDP]},
		{Addr: s.at[TCP], Stream: true},
		{Addr: s.at[TLS], Stream: true, Secure: true, Domain: "localhost"},
	}
}
