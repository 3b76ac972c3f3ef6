// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

func TestNew_SaysWhatIsWrong(t *testing.T) {
	for want, cfg := range map[string]Config{
		"Shards is 0":           {},
		"Shards is 257":         {Shards: 257},
		"Limits.QueuedBytes is": {Shards: 1, Limits: Limits{QueuedBytes: 1000}},
		"Limits.QueuedTotal is": {Shards: 1, Limits: Limits{QueuedTotal: 1 << 20}},
		"Limits is negative":    {Shards: 1, Limits: Limits{Peers: -1}},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	s, err := New(Config{Shards: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Attach(&fakeShard{}); err == nil {
		t.Error("one shard is attached for two")
	}
}

func TestReasons_HaveNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range NumReasons {
		if seen[r.String()] {
			t.Errorf("%s twice", r)
		}
		seen[r.String()] = true
	}
}

// TestPlaces_AgainstAModel compares with a list of who is there.
func TestPlaces_AgainstAModel(t *testing.T) {
	type guest struct {
		place
		addr  netip.Addr
		holds bool
	}
	r := rand.New(rand.NewPCG(1, 2))
	s := places{total: 8, perSource: 3, bySource: map[netip.Addr]int{}}
	var in []*guest // strangers among them: the one that has been one for longest first
	count := func(addr netip.Addr) (n int) {
		for _, g := range in {
			if g.addr == addr {
				n++
			}
		}
		return n
	}
	remove := func(i int) { in = append(in[:i:i], in[i+1:]...) }
	for step := range 20000 {
		switch i := r.IntN(3); {
		case i == 0 || len(in) == 0:
			g := &guest{addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(5))})}
			g.owner = &closerOf{guest: g}
			oldest := -1
			for i, v := range in {
				if !v.holds {
					oldest = i
					break
				}
			}
			wantOK := count(g.addr) < 3 && (len(in) < 8 || oldest >= 0)
			displaced, ok := s.enter(&g.place, g.addr)
			if ok != wantOK {
				t.Fatalf("step %d: entered %v, want %v", step, ok, wantOK)
			}
			if ok && len(in) == 8 {
				if displaced == nil || displaced.(*closerOf).guest != any(in[oldest]) {
					t.Fatalf("step %d: the wrong one is displaced", step)
				}
				s.leave(&in[oldest].place) // which it does once it has ended, and no more counts
				remove(oldest)
			} else if displaced != nil {
				t.Fatalf("step %d: somebody is displaced from %d of 8 places", step, len(in))
			}
			if ok {
				in = append(in, g)
			}
		case i == 1:
			at := r.IntN(len(in))
			g := in[at]
			was := g.holds
			g.holds = r.IntN(2) == 0
			s.settle(&g.place, g.holds)
			if was && !g.holds {
				remove(at)
				in = append(in, g)
			}
		default:
			at := r.IntN(len(in))
			s.leave(&in[at].place)
			remove(at)
		}
		if s.used() != len(in) {
			t.Fatalf("step %d: %d places are used, want %d", step, s.used(), len(in))
		}
	}
	for _, g := range in {
		s.leave(&g.place)
	}
	if s.used() != 0 || len(s.bySource) != 0 || s.strangers.Len() != 0 {
		t.Errorf("left: %d, %v, %d", s.used(), s.bySource, s.strangers.Len())
	}
}

type closerOf struct{ guest any }

func (*closerOf) end() {}

func TestSourceOf(t *testing.T) {
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:1")
	if sourceOf(a) != sourceOf(b) || sourceOf(a) == sourceOf(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("a /64 is one source, and another is another")
	}
}

func TestServe_BoundsConnectionsOfASource(t *testing.T) {
	s := newServer(t, func(cfg *Config) { cfg.Limits.ConnectionsPerSource = 2 })
	newShards(t, s, 1, nil)
	addr := serve(t, s, listen(t))
	first, second := dial(t, addr), dial(t, addr)
	first.binding()
	second.binding()
	dial(t, addr).gone()
	if n := s.Stats().Ended[Crowded]; n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
	first.Close()
	eventually(t, "a place is free", func() bool { return s.Stats().Connections == 1 })
	dial(t, addr).binding()
}

