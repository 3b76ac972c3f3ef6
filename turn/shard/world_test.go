// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// patience is how long a test waits for what must come.
const patience = 5 * time.Second

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
)

// both runs a test on both engines.
func both(t *testing.T, f func(t *testing.T, change func(*Config))) {
	for name, portable := range map[string]bool{"thread": false, "portable": true} {
		t.Run(name, func(t *testing.T) { f(t, func(cfg *Config) { cfg.Portable = portable }) })
	}
}

// world is a shard with listeners on both loopback addresses, where everybody may
// reach everybody.
type world struct {
	testing.TB
	*Shard
	relays *testRelays
	udp    map[netip.Addr]netip.AddrPort // listeners
}

func newWorld(t testing.TB, changes ...func(*Config)) *world {
	t.Helper()
	w := &world{TB: t, relays: &testRelays{open: map[netip.AddrPort]bool{}}, udp: map[netip.Addr]netip.AddrPort{}}
	cfg := Config{
		Core: core.Config{
			Realm: "meshgate", Offers: core.Offers{IPv4: true, IPv6: true, DontFragment: true},
			Authenticator: users{}, Permit: func(string, core.Peer) bool { return true },
		},
		Listeners: map[uint16]*Socket{}, Relays: w.relays,
	}
	for i, a := range []netip.Addr{loopback4, loopback6} {
		s, err := Listen(netip.AddrPortFrom(a, 0), false)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listeners[uint16(i)] = s
		cfg.Core.Listeners = append(cfg.Core.Listeners, core.Listener{Addr: s.Addr()})
		w.udp[a] = s.Addr()
	}
	for _, change := range changes {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Shard = s
	t.Cleanup(func() {
		s.Close()
		if n := w.relays.count(); n != 0 {
			t.Errorf("%d relays were not given back", n)
		}
	})
	return w
}

// users has everybody, with the name as the password.
type users struct{}

func (users) Authenticate(_ time.Time, name []byte) (core.Account, bool) {
	u := string(name)
	return core.Account{User: u, Keys: []core.Key{core.NewKey(u, "meshgate", u)}}, true
}

// testRelays opens relays on loopback.
type testRelays struct {
	mu     sync.Mutex
	open   map[netip.AddrPort]bool
	refuse error      // what Open answers, nil: it opens
	public netip.Addr // of relays of IPv4 as peers see them; zero: where they are
	sabot  func(Opened)
}

func (r *testRelays) Open(a core.Action) (first, second Opened, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil {
		return Opened{}, Opened{}, r.refuse
	}
	at := loopback4
	if a.Family == core.IPv6 {
		at = loopback6
	}
	for {
		s, err := Listen(netip.AddrPortFrom(at, 0), false)
		if err != nil {
			return Opened{}, Opened{}, err
		}
		if a.Even && s.Addr().Port()%2 != 0 {
			s.Close()
			continue
		}
		if a.Second != 0 {
			next, err := Listen(netip.AddrPortFrom(at, s.Addr().Port()+1), false)
			if err != nil {
				s.Close()
				continue
			}
			second = r.opened(next)
		}
		return r.opened(s), second, nil
	}
}

func (r *testRelays) opened(s *Socket) Opened {
	o := Opened{Socket: s, Addr: s.Addr()}
	if r.public.IsValid() && o.Addr.Addr().Is4() {
		o.Addr = netip.AddrPortFrom(r.public, o.Addr.Port())
	}
	r.open[o.Addr] = true
	if r.sabot != nil {
		r.sabot(o)
	}
	return o
}

func (r *testRelays) Closed(a netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open[a] {
		panic("closed twice, or never opened")
	}
	delete(r.open, a)
}

func (r *testRelays) Inside(peer netip.AddrPort) netip.AddrPort {
	if r.public.IsValid() && peer.Addr() == r.public {
		return netip.AddrPortFrom(loopback4, peer.Port())
	}
	return peer
}

func (r *testRelays) Outside(src netip.AddrPort) netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	if out := netip.AddrPortFrom(r.public, src.Port()); r.public.IsValid() && r.open[out] {
		return out
	}
	return src
}

func (r *testRelays) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// client speaks STUN, message by message; pion/stun is its codec, so that what the
// server writes is read by somebody else's code.
type client struct {
	testing.TB
	*net.UDPConn
	server netip.AddrPort
	user   string
	nonce  string
}

// client returns a client of the listener of a family, at an address of its own.
func (w *world) client(family netip.Addr, user string) *client {
	w.Helper()
	return newClient(w.TB, family, w.udp[family], user)
}

func newClient(t testing.TB, from netip.Addr, server netip.AddrPort, user string) *client {
	t.Helper()
	conn, _ := socket(t, from)
	return &client{TB: t, UDPConn: conn, server: server, user: user}
}

// socket opens a socket that stands for a client or a peer.
func socket(t testing.TB, at netip.Addr) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadBuffer(4 << 20)
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (c *client) send(b []byte) {
	c.Helper()
	if _, err := c.WriteToUDPAddrPort(b, c.server); err != nil {
		c.Fatal(err)
	}
}

