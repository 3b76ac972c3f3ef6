// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"
	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/turn/core"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = time.Minute

var (
	loopback = netip.MustParseAddr("127.0.0.1")
	somebody = netip.MustParseAddrPort("198.51.100.7:4000") // a peer of relays of UDP
)

// newServer returns a server that ends with the test.
func newServer(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	cfg := Config{Shards: 1, OpenTCP: openTCP}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openTCP(core.Action) (net.Listener, netip.AddrPort, error) {
	l, err := ListenRelay(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	return l, l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// serve serves l until the test ends, and returns the address.
func serve(t testing.TB, s *Server, l net.Listener) string {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l, 0) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// client is a client over a stream. pion/stun is its codec, so that what the core
// writes is read by somebody else's code.
type client struct {
	testing.TB
	net.Conn
	r              *bufio.Reader
	user, password string
	nonce          string
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	return &client{TB: t, Conn: conn, r: bufio.NewReaderSize(conn, 1<<17), user: "alice", password: "wonder"}
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func (c *client) send(b []byte) {
	c.Helper()
	if _, err := c.Write(b); err != nil {
		c.Fatal(err)
	}
}

// tryFrame returns the next frame.
func (c *client) tryFrame() ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	for size := 4; ; {
		b, err := c.r.Peek(size)
		if err != nil {
			return nil, err
		}
		n, err := core.Frame(b)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			size = 8
			continue
		}
		frame := make([]byte, n)
		_, err = io.ReadFull(c.r, frame)
		return frame, err
	}
}

func (c *client) frame() []byte {
	c.Helper()
	b, err := c.tryFrame()
	if err != nil {
		c.Fatal(err)
	}
	return b
}

// message returns the next STUN message; ChannelData before it is skipped.
func (c *client) message() *stun.Message {
	c.Helper()
	for {
		m := &stun.Message{Raw: c.frame()}
		if m.Raw[0] >= 0x40 {
			continue
		}
		if err := m.Decode(); err != nil {
			c.Fatal(err)
		}
		return m
	}
}

func (c *client) signed(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	if c.nonce == "" {
		m := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest))
		c.send(m.Raw)
		res := c.message()
		var nonce stun.Nonce
		if err := nonce.GetFrom(res); err != nil || code(res) != 401 {
			c.Fatalf("challenge is %v, want 401 with a nonce (%v)", res, err)
		}
		c.nonce = nonce.String()
	}
	all := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs...)
	return stun.MustBuild(append(all, stun.NewUsername(c.user), stun.NewRealm("meshgate"), stun.NewNonce(c.nonce),
		stun.NewLongTermIntegrity(c.user, "meshgate", c.password))...)
}

// ask sends a signed request and returns the answer.
func (c *client) ask(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	m := c.signed(method, attrs...)
	c.send(m.Raw)
	for {
		if res := c.message(); res.TransactionID == m.TransactionID {
			return res
		}
	}
}

// must is ask for what must succeed.
func (c *client) must(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.Helper()
	res := c.ask(method, attrs...)
	if res.Type.Class != stun.ClassSuccessResponse {
		c.Fatalf("%v: %d", method, code(res))
	}
	return res
}

func (c *client) allocate(transport byte) netip.AddrPort {
	c.Helper()
	res := c.must(stun.MethodAllocate, raw(stun.AttrRequestedTransport, transport, 0, 0, 0))
	var a stun.XORMappedAddress
	if err := a.GetFromAs(res, stun.AttrXORRelayedAddress); err != nil {
		c.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(a.IP)
	return netip.AddrPortFrom(ip.Unmap(), uint16(a.Port))
}

// channel makes an allocation with channel 0x4000 to somebody.
func (c *client) channel() *client {
	c.Helper()
	c.allocate(17)
	c.must(stun.MethodChannelBind, raw(stun.AttrChannelNumber, 0x40, 0, 0, 0), peerAt(somebody))
	return c
}

// binding shows that the connection is served.
func (c *client) binding() {
	c.Helper()
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	c.send(m.Raw)
	for {
		if res := c.message(); res.TransactionID == m.TransactionID {
			return
		}
	}
}

// gone waits until the server has ended the connection.
func (c *client) gone() {
	c.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c.r); errors.Is(err, os.ErrDeadlineExceeded) {
		c.Error("the connection is still open")
	}
}

func code(m *stun.Message) int {
	var e stun.ErrorCodeAttribute
	if e.GetFrom(m) != nil {
		return 0
	}
	return int(e.Code)
}

type setter func(*stun.Message) error

func (f setter) AddTo(m *stun.Message) error { return f(m) }

func raw(t stun.AttrType, v ...byte) stun.Setter {
	return setter(func(m *stun.Message) error { m.Add(t, v); return nil })
}

func peerAt(a netip.AddrPort) stun.Setter {
	return setter(func(m *stun.Message) error {
		return stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
	})
}

// channelData is a frame of n bytes of data on channel 0x4000.
func channelData(data []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x40, 0}, uint16(len(data)))
	b = append(b, data...)
	return append(b, make([]byte, (4-len(data)%4)%4)...)
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// eventually waits until ok.
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

// pipes is a listener in memory, for tests that let time pass.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 3478} }

// pipeEnd is the server's end of a pipe.
type pipeEnd struct {
	net.Conn
	heard []bool // by Settled

	mu              sync.Mutex // guards the fields below
	readBy, writeBy time.Time  // deadlines
}

func (p *pipeEnd) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	p.readBy = t
	p.mu.Unlock()
	return p.Conn.SetReadDeadline(t)
}

func (p *pipeEnd) SetWriteDeadline(t time.Time) error {
	p.mu.Lock()
	p.writeBy = t
	p.mu.Unlock()
	return p.Conn.SetWriteDeadline(t)
}

func (p *pipeEnd) deadlines() (read, write time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.readBy, p.writeBy
}

func (p *pipeEnd) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 8), Port: 40000} }

func (p *pipeEnd) Settled(holds bool) { p.heard = append(p.heard, holds) }

func (p *pipes) dial(t testing.TB) (*client, *pipeEnd) {
	t.Helper()
	ours, theirs := net.Pipe()
	end := &pipeEnd{Conn: theirs}
	p.conns <- end
	return newClient(t, ours), end
}

// cert is a certificate of this process.
func cert(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"turn.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func listenTLS(t testing.TB) net.Listener {
	t.Helper()
	return tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{cert(t)}})
}

func dialTLS(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := tls.Dial("tcp4", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

// dials are ways to a server: each starts to listen and returns how to connect.
func dials() map[string]func(testing.TB, *Server) func() *client {
	return map[string]func(testing.TB, *Server) func() *client{
		"tcp": func(t testing.TB, s *Server) func() *client {
			addr := serve(t, s, listen(t))
			return func() *client { return dial(t, addr) }
		},
		"tls": func(t testing.TB, s *Server) func() *client {
			addr := serve(t, s, listenTLS(t))
			return func() *client { return dialTLS(t, addr) }
		},
	}
}

// sameData compares data in order.
func sameData(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
