// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// plainValue is the value of an address attribute without XOR.
func plainValue(a netip.AddrPort) []byte {
	if a.Addr().Is4() {
		ip := a.Addr().As4()
		return append([]byte{0, familyIPv4, byte(a.Port() >> 8), byte(a.Port())}, ip[:]...)
	}
	ip := a.Addr().As16()
	return append([]byte{0, familyIPv6, byte(a.Port() >> 8), byte(a.Port())}, ip[:]...)
}

// front is a server that sends its clients on.
type front struct {
	uri   string
	at    netip.AddrPort
	to    atomic.Pointer[[]attribute]
	asked atomic.Int32 // with a good credential
}

// sendTo sets where the clients go.
func (f *front) sendTo(at netip.AddrPort, domain string) {
	list := []attribute{{attrAlternateServer, plainValue(at)}}
	if domain != "" {
		list = append(list, attribute{attrAlternateDomain, []byte(domain)})
	}
	f.to.Store(&list)
}

// startFront starts a front for users of s over a transport, with the certificate
// of certificate.
func startFront(t *testing.T, s *testServer, transport Transport, certificate tls.Certificate) *front {
	t.Helper()
	f := &front{}
	f.to.Store(&[]attribute{})
	var mu sync.Mutex // a message is answered at a time
	answer := func(b []byte) message {
		mu.Lock()
		defer mu.Unlock()
		m := message(b)
		if !checkMessage(b) {
			return nil
		}
		server := newFakeServer()
		server.refuse[methodAllocate], server.extra = codeAlternate, *f.to.Load()
		server.user = string(m.get(attrUsername))
		server.password = s.password(server.user)
		if server.user != "" {
			f.asked.Add(1)
		}
		return server.answer(m)
	}
	if transport == UDP {
		c, at := listenUDP(t, loopback)
		f.at, f.uri = at, "turn:"+at.String()
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if r := answer(buf[:n]); r != nil {
					_, _ = c.WriteToUDPAddrPort(r, from) // a client asks again
				}
			}
		}()
		t.Cleanup(func() { c.Close(); <-done })
		return f
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.at = l.Addr().(*net.TCPAddr).AddrPort()
	f.uri = "turn:" + f.at.String() + "?transport=tcp"
	if transport == TLS {
		f.uri = "turns:" + f.at.String() + "?transport=tcp"
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}})
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				for {
					head := make([]byte, headerLen)
					if _, err := io.ReadFull(c, head); err != nil {
						return
					}
					body := make([]byte, binary.BigEndian.Uint16(head[2:]))
					if _, err := io.ReadFull(c, body); err != nil {
						return
					}
					if _, err := c.Write(answer(append(head, body...))); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return f
}

// A client that is sent on gets its allocation there, over the same transport, and
// loses no packet.
func TestAllocate_FollowsToAnotherServer(t *testing.T) {
	s := startServer(t, nil)
	certificate, pool := selfSigned(t, "front.example")
	for _, transport := range transports() {
		t.Run(string(transport), func(t *testing.T) {
			first, second := startFront(t, s, transport, certificate), startFront(t, s, transport, certificate)
			first.sendTo(second.at, "")
			second.sendTo(s.at[transport], "localhost")
			cfg := s.config(transport, "u")
			cfg.Server, cfg.TLS = first.uri, &tls.Config{RootCAs: pool, ServerName: "front.example"}
			var asked []string
			cfg.AlternateTLS = func(host string) *tls.Config {
				asked = append(asked, host)
				if host == "localhost" {
					return s.tls
				}
				return cfg.TLS
			}
			c, peer := listenUDP(t, loopback)
			a := mustAllocate(t, cfg)
			if a.Transport() != transport || first.asked.Load() != 1 || second.asked.Load() != 1 {
				t.Errorf("over %s, after %d and %d questions", a.Transport(), first.asked.Load(), second.asked.Load())
			}
			want := ""
			if transport == TLS {
				want = "127.0.0.1 localhost"
			}
			if got := strings.Join(asked, " "); got != want {
				t.Errorf("TLS was asked for for %q, want %q", got, want)
			}
			exchange(t, a, c, peer)
			if got := a.Stats(); got != (Stats{}) {
				t.Errorf("lost: %+v", got)
			}
		})
	}
}

