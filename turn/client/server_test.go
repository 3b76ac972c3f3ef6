// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

const testSecret = "a secret for tests alone"

var loopback = netip.MustParseAddr("127.0.0.1")

// testServer is our own server, over each transport.
type testServer struct {
	*turn.Server
	secrets *turn.Secrets
	uris    map[Transport]string
	at      map[Transport]netip.AddrPort
	tls     *tls.Config // of a client
	// certificate is that of TLS.
	certificate *x509.Certificate
}

// startServer starts a server on loopback that relays to every address there;
// change adjusts its configuration.
func startServer(t testing.TB, change func(*turn.Config)) *testServer {
	t.Helper()
	secrets, err := turn.NewSecrets([]byte(testSecret), nil)
	if err != nil {
		t.Fatal(err)
	}
	certificate, pool := selfSigned(t, "localhost")
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{alpn}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := turn.Config{
		UDP: []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}, TCP: []netip.AddrPort{netip.AddrPortFrom(loopback, 0)},
		SecureListeners: []net.Listener{l},
		Relay:           turn.Relay{Public: loopback, Bind: loopback}, Secrets: secrets,
		AllowPeer: func(_ string, peer netip.AddrPort) bool { return peer.Addr().IsLoopback() },
		Limits:    turn.Limits{AnswersPerSecond: 1000, RelaysPerUser: 100},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := turn.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	secure := l.Addr().(*net.TCPAddr).AddrPort()
	plain := s.TCPAddrs()[slices.IndexFunc(s.TCPAddrs(), func(a netip.AddrPort) bool { return a != secure })]
	at := map[Transport]netip.AddrPort{UDP: s.UDPAddrs()[0], TCP: plain, TLS: secure}
	return &testServer{Server: s, at: at, secrets: secrets, tls: &tls.Config{RootCAs: pool}, certificate: mustParse(t, certificate), uris: map[Transport]string{
		UDP: "turn:" + s.UDPAddrs()[0].String(),
		TCP: "turn:" + plain.String() + "?transport=tcp",
		TLS: fmt.Sprintf("turns:localhost:%d?transport=tcp", secure.Port()),
	}}
}

func selfSigned(t testing.TB, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func mustParse(t testing.TB, c tls.Certificate) *x509.Certificate {
	t.Helper()
	parsed, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func (s *testServer) config(transport Transport, user string) Config {
	c := s.secrets.Mint(user, time.Hour)
	return Config{Server: s.uris[transport], Username: c.Username, Password: c.Password, TLS: s.tls}
}

// password is that of a username, as the server's secret makes it.
func (s *testServer) password(username string) string {
	mac := hmac.New(sha1.New, []byte(testSecret))
	mac.Write([]byte(username))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// mustAllocate gets an allocation that ends with the test.
func mustAllocate(t testing.TB, cfg Config) *Allocation {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := Allocate(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// listenUDP opens a socket that stands for a peer.
func listenUDP(t testing.TB, addr netip.Addr) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// readOne returns the next packet of a and its sender.
func readOne(t testing.TB, a *Allocation) ([]byte, netip.AddrPort) {
	t.Helper()
	stop := time.AfterFunc(patience, func() { a.fail(errors.New("nothing came in time")) })
	defer stop.Stop()
	buf, sizes, from := make([]byte, MaxPacket), make([]int, 1), make([]netip.AddrPort, 1)
	if _, err := a.ReadBatch([][]byte{buf}, sizes, from); err != nil {
		t.Fatal(err)
	}
	return buf[:sizes[0]], from[0]
}

// expect reads one datagram of a peer socket.
func expect(t testing.TB, c *net.UDPConn, want []byte) netip.AddrPort {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 65536)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf[:n], want) {
		t.Fatalf("peer got %d bytes %.20q, want %d bytes %.20q", n, buf[:n], len(want), want)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// skipTo reads datagrams of a peer socket until the given one.
func skipTo(t testing.TB, c *net.UDPConn, want []byte) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(buf[:n], want) {
			return
		}
	}
}

// eventually polls ok until it holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("%s: not within %s", what, patience)
		case <-tick.C:
		}
	}
}

// waitEnded waits for the end of a and returns why.
func waitEnded(t testing.TB, a *Allocation) error {
	t.Helper()
	select {
	case <-a.Done():
		return a.Err()
	case <-time.After(patience):
		t.Fatal("the allocation goes on")
		return nil
	}
}

// exchange sends packets of all kinds of sizes both ways, as indications at
// first and over a channel in the end.
func exchange(t *testing.T, a *Allocation, c *net.UDPConn, peer netip.AddrPort) {
	t.Helper()
	exchangeSizes(t, a, c, peer, 0, 1, 2, 3, 4, 5, 1200, 1499)
}

