// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// gateway answers at its WireGuard port, and sends data back to where it came
// from.
type gateway struct {
	r    *realm
	deaf bool
}

var gatewayAddr = netip.MustParseAddrPort("203.0.113.7:51820")

func (g *gateway) receive(src, dst netip.AddrPort, b []byte) {
	if g.deaf || dst != gatewayAddr {
		return
	}
	if !path.IsMessage(b) {
		g.r.send(dst, src, b)
	} else if answer, ok := path.Answer(b, src); ok {
		g.r.send(dst, src, answer)
	}
}

// probing is a host with a probe for a gateway, behind a NAT that may let nothing
// out.
func probing(t *testing.T, closed bool, transports ...path.Transport) (*host, *nat, *gateway) {
	t.Helper()
	w := newWorld(1)
	g := &gateway{r: w.internet}
	w.internet.hosts[gatewayAddr.Addr()] = g
	h := newHost(t, w, "alice", "gw-1")
	probe := path.NewProbe()
	h.paths, h.agent = probe, nil
	n := newNAT(w.internet, "198.51.100.1", independent, byPort)
	n.closed = closed
	h.attach(n.inner, "192.168.1.10")
	s := newServer(w, "203.0.113.1")
	for _, transport := range transports {
		h.allocate(s, transport, "gw-1")
	}
	if err := probe.SetRemote(w.now, []netip.AddrPort{gatewayAddr}); err != nil {
		t.Fatal(err)
	}
	h.offer()
	return h, n, g
}

func TestProbe_GoesDirectlyWhereItCan(t *testing.T) {
	h, _, _ := probing(t, false, path.UDP, path.TCP)
	if !h.w.run(100*time.Millisecond, direct(h)) {
		t.Fatalf("state: %+v", h.paths.State())
	}
	if r, _ := h.paths.Selected(); r != (path.Route{To: gatewayAddr}) {
		t.Errorf("data goes to %v", r)
	}
}

func TestProbe_SaysWhereTheGatewaySeesTheSocket(t *testing.T) {
	h, n, _ := probing(t, false, path.UDP)
	probe := h.paths.(*path.Probe)
	if got := probe.Reflexive(); len(got) > 0 {
		t.Errorf("%v before an answer", got)
	}
	for range 2 {
		h.w.run(20*time.Second, nil)
		if got := probe.Reflexive(); !slices.Equal(got, []netip.AddrPort{reflexiveOf(t, h)}) {
			t.Errorf("%v, want %v", got, reflexiveOf(t, h))
		}
		n.forget()
		n.next += 100
	}
	n.closed = true
	h.w.run(time.Minute, nil)
	if got := probe.Reflexive(); len(got) > 0 {
		t.Errorf("%v when only relays are left", got)
	}
}

func TestProbe_TakesRelaysWhereUDPIsBlocked(t *testing.T) {
	h, n, _ := probing(t, true, path.TLS, path.TCP)
	if !h.w.run(300*time.Millisecond, relayed(h)) {
		t.Fatalf("state: %+v", h.paths.State())
	}
	h.w.run(3*time.Second, nil)
	if s := h.paths.State(); s.Transport != path.TCP || s.Why == "" {
		t.Errorf("state: %+v", s)
	}
	n.closed = false
	if !h.w.run(5*time.Minute, direct(h)) {
		t.Errorf("not direct when UDP is let out: %+v", h.paths.State())
	}
}

func TestProbe_LeavesADeadWayAndComesBack(t *testing.T) {
	h, n, g := probing(t, false, path.TCP)
	h.stream()
	h.w.run(10*time.Second, nil)
	cut := h.w.now
	n.closed = true
	if !h.w.run(5*time.Second, relayed(h)) {
		t.Fatalf("state: %+v", h.paths.State())
	}
	h.w.run(time.Second, nil)
	if got := h.stall(cut); got > 4*time.Second {
		t.Errorf("nothing for %v", got)
	}
	g.deaf, n.closed = true, false
	h.w.run(10*time.Minute, nil)
	if standing(h)() {
		t.Fatal("a deaf gateway has a way")
	}
	g.deaf = false
	if !h.w.run(10*time.Second, direct(h)) {
		t.Errorf("not direct 10 s after the gateway is back: %+v", h.paths.State())
	}
}

func TestProbe_BelievesAnswersFromTheGatewayAlone(t *testing.T) {
	h, n, g := probing(t, false)
	g.deaf = true
	var request path.Packet
	h.tap = func(p path.Packet) { request = p }
	h.w.run(5*time.Second, nil)
	answer, ok := path.Answer(request.Bytes, n.ext2())
	if !ok {
		t.Fatal("no answer")
	}
	probe := h.paths.(*path.Probe)
	for name, from := range map[string]netip.AddrPort{
		"another port":    netip.AddrPortFrom(gatewayAddr.Addr(), 51821),
		"another address": netip.MustParseAddrPort("203.0.113.8:51820"),
	} {
		if !probe.Packet(h.w.now, 0, from, answer) || standing(h)() {
			t.Errorf("%s: believed", name)
		}
	}
	other := append([]byte(nil), answer...)
	other[19] ^= 1 // the id; the fingerprint breaks with it
	if probe.Packet(h.w.now, 0, gatewayAddr, other) || standing(h)() {
		t.Error("a broken answer is believed")
	}
	if !probe.Packet(h.w.now, 0, gatewayAddr, answer) || !standing(h)() {
		t.Error("the gateway is not believed")
	}
}