// Without a configuration for others the name that the server gives has to be in
// the certificate of the next one, under the same authorities.
func TestAllocate_FollowsByName(t *testing.T) {
	s := startServer(t, nil)
	certificate, pool := selfSigned(t, "localhost")
	s.tls.RootCAs.AddCert(mustParse(t, certificate))
	f := startFront(t, s, TLS, certificate)
	cfg := s.config(TLS, "u")
	cfg.Server, cfg.TLS = f.uri, s.tls.Clone()
	cfg.TLS.ServerName = "localhost"
	f.sendTo(s.at[TLS], "localhost")
	mustAllocate(t, cfg)
	f.sendTo(s.at[TLS], "elsewhere.example")
	if _, err := Allocate(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "elsewhere.example") || !strings.Contains(err.Error(), s.at[TLS].String()) {
		t.Errorf("another name: %v", err)
	}
	cfg.TLS.RootCAs = pool // of the front alone
	f.sendTo(s.at[TLS], "localhost")
	if _, err := Allocate(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another authority: %v", err)
	}
}

// Servers that send their clients in a circle, or on and on, are left.
func TestAllocate_FollowsNoCircle(t *testing.T) {
	s := startServer(t, nil)
	var fronts []*front
	for range maxAlternates + 2 {
		fronts = append(fronts, startFront(t, s, UDP, tls.Certificate{}))
	}
	for i, f := range fronts[:maxAlternates+1] {
		f.sendTo(fronts[i+1].at, "")
	}
	cfg := s.config(UDP, "u")
	for name, tt := range map[string]struct {
		to    netip.AddrPort // from the second
		asked int32          // the first
		last  int32          // the last but one, which is one too far
	}{
		"to itself":     {to: fronts[1].at, asked: 1},
		"to the first":  {to: fronts[0].at, asked: 1},
		"to nobody":     {to: netip.MustParseAddrPort("127.0.0.1:0"), asked: 1},
		"to all":        {to: netip.MustParseAddrPort("255.255.255.255:9"), asked: 1},
		"to the family": {to: netip.MustParseAddrPort("[::1]:9"), asked: 1},
		"on and on":     {to: fronts[2].at, asked: 1, last: 1},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range fronts {
				f.asked.Store(0)
			}
			fronts[1].sendTo(tt.to, "")
			cfg.Server = fronts[0].uri
			_, err := Allocate(t.Context(), cfg)
			if code := (*CodeError)(nil); !errors.Is(err, ErrCapacity) || !errors.As(err, &code) || code.Code != codeAlternate {
				t.Errorf("%v", err)
			}
			if got, last := fronts[0].asked.Load(), fronts[maxAlternates].asked.Load(); got != tt.asked || last != tt.last || fronts[maxAlternates+1].asked.Load() != 0 {
				t.Errorf("the first was asked %d times, the last %d times, the one after %d times", got, last, fronts[maxAlternates+1].asked.Load())
			}
		})
	}
}

// Where the next server does not answer, the error says which one that is, and time
// is that of the caller.
func TestAllocate_FollowsToNobody(t *testing.T) {
	s := startServer(t, nil)
	f := startFront(t, s, UDP, tls.Certificate{})
	silent, at := listenUDP(t, loopback)
	f.sendTo(at, "")
	cfg := s.config(UDP, "u")
	cfg.Server = f.uri
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	gone := errors.New("nobody waits any more")
	go func() {
		_, _, _ = silent.ReadFromUDPAddrPort(make([]byte, 2048))
		cancel(gone)
	}()
	if _, err := Allocate(ctx, cfg); !errors.Is(err, gone) || !strings.Contains(err.Error(), at.String()) {
		t.Errorf("%v", err)
	}
}

// A server is not said to be where another address may be meant, or this host.
func TestAlternate_IsWhereItSeems(t *testing.T) {
	for addr, want := range map[string]bool{
		"203.0.113.9": true, "10.0.0.1": true, "100.64.0.1": true, "127.0.0.1": true, "2001:db8::1": true, "fd00::1": true, "::1": true,
		"64:ff9c::1": false, "2001:1::1": true, "fe80::1": true, "2001:db8::205e:fe00:a00:1": true,
		"0.0.0.0": false, "0.0.0.1": false, "224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false,
		"::": false, "::10.0.0.1": false, "::ffff:0:10.0.0.1": false, "64:ff9b::7f00:1": false, "64:ff9b:1::a00:1": false,
		"2001:0:a00:1::": false, "2002:a00:1::": false, "2001:db8::5efe:10.0.0.1": false, "2001:db8::200:5efe:10.0.0.1": false, "ff02::1": false,
	} {
		at := netip.AddrPortFrom(netip.MustParseAddr(addr), 3478)
		got := newMessage(methodAllocate|classError, [12]byte{}).add(attrAlternateServer, plainValue(at)).alternate()
		if (got.at == at) != want || got.at.IsValid() != want {
			t.Errorf("%s: %+v, want %v", addr, got, want)
		}
	}
}