// Thousands who only connect take no more than the places there are, and keep
// nobody out: not who has an allocation, nor who comes for one.
func TestServe_FloodOfConnectionsKeepsNobodyOut(t *testing.T) {
	const places = 50
	s := newServer(t, func(cfg *Config) { cfg.Limits.Connections, cfg.Limits.ConnectionsPerSource = places, 1<<20 })
	f := newShards(t, s, 1, nil)[0]
	addr := serve(t, s, listen(t))
	settled := dial(t, addr).channel()
	const flood = 2000
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for i := range flood {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		if i%100 == 0 {
			if n := s.Stats().Connections; n > places {
				t.Fatalf("%d connections, at most %d", n, places)
			}
		}
	}
	newcomer := dial(t, addr).channel()
	settled.binding()
	newcomer.binding()
	eventually(t, "all others have gone", func() bool { return s.Stats().Ended[Displaced] == flood+2-places })
	if n := f.allocations(t); n != 2 {
		t.Errorf("%d allocations, want 2", n)
	}
}

// A client that reads slowly loses data and nothing else: what it gets is whole.
func TestServe_SlowReaderLosesData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		f := newShards(t, s, 1, nil)[0]
		p := newPipes()
		serve(t, s, p)
		c, _ := p.dial(t)
		c.channel()
		const packets, size = 1000, 1200
		for i := range packets {
			f.fromPeer(t, somebody, bytes.Repeat([]byte{byte(i)}, size))
		}
		synctest.Wait()
		v := s.Stats()
		if limit := s.cfg.Limits.QueuedBytes; v.Queued > limit || v.Queued < limit/2 || v.Ended[Lagging] == 0 {
			t.Fatalf("%+v, want a full queue of %d", v, limit)
		}
		// Answers still find room, more than one packet would take.
		m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
		sent := make(chan struct{})
		go func() { defer close(sent); c.Write(bytes.Repeat(m.Raw, 50)) }()
		synctest.Wait()
		f.fromPeer(t, somebody, make([]byte, size)) // and data does not take it from them
		got, last := 0, byte(0)
		for {
			b := c.frame()
			if b[0] < 0x40 {
				if res := (&stun.Message{Raw: b}); res.Decode() != nil || res.TransactionID != m.TransactionID {
					t.Errorf("got %x", b)
				}
				break
			}
			if want := channelData(bytes.Repeat([]byte{last}, size)); !bytes.Equal(b, want) {
				t.Fatalf("packet %d is not whole, or not the next", got)
			}
			got, last = got+1, last+1
		}
		<-sent
		for range 49 {
			if b := c.frame(); b[0] >= 0x40 {
				t.Error("data stands among the answers")
			}
		}
		if want := packets - int(v.Ended[Lagging]); got != want {
			t.Errorf("%d packets arrived, want %d", got, want)
		}
		synctest.Wait()
		if n := s.Stats().Queued; n != 0 {
			t.Errorf("%d bytes are still queued", n)
		}
	})
}

// All clients together have a bound, too.
func TestServe_BoundsAllQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, func(cfg *Config) { cfg.Limits.Connections, cfg.Limits.QueuedTotal = 4, 4*10000/3 })
		f := newShards(t, s, 1, nil)[0]
		p := newPipes()
		serve(t, s, p)
		c, _ := p.dial(t)
		c.channel()
		for range 20 {
			f.fromPeer(t, somebody, make([]byte, 1000))
		}
		synctest.Wait()
		if v := s.Stats(); v.Queued > 10000 || v.Ended[Lagging] != 11 {
			t.Errorf("%+v", v)
		}
		c.Close()
		synctest.Wait()
		if n := s.Stats().Queued; n != 0 {
			t.Errorf("%d bytes are queued for a client that has gone", n)
		}
	})
}

