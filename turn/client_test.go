// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/pion/stun"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/core"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

var loopback = netip.MustParseAddr("127.0.0.1")

// testServer is a server on loopback with what mints its credentials.
type testServer struct {
	*Server
	secrets *Secrets
}

// held is how many allocations there are, and dropped how many packets were
// dropped for a reason.
func (s *testServer) held() int                       { return s.totals().core.Allocations }
func (s *testServer) dropped(why core.DropReason) int { return int(s.totals().core.Dropped[why]) }

// nothingLeft says whether users, relays and their ports are all given back.
func (s *testServer) nothingLeft() bool {
	for _, side := range s.relays.sides {
		for _, set := range []bool{false, true} {
			for port := 0; side != nil && port < 1<<16; port++ {
				if side.set(set)[port].Load() != 0 {
					return false
				}
			}
		}
	}
	for what := range core.NumResources {
		if s.ledger.Total(what) != 0 {
			return false
		}
	}
	return s.held() == 0 && len(s.ledger.Users()) == 0
}

// newServer starts a server on loopback; change adjusts its configuration.
func newServer(t testing.TB, change func(*Config)) *testServer {
	t.Helper()
	secrets, err := NewSecrets(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	any := netip.AddrPortFrom(loopback, 0)
	cfg := Config{
		UDP: []netip.AddrPort{any}, TCP: []netip.AddrPort{any},
		Relay: Relay{Public: loopback, Bind: loopback}, Secrets: secrets,
		AllowNetworks: everywhere(),
		Registerer:    prometheus.NewPedanticRegistry(),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &testServer{s, cfg.Secrets}
}

// rawClient speaks STUN to a server, message by message; pion/stun is its codec,
// so that what the server writes is read by somebody else's code.
type rawClient struct {
	testing.TB
	net.Conn
	cred         Credential
	realm, nonce string
}

func dialUDP(t testing.TB, s *testServer, cred Credential) *rawClient {
	return dial(t, "udp", s.UDPAddrs()[0].String(), cred)
}

func dialTCP(t testing.TB, s *testServer, cred Credential) *rawClient {
	return dial(t, "tcp", s.TCPAddrs()[0].String(), cred)
}

func dial(t testing.TB, network, address string, cred Credential) *rawClient {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &rawClient{TB: t, Conn: conn, cred: cred}
}

// login gets realm and nonce from the server's challenge.
func (c *rawClient) login() *rawClient {
	c.Helper()
	res := c.do(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transportUDP))
	var realm stun.Realm
	var nonce stun.Nonce
	if err := res.Parse(&realm, &nonce); err != nil || code(res) != 401 {
		c.Fatalf("challenge is %v, want 401 with realm and nonce (%v)", res, err)
	}
	c.realm, c.nonce = realm.String(), nonce.String()
	return c
}

// allocate logs in and makes an allocation; it returns the relay's address.
func (c *rawClient) allocate(attrs ...stun.Setter) netip.AddrPort {
	c.Helper()
	if len(attrs) == 0 {
		attrs = []stun.Setter{transportUDP}
	}
	res := c.login().request(stun.MethodAllocate, attrs...)
	var relayed stun.XORMappedAddress
	if err := relayed.GetFromAs(res, stun.AttrXORRelayedAddress); err != nil {
		c.Fatalf("allocate: %v, error code %d", err, code(res))
	}
	ip, _ := netip.AddrFromSlice(relayed.IP)
	return netip.AddrPortFrom(ip.Unmap(), uint16(relayed.Port))
}

// request sends an authenticated request and returns the response to it.
func (c *rawClient) request(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	return c.do(c.signed(method, attrs...))
}

func (c *rawClient) signed(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	all := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs...)
	all = append(all, stun.NewUsername(c.cred.Username), stun.NewRealm(c.realm), stun.NewNonce(c.nonce), c.key(), stun.Fingerprint)
	m, err := stun.Build(all...)
	if err != nil {
		c.Fatal(err)
	}
	return m
}

func (c *rawClient) key() stun.MessageIntegrity {
	return stun.NewLongTermIntegrity(c.cred.Username, c.realm, c.cred.Password)
}

func (c *rawClient) do(m *stun.Message) *stun.Message {
	c.Helper()
	c.send(m.Raw)
	for {
		res := c.receive()
		if res.TransactionID != m.TransactionID {
			continue
		}
		if c.realm != "" && code(res) != 401 && code(res) != 438 && res.Contains(stun.AttrMessageIntegrity) {
			if err := c.key().Check(res); err != nil {
				c.Fatalf("response %v: %v", res, err)
			}
		}
		return res
	}
}