// What nobody signed, or makes no sense, sends a client nowhere.
func TestCore_AlternateIsBelievedIfSigned(t *testing.T) {
	good := plainValue(netip.MustParseAddrPort("203.0.113.9:3478"))
	for name, tt := range map[string]struct {
		attributes []attribute
		unsigned   bool
		want       alternate
	}{
		"an address":       {attributes: []attribute{{attrAlternateServer, good}}, want: alternate{at: netip.MustParseAddrPort("203.0.113.9:3478")}},
		"IPv6":             {attributes: []attribute{{attrAlternateServer, plainValue(netip.MustParseAddrPort("[2001:db8::9]:1"))}}, want: alternate{at: netip.MustParseAddrPort("[2001:db8::9]:1")}},
		"and a name":       {attributes: []attribute{{attrAlternateServer, good}, {attrAlternateDomain, []byte("b.example")}}, want: alternate{netip.MustParseAddrPort("203.0.113.9:3478"), "b.example"}},
		"unsigned":         {attributes: []attribute{{attrAlternateServer, good}}, unsigned: true},
		"none":             {},
		"a name alone":     {attributes: []attribute{{attrAlternateDomain, []byte("b.example")}}},
		"a short address":  {attributes: []attribute{{attrAlternateServer, good[:7]}}},
		"an empty address": {attributes: []attribute{{attrAlternateServer, nil}}},
		"another family":   {attributes: []attribute{{attrAlternateServer, []byte{0, 3, 0, 1, 1, 2, 3, 4}}}},
		"port 0":           {attributes: []attribute{{attrAlternateServer, plainValue(netip.MustParseAddrPort("203.0.113.9:0"))}}},
		"unspecified":      {attributes: []attribute{{attrAlternateServer, plainValue(netip.MustParseAddrPort("0.0.0.0:9"))}}},
		"multicast":        {attributes: []attribute{{attrAlternateServer, plainValue(netip.MustParseAddrPort("[ff02::1]:9"))}}},
		"a name of two":    {attributes: []attribute{{attrAlternateServer, good}, {attrAlternateDomain, []byte("b.example\x00a.example")}}},
		"a long name":      {attributes: []attribute{{attrAlternateServer, good}, {attrAlternateDomain, []byte(strings.Repeat("b", 256))}}},
		"a name of spaces": {attributes: []attribute{{attrAlternateServer, good}, {attrAlternateDomain, []byte("b example")}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(_ *Config, s *fakeServer) {
				s.refuse[methodAllocate], s.extra, s.unsigned = codeAlternate, tt.attributes, tt.unsigned
			})
			b.open(b.clock)
			b.run(hintWait)
			var code *CodeError
			if !errors.As(b.err, &code) || !errors.Is(b.err, ErrCapacity) || code.alternate != tt.want {
				t.Errorf("%+v, %v", code, b.err)
			}
		})
	}
}

// Who answers the first request, which has no credential, may be anybody.
func TestCore_AlternateOfAnybody(t *testing.T) {
	b := newBench(t, nil)
	b.lose = always
	b.open(b.clock)
	r := newMessage(methodAllocate|classError, b.transactions[0].id).add(attrErrorCode, []byte{0, 0, 3, 0}).
		add(attrAlternateServer, plainValue(testPeer)).sign(nil)
	b.receive(r, b.clock)
	var code *CodeError
	if !errors.As(b.err, &code) || code.alternate != (alternate{}) {
		t.Errorf("%+v, %v", code, b.err)
	}
}

