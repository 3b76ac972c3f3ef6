// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// Frames arrive whole and in order, however they are cut on the way; ChannelData
// may have no data at all, and its padding is none.
func TestServe_CutsFrames(t *testing.T) {
	send := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), peerAt(somebody),
		raw(stun.AttrData, []byte("indicated")...)).Raw
	for name, start := range dials() {
		for how, size := range map[string]int{"at_once": 1 << 20, "in_sevens": 7, "byte_by_byte": 1} {
			t.Run(name+"_"+how, func(t *testing.T) {
				lengths := []int{0, 1, 2, 3, 4, 1200, maxStrange - 4, maxStrange, 16<<10 - 4, 16 << 10, 65507, 3}
				if size < 1000 {
					lengths = []int{0, 1, 2, 3, 4, 3000, 0} // each piece is a packet, or a record
				}
				want, all := [][]byte{[]byte("indicated")}, send
				for _, n := range lengths {
					all, want = append(all, channelData(pattern(n))...), append(want, pattern(n))
				}
				s := newServer(t, nil)
				f := newShards(t, s, 1, nil)[0]
				c := start(t, s)().channel()
				for rest := all; len(rest) > 0; rest = rest[min(size, len(rest)):] {
					c.send(rest[:min(size, len(rest))])
				}
				c.binding()
				if got := f.toPeers(); !sameData(got, want) {
					t.Errorf("%d packets went to the peer, want %d: %v", len(got), len(want), lengthsOf(got))
				}
			})
		}
	}
}

func lengthsOf(all [][]byte) (n []int) {
	for _, b := range all {
		n = append(n, len(b))
	}
	return n
}

// A ChannelData frame without data is complete in its four bytes: it waits for
// nothing more.
func TestServe_TakesTheSmallestFrameAtOnce(t *testing.T) {
	for name, start := range dials() {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, nil)
			f := newShards(t, s, 1, nil)[0]
			c := start(t, s)().channel()
			c.send(channelData(nil))
			eventually(t, "the frame arrives", func() bool { return len(f.toPeers()) == 1 })
		})
	}
}

// Datagrams of all sizes come back whole, padded to four bytes.
func TestServe_SendsFrames(t *testing.T) {
	for name, start := range dials() {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(cfg *Config) { cfg.Limits.QueuedBytes = 1 << 20 })
			f := newShards(t, s, 1, nil)[0]
			c := start(t, s)().channel()
			sizes := []int{0, 1, 2, 3, 4, 1200, 65507, 65535, 1}
			for _, n := range sizes {
				f.fromPeer(t, somebody, pattern(n))
			}
			for _, n := range sizes {
				if got := c.frame(); !bytes.Equal(got, channelData(pattern(n))) {
					t.Errorf("%d bytes came as %d, want %d with header and padding", n, len(got), 4+n)
				}
			}
		})
	}
}

func TestServe_GarbageEndsOnlyItself(t *testing.T) {
	s := newServer(t, nil)
	f := newShards(t, s, 1, nil)[0]
	addr := serve(t, s, listen(t))
	honest := dial(t, addr).channel()
	for _, v := range []struct {
		name  string
		known bool
		b     []byte
		why   Reason
	}{
		{"http", false, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Garbage},
		{"tls", false, []byte{22, 3, 1, 2, 0, 1, 0, 1}, Garbage},
		{"channel data of a stranger", false, channelData(nil), Garbage},
		{"a wrong cookie", true, []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43}, Garbage},
		{"a reserved channel", true, []byte{0x50, 0, 0, 0}, Garbage},
		{"a length that is no multiple of four", true, []byte{0, 1, 0, 1}, Garbage},
		{"garbage behind a request", true, append(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw, 0xff), Garbage},
		{"a large frame of a stranger", false, []byte{0, 1, 8, 0, 0x21, 0x12, 0xa4, 0x42}, Oversize},
		{"a proxy header that nobody asked for", false, []byte(proxySignature + "\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x00\x01\x00\x01"), Garbage},
	} {
		t.Run(v.name, func(t *testing.T) {
			before := s.Stats().Ended[v.why]
			c := dial(t, addr)
			if v.known {
				c.channel()
			}
			c.send(v.b)
			c.gone()
			if n := s.Stats().Ended[v.why] - before; n != 1 {
				t.Errorf("%d ended as %v, want 1", n, v.why)
			}
		})
	}
	honest.binding()
	eventually(t, "what they had is given back", func() bool { return f.allocations(t) == 1 && s.Stats().Connections == 1 })
}

