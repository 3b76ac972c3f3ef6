// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"
)

func TestServer_GarbageStreamEndsOnlyItself(t *testing.T) {
	s := newServer(t, nil)
	honest := dialTCP(t, s, s.secrets.Mint("u", time.Minute))
	honest.allocate()
	bad := dialTCP(t, s, Credential{})
	bad.send([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	if _, err := bad.tryPacket(patience); err == nil || timedOut(err) {
		t.Errorf("the garbage connection is still open: %v", err)
	}
	if got := code(honest.request(stun.MethodRefresh)); got != 0 {
		t.Errorf("the honest one: %d", got)
	}
	eventually(t, "the garbage connection is forgotten", func() bool { return s.totals().connections == 1 })
}

func TestServer_BoundsConnections(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.ConnectionsPerSource = 2 })
	first, second := dialTCP(t, s, Credential{}), dialTCP(t, s, Credential{})
	first.binding()
	second.binding()
	third := dialTCP(t, s, Credential{})
	if _, err := third.tryPacket(patience); err == nil || timedOut(err) {
		t.Fatalf("the third connection is open: %v", err)
	}
	if n := s.totals().refused; n != 1 {
		t.Errorf("%d connections refused, want 1", n)
	}
	first.Close()
	eventually(t, "a place is free", func() bool { return s.totals().connections == 1 })
	dialTCP(t, s, Credential{}).binding()
}

func TestServer_ServesAListenerOfTLS(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert := selfSigned(t)
	l := tls.NewListener(raw, &tls.Config{Certificates: []tls.Certificate{cert}})
	s := newServer(t, func(c *Config) { c.UDP, c.TCP, c.SecureListeners = nil, nil, []net.Listener{l} })
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	conn, err := tls.Dial("tcp", s.TCPAddrs()[0].String(), &tls.Config{RootCAs: roots, ServerName: "turn.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &rawClient{TB: t, Conn: conn, cred: s.secrets.Mint("u", time.Minute)}
	c.allocate()
	if l := s.Allocations(); len(l) != 1 || !l[0].Stream || !l[0].Secure {
		t.Errorf("allocations %+v", l)
	}
	conn.Close()
	eventually(t, "the allocation ends with its connection", func() bool { return s.nothingLeft() })
}

func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	cert, err := makeCertificate()
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// makeCertificate makes one for turn.test, which is its own authority.
func makeCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"turn.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// told is a connection that hears whether its client holds an allocation, and a
// listener of such ones.
type told struct {
	net.Conn
	heard chan bool
}

func (c told) Settled(holds bool) { c.heard <- holds }

type tells struct {
	net.Listener
	heard chan bool
}

func (l tells) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return told{c, l.heard}, err
}

// A connection that was lent its place hears when it has to be kept.
func TestServer_TellsWhoHoldsAnAllocation(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan bool, 10)
	s := newServer(t, func(c *Config) { c.TCP, c.Listeners = nil, []net.Listener{tells{l, heard}} })
	c := dialTCP(t, s, s.secrets.Mint("u", time.Minute))
	for _, holds := range []bool{true, false, true} {
		if holds {
			c.allocate()
		} else {
			c.request(stun.MethodRefresh, lifetimeSeconds(0))
		}
		c.binding() // over a frame that follows it is found out at the latest
		select {
		case got := <-heard:
			if got != holds {
				t.Errorf("it heard %t, want %t", got, holds)
			}
		case <-time.After(patience):
			t.Fatalf("it did not hear %t", holds)
		}
	}
}

// Behind a proxy that may say so, the client is who it says; nobody else can.
func TestServer_PROXY(t *testing.T) {
	for name, trusted := range map[string]string{"trusted": "127.0.0.0/8", "a stranger": "192.0.2.0/24"} {
		s := newServer(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(trusted)} })
		c := dialTCP(t, s, s.secrets.Mint("u", time.Minute))
		c.send([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc6\x33\x64\x05\x7f\x00\x00\x01\x04\xd2\x0d\x96"))
		m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
		c.send(m.Raw)
		b, err := c.tryPacket(patience)
		var mapped stun.XORMappedAddress
		if err == nil {
			res := &stun.Message{Raw: b}
			err = errors.Join(res.Decode(), mapped.GetFrom(res))
		}
		if got, want := mapped.String() == "198.51.100.5:1234", name == "trusted"; got != want || timedOut(err) {
			t.Errorf("%s: the client is at %v (%v)", name, mapped, err)
		}
	}
}