// A server that the Internet reaches does not send a client to what is near it alone.
func TestStop_IsNoNearer(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		ok       bool
	}{
		{"203.0.113.1:3478", "203.0.113.2:3478", true},
		{"203.0.113.1:3478", "203.0.113.1:3479", true},
		{"203.0.113.1:3478", "203.0.113.1:3478", false},
		{"203.0.113.1:3478", "10.0.0.1:3478", false},
		{"203.0.113.1:3478", "127.0.0.1:3478", false},
		{"10.0.0.2:3478", "10.0.0.1:3478", true},
		{"10.0.0.2:3478", "203.0.113.2:3478", true},
		{"10.0.0.2:3478", "127.0.0.1:22", false},
		{"10.0.0.2:3478", "169.254.169.254:80", false},
		{"127.0.0.1:3478", "127.0.0.2:3478", true},
		{"203.0.113.1:3478", "[2001:db8::1]:3478", false},
		{"[2001:db8::1]:3478", "[2001:db8::2]:3478", true},
		{"[2001:db8::1]:3478", "[fd00::1]:3478", false},
		{"[2001:db8::1]:3478", "[::1]:3478", false},
		{"203.0.113.1:3478", "100.64.0.1:3478", false},
		{"203.0.113.1:3478", "100.128.0.1:3478", true},
		{"203.0.113.1:3478", "192.0.0.192:80", false},
		{"203.0.113.1:3478", "168.63.129.16:80", false},
		{"10.0.0.2:3478", "100.64.0.1:3478", true},
		{"100.64.0.2:3478", "10.0.0.1:3478", true},
		{"100.64.0.2:3478", "203.0.113.2:3478", true},
		{"[2001:db8::1]:3478", "[fec0::1]:3478", false},
		{"[fd00::2]:3478", "[fec0::1]:3478", true},
	} {
		p := stop{server: server{transport: UDP}, remote: netip.MustParseAddrPort(tt.from)}
		n, ok := p.next(Config{}, &CodeError{Code: codeAlternate, alternate: alternate{at: netip.MustParseAddrPort(tt.to)}})
		if ok != tt.ok || ok && n.address != tt.to {
			t.Errorf("from %s to %s: %v, %q", tt.from, tt.to, ok, n.address)
		}
	}
}

// A server that drains says so in the signed success of a Refresh, and nowhere else.
func TestCore_HearsOfADrain(t *testing.T) {
	good := attribute{attrAlternateServer, plainValue(netip.MustParseAddrPort("203.0.113.9:3478"))}
	for what, tt := range map[string]struct {
		on   uint16
		with attribute
		want bool
	}{
		"it drains":                {methodRefresh, good, true},
		"it does not":              {methodRefresh, attribute{attrLifetime, []byte{0, 0, 2, 88}}, false},
		"an address without sense": {methodRefresh, attribute{attrAlternateServer, good.value[:7]}, false},
		"of a permission":          {methodCreatePermission, good, false},
	} {
		t.Run(what, func(t *testing.T) {
			b := standingBench(t, nil)
			b.turned = false
			b.server.also = map[uint16][]attribute{tt.on: {tt.with}}
			if err := b.allow(testPeer, b.clock); err != nil {
				t.Fatal(err)
			}
			b.refresh(b.clock)
			b.pump()
			if b.draining != tt.want || b.turned != tt.want || b.state != standing {
				t.Errorf("draining %v, turned %v, state %v", b.draining, b.turned, b.state)
			}
		})
	}
}

// A server that drains sends new clients to another one, which take nothing with them
// that could get lost; those that it has go on.
func TestAllocate_FollowsAServerThatDrains(t *testing.T) {
	first, second := startServer(t, nil), startServer(t, nil)
	second.tls.RootCAs.AddCert(first.certificate)
	c, peer := listenUDP(t, loopback)
	stays := map[Transport]*Allocation{}
	for _, transport := range transports() {
		stays[transport] = mustAllocate(t, first.config(transport, "old"))
	}
	first.Drain(alternatesAt(second))
	for _, transport := range transports() {
		t.Run(string(transport), func(t *testing.T) {
			cfg := first.config(transport, "new")
			cfg.TLS = second.tls
			a := mustAllocate(t, cfg)
			if n := len(second.Allocations()); n != 1 {
				t.Fatalf("the other server has %d allocations", n)
			}
			exchange(t, a, c, peer)
			exchange(t, stays[transport], c, peer)
			if got := [2]Stats{a.Stats(), stays[transport].Stats()}; got != [2]Stats{} {
				t.Errorf("lost: %+v", got)
			}
			a.Close()
		})
	}
	first.Drain(nil)
	if _, err := Allocate(t.Context(), first.config(UDP, "new")); !errors.Is(err, ErrCapacity) {
		t.Errorf("with no other server: %v", err)
	}
}