// packet returns the next message or ChannelData of the server.
func (c *client) packet() []byte {
	c.Helper()
	b, from := receive(c, c.UDPConn)
	if from != c.server {
		c.Fatalf("a packet from %v, not from %v", from, c.server)
	}
	return b
}

func receive(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// expect receives a datagram that must be this one.
func expect(t testing.TB, c *net.UDPConn, want []byte) netip.AddrPort {
	t.Helper()
	got, from := receive(t, c)
	if !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes %.40q, want %d bytes %.40q", len(got), got, len(want), want)
	}
	return from
}

func (c *client) message() *stun.Message {
	c.Helper()
	m := &stun.Message{Raw: c.packet()}
	if err := m.Decode(); err != nil {
		c.Fatal(err)
	}
	return m
}

// request sends a request with credentials and returns the response. It logs in
// if it has not.
func (c *client) request(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	if c.nonce == "" {
		res := c.do(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transportUDP))
		var nonce stun.Nonce
		if err := nonce.GetFrom(res); err != nil || code(res) != 401 {
			c.Fatalf("challenge is %v (%v)", res, err)
		}
		c.nonce = nonce.String()
	}
	return c.do(c.signed(method, attrs...))
}

func (c *client) signed(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	all := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs...)
	all = append(all, stun.NewUsername(c.user), stun.NewRealm("meshgate"), stun.NewNonce(c.nonce),
		stun.NewLongTermIntegrity(c.user, "meshgate", c.user))
	m, err := stun.Build(all...)
	if err != nil {
		c.Fatal(err)
	}
	return m
}

func (c *client) do(m *stun.Message) *stun.Message {
	c.Helper()
	c.send(m.Raw)
	for {
		if res := c.message(); res.TransactionID == m.TransactionID {
			return res
		}
	}
}

// must fails the test unless a request succeeds.
func (c *client) must(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	res := c.request(method, attrs...)
	if res.Type.Class != stun.ClassSuccessResponse {
		c.Fatalf("%v: code %d", method, code(res))
	}
	return res
}

// allocate makes an allocation and returns where its relay is.
func (c *client) allocate(attrs ...stun.Setter) netip.AddrPort {
	c.Helper()
	return relayed(c, c.must(stun.MethodAllocate, append([]stun.Setter{transportUDP}, attrs...)...))
}

func relayed(t testing.TB, m *stun.Message) netip.AddrPort {
	t.Helper()
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil {
		t.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(x.IP)
	return netip.AddrPortFrom(ip.Unmap(), uint16(x.Port))
}

// bind binds a channel.
func (c *client) bind(number uint16, peer netip.AddrPort) {
	c.Helper()
	c.must(stun.MethodChannelBind, channelNumber(number), peerAddress(peer))
}

func (c *client) permit(peer netip.AddrPort) {
	c.Helper()
	c.must(stun.MethodCreatePermission, peerAddress(peer))
}

func channelData(number uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, number)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(payload))), payload...)
}

func code(m *stun.Message) int {
	var e stun.ErrorCodeAttribute
	if e.GetFrom(m) != nil {
		return 0
	}
	return int(e.Code)
}

type setter func(m *stun.Message) error

func (s setter) AddTo(m *stun.Message) error { return s(m) }

func attr(t stun.AttrType, v ...byte) stun.Setter {
	return setter(func(m *stun.Message) error { m.Add(t, v); return nil })
}

var (
	transportUDP = attr(stun.AttrRequestedTransport, 17, 0, 0, 0)
	familyIPv6   = attr(stun.AttrRequestedAddressFamily, 2, 0, 0, 0)
)

func channelNumber(n uint16) stun.Setter {
	return attr(stun.AttrChannelNumber, byte(n>>8), byte(n), 0, 0)
}

func lifetime(seconds byte) stun.Setter { return attr(stun.AttrLifetime, 0, 0, 0, seconds) }

func peerAddress(p netip.AddrPort) stun.Setter {
	return setter(func(m *stun.Message) error {
		a := stun.XORMappedAddress{IP: p.Addr().AsSlice(), Port: int(p.Port())}
		return a.AddToAs(m, stun.AttrXORPeerAddress)
	})
}

// indication is a Send indication.
func indication(peer netip.AddrPort, payload []byte, attrs ...stun.Setter) []byte {
	all := append([]stun.Setter{stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), peerAddress(peer)}, attrs...)
	return stun.MustBuild(append(all, attr(stun.AttrData, payload...))...).Raw
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

// dataOf returns what a Data indication holds.
func dataOf(t testing.TB, m *stun.Message) ([]byte, netip.AddrPort) {
	t.Helper()
	data, err := m.Get(stun.AttrData)
	var from stun.XORMappedAddress
	if err == nil {
		err = from.GetFromAs(m, stun.AttrXORPeerAddress)
	}
	if err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	ip, _ := netip.AddrFromSlice(from.IP)
	return data, netip.AddrPortFrom(ip.Unmap(), uint16(from.Port))
}