// The bubble's clock stands still until everybody waits: these tests take no time.
func TestServe_Deadlines(t *testing.T) {
	binding := stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw
	for _, v := range []struct {
		name  string
		holds bool
		drip  time.Duration // pause between bytes
		bytes []byte        // what the client sends, over and over
		want  time.Duration // when the server has enough
	}{
		{"a silent stranger", false, 0, nil, helloTimeout},
		{"a stranger who drips a frame", false, time.Second, binding[:19], helloTimeout},
		{"a stranger who keeps asking", false, time.Second / 5, binding, helloTimeout},
		{"a client who drips a frame", true, time.Second, binding[:19], time.Second + frameTimeout},
		// The allocation lasts 10 minutes; within askInterval the server sees that it
		// has ended, and the client may ask for another one.
		{"a silent client with an allocation", true, 0, nil, 10*time.Minute + askInterval + helloTimeout},
	} {
		t.Run(v.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, nil)
				f := newShards(t, s, 1, nil)[0]
				p := newPipes()
				serve(t, s, p)
				c, end := p.dial(t)
				if v.holds {
					c.channel()
				}
				start := time.Now()
				var dripping sync.WaitGroup
				defer dripping.Wait()
				dripping.Go(func() {
					for i := 0; v.drip > 0; i++ {
						time.Sleep(v.drip)
						if _, err := c.Write(v.bytes[i%len(v.bytes):][:1]); err != nil {
							return
						}
					}
				})
				c.SetReadDeadline(time.Time{})
				for _, err := c.r.ReadByte(); err == nil; _, err = c.r.ReadByte() {
				}
				if got := time.Since(start); got > v.want || got < v.want-askInterval || got < min(v.want, helloTimeout) {
					t.Errorf("ended after %s, want %s", got, v.want)
				}
				synctest.Wait()
				if n := s.Stats().Ended[Silent]; n != 1 || f.allocations(t) != 0 {
					t.Errorf("%d ended for silence, %d allocations are left", n, f.allocations(t))
				}
				if v.holds && !slices.Equal(end.heard, []bool{true, false}) && v.drip == 0 {
					t.Errorf("the connection heard %v, want that there was an allocation and then none", end.heard)
				}
			})
		})
	}
}

// While its allocation lives, a client may be silent for as long as it likes.
func TestServe_LeavesWhoHoldsAnAllocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		newShards(t, s, 1, nil)
		p := newPipes()
		serve(t, s, p)
		c, end := p.dial(t)
		c.channel()
		for range 5 {
			time.Sleep(9 * time.Minute)
			c.must(stun.MethodRefresh)
		}
		c.must(stun.MethodRefresh, raw(stun.AttrLifetime, 0, 0, 0, 0))
		c.allocate(17) // which it may do again
		synctest.Wait()
		if want := []bool{true, false, true}; !slices.Equal(end.heard, want) {
			t.Errorf("the connection heard %v, want %v", end.heard, want)
		}
	})
}