// Clients with an allocation that ask and do not read take no more than all may, and
// no answers from others.
func TestServe_BoundsAnswersToAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, total = 8, 256 << 10
		s := newServer(t, func(cfg *Config) { cfg.Limits.Connections, cfg.Limits.QueuedTotal = 2*clients, total })
		f := newShards(t, s, 1, nil)[0]
		p := newPipes()
		serve(t, s, p)
		honest, _ := p.dial(t)
		honest.channel()
		var open []*client
		for range clients {
			c, _ := p.dial(t)
			open = append(open, c.channel())
		}
		flood := bytes.Repeat(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw, 100)
		peak := 0
		for range 100 {
			for _, c := range open {
				go c.Write(flood) // fails once it is ended
			}
			synctest.Wait()
			peak = max(peak, s.Stats().Queued)
			honest.binding()
		}
		if peak > total || peak < total/2 {
			t.Errorf("up to %d bytes wait, want no more than %d and about as many", peak, total)
		}
		if n := s.Stats().Ended[Stuck]; n == 0 || f.allocations(t) == 0 {
			t.Errorf("%d clients were ended, %d are left", n, f.allocations(t))
		}
	})
}

// A client that takes no answers at all is ended: after a while, or at once when
// no more of them fit.
func TestServe_EndsWhoDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		f := newShards(t, s, 1, nil)[0]
		p := newPipes()
		serve(t, s, p)
		c, _ := p.dial(t)
		c.channel()
		start := time.Now()
		f.fromPeer(t, somebody, make([]byte, 1000))
		for f.allocations(t) > 0 {
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took > writeTimeout+time.Second || s.Stats().Ended[Stuck] != 1 {
			t.Errorf("ended after %s: %+v", took, s.Stats())
		}
		asker, _ := p.dial(t)
		asker.channel()
		m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
		start = time.Now()
		for range 1 << 20 {
			if _, err := asker.Write(bytes.Repeat(m.Raw, 100)); err != nil {
				break
			}
		}
		synctest.Wait()
		if v := s.Stats(); time.Since(start) != 0 || v.Ended[Stuck] != 2 || v.Queued != 0 {
			t.Errorf("after %s: %+v", time.Since(start), v)
		}
	})
}

// Whoever has closed all of a connection looks as if it had closed half of it. Who
// is heard goes on.
func TestRelay_HalfOpenEndsInTime(t *testing.T) {
	for _, heard := range []int{0, 3} {
		synctest.Test(t, func(t *testing.T) {
			peers := newPipes()
			s := newServer(t, func(cfg *Config) {
				cfg.OpenTCP = func(core.Action) (net.Listener, netip.AddrPort, error) {
					return peers, netip.MustParseAddrPort("203.0.113.1:50001"), nil
				}
			})
			f := newShards(t, s, 1, nil)[0]
			p := newPipes()
			serve(t, s, p)
			control, _ := p.dial(t)
			control.allocate(6)
			control.must(stun.MethodCreatePermission, peerAt(netip.MustParseAddrPort("192.0.2.8:0")))
			peer, end := twoWay()
			defer peer.Close()
			go func() { peers.conns <- end }()
			attempt := control.message()
			ours, theirs := twoWay()
			p.conns <- theirs
			data := newClient(t, ours)
			data.must(stun.MethodConnectionBind, connectionID(t, attempt))
			data.SetReadDeadline(time.Time{})
			go io.Copy(io.Discard, data)
			go io.Copy(io.Discard, peer)
			time.Sleep(halfTimeout + time.Minute) // both halves are open: silence has no end
			control.must(stun.MethodRefresh)
			peer.CloseWrite()
			start := time.Now()
			for range heard {
				time.Sleep(halfTimeout - time.Second)
				control.must(stun.MethodRefresh)
				data.send([]byte("x"))
			}
			for s.Stats().Peers > 0 {
				time.Sleep(time.Second)
			}
			want := time.Duration(heard)*(halfTimeout-time.Second) + halfTimeout
			if took := time.Since(start); took < want || took > want+2*time.Second {
				t.Errorf("ended after %s, want %s", took, want)
			}
			if f.allocations(t) != 1 {
				t.Error("the allocation has ended with its connection")
			}
		})
	}
}

