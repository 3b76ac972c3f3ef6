// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"
)

const testPassword = "the-password-of-one-peer"

// sharedSocket is an engine whose peers share a socket, and the address of that.
func sharedSocket(t testing.TB, cfg Config) (*Engine, *net.UDPAddr) {
	t.Helper()
	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.UDP = socket
	return newEngine(t, cfg), socket.LocalAddr().(*net.UDPAddr)
}

// stranger is a socket of somebody who speaks to a shared one.
func stranger(t testing.TB) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// muxedConn is the connection of a peer of that ufrag and password, as ICE has it.
func muxedConn(t testing.TB, e *Engine, ufrag, password string) *muxConn {
	t.Helper()
	e.mux.expect(ufrag, newChecks(e.pacer, "alice", password, func() {}))
	c, err := e.mux.GetConn(ufrag, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return c.(*muxConn)
}

func sealedRequest(t testing.TB, ufrag, password string) []byte {
	t.Helper()
	m, err := stun.Build(stun.BindingRequest, stun.TransactionID, stun.NewUsername(ufrag+":them"),
		stun.NewShortTermIntegrity(password), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

func sealedResponse(t testing.TB, request []byte, password string) []byte {
	t.Helper()
	m, err := stun.Build(&stun.Message{TransactionID: transaction(request[8:stunHeader])}, stun.BindingSuccess,
		stun.NewShortTermIntegrity(password), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

// until polls cond.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never came true: %s", what)
		}
	}
}

// gets reads the next packet of a connection of the mux.
func gets(t testing.TB, c *muxConn, want []byte, from netip.AddrPort) {
	t.Helper()
	until(t, "a packet arrived", func() bool {
		c.queue.mu.Lock()
		defer c.queue.mu.Unlock()
		return c.queue.n > 0
	})
	buf := make([]byte, muxPacketSize)
	n, addr, err := c.ReadFrom(buf)
	if err != nil || string(buf[:n]) != string(want) || addr.String() != from.String() {
		t.Fatalf("%d bytes from %v, %v; want %d from %s", n, addr, err, len(want), from)
	}
}

// A candidate that names the address of another peer's client takes nothing
// from that peer, however many checks go there.
func TestUDPMux_CandidateTakesNoAddressOfAnother(t *testing.T) {
	e, _ := sharedSocket(t, Config{})
	p, q := newPeer(t, e), newPeer(t, newEngine(t, Config{}))
	connect(t, p, q)
	victim := strings.Fields(q.Path().Local)[1]
	host, port, err := net.SplitHostPort(victim)
	if err != nil {
		t.Fatal(err)
	}
	mallory := newEngine(t, Config{})
	for range 4 {
		a := newPeer(t, e)
		offer, err := a.Offer()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := newPeer(t, mallory).Answer(offer)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.SetAnswer(answer); err != nil {
			t.Fatal(err)
		}
		if err := a.AddCandidate(fmt.Sprintf("candidate:1 1 udp 1 %s %s typ host", host, port)); err != nil {
			t.Fatal(err)
		}
		until(t, "a check went to the victim", func() bool {
			a.checks.mu.Lock()
			defer a.checks.mu.Unlock()
			for on := range a.checks.tried {
				if on.to.String() == victim {
					return true
				}
			}
			return false
		})
	}
	e.mux.mu.Lock()
	o := e.mux.owners[netip.MustParseAddrPort(victim)]
	e.mux.mu.Unlock()
	if o == nil || o.conn.checks != p.checks {
		t.Error("the address is no longer the victim's")
	}
	for id := range uint16(20) {
		a, err := p.Negotiated(ChannelConfig{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		b, err := q.Negotiated(ChannelConfig{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		_ = b.SetReadDeadline(time.Now().Add(patience))
		_ = a.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 8)
		_ = a.WriteMessage([]byte("ping"), false)
		if _, _, err := b.ReadMessage(buf); err != nil {
			t.Fatalf("to the client: %v", err)
		}
		_ = b.WriteMessage([]byte("pong"), false)
		if _, _, err := a.ReadMessage(buf); err != nil {
			t.Fatalf("from the client: %v", err)
		}
		_ = b.SetReadDeadline(time.Time{}) // which ends pion's timer
		_ = a.SetReadDeadline(time.Time{})
	}
}

func TestUDPMux_OnlySealedMessagesGiveAnAddress(t *testing.T) {
	e, socket := sharedSocket(t, Config{})
	conn := muxedConn(t, e, "alpha", testPassword)
	c, from := stranger(t)
	data := []byte{20, 1, 2, 3}
	send := func(p []byte) {
		t.Helper()
		if _, err := c.WriteTo(p, socket); err != nil {
			t.Fatal(err)
		}
	}
	unsealed, err := stun.Build(stun.BindingRequest, stun.TransactionID, stun.NewUsername("alpha:them"))
	if err != nil {
		t.Fatal(err)
	}
	send(sealedRequest(t, "alpha", "a-guess-at-the-password"))
	send(unsealed.Raw)
	until(t, "both were seen as forged", func() bool { return e.Drops().Forged == 2 })
	send(sealedRequest(t, "nobody", testPassword))
	send(data)
	until(t, "both were seen as stray", func() bool { return e.Drops().Stray == 2 })
	request := sealedRequest(t, "alpha", testPassword)
	send(request)
	gets(t, conn, request, from)
	send(data)
	gets(t, conn, data, from)
}

// A client whose NAT gives it another port shows itself by a sealed request,
// and nobody else loses anything.
func TestUDPMux_ClientMoves(t *testing.T) {
	e, socket := sharedSocket(t, Config{})
	alpha, beta := muxedConn(t, e, "alpha", testPassword), muxedConn(t, e, "beta", "another-password-of-theirs")
	first, _ := stranger(t)
	other, otherAddr := stranger(t)
	moved, movedAddr := stranger(t)
	for _, tc := range []struct {
		from *net.UDPConn
		to   *muxConn
		name string
		pwd  string
	}{
		{first, alpha, "alpha", testPassword}, {other, beta, "beta", "another-password-of-theirs"}, {moved, alpha, "alpha", testPassword},
	} {
		request := sealedRequest(t, tc.name, tc.pwd)
		_, _ = tc.from.WriteTo(request, socket)
		gets(t, tc.to, request, tc.from.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	_, _ = moved.WriteTo([]byte{22, 1}, socket)
	gets(t, alpha, []byte{22, 1}, movedAddr)
	_, _ = other.WriteTo([]byte{22, 2}, socket)
	gets(t, beta, []byte{22, 2}, otherAddr)
}

func TestUDPMux_ResponsesGoToTheAsker(t *testing.T) {
	e, socket := sharedSocket(t, Config{})
	conn := muxedConn(t, e, "alpha", testPassword)
	conn.checks.answerable("the-password-of-the-other")
	c, from := stranger(t)
	third, _ := stranger(t)
	request := sealedRequest(t, "them", "x")
	if _, err := conn.WriteTo(request, net.UDPAddrFromAddrPort(from)); err != nil {
		t.Fatal(err)
	}
	_, _ = third.WriteTo(sealedResponse(t, request, "the-password-of-the-other"), socket) // from elsewhere
	until(t, "it was dropped", func() bool { return e.Drops().Stray == 1 })
	_, _ = c.WriteTo(sealedResponse(t, request, "a-guess-at-the-password"), socket)
	until(t, "it was seen as forged", func() bool { return e.Drops().Forged == 1 })
	request = sealedRequest(t, "them", "x")
	until(t, "the next check went out", func() bool { // it has to wait for its turn
		_, _ = conn.WriteTo(request, net.UDPAddrFromAddrPort(from))
		e.mux.mu.Lock()
		defer e.mux.mu.Unlock()
		_, out := e.mux.asked[transaction(request[8:stunHeader])]
		return out
	})
	response := sealedResponse(t, request, "the-password-of-the-other")
	_, _ = c.WriteTo(response, socket)
	gets(t, conn, response, from)
	_, _ = c.WriteTo([]byte{23}, socket)
	gets(t, conn, []byte{23}, from)
	_, _ = c.WriteTo(response, socket) // once
	until(t, "the copy was dropped", func() bool { return e.Drops().Stray == 2 })
}

// The owner keeps its address while packets come from there, whoever else shows
// that it is there; a NAT that gives the port to the next client gives it for good.
func TestUDPMux_OwnerYieldsOnlyWhenSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &udpMux{
			engine: &Engine{}, owners: map[netip.AddrPort]*owner{}, peers: map[string]*muxPeer{},
			asked: map[transaction]asked{},
		}
		at := netip.MustParseAddrPort("192.0.2.1:4000")
		first, second := newMuxConn(m, nil), newMuxConn(m, nil)
		owns := func(c *muxConn) bool { return m.owners[at].conn == c }
		m.claim(first, at)
		for range 10 { // both are there
			<-time.After(claimLapse)
			m.data([]byte{23}, at)
			if m.claim(second, at); !owns(first) {
				t.Fatal("a live owner lost its address")
			}
		}
		<-time.After(claimLapse - time.Millisecond)
		if m.claim(second, at); !owns(first) {
			t.Fatal("lost before its time")
		}
		<-time.After(time.Millisecond)
		if m.claim(second, at); !owns(second) {
			t.Fatal("a silent owner keeps its address")
		}
		_ = first.Close()
		if !owns(second) {
			t.Fatal("the end of the first took what it had lost")
		}
		_ = second.Close()
		if len(m.owners) != 0 {
			t.Fatal("the address of a closed peer is kept")
		}
		if m.claim(second, at); len(m.owners) != 0 {
			t.Fatal("a closed peer took an address")
		}
	})
}

func TestUDPMux_TablesAreBounded(t *testing.T) {
	m := &udpMux{
		engine: &Engine{}, owners: map[netip.AddrPort]*owner{}, peers: map[string]*muxPeer{},
		asked: map[transaction]asked{},
	}
	c := newMuxConn(m, nil)
	for i := range 3 * maxAddresses {
		m.claim(c, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(i+1)))
	}
	for i := range 3 * maxOutstanding {
		m.ask(c, transaction{byte(i), byte(i >> 8)}, netip.AddrPort{}, time.Now())
	}
	if len(m.owners) != maxAddresses || len(c.addresses) != maxAddresses {
		t.Errorf("%d addresses", len(m.owners))
	}
	if len(m.asked) != maxOutstanding || len(c.outstanding) != maxOutstanding {
		t.Errorf("%d outstanding checks", len(m.asked))
	}
	last := 3*maxOutstanding - 1
	if _, ok := m.asked[transaction{byte(last), byte(last >> 8)}]; !ok {
		t.Error("the newest check was forgotten, not the oldest")
	}
	for i := range 2 * maxQueued {
		if kept := c.queue.put([]byte{byte(i)}, nil); kept != (i < maxQueued) {
			t.Fatalf("packet %d: kept %v", i, kept)
		}
	}
	_ = c.Close()
	if len(m.owners) != 0 || len(m.asked) != 0 {
		t.Error("a closed connection holds something")
	}
	if _, _, err := c.ReadFrom(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read of a closed connection: %v", err)
	}
	if _, err := c.WriteTo([]byte{23}, &net.UDPAddr{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write to a closed connection: %v", err)
	}
}

func TestUDPMux_ClosedPeersLeaveNothing(t *testing.T) {
	e, _ := sharedSocket(t, Config{})
	for range 3 {
		p, q := newPeer(t, e), newPeer(t, newEngine(t, Config{}))
		connect(t, p, q)
		_ = p.Close()
	}
	abandoned, err := e.NewPeer(context.Background(), PeerConfig{}) // never offered
	if err != nil {
		t.Fatal(err)
	}
	_ = abandoned.Close()
	m := e.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.peers)+len(m.owners)+len(m.asked) != 0 {
		t.Errorf("%d peers, %d addresses, %d checks are left", len(m.peers), len(m.owners), len(m.asked))
	}
	e.pacer.mu.Lock()
	defer e.pacer.mu.Unlock()
	if e.pacer.active != 0 {
		t.Errorf("%d callers check", e.pacer.active)
	}
}

func TestUDPMux_PacketsCostNoAllocation(t *testing.T) {
	e, _ := sharedSocket(t, Config{})
	conn := muxedConn(t, e, "alpha", testPassword)
	from := netip.MustParseAddrPort("192.0.2.1:4000")
	request, data, buf := sealedRequest(t, "alpha", testPassword), make([]byte, 1200), make([]byte, muxPacketSize)
	data[0] = 23
	m := e.mux
	m.message(request, from)
	_, _, _ = conn.ReadFrom(buf)
	for name, hand := range map[string]func(){
		"data":    func() { m.data(data, from) },
		"request": func() { m.message(request, from) },
	} {
		if n := testing.AllocsPerRun(200, func() {
			hand()
			_, _, _ = conn.ReadFrom(buf)
		}); n >= 1 { // the pool may be emptied meanwhile
			t.Errorf("%s: %v allocations for one packet", name, n)
		}
	}
}

func BenchmarkUDPMux_Data(b *testing.B) {
	e, _ := sharedSocket(b, Config{})
	conn := muxedConn(b, e, "alpha", testPassword)
	from := netip.MustParseAddrPort("192.0.2.1:4000")
	e.mux.message(sealedRequest(b, "alpha", testPassword), from)
	data, buf := make([]byte, 1200), make([]byte, muxPacketSize)
	data[0] = 23
	_, _, _ = conn.ReadFrom(buf)
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		e.mux.data(data, from)
		_, _, _ = conn.ReadFrom(buf)
	}
}
