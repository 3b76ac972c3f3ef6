// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// meshSocket is the mesh side of an exposed UDP port, in memory.
type meshSocket struct {
	in     chan datagram
	out    chan datagram
	closed chan struct{}
}

type datagram struct {
	text string
	addr net.Addr
}

func newMeshSocket() *meshSocket {
	return &meshSocket{in: make(chan datagram), out: make(chan datagram, 4096), closed: make(chan struct{})}
}

func (m *meshSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-m.closed:
		return 0, nil, net.ErrClosed
	case d := <-m.in:
		return copy(b, d.text), d.addr, nil
	}
}

func (m *meshSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	m.out <- datagram{string(b), to}
	return len(b), nil
}

func (m *meshSocket) Close() error {
	select {
	case <-m.closed:
	default:
		close(m.closed)
	}
	return nil
}

func (*meshSocket) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (*meshSocket) SetDeadline(time.Time) error      { return nil }
func (*meshSocket) SetReadDeadline(time.Time) error  { return nil }
func (*meshSocket) SetWriteDeadline(time.Time) error { return nil }

// send gives the exposed port a datagram and waits for the answer to it.
func (m *meshSocket) send(t *testing.T, ip string, port int, text string) {
	t.Helper()
	from := &net.UDPAddr{IP: net.ParseIP(ip), Port: port}
	deadline := time.After(patience)
	select {
	case m.in <- datagram{text, from}:
	case <-deadline:
		t.Fatal("the exposed port does not read")
	}
	for {
		select {
		case d := <-m.out:
			if d.text == text && d.addr.String() == from.String() {
				return
			}
		case <-deadline:
			t.Fatalf("no answer to %q from %v", text, from)
		}
	}
}

// echoUDP is a service that answers each datagram with itself and where it came
// from, which tells conversations apart.
func echoUDP(t *testing.T) string {
	t.Helper()
	c, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return c.LocalAddr().String()
}

func testExposer(t *testing.T) *exposer {
	t.Helper()
	n := self(t, world(t), "gate", true)
	return newExposer(nil, nil, n.origin, slog.New(slog.DiscardHandler))
}

// TestServeUDP_OneMemberSilencesNobody floods a port from one member, with more
// source ports than all conversations of the port, and from a network that it
// routes.
func TestServeUDP_OneMemberSilencesNobody(t *testing.T) {
	x, m := testExposer(t), newMeshSocket()
	ctx, cancel := context.WithCancel(t.Context())
	e := Expose{Protocol: "udp", Port: 53, Target: echoUDP(t)}
	x.wait.Go(func() { x.serveUDP(ctx, m, e) })
	defer x.wait.Wait()
	defer cancel()
	m.send(t, "172.16.0.3", 1, "before")
	for i := range maxConversations + 100 {
		ip := "172.16.0.2" // phone
		if i%2 == 1 {
			ip = fmt.Sprintf("192.168.7.%d", i%200+1) // behind phone
		}
		m.send(t, ip, 10000+i, fmt.Sprint(i))
	}
	m.send(t, "172.16.0.3", 1, "the same conversation")
	m.send(t, "172.16.0.3", 2, "another one")
	m.send(t, "172.16.0.2", 9, "and the flooder's own")
}

// talk makes a conversation of a member that is in no list yet.
func talk(member string, port uint16) *conversation {
	a, b := net.Pipe()
	_ = b.Close()
	return &conversation{key: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port), member: member, target: a}
}

func TestConversations_EndTheLongestIdle(t *testing.T) {
	v := newConversations()
	var own []*conversation
	for i := range maxMemberConversations {
		c := talk("a", uint16(i+1))
		if out := v.add(c); out != nil {
			t.Fatalf("conversation %d ended another", i)
		}
		own = append(own, c)
	}
	v.used(own[0])
	if out := v.add(talk("a", 1000)); out != own[1] {
		t.Errorf("the wrong one ended: %+v", out)
	}
	if len(v.open) != maxMemberConversations || v.find(own[1].key) != nil || v.find(own[0].key) != own[0] {
		t.Errorf("%d are open", len(v.open))
	}
	v.remove(own[1]) // its reader ends later
	v.used(own[1])
	if len(v.open) != maxMemberConversations {
		t.Errorf("%d are open after one ended twice", len(v.open))
	}
}

// TestConversations_TheMemberWithTheMostPays fills a port by many members.
func TestConversations_TheMemberWithTheMostPays(t *testing.T) {
	v := newConversations()
	port := uint16(0)
	add := func(member string) *conversation { port++; return v.add(talk(member, port)) }
	for i := 0; len(v.open) < maxConversations; i++ {
		if out := add(fmt.Sprint("m", i%17)); out != nil {
			t.Fatal("one ended before the port was full")
		}
	}
	for range 3 {
		if out := add("quiet"); out == nil || out.member == "quiet" {
			t.Errorf("%+v ended for the quiet member", out)
		}
	}
	for range 2000 {
		if out := add("m0"); out != nil && out.member == "quiet" {
			t.Fatal("the member with few lost one")
		}
	}
	if len(v.open) != maxConversations || v.members["quiet"].Len() != 3 {
		t.Errorf("%d are open, %d of the quiet member", len(v.open), v.members["quiet"].Len())
	}
	for _, c := range v.open {
		v.remove(c)
	}
	if len(v.open) != 0 || len(v.members) != 0 {
		t.Errorf("%d and %d are left", len(v.open), len(v.members))
	}
}