// ext2 is some outer address of a NAT.
func (n *nat) ext2() netip.AddrPort { return netip.AddrPortFrom(n.ext, 40000) }

func TestProbe_RefusesAddressesThatAreNone(t *testing.T) {
	p := path.NewProbe()
	now := time.Unix(1, 0)
	for _, bad := range []netip.AddrPort{{}, netip.MustParseAddrPort("192.0.2.1:0"), netip.MustParseAddrPort("0.0.0.0:1"), netip.MustParseAddrPort("224.0.0.1:1")} {
		if err := p.SetRemote(now, []netip.AddrPort{bad}); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	if err := p.SetRemote(now, make([]netip.AddrPort, path.MaxRemote+1)); err == nil {
		t.Error("too many are taken")
	}
}

func TestAnswer_IsForPlainRequestsAndNoLonger(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("[::ffff:192.0.2.1]:1000"), netip.MustParseAddrPort("[2001:db8::1]:1000")
	request := func(m path.Message) []byte {
		m.Type = path.BindingRequest
		return m.Marshal("")
	}
	for _, tt := range []struct {
		name string
		in   []byte
		from netip.AddrPort
		ok   bool
	}{
		{"bare, too short for its answer", request(path.Message{}), v4, false},
		{"as long as its answer, IPv4", request(path.Message{Length: 32}), v4, true},
		{"too short for IPv6", request(path.Message{Fingerprint: true, Length: path.AskLength - 4}), v6, false},
		{"as nodes ask, IPv6", request(path.Message{Fingerprint: true, Length: path.AskLength}), v6, true},
		{"a check", request(path.Message{Length: path.AskLength, Username: []byte("a:b")}), v4, false},
		{"sealed", (&path.Message{Type: path.BindingRequest}).Marshal("password"), v4, false},
		{"from elsewhere", request(path.Message{Length: path.AskLength, ChangeIP: true}), v4, false},
		{"a response", (&path.Message{Type: path.BindingSuccess, Mapped: v6}).Marshal(""), v4, false},
		{"from nowhere", request(path.Message{Length: path.AskLength}), netip.AddrPort{}, false},
		{"garbage", []byte("garbage"), v4, false},
	} {
		answer, ok := path.Answer(tt.in, tt.from)
		if ok != tt.ok {
			t.Errorf("%s: %v", tt.name, ok)
			continue
		}
		if !ok {
			continue
		}
		m, err := path.ParseMessage(answer)
		if err != nil || m.Type != path.BindingSuccess || m.Mapped.Port() != 1000 || m.Mapped.Addr() != tt.from.Addr().Unmap() || len(answer) > len(tt.in) {
			t.Errorf("%s: %+v, %v", tt.name, m, err)
		}
	}
}

func TestLookup_BelievesTheServerThatItAsked(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	l := path.NewLookup()
	p, err := l.Ask(now, 0, stunServer)
	if err != nil {
		t.Fatal(err)
	}
	mapped := netip.MustParseAddrPort("198.51.100.1:40001")
	answer, ok := path.Answer(p.Bytes, mapped)
	if !ok {
		t.Fatal("no answer")
	}
	if tag, ok := path.Owner(answer); !ok || tag != l.Tag() {
		t.Error("the answer is not the lookup's")
	}
	for _, tt := range []struct {
		name   string
		after  time.Duration
		socket path.Socket
		from   netip.AddrPort
		want   netip.AddrPort
	}{
		{"another server", 0, 0, gatewayAddr, netip.AddrPort{}},
		{"another socket", 0, 1, stunServer, netip.AddrPort{}},
		{"too late", 10 * time.Second, 0, stunServer, netip.AddrPort{}},
		{"right", 20 * time.Millisecond, 0, stunServer, mapped},
		{"again", 20 * time.Millisecond, 0, stunServer, netip.AddrPort{}},
	} {
		got, ok := l.Packet(now.Add(tt.after), tt.socket, tt.from, answer)
		if !ok || got.Mapped != tt.want || got.Mapped.IsValid() && got.RTT != tt.after {
			t.Errorf("%s: %+v, %v", tt.name, got, ok)
		}
	}
	if _, ok := path.NewLookup().Packet(now, 0, stunServer, answer); ok {
		t.Error("another lookup takes it")
	}
	if _, err := l.Ask(now, 0, netip.AddrPort{}); err == nil {
		t.Error("nowhere is asked")
	}
	for range 100 {
		if _, err := l.Ask(now, 0, stunServer); err != nil {
			t.Fatal(err)
		}
	}
}