func exchangeSizes(t *testing.T, a *Allocation, c *net.UDPConn, peer netip.AddrPort, sizes ...int) {
	t.Helper()
	for round := range 2 * channelAfter {
		for _, size := range sizes {
			payload := bytes.Repeat([]byte{byte(round + 1)}, size)
			if err := a.WriteTo(payload, peer); err != nil {
				t.Fatal(err)
			}
			if from := expect(t, c, payload); from != a.Relayed() {
				t.Fatalf("packet from %s, want the relayed address %s", from, a.Relayed())
			}
			if _, err := c.WriteToUDPAddrPort(payload, a.Relayed()); err != nil {
				t.Fatal(err)
			}
			got, from := readOne(t, a)
			if !bytes.Equal(got, payload) || from != peer {
				t.Fatalf("round %d: got %d bytes from %s, want %d from %s", round, len(got), from, size, peer)
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.core.peers[peer]; p.bound.IsZero() {
		t.Error("there is no channel after so many packets")
	}
}

func transports() []Transport { return []Transport{UDP, TCP, TLS} }

func TestAllocation_ExchangesPackets(t *testing.T) {
	s := startServer(t, nil)
	for _, transport := range transports() {
		t.Run(string(transport), func(t *testing.T) {
			c, peer := listenUDP(t, loopback)
			a := mustAllocate(t, s.config(transport, "u"))
			if a.Transport() != transport || a.Relayed().Addr() != loopback || a.Mapped().Addr() != loopback {
				t.Fatalf("%s allocation at %s, mapped %s", a.Transport(), a.Relayed(), a.Mapped())
			}
			exchange(t, a, c, peer)
			if got := a.Stats(); got != (Stats{}) {
				t.Errorf("lost: %+v", got)
			}
		})
	}
}

// Two allocations that talk to each other through the same server.
func TestAllocation_TwoMeet(t *testing.T) {
	s := startServer(t, func(c *turn.Config) { c.AllowPeer = nil })
	for _, pair := range [][2]Transport{{UDP, UDP}, {UDP, TLS}, {TCP, TLS}} {
		t.Run(string(pair[0]+"-"+pair[1]), func(t *testing.T) {
			a, b := mustAllocate(t, s.config(pair[0], "a")), mustAllocate(t, s.config(pair[1], "b"))
			meet(t, a, b)
		})
	}
}

func TestAllocation_BatchesBothWays(t *testing.T) {
	s := startServer(t, nil)
	for _, transport := range transports() {
		t.Run(string(transport), func(t *testing.T) {
			c, peer := listenUDP(t, loopback)
			a := mustAllocate(t, s.config(transport, "u"))
			exchange(t, a, c, peer)
			var batch [][]byte
			for i := range maxBurst + 10 {
				batch = append(batch, bytes.Repeat([]byte{byte(i)}, 100+i/8))
			}
			if err := a.WriteBatch(batch, peer); err != nil {
				t.Fatal(err)
			}
			for _, packet := range batch {
				expect(t, c, packet)
				if _, err := c.WriteToUDPAddrPort(packet, a.Relayed()); err != nil {
					t.Fatal(err)
				}
			}
			bufs, sizes, from := make([][]byte, 16), make([]int, 16), make([]netip.AddrPort, 16)
			for i := range bufs {
				bufs[i] = make([]byte, MaxPacket)
			}
			for next := 0; next < len(batch); {
				n, err := a.ReadBatch(bufs, sizes, from)
				if err != nil {
					t.Fatal(err)
				}
				for i := range n {
					if !bytes.Equal(bufs[i][:sizes[i]], batch[next]) || from[i] != peer {
						t.Fatalf("packet %d: %d bytes from %s", next, sizes[i], from[i])
					}
					next++
				}
			}
		})
	}
}

func TestAllocation_WhatWaitsForThePermissionArrives(t *testing.T) {
	s := startServer(t, nil)
	c, peer := listenUDP(t, loopback)
	a := mustAllocate(t, s.config(UDP, "u"))
	for i := range maxQueued {
		if err := a.WriteTo([]byte{byte(i)}, peer); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxQueued {
		expect(t, c, []byte{byte(i)})
	}
}

func TestAllocate_SaysWhatIsWrong(t *testing.T) {
	s := startServer(t, func(c *turn.Config) { c.Limits.RelaysPerUser = 1; c.Limits.Relays = 2 })
	mustAllocate(t, s.config(UDP, "greedy"))
	// Nothing listens at the port of a socket that is closed.
	closed, nobody := listenUDP(t, loopback)
	closed.Close()
	silent, mute := listenUDP(t, loopback)
	_ = silent
	tests := map[string]struct {
		transport Transport
		user      string
		change    func(*Config)
		want      error
		text      string
	}{
		"wrong password":     {UDP, "u", func(c *Config) { c.Password = "wrong" }, ErrCredential, "get a new one"},
		"wrong password tcp": {TCP, "u", func(c *Config) { c.Password = "wrong" }, ErrCredential, "get a new one"},
		"expired":            {UDP, "u", func(c *Config) { *c = s.expired() }, ErrCredential, "compare the clocks"},
		"no credential":      {UDP, "u", func(c *Config) { c.Username, c.Password = "", "" }, ErrCredential, "code 401"},
		"quota":              {TLS, "greedy", nil, ErrQuota, "code 486"},
		"family":             {UDP, "u", func(c *Config) { c.Family = IPv6 }, ErrFamily, "ask for the other one"},
		"nobody udp":         {UDP, "u", func(c *Config) { c.Server = "turn:" + nobody.String() }, ErrRefused, nobody.String()},
		"nobody tcp":         {UDP, "u", func(c *Config) { c.Server = "turn:" + nobody.String() + "?transport=tcp" }, ErrRefused, "check host and port"},
		"silence":            {UDP, "u", func(c *Config) { c.Server = "turn:" + mute.String() }, ErrTimeout, "use turn over TCP or TLS"},
		"unknown issuer":     {TLS, "u", func(c *Config) { c.TLS = nil }, nil, "trust its issuer"},
		"wrong name":         {TLS, "u", func(c *Config) { c.TLS = s.tls.Clone(); c.TLS.ServerName = "other.example" }, nil, "name the server as its certificate does"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := s.config(tc.transport, tc.user)
			if tc.change != nil {
				tc.change(&cfg)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			a, err := Allocate(ctx, cfg)
			if err == nil {
				a.Close()
				t.Fatal("there is an allocation")
			}
			if tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error is %q, want %v with %q", err, tc.want, tc.text)
			}
			if cfg.Password != "" && strings.Contains(err.Error(), cfg.Password) {
				t.Error("the error holds the password")
			}
		})
	}
}

func (s *testServer) expired() Config {
	c := s.secrets.Mint("u", -time.Minute)
	return Config{Server: s.uris[UDP], Username: c.Username, Password: c.Password}
}

func TestAllocate_CapacityOfTheServer(t *testing.T) {
	s := startServer(t, func(c *turn.Config) { c.Limits.Relays = 1 })
	mustAllocate(t, s.config(UDP, "a"))
	if _, err := Allocate(t.Context(), s.config(UDP, "b")); !errors.Is(err, ErrCapacity) {
		t.Errorf("error is %v, want %v", err, ErrCapacity)
	}
}

func TestAllocate_EndsWithItsContext(t *testing.T) {
	_, mute := listenUDP(t, loopback)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, query := range []string{"", "?transport=tcp"} {
		if _, err := Allocate(ctx, Config{Server: "turn:" + mute.String() + query}); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v, want %v", err, context.Canceled)
		}
	}
}

// givesLate is a connection on which the relay comes when nobody waits for it any more.
type givesLate struct {
	net.Conn
	stop func()
}

func (c givesLate) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n >= 2 && p[0] == 0x01 && p[1] == 0x03 { // success of Allocate
		c.stop()
	}
	return n, err
}

// What the server gives at the moment when nobody waits any more goes back to it.
func TestAllocate_LeavesNothingBehind(t *testing.T) {
	s := startServer(t, nil)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		cfg := s.config(UDP, "u")
		cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			return givesLate{c, cancel}, err
		}
		a, err := Allocate(ctx, cfg)
		cancel()
		if err == nil {
			a.Close() // it was there in time
		} else if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if left := s.Allocations(); len(left) != 0 {
			t.Fatalf("left behind: %+v", left)
		}
	}
}

