// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"
	"github.com/pion/turn/v3"
)

const refresh = 0x0004

// unruly is the socket of a TURN server at which things go wrong. Requests that
// give a relay back are for the test to spoil.
type unruly struct {
	net.PacketConn
	// late is closed when the server's answers that give a relay may go out; nil:
	// they may.
	late chan struct{}
	// spoil sees the n-th such request, from 1, and says whether the server does.
	spoil func(u *unruly, n int, request *stun.Message, from net.Addr) bool

	mu    sync.Mutex // guards the fields below
	n     int
	realm stun.Realm // of the last challenge
	nonce stun.Nonce
}

func (u *unruly) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := u.PacketConn.ReadFrom(p)
		if err != nil || n < stunHeader || binary.BigEndian.Uint16(p) != refresh {
			return n, from, err
		}
		m := &stun.Message{Raw: append([]byte(nil), p[:n]...)}
		if m.Decode() != nil {
			return n, from, err
		}
		if v, _ := m.Get(stun.AttrLifetime); len(v) != 4 || binary.BigEndian.Uint32(v) != 0 {
			return n, from, err
		}
		u.mu.Lock()
		u.n++
		pass := u.spoil == nil || u.spoil(u, u.n, m, from)
		u.mu.Unlock()
		if pass {
			return n, from, err
		}
	}
}

// WriteTo keeps what the server challenges clients with.
func (u *unruly) WriteTo(p []byte, to net.Addr) (int, error) {
	m := &stun.Message{Raw: append([]byte(nil), p...)}
	if m.Decode() == nil && m.Contains(stun.AttrNonce) {
		u.mu.Lock()
		_, _ = u.realm.GetFrom(m), u.nonce.GetFrom(m)
		u.mu.Unlock()
	}
	if u.late != nil && turnKind(p) == allocateSuccess {
		<-u.late
	}
	return u.PacketConn.WriteTo(p, to)
}

// refuse answers a request with an error and the server's present nonce. The
// caller holds mu.
func (u *unruly) refuse(request *stun.Message, from net.Addr, code stun.ErrorCode) {
	m := stun.MustBuild(stun.NewTransactionIDSetter(request.TransactionID),
		stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse), code, u.realm, u.nonce)
	_, _ = u.PacketConn.WriteTo(m.Raw, from)
}

