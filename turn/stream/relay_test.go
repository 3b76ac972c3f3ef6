// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// tcpWorld is a client with a relay of TCP, and a peer that listens.
type tcpWorld struct {
	testing.TB
	server  *Server
	shard   *fakeShard
	dial    func() *client
	control *client
	relayed netip.AddrPort
	peer    net.Listener
}

func newTCPWorld(t testing.TB, way string, change func(*Config)) *tcpWorld {
	t.Helper()
	s := newServer(t, change)
	w := &tcpWorld{TB: t, server: s, shard: newShards(t, s, 1, nil)[0], peer: listen(t)}
	t.Cleanup(func() { w.peer.Close() })
	w.dial = dials()[way](t, s)
	w.control = w.dial()
	w.relayed = w.control.allocate(6)
	return w
}

func (w *tcpWorld) peerAddr() netip.AddrPort { return w.peer.Addr().(*net.TCPAddr).AddrPort() }

func connectionID(t testing.TB, m *stun.Message) stun.Setter {
	t.Helper()
	v, err := m.Get(stun.AttrConnectionID)
	if err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	return raw(stun.AttrConnectionID, v...)
}

// connect connects the relay to the peer, and a new stream of the client to that.
func (w *tcpWorld) connect() (data *client, peer net.Conn) {
	w.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := w.peer.Accept()
		accepted <- c
	}()
	res := w.control.must(stun.MethodConnect, peerAt(w.peerAddr()))
	if peer = <-accepted; peer == nil {
		w.Fatal("the peer was not called")
	}
	w.Cleanup(func() { peer.Close() })
	if from := peer.RemoteAddr().String(); from != w.relayed.String() {
		w.Errorf("the peer is called from %v, want the relay at %v", from, w.relayed)
	}
	data = w.dial()
	data.must(stun.MethodConnectionBind, connectionID(w, res))
	data.SetReadDeadline(time.Time{})
	return data, peer
}

// settled waits until nothing is left of n connections to peers.
func (w *tcpWorld) left(connections int) {
	w.Helper()
	eventually(w, "connections end", func() bool {
		n, known := 0, 0
		w.shard.see(w, func(c *core.Core, _ *core.Output) { n, known = c.Stats().Connections, len(w.shard.streams.peers) })
		return n == connections && known == connections && w.server.Stats().Peers == connections
	})
}

func TestRelay_CarriesBothWays(t *testing.T) {
	for way, size := range map[string]int{"tcp": 10 << 20, "tls": 3 << 20} {
		t.Run(way, func(t *testing.T) {
			w := newTCPWorld(t, way, nil)
			data, peer := w.connect()
			want := bytes.Repeat(pattern(1<<16-1), size>>16+1)[:size]
			paused, goOn := make(chan struct{}), make(chan struct{})
			var running sync.WaitGroup
			for _, c := range []net.Conn{data.Conn, peer} {
				running.Go(func() {
					c.Write(want)
					c.(interface{ CloseWrite() error }).CloseWrite()
				})
			}
			// The client reads half, and no more for a while: the peer's writes stall
			// meanwhile, and nothing is lost.
			running.Go(func() {
				half := make([]byte, size/2)
				_, err := io.ReadFull(data.r, half)
				close(paused)
				<-goOn
				rest, err2 := io.ReadAll(data.r)
				if err != nil || err2 != nil || !bytes.Equal(append(half, rest...), want) {
					t.Errorf("the client got %d bytes: %v, %v", len(half)+len(rest), err, err2)
				}
			})
			<-paused
			got, err := io.ReadAll(peer)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the peer got %d bytes: %v", len(got), err)
			}
			close(goOn)
			running.Wait()
			w.left(0)
			w.shard.see(t, func(c *core.Core, _ *core.Output) {
				for i := range c.Allocations() {
					if i.Usage.SentBytes != uint64(size) || i.Usage.ReceivedBytes != uint64(size) {
						t.Errorf("counted %+v, want %d each way", i.Usage, size)
					}
				}
			})
			w.control.must(stun.MethodRefresh) // the allocation goes on
		})
	}
}