func TestQuota(t *testing.T) {
	q := quota{members: map[string]int{}}
	for i := range maxExposed {
		if !q.take(fmt.Sprint("m", i%16)) {
			t.Fatalf("connection %d was refused", i)
		}
	}
	if q.take("other") {
		t.Error("the port holds more than its limit")
	}
	q.give("m0")
	if !q.take("other") || q.take("m1") {
		t.Error("one that ended makes room for one")
	}
	q.give("other")
	if q.take("m1") {
		t.Error("a member holds more than its limit")
	}
	for i := range 16 {
		for q.members[fmt.Sprint("m", i)] > 0 {
			q.give(fmt.Sprint("m", i))
		}
	}
	if q.all != 0 || len(q.members) != 0 {
		t.Errorf("%d are left, of %d members", q.all, len(q.members))
	}
}

// meshListener is the mesh side of an exposed TCP port, in memory.
type meshListener struct {
	in     chan net.Conn
	closed chan struct{}
}

func (l *meshListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case c := <-l.in:
		return c, nil
	}
}

func (l *meshListener) Close() error {
	close(l.closed)
	return nil
}

func (*meshListener) Addr() net.Addr { return &net.TCPAddr{} }

// meshConn is a pipe with an address at its end.
type meshConn struct {
	net.Conn
	from net.Addr
}

func (c meshConn) RemoteAddr() net.Addr { return c.from }

// connect opens a connection from ip and reports whether the service answers.
func (l *meshListener) connect(t *testing.T, ip string, port int) (net.Conn, bool) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	if err := near.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	l.in <- meshConn{far, &net.TCPAddr{IP: net.ParseIP(ip), Port: port}}
	if _, err := near.Write([]byte("x")); err != nil {
		return near, false
	}
	if _, err := io.ReadFull(near, make([]byte, 1)); err != nil {
		t.Fatalf("connection from %s: %v", ip, err)
	}
	return near, true
}

// TestServeTCP_OneMemberShutsNobodyOut holds as many connections as one member
// may, and then one more.
func TestServeTCP_OneMemberShutsNobodyOut(t *testing.T) {
	service, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := testExposer(t)
	l := &meshListener{in: make(chan net.Conn), closed: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	x.wait.Go(func() { x.serveTCP(ctx, l, Expose{Protocol: "tcp", Port: 80, Target: service.Addr().String()}) })
	x.wait.Go(func() { // an echo service
		for {
			c, err := service.Accept()
			if err != nil {
				return
			}
			x.wait.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	defer x.wait.Wait()
	defer service.Close()
	defer cancel()
	var first net.Conn
	for i := range maxMemberExposed {
		c, ok := l.connect(t, "172.16.0.2", i+1)
		if !ok {
			t.Fatalf("connection %d was refused", i)
		}
		if i == 0 {
			first = c
		}
	}
	if _, ok := l.connect(t, "192.168.7.9", 1); ok {
		t.Error("a member got one more from a network of its own")
	}
	if _, ok := l.connect(t, "172.16.0.3", 1); !ok {
		t.Error("another member was refused")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(patience)
	for {
		if _, ok := l.connect(t, "172.16.0.2", 1); ok {
			break
		}
		select {
		case <-deadline:
			t.Fatal("a connection that ended made no room")
		default:
		}
	}
}

func TestOrigin(t *testing.T) {
	s := world(t)
	n := self(t, s, "nas", false)
	n.current.Store(&mesh.Plan{Self: s.Node("nas"), Peers: mesh.PeersOf(
		mesh.Peer{Node: s.Node("gate"), AllowedIPs: append(s.Node("gate").Prefixes(), netip.MustParsePrefix("10.7.0.0/16"))},
	)})
	inPhone := s.Node("phone").IPv6.Addr().Next().String()
	for addr, want := range map[string]string{
		"172.16.0.2":        "phone",
		"::ffff:172.16.0.2": "phone",
		inPhone:             "phone",
		"192.168.7.200":     "phone", // its route
		"172.16.0.1":        "gate",
		"10.7.8.9":          "10.7.0.0/16", // of somebody behind gate
		"172.16.9.9":        "172.16.9.9",
		"2001:db8:ffff::1":  "2001:db8:ffff::1",
	} {
		if got := n.origin(netip.MustParseAddr(addr)); got != want {
			t.Errorf("origin(%s) = %q, want %q", addr, got, want)
		}
	}
	if got := n.origin(netip.Addr{}); !strings.Contains(got, "invalid") {
		t.Errorf("origin of no address = %q", got)
	}
	later := *s
	tablet := *s.Node("phone")
	tablet.ID = "tablet"
	later.Nodes = mesh.NodesOf(&tablet)
	n.snapshot.Store(&later)
	if got := n.origin(netip.MustParseAddr("172.16.0.2")); got != "tablet" {
		t.Errorf("origin in a later snapshot = %q, want tablet", got)
	}
}