// newGatherer is a peer that gets a relay at url when it offers.
func newGatherer(t *testing.T, url string, goodbye time.Duration) *Peer {
	t.Helper()
	e := newEngine(t, Config{})
	e.goodbye = goodbye
	p, err := e.NewPeer(context.Background(), PeerConfig{
		RelayOnly: true, Servers: []ICEServer{{URLs: []string{url}, Username: "alice", Credential: "secret"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// gathered is a peer with a relay of its own at url.
func gathered(t *testing.T, url string, goodbye time.Duration) *Peer {
	t.Helper()
	p := newGatherer(t, url, goodbye)
	if _, err := p.Offer(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range p.Candidates() {
		n++
	}
	if n != 1 {
		t.Fatalf("%d candidates, want that of the relay", n)
	}
	return p
}

func TestPeer_CloseGivesRelaysBack(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(u *unruly, n int, request *stun.Message, from net.Addr) bool
	}{
		{name: "at once"},
		{name: "though requests are lost", spoil: func(_ *unruly, n int, _ *stun.Message, _ net.Addr) bool { return n > 2 }},
		{name: "though the nonce is stale", spoil: func(u *unruly, n int, m *stun.Message, from net.Addr) bool {
			if n <= 2 {
				u.refuse(m, from, stun.CodeStaleNonce)
			}
			return n > 2
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server, urls, _ := turnServerAt(t, func(c net.PacketConn) net.PacketConn { return &unruly{PacketConn: c, spoil: tc.spoil} })
			p := gathered(t, urls["udp"], patience)
			if n := server.AllocationCount(); n != 1 {
				t.Fatalf("%d relays before the end", n)
			}
			_ = p.Close()
			if n := server.AllocationCount(); n != 0 {
				t.Fatalf("%d relays after the end", n)
			}
		})
	}
}

// A relay in use is given back as well, and both of a peer that has two.
func TestPeer_CloseGivesUsedRelaysBack(t *testing.T) {
	server, urls, _ := turnServerAt(t, nil)
	other, others, _ := turnServerAt(t, nil)
	e := newEngine(t, Config{})
	p, err := e.NewPeer(context.Background(), PeerConfig{RelayOnly: true, Servers: []ICEServer{
		{URLs: []string{urls["udp"], others["udp"]}, Username: "alice", Credential: "secret"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	q := newPeer(t, newEngine(t, Config{}))
	connect(t, p, q)
	echoOnce(t, p, q)
	_ = p.Close()
	for _, s := range []*turn.Server{server, other} {
		if n := s.AllocationCount(); n != 0 {
			t.Fatalf("%d relays after the end", n)
		}
	}
	<-q.Done()
}

// A relay that comes when its peer has ended goes back as well.
func TestPeer_CloseGivesLateRelaysBack(t *testing.T) {
	late := make(chan struct{})
	server, urls, _ := turnServerAt(t, func(c net.PacketConn) net.PacketConn { return &unruly{PacketConn: c, late: late} })
	p := newGatherer(t, urls["udp"], patience)
	if _, err := p.Offer(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return server.AllocationCount() == 1 })
	p.Abandon(errClosed)
	eventually(t, func() bool {
		p.net.mu.Lock()
		defer p.net.mu.Unlock()
		return p.net.closed
	})
	close(late)
	<-p.Done()
	if n := server.AllocationCount(); n != 0 {
		t.Fatalf("%d relays after the end", n)
	}
}

// eventually waits for what happens elsewhere.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// A server that is gone, or wants nothing to do with the client, holds up nobody.
func TestPeer_CloseWaitsForNoServer(t *testing.T) {
	for _, tc := range []struct {
		name    string
		spoil   func(u *unruly, n int, request *stun.Message, from net.Addr) bool
		goodbye time.Duration
	}{
		{name: "silent", goodbye: 50 * time.Millisecond, spoil: func(*unruly, int, *stun.Message, net.Addr) bool { return false }},
		{name: "refuses", goodbye: time.Hour, spoil: func(u *unruly, _ int, m *stun.Message, from net.Addr) bool {
			u.refuse(m, from, stun.CodeUnauthorized)
			return false
		}},
		{name: "never content with a nonce", goodbye: time.Hour, spoil: func(u *unruly, _ int, m *stun.Message, from net.Addr) bool {
			u.refuse(m, from, stun.CodeStaleNonce)
			return false
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, urls, _ := turnServerAt(t, func(c net.PacketConn) net.PacketConn { return &unruly{PacketConn: c, spoil: tc.spoil} })
			p := gathered(t, urls["udp"], tc.goodbye)
			p.Abandon(errClosed)
			select {
			case <-p.Done():
			case <-time.After(patience):
				t.Fatal("it waits on")
			}
		})
	}
}

// Whatever answers a goodbye, it ends the wait or is sent again a few times.
func FuzzLeaseHears(f *testing.F) {
	id := stun.NewTransactionID()
	user, realm, key := stun.NewUsername("alice"), stun.NewRealm("test"), stun.NewLongTermIntegrity("alice", "test", "secret")
	request := stun.MustBuild(stun.NewTransactionIDSetter(id), stun.NewType(stun.MethodRefresh, stun.ClassRequest),
		stun.RawAttribute{Type: stun.AttrLifetime, Value: make([]byte, 4)}, user, realm, stun.NewNonce("old"), key, stun.Fingerprint)
	for _, s := range [][]stun.Setter{
		{stun.NewType(stun.MethodRefresh, stun.ClassSuccessResponse)},
		{stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse), stun.CodeStaleNonce, realm, stun.NewNonce("new")},
		{stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse), stun.CodeUnauthorized},
		{stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse)},
	} {
		f.Add(stun.MustBuild(append([]stun.Setter{stun.NewTransactionIDSetter(id)}, s...)...).Raw)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		p = append([]byte(nil), p...)
		l := newLease([]*stun.URI{{Username: "alice", Password: "secret"}})
		l.hold(true)
		l.sends(request.Raw, &net.UDPAddr{})
		for range goodbyeNonces + 1 {
			if !sound(p) {
				return
			}
			answer, _ := l.hears(p)
			if answer == nil {
				break
			}
			if !l.ending() || len(p) < stunHeader {
				t.Fatalf("answered %x with %x", p, answer)
			}
			copy(p[8:stunHeader], answer[8:stunHeader]) // the server answers that in the same way
		}
		if answer, _ := l.hears(p); answer != nil {
			t.Fatal("it goes on for ever")
		}
	})
}