// "localhost" is ::1 and 127.0.0.1, and the server listens on one of them.
func TestAllocate_TriesEveryAddress(t *testing.T) {
	s := startServer(t, nil)
	cfg := s.config(UDP, "u")
	cfg.Server = fmt.Sprintf("turn:localhost:%d", s.UDPAddrs()[0].Port())
	mustAllocate(t, cfg)
}

func TestAllocation_ForbiddenPeer(t *testing.T) {
	s := startServer(t, func(c *turn.Config) { c.AllowPeer = nil })
	_, peer := listenUDP(t, loopback)
	a := mustAllocate(t, s.config(UDP, "u"))
	if err := a.WriteTo([]byte("x"), peer); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the refusal is known", func() bool { return errors.Is(a.WriteTo([]byte("x"), peer), ErrForbidden) })
	if got := a.Stats().Unpermitted; got == 0 {
		t.Error("the dropped packet is not counted")
	}
}

func TestAllocation_RefusesWhatCannotLeave(t *testing.T) {
	s := startServer(t, nil)
	_, peer := listenUDP(t, loopback)
	a := mustAllocate(t, s.config(UDP, "u"))
	tests := map[string]struct {
		packet []byte
		to     netip.AddrPort
		want   error
		text   string
	}{
		"too large": {make([]byte, MaxPacket+1), peer, ErrPacket, fmt.Sprint(MaxPacket)},
		"ipv6":      {[]byte("x"), netip.MustParseAddrPort("[::1]:9"), ErrOtherFamily, "[::1]:9"},
		"port 0":    {[]byte("x"), netip.AddrPortFrom(loopback, 0), nil, "no peer can have that address"},
		"nowhere":   {[]byte("x"), netip.AddrPort{}, nil, "no peer can have that address"},
		"any":       {[]byte("x"), netip.MustParseAddrPort("0.0.0.0:9"), nil, "no peer can have that address"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := a.WriteTo(tc.packet, tc.to)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error is %v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
	if err := a.WriteTo([]byte("x"), netip.AddrPortFrom(netip.AddrFrom16(loopback.As16()), peer.Port())); err != nil {
		t.Errorf("a mapped IPv4 address: %v", err)
	}
}

func TestAllocation_CloseGivesItBack(t *testing.T) {
	s := startServer(t, func(c *turn.Config) { c.Limits.Relays = 1 })
	for _, transport := range transports() {
		for range 3 {
			a, err := Allocate(t.Context(), s.config(transport, "u"))
			if err != nil {
				t.Fatal(err)
			}
			blocked := make(chan error)
			go func() {
				_, err := a.ReadBatch([][]byte{make([]byte, 1)}, make([]int, 1), make([]netip.AddrPort, 1))
				blocked <- err
			}()
			a.Close()
			a.Close()
			if err := <-blocked; !errors.Is(err, net.ErrClosed) || !errors.Is(a.Err(), net.ErrClosed) {
				t.Errorf("read says %v, the allocation %v", err, a.Err())
			}
			if err := a.WriteTo([]byte("x"), a.Relayed()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write says %v", err)
			}
		}
	}
}

// The server forgets the allocation: a restart, or an operator.
func TestAllocation_EndsWhenTheServerHasLostIt(t *testing.T) {
	s := startServer(t, nil)
	a := mustAllocate(t, s.config(UDP, "u"))
	s.Evict("u")
	a.do(a.core.refresh)
	if err := waitEnded(t, a); !errors.Is(err, ErrLost) {
		t.Errorf("it ended with %v", err)
	}
	b := mustAllocate(t, s.config(TCP, "u"))
	s.Evict("u")
	if err := waitEnded(t, b); !errors.Is(err, ErrBroken) {
		t.Errorf("it ended with %v", err)
	}
}

// A server that comes back on its port knows neither nonce nor allocation.
func TestAllocation_ServerRestarts(t *testing.T) {
	s := startServer(t, nil)
	a := mustAllocate(t, s.config(UDP, "u"))
	at := s.UDPAddrs()[0]
	s.Server.Close()
	next, err := turn.New(turn.Config{UDP: []netip.AddrPort{at}, Relay: turn.Relay{Public: loopback, Bind: loopback}, Secrets: s.secrets})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	a.do(a.core.refresh)
	if err := waitEnded(t, a); !errors.Is(err, ErrLost) {
		t.Errorf("it ended with %v", err)
	}
}

// A server that does not come back: its host says that nothing listens.
func TestAllocation_ServerGone(t *testing.T) {
	s := startServer(t, nil)
	_, peer := listenUDP(t, loopback)
	a := mustAllocate(t, s.config(UDP, "u"))
	s.Server.Close()
	start := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-a.Done():
			running = false
		case <-tick.C:
			_ = a.WriteTo([]byte("is anybody there?"), peer) // may say that the allocation has ended
		case <-time.After(patience):
			t.Fatal("the allocation goes on")
		}
	}
	if err := a.Err(); !errors.Is(err, ErrRefused) || time.Since(start) < refusedTimeout/2 {
		t.Errorf("it ended after %s with %v", time.Since(start), err)
	}
}

func TestAllocation_RefreshesItselfOnARealServer(t *testing.T) {
	s := startServer(t, func(c *turn.Config) { c.Limits.Lifetime = time.Second })
	for _, transport := range transports() {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			a := mustAllocate(t, s.config(transport, "u"))
			until := time.NewTimer(3 * time.Second)
			defer until.Stop()
			select {
			case <-a.Done():
				t.Errorf("it ended: %v", a.Err())
			case <-until.C:
			}
		})
	}
}