// An allocation that somebody else allowed meanwhile is seen before its client is
// taken for a stranger.
func TestServe_SeesAnAllocationThatCameLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		f := newShards(t, s, 1, nil)[0]
		p := newPipes()
		serve(t, s, p)
		c, _ := p.dial(t)
		m := c.signed(stun.MethodAllocate, raw(stun.AttrRequestedTransport, 17, 0, 0, 0))
		synctest.Wait()
		f.bring(f.flow(t, nil), m)
		if res := c.message(); res.Type.Class != stun.ClassSuccessResponse {
			t.Fatalf("%v: %d", res, code(res))
		}
		time.Sleep(time.Minute)
		if f.allocations(t) != 1 {
			t.Error("the client was taken for a stranger")
		}
		c.send(append([]byte{0x40, 0, 0xff, 0xe0}, make([]byte, 0xffe0)...)) // larger than a stranger's
		c.Close()
		synctest.Wait()
		if f.allocations(t) != 0 {
			t.Error("the allocation outlives its connection")
		}
	})
}

// The deadline of a TLS handshake does not outlive it: a TLS connection may have to
// write at any time.
func TestServe_ClearsTheDeadlineOfTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		newShards(t, s, 1, nil)
		p := newPipes()
		serve(t, s, p)
		c, end := p.dial(t)
		synctest.Wait()
		if _, write := end.deadlines(); !write.Equal(time.Now().Add(helloTimeout)) {
			t.Errorf("a handshake may write until %v", write)
		}
		c.send([]byte{0})
		synctest.Wait()
		if _, write := end.deadlines(); !write.IsZero() {
			t.Errorf("writing ends at %v", write)
		}
		c.send(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw[1:])
		c.frame()
		synctest.Wait()
		if _, write := end.deadlines(); !write.IsZero() {
			t.Errorf("behind an answer writing ends at %v", write)
		}
	})
}

// A client that ends its direction behind a question still gets the answer.
func TestServe_AnswersBeforeItCloses(t *testing.T) {
	s := newServer(t, nil)
	newShards(t, s, 1, nil)
	c := dial(t, serve(t, s, listen(t)))
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	c.send(m.Raw)
	c.Conn.(interface{ CloseWrite() error }).CloseWrite()
	if res := c.message(); res.TransactionID != m.TransactionID {
		t.Errorf("got %v", res)
	}
	c.gone()
}

// While the shard is at work nothing more is read: what a client sends meanwhile
// waits in its own host.
func TestServe_ReadsOnWhenFramesAreConsumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		f := newShards(t, s, 1, nil)[0]
		p := newPipes()
		serve(t, s, p)
		c, _ := p.dial(t)
		c.channel()
		f.stall(true)
		c.send(channelData([]byte("first")))
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			c.Write(channelData([]byte("second")))
		}()
		synctest.Wait()
		select {
		case <-sent:
			t.Error("a second frame was read while the first one waited")
		default:
		}
		f.stall(false)
		<-sent
		synctest.Wait()
		if got := f.toPeers(); !sameData(got, [][]byte{[]byte("first"), []byte("second")}) {
			t.Errorf("got %q", got)
		}
	})
}

// A request for what another shard has goes there, and the client with it.
func TestServe_MovesToTheShardThatIsAskedFor(t *testing.T) {
	s := newServer(t, func(cfg *Config) { cfg.Shards = 4 })
	shards := newShards(t, s, 4, nil)
	c := dial(t, serve(t, s, listen(t)))
	home := s.homeOf(loopback).index
	other := (home + 1) % 4
	token := [8]byte{byte(other), 1, 2, 3, 4, 5, 6, 7}
	res := c.ask(stun.MethodAllocate, raw(stun.AttrRequestedTransport, 17, 0, 0, 0), raw(0x0022, token[:]...))
	if code(res) != 508 {
		t.Errorf("a token that nobody has: %d, want 508", code(res))
	}
	c.channel()
	for i, f := range shards {
		f.see(t, func(v *core.Core, _ *core.Output) {
			want := 0
			if i == other {
				want = 1
			}
			if n := v.Stats().Allocations; n != want || len(s.streams[i].conns) != want {
				t.Errorf("shard %d (home %d) has %d allocations and %d connections, want %d", i, home, n, len(s.streams[i].conns), want)
			}
		})
	}
	c.Close()
	eventually(t, "the allocation ends with the connection", func() bool { return shards[other].allocations(t) == 0 })
}