// A peer connects to the relay; what it sends first waits until the client is there.
func TestRelay_TakesConnectionsOfPeers(t *testing.T) {
	w := newTCPWorld(t, "tcp", nil)
	stranger, err := net.Dial("tcp4", w.relayed.String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.SetReadDeadline(time.Now().Add(patience))
	if _, err := stranger.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a peer without permission is let in: %v", err)
	}
	w.control.must(stun.MethodCreatePermission, peerAt(netip.AddrPortFrom(loopback, 0)))
	peer, err := net.Dial("tcp4", w.relayed.String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if _, err := peer.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	attempt := w.control.message()
	if attempt.Type.Method != stun.MethodConnectionAttempt {
		t.Fatalf("got %v", attempt)
	}
	// The first bytes come in one write with the request.
	data := w.dial()
	bind := data.signed(stun.MethodConnectionBind, connectionID(t, attempt))
	data.send(append(bytes.Clone(bind.Raw), "GET / HTTP/1.1\r\n"...))
	if res := data.message(); res.Type.Class != stun.ClassSuccessResponse {
		t.Fatalf("bind: %d", code(res))
	}
	for _, v := range []struct {
		r    io.Reader
		want string
	}{{data.r, "early"}, {peer, "GET / HTTP/1.1\r\n"}} {
		got := make([]byte, len(v.want))
		if _, err := io.ReadFull(v.r, got); err != nil || string(got) != v.want {
			t.Errorf("got %q, %v, want %q", got, err, v.want)
		}
	}
	peer.Close()
	data.gone()
	data.Close()
	w.left(0)
}

func isTimeout(err error) bool {
	var v net.Error
	return errors.As(err, &v) && v.Timeout()
}

// TestRelay_EndsWith checks both ends of a connection at each end of what it
// depends on.
func TestRelay_EndsWith(t *testing.T) {
	for name, end := range map[string]func(w *tcpWorld, data *client, peer *net.TCPConn){
		"the client":             func(_ *tcpWorld, data *client, _ *net.TCPConn) { data.Close() },
		"the peer":               func(_ *tcpWorld, _ *client, peer *net.TCPConn) { peer.Close() },
		"a reset of the peer":    func(_ *tcpWorld, _ *client, peer *net.TCPConn) { peer.SetLinger(0); peer.Close() },
		"the control connection": func(w *tcpWorld, _ *client, _ *net.TCPConn) { w.control.Close() },
		"the allocation": func(w *tcpWorld, _ *client, _ *net.TCPConn) {
			w.control.must(stun.MethodRefresh, raw(stun.AttrLifetime, 0, 0, 0, 0))
		},
		"the server": func(w *tcpWorld, _ *client, _ *net.TCPConn) { w.server.Close() },
		"the shard":  func(w *tcpWorld, _ *client, _ *net.TCPConn) { w.shard.end(); w.server.Close() },
	} {
		for way := range dials() {
			t.Run(name+"_"+way, func(t *testing.T) {
				w := newTCPWorld(t, way, nil)
				data, peer := w.connect()
				data.send([]byte("hello"))
				if _, err := io.ReadFull(peer, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
				end(w, data, peer.(*net.TCPConn))
				peer.SetReadDeadline(time.Now().Add(patience))
				if _, err := peer.Read(make([]byte, 1)); err == nil || isTimeout(err) {
					t.Errorf("the peer's end is open: %v", err)
				}
				if name != "the client" {
					data.gone()
				}
				peer.Close()
				data.Close()
				eventually(t, "nothing is left", func() bool { return w.server.Stats().Peers == 0 })
			})
		}
	}
}

// A reset at one side is a reset at the other: a copy that was cut short does not
// look whole.
func TestRelay_HandsAResetOn(t *testing.T) {
	for i := range 8 {
		way := []string{"tcp", "tls"}[i%2]
		w := newTCPWorld(t, way, nil)
		data, peer := w.connect()
		if i >= 2 { // a write may hear of it first
			data.send([]byte("first"))
			io.ReadFull(peer, make([]byte, 5))
			stop := make(chan struct{})
			var sending sync.WaitGroup
			defer sending.Wait()
			defer close(stop)
			sending.Go(func() {
				for _, err := data.Write(pattern(100)); err == nil && !isEnded(stop); _, err = data.Write(pattern(100)) {
				}
			})
		}
		peer.(*net.TCPConn).SetLinger(0)
		peer.Close()
		data.SetReadDeadline(time.Now().Add(patience))
		below := data.Conn
		if v, ok := below.(interface{ NetConn() net.Conn }); ok {
			below = v.NetConn()
		}
		// The client's own write may have heard of it first, too.
		if _, err := data.r.ReadByte(); err == nil || errors.Is(err, io.EOF) && !wasReset(below) || isTimeout(err) {
			t.Errorf("%s: the client sees %v, want a reset", way, err)
		}
	}
}

// Each direction ends for itself.
func TestRelay_HalfCloses(t *testing.T) {
	for way := range dials() {
		t.Run(way, func(t *testing.T) {
			w := newTCPWorld(t, way, nil)
			data, peer := w.connect()
			data.send([]byte("question"))
			data.Conn.(interface{ CloseWrite() error }).CloseWrite()
			if got, err := io.ReadAll(peer); string(got) != "question" || err != nil {
				t.Errorf("the peer got %q, %v", got, err)
			}
			peer.Write([]byte("answer"))
			peer.Close()
			if got, err := io.ReadAll(data.r); string(got) != "answer" || err != nil {
				t.Errorf("the client got %q, %v", got, err)
			}
			w.left(0)
		})
	}
}

// bindLater returns a new stream whose reader waits, and what will splice it to a
// connection meanwhile.
func (w *tcpWorld) bindLater() (data *client, peer net.Conn, bind func()) {
	w.Helper()
	accepted := make(chan net.Conn, 1)
	go func() { c, _ := w.peer.Accept(); accepted <- c }()
	res := w.control.must(stun.MethodConnect, peerAt(w.peerAddr()))
	peer = <-accepted
	w.Cleanup(func() { peer.Close() })
	data = w.dial()
	m := data.signed(stun.MethodConnectionBind, connectionID(w, res))
	flow := w.shard.flow(w, data.LocalAddr())
	return data, peer, func() { w.shard.bring(flow, m) }
}

// Such a stream is spliced, whoever speaks first, and a byte that could begin a frame
// is none any more.
func TestRelay_SplicesLater(t *testing.T) {
	for way := range dials() {
		for _, peerFirst := range []bool{true, false} {
			t.Run(fmt.Sprint(way, "_peer_first_", peerFirst), func(t *testing.T) {
				w := newTCPWorld(t, way, nil)
				data, peer, bind := w.bindLater()
				bind()
				if res := data.message(); res.Type.Class != stun.ClassSuccessResponse {
					t.Fatalf("bind: %d", code(res))
				}
				from, to := peer, data.Conn
				if !peerFirst {
					from, to = data.Conn, peer
				}
				from.Write([]byte{0})
				got := []byte{1}
				to.SetReadDeadline(time.Now().Add(patience / 4))
				if _, err := io.ReadFull(to, got); err != nil || got[0] != 0 {
					t.Errorf("got %v, %v", got, err)
				}
			})
		}
	}
}

// A client that goes while it is spliced leaves nothing behind: the connection
// whose reader sees that first, and the one whose reader has gone already.
func TestRelay_ClientGoesWhileItIsSpliced(t *testing.T) {
	for name, leave := range map[string]func(w *tcpWorld, data *client, c *conn){
		"by itself":     func(_ *tcpWorld, data *client, _ *conn) { data.Close() },
		"by the server": func(_ *tcpWorld, _ *client, c *conn) { c.end() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newTCPWorld(t, "tcp", nil)
			data, peer, bind := w.bindLater()
			var c *conn
			w.shard.see(t, func(*core.Core, *core.Output) {
				for _, v := range w.shard.streams.conns {
					if v.flow.Client.String() == data.LocalAddr().String() {
						c = v
					}
				}
			})
			w.shard.stall(true)
			bind()
			leave(w, data, c)
			if name == "by the server" {
				eventually(t, "the reader has gone", func() bool { return w.server.Stats().Connections == 1 })
			}
			eventually(t, "the end waits, too", func() bool { return w.shard.waiting() == 2 })
			w.shard.stall(false)
			w.left(0)
			peer.SetReadDeadline(time.Now().Add(patience))
			if _, err := peer.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("the peer's end is open: %v", err)
			}
			eventually(t, "the place is free", func() bool { return w.server.Stats().Connections == 1 })
			if got := c.queue.add([]byte{0, 1, 0, 0}); got != dropped {
				t.Errorf("a frame for what has ended is %v", got)
			}
		})
	}
}