// indicate sends data to peer by a Send indication.
func (c *rawClient) indicate(peer netip.AddrPort, data []byte) {
	c.Helper()
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), peerAddress(peer), rawAttr(stun.AttrData, data))
	if err != nil {
		c.Fatal(err)
	}
	c.send(m.Raw)
}

func (c *rawClient) send(b []byte) {
	c.Helper()
	if _, err := c.Write(b); err != nil {
		c.Fatal(err)
	}
}

// packet returns the next message or ChannelData from the server.
func (c *rawClient) packet() []byte {
	c.Helper()
	b, err := c.tryPacket(patience)
	if err != nil {
		c.Fatal(err)
	}
	return b
}

func (c *rawClient) tryPacket(wait time.Duration) ([]byte, error) {
	return c.packetInto(make([]byte, 1<<16), wait)
}

// packetInto is tryPacket into a buffer of 64 KiB.
func (c *rawClient) packetInto(buf []byte, wait time.Duration) ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(wait))
	if c.RemoteAddr().Network() == "udp" {
		n, err := c.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(c, buf[:4]); err != nil {
		return nil, err
	}
	n := 4 + padded(int(binary.BigEndian.Uint16(buf[2:])))
	if buf[0]>>6 == 0 {
		n += headerLen - 4
	}
	_, err := io.ReadFull(c, buf[4:n])
	return buf[:n], err
}

func (c *rawClient) receive() *stun.Message {
	c.Helper()
	m := &stun.Message{Raw: c.packet()}
	if err := m.Decode(); err != nil {
		c.Fatal(err)
	}
	return m
}

// longSoftware makes a request larger than its answer, of which there may then be any number.
func longSoftware() stun.Setter { return stun.NewSoftware("of somebody who asks again and again") }

// binding shows that the server answers, and that it answered nothing since: the
// server works in order, so any other response would have come first.
func (c *rawClient) binding() {
	c.Helper()
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest, longSoftware())
	c.send(m.Raw)
	res := c.receive()
	if res.TransactionID != m.TransactionID || res.Type != stun.BindingSuccess {
		c.Fatalf("got %v before the answer to the binding request", res)
	}
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(res); err != nil || mapped.String() != c.LocalAddr().String() {
		c.Fatalf("mapped address is %v, want %v (%v)", mapped, c.LocalAddr(), err)
	}
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

func rawAttr(t stun.AttrType, v []byte) stun.Setter {
	return setter(func(m *stun.Message) error { m.Add(t, v); return nil })
}

func peerAddress(p netip.AddrPort) stun.Setter {
	return setter(func(m *stun.Message) error {
		if p.Addr().Is4In6() { // the codec would shorten it
			m.Add(stun.AttrXORPeerAddress, xored(p, m.TransactionID[:]))
			return nil
		}
		a := stun.XORMappedAddress{IP: p.Addr().AsSlice(), Port: int(p.Port())}
		return a.AddToAs(m, stun.AttrXORPeerAddress)
	})
}

func channelNumber(n uint16) stun.Setter {
	return rawAttr(stun.AttrChannelNumber, binary.BigEndian.AppendUint32(nil, uint32(n)<<16))
}

func lifetimeSeconds(n uint32) stun.Setter {
	return rawAttr(stun.AttrLifetime, binary.BigEndian.AppendUint32(nil, n))
}

var (
	transportUDP = rawAttr(stun.AttrRequestedTransport, []byte{protocolUDP, 0, 0, 0})
	transportTCP = rawAttr(stun.AttrRequestedTransport, []byte{protocolTCP, 0, 0, 0})
	familyOf4    = rawAttr(stun.AttrRequestedAddressFamily, []byte{familyIPv4, 0, 0, 0})
	familyOf6    = rawAttr(stun.AttrRequestedAddressFamily, []byte{familyIPv6, 0, 0, 0})
	bothFamilies = rawAttr(stun.AttrType(attrAdditionalFamily), []byte{familyIPv6, 0, 0, 0})
)

// listenUDP opens a socket on loopback that stands for a peer.
func listenUDP(t testing.TB) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// expect reads one datagram from a peer socket and returns its source.
func expect(t testing.TB, c *net.UDPConn, want []byte) netip.AddrPort {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 65536)
	n, src, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf[:n], want) {
		t.Fatalf("peer got %q, want %q", buf[:n], want)
	}
	return src
}

// expectNothing shows that nothing lies in the queue of a peer socket.
func expectNothing(t testing.TB, c *net.UDPConn) {
	t.Helper()
	marker := []byte("marker")
	if _, err := c.WriteToUDPAddrPort(marker, c.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
		t.Fatal(err)
	}
	expect(t, c, marker)
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

func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