// twoWay is a pipe whose directions end one by one.
func twoWay() (a, b *duplex) {
	ar, bw := net.Pipe()
	br, aw := net.Pipe()
	return &duplex{pipeEnd: &pipeEnd{Conn: ar}, w: aw}, &duplex{pipeEnd: &pipeEnd{Conn: br}, w: bw}
}

type duplex struct {
	*pipeEnd
	w net.Conn
}

func (d *duplex) Write(b []byte) (int, error) { return d.w.Write(b) }
func (d *duplex) CloseWrite() error           { return d.w.Close() }
func (d *duplex) Close() error                { d.w.Close(); return d.pipeEnd.Close() }
func (d *duplex) SetWriteDeadline(t time.Time) error {
	return d.w.SetWriteDeadline(t)
}
func (d *duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.w.SetWriteDeadline(t), d.pipeEnd.SetReadDeadline(t))
}

// An error of Accept is waited out.
func TestServe_GoesOnAfterErrorsOfTheListener(t *testing.T) {
	s := newServer(t, nil)
	newShards(t, s, 1, nil)
	dial(t, serve(t, s, &failing{Listener: listen(t), failures: 3})).binding()
}

func TestServe_ListenerThatSomebodyElseCloses(t *testing.T) {
	s := newServer(t, nil)
	newShards(t, s, 1, nil)
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l, 0) }()
	dial(t, l.Addr().String()).binding()
	l.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	s.Close()
	l = listen(t)
	if err := s.Serve(l, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve after close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}

// Close ends whatever goes on, whether shards have ended before or not; goleak
// sees what is left.
func TestClose_InTheMiddle(t *testing.T) {
	for _, shardFirst := range []bool{false, true} {
		s := newServer(t, func(cfg *Config) { cfg.Shards = 2 })
		shards := newShards(t, s, 2, nil)
		ways := []func() *client{dials()["tcp"](t, s), dials()["tls"](t, s)}
		peer := listen(t)
		var running sync.WaitGroup
		running.Go(func() {
			for {
				c, err := peer.Accept()
				if err != nil {
					return
				}
				running.Go(func() { io.Copy(c, c); c.Close() })
			}
		})
		var senders []*client
		for i := range 8 {
			c := ways[i%2]()
			if i < 4 {
				senders = append(senders, c.channel())
				continue
			}
			c.allocate(6)
			res := c.must(stun.MethodConnect, peerAt(peer.Addr().(*net.TCPAddr).AddrPort()))
			data := ways[i%2]()
			data.must(stun.MethodConnectionBind, connectionID(t, res))
			senders = append(senders, data)
			if i < 6 { // the others read nothing of what comes back
				running.Go(func() { io.Copy(io.Discard, data) })
			}
		}
		var sent atomic.Int64
		for _, f := range shards {
			f.mute()
		}
		for _, c := range senders {
			running.Go(func() {
				for _, err := c.Write(channelData(pattern(9000))); err == nil; _, err = c.Write(channelData(pattern(9000))) {
					sent.Add(1)
				}
			})
		}
		eventually(t, "much is on its way", func() bool { return sent.Load() > 200 })
		for i := range shards {
			if shardFirst {
				shards[i].end()
			}
		}
		closed := make(chan struct{})
		go func() { s.Close(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(patience):
			t.Fatal("Close does not return")
		}
		if v := s.Stats(); v.Connections+v.Peers+v.Relays+v.Queued != 0 {
			t.Errorf("left: %+v", v)
		}
		peer.Close()
		running.Wait()
	}
}

// Nobody waits for a client that does not read: not with the last word of TLS either.
func TestClose_WaitsForNoLastWord(t *testing.T) {
	own := cert(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		newShards(t, s, 1, nil)
		p := newPipes()
		serve(t, s, tls.NewListener(p, &tls.Config{Certificates: []tls.Certificate{own}}))
		ours, theirs := net.Pipe()
		p.conns <- &pipeEnd{Conn: theirs}
		newClient(t, tls.Client(ours, &tls.Config{InsecureSkipVerify: true})).channel()
		synctest.Wait()
		start := time.Now()
		s.Close()
		if took := time.Since(start); took != 0 {
			t.Errorf("the server closes after %s", took)
		}
	})
}