// Who does not come for a connection within 30 seconds loses it.
func TestRelay_ConnectionsWaitForAWhile(t *testing.T) {
	w := newTCPWorld(t, "tcp", nil)
	w.control.must(stun.MethodCreatePermission, peerAt(netip.AddrPortFrom(loopback, 0)))
	peer, err := net.Dial("tcp4", w.relayed.String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	id := connectionID(t, w.control.message())
	w.shard.advance(29 * time.Second)
	w.left(1)
	w.shard.advance(time.Second)
	peer.SetReadDeadline(time.Now().Add(patience))
	if _, err := peer.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the peer's end is open: %v", err)
	}
	w.left(0)
	if got := code(w.dial().ask(stun.MethodConnectionBind, id)); got != 400 {
		t.Errorf("bind to what has ended: %d, want 400", got)
	}
}

func TestRelay_ConnectionsThatFail(t *testing.T) {
	w := newTCPWorld(t, "tcp", func(cfg *Config) {
		cfg.Limits.Peers = 2
		cfg.Inside = func(a netip.AddrPort) netip.AddrPort {
			if a == somebody {
				a = netip.AddrPortFrom(loopback, 1) // where nobody listens
			}
			return a
		}
	})
	if got := code(w.control.ask(stun.MethodConnect, peerAt(somebody))); got != 447 {
		t.Errorf("connect to nobody: %d, want 447", got)
	}
	if got := code(w.control.ask(stun.MethodConnect, peerAt(w.relayed))); got != 447 {
		t.Errorf("connect to itself: %d, want 447", got)
	}
	w.left(0)
	for range 2 {
		w.connect()
		w.peer.Close()
		w.peer = listen(t)
		t.Cleanup(func() { w.peer.Close() })
	}
	if got := code(w.control.ask(stun.MethodConnect, peerAt(w.peerAddr()))); got != 447 {
		t.Errorf("a third connection: %d, want 447", got)
	}
	w.left(2)
}

// The rate of an account bounds what its connections carry.
func TestRelay_KeepsToTheRate(t *testing.T) {
	w := newTCPWorld(t, "tcp", nil)
	w.control = w.dial()
	w.control.user, w.control.password = "slow", "x"
	w.relayed = w.control.allocate(6)
	accepted := make(chan net.Conn, 1)
	go func() { c, _ := w.peer.Accept(); accepted <- c }()
	res := w.control.must(stun.MethodConnect, peerAt(w.peerAddr()))
	peer := <-accepted
	defer peer.Close()
	data := w.dial()
	data.user, data.password = "slow", "x"
	data.must(stun.MethodConnectionBind, connectionID(t, res))
	start := time.Now()
	const size = 1<<20 + 1<<18 // a second's worth at once, and a quarter of it
	go func() {
		data.Write(make([]byte, size))
		data.Conn.(*net.TCPConn).CloseWrite()
	}()
	n, err := io.Copy(io.Discard, peer)
	if took := time.Since(start); n != size || err != nil || took < 150*time.Millisecond {
		t.Errorf("%d bytes in %s, %v; want %d in a quarter of a second", n, took, err, size)
	}
}

// Two relays never have one port, although their connections share it with them.
func TestListenRelay_IsAlone(t *testing.T) {
	l, err := ListenRelay(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	again, err := ListenRelay(l.Addr().(*net.TCPAddr).AddrPort())
	if err == nil {
		again.Close()
		t.Errorf("a second relay listens at %v", l.Addr())
	}
}

func TestRelay_OfTCPThatCannotBeOpened(t *testing.T) {
	for name, open := range map[string]func(core.Action) (net.Listener, netip.AddrPort, error){
		"not wanted": nil,
		"no port": func(core.Action) (net.Listener, netip.AddrPort, error) {
			return nil, netip.AddrPort{}, errors.New("none left")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(cfg *Config) { cfg.OpenTCP = open })
			f := newShards(t, s, 1, nil)[0]
			c := dial(t, serve(t, s, listen(t)))
			if got := code(c.ask(stun.MethodAllocate, raw(stun.AttrRequestedTransport, 6, 0, 0, 0))); got != 508 {
				t.Errorf("allocate: %d, want 508", got)
			}
			if n := f.allocations(t); n != 0 {
				t.Errorf("%d allocations are left", n)
			}
		})
	}
}
