// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// Where everybody is. The host has two networks, near and far, and clients and
// peers in both.
var (
	server4, server6   = netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("[2001:db8::1]:3478")
	client4, client6   = netip.MustParseAddrPort("192.0.2.10:4000"), netip.MustParseAddrPort("[2001:db8::10]:4000")
	peer4, peer6       = netip.MustParseAddrPort("192.0.2.20:5000"), netip.MustParseAddrPort("[2001:db8::20]:5000")
	farPeer4, farPeer6 = netip.MustParseAddrPort("198.51.100.20:5000"), netip.MustParseAddrPort("[2001:db8:1::20]:5000")
)

// mac is the Ethernet address of a host at a network.
func mac(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	network := byte(0)
	if a == farPeer4.Addr() || a == farPeer6.Addr() {
		network = 1
	}
	return net.HardwareAddr{0x02, 0, 0, 0, network, b[len(b)-1]}
}

// newNamespace moves the test into a network of its own. The thread is never given
// back, so the network ends with it.
func newNamespace(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("needs root for a network namespace and for programs in the kernel")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatalf("unshare network: %v", err)
	}
	for name, value := range map[string]string{"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0", "ipv6/conf/default/disable_ipv6": "0"} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			tb.Fatal(err)
		}
	}
	must(tb, netlink.LinkSetUp(linkOf(tb, "lo")))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func linkOf(tb testing.TB, name string) netlink.Link {
	tb.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		tb.Fatalf("interface %s: %v", name, err)
	}
	return l
}

// newHost is a network with the interfaces near and far, whose cables lead
// nowhere, and with neighbours that need not be asked for.
func newHost(tb testing.TB) {
	tb.Helper()
	newNamespace(tb)
	for network, name := range []string{"near", "far"} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, net.HardwareAddr{0x02, 0, 0, 0, byte(network), 1}
		must(tb, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-end"}))
		must(tb, netlink.LinkSetUp(linkOf(tb, name+"-end")))
		must(tb, netlink.LinkSetUp(linkOf(tb, name)))
		addrs := [][]string{{"192.0.2.1/24", "2001:db8::1/64"}, {"198.51.100.1/24", "2001:db8:1::1/64"}}[network]
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			must(tb, err)
			addr.Flags = unix.IFA_F_NODAD
			must(tb, netlink.AddrAdd(linkOf(tb, name), addr))
		}
	}
	for _, a := range []netip.AddrPort{client4, client6, peer4, peer6} {
		neighbour(tb, "near", a.Addr())
	}
	for _, a := range []netip.AddrPort{farPeer4, farPeer6} {
		neighbour(tb, "far", a.Addr())
	}
}

func neighbour(tb testing.TB, name string, a netip.Addr) {
	tb.Helper()
	must(tb, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: linkOf(tb, name).Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac(a),
	}))
}

// journal keeps what is logged.
type journal struct{ bytes.Buffer }

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(&j.Buffer, nil)) }

// world is a server whose sockets are slices, with a kernel path beside it.
type world struct {
	testing.TB
	core      *core.Core
	out       core.Output
	now       time.Time
	engine    *Engine
	near      uint32 // the index of that interface
	forbidden netip.Addr
	rate      int64
	shared    *core.Rate // of all users; nil: none
	relayed   map[core.RelayID]netip.AddrPort
	sent      []core.Action // to clients and peers, with Data of its own
}

// newWorld starts a server on a new host. Its engine has both programs, which the
// tests run by name.
func newWorld(tb testing.TB, options ...func(*world)) *world {
	tb.Helper()
	newHost(tb)
	w := &world{TB: tb, now: time.Now(), relayed: make(map[core.RelayID]netip.AddrPort)}
	w.near = uint32(linkOf(tb, "near").Attrs().Index)
	for _, o := range options {
		o(w)
	}
	var err error
	w.engine, err = Open(Config{
		Mode: Auto, Listeners: map[uint16]netip.AddrPort{0: server4, 1: server6}, Interfaces: []string{"near", "far"},
	})
	must(tb, err)
	tb.Cleanup(func() { must(tb, w.engine.Close()) })
	w.native("far", true)
	rate := func(_ string, perSecond int64) *core.Rate {
		if perSecond > 0 {
			return core.NewRate(perSecond)
		}
		return w.shared
	}
	w.core, err = core.New(w.now, core.Config{
		Realm: "meshgate", Listeners: []core.Listener{{Addr: server4}, {Addr: server6}},
		Offers: core.Offers{IPv4: true, IPv6: true}, Authenticator: w, Offload: true, Rate: rate,
		Permit: func(_ string, p core.Peer) bool { return p.Canonical.Addr() != w.forbidden },
	})
	must(tb, err)
	return w
}

// native says whether an interface takes what the native program sends there.
func (w *world) native(name string, yes bool) {
	w.Helper()
	known := uint32(0)
	if yes {
		known = portTakes
	}
	must(w, w.engine.programs.Maps["ports"].Put(uint32(linkOf(w, name).Attrs().Index), known))
}

// Authenticate knows everybody, by the password "secret".
func (w *world) Authenticate(_ time.Time, username []byte) (core.Account, bool) {
	key := core.NewKey(string(username), "meshgate", "secret")
	return core.Account{User: string(username), Keys: []core.Key{key}, BytesPerSecond: w.rate}, true
}

// drive executes actions as a server does.
func (w *world) drive() {
	for i := 0; i < len(w.out.Actions); i++ { // answers append more
		switch a := w.out.Actions[i]; a.Kind {
		case core.OpenRelay:
			addr := server4.Addr()
			if a.Family == core.IPv6 {
				addr = server6.Addr()
			}
			w.relayed[a.Relay] = netip.AddrPortFrom(addr, 50000+uint16(a.Relay))
			w.core.RelayOpened(w.now, a.Relay, w.relayed[a.Relay], &w.out)
		case core.CloseRelay:
			delete(w.relayed, a.Relay)
		case core.ChannelsChanged:
			w.engine.Changed(a.Flow, w.core.Bindings(w.now, a.Flow))
			w.core.Credit(w.now, a.Flow, w.engine.Counters(a.Flow))
		case core.SendClient, core.SendPeer:
			a.Data = slices.Clone(a.Data)
			w.sent = append(w.sent, a)
		default:
			w.Fatalf("action %+v", a)
		}
	}
	w.out.Reset()
}

// flow is that of a client.
func flowOf(client netip.AddrPort) core.Flow {
	if client.Addr().Is4() {
		return core.Flow{Client: client}
	}
	return core.Flow{Client: client, Listener: 1}
}

// fromClient and fromPeer return what the core sends for a datagram.
func (w *world) fromClient(client netip.AddrPort, data []byte) []core.Action {
	w.sent = nil
	w.core.FromClient(w.now, flowOf(client), data, &w.out)
	w.drive()
	return w.sent
}

func (w *world) fromPeer(id core.RelayID, peer netip.AddrPort, data []byte) []core.Action {
	w.sent = nil
	w.core.FromPeer(w.now, id, peer, slices.Clone(data), 0, &w.out)
	w.drive()
	return w.sent
}

// Attributes of requests.
type attribute struct {
	kind  stun.AttrType
	value []byte
}

func (a attribute) AddTo(m *stun.Message) error { m.Add(a.kind, a.value); return nil }

func peerAt(a netip.AddrPort) stun.Setter {
	return setter(func(m *stun.Message) error {
		x := stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}
		return x.AddToAs(m, stun.AttrXORPeerAddress)
	})
}

type setter func(*stun.Message) error

func (s setter) AddTo(m *stun.Message) error { return s(m) }

func number(kind stun.AttrType, values ...byte) stun.Setter {
	return attribute{kind: kind, value: values}
}

// request sends a signed request, which must succeed.
func (w *world) request(client netip.AddrPort, method stun.Method, attributes ...stun.Setter) {
	w.Helper()
	requestBy(w, func(request []byte) []byte {
		answers := w.fromClient(client, request)
		if len(answers) != 1 {
			w.Fatalf("%d answers to % x", len(answers), request)
		}
		return answers[0].Data
	}, method, attributes...)
}

// requestBy is request by whatever brings the answer.
func requestBy(tb testing.TB, exchange func([]byte) []byte, method stun.Method, attributes ...stun.Setter) {
	tb.Helper()
	nonce := ""
	for {
		setters := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attributes...)
		if nonce != "" {
			setters = append(setters, stun.NewUsername("alice"), stun.NewRealm("meshgate"), stun.NewNonce(nonce),
				stun.NewLongTermIntegrity("alice", "meshgate", "secret"))
		}
		m, err := stun.Build(setters...)
		must(tb, err)
		answer := &stun.Message{Raw: exchange(m.Raw)}
		must(tb, answer.Decode())
		if answer.Type.Class == stun.ClassSuccessResponse {
			return
		}
		var given stun.Nonce
		if err := given.GetFrom(answer); err != nil || nonce != "" {
			tb.Fatalf("%v: %v: %v", m, answer, err)
		}
		nonce = given.String()
	}
}

// bind gives a client an allocation of both families and a channel to each peer,
// from 0x4000 on.
func (w *world) bind(client netip.AddrPort, peers ...netip.AddrPort) {
	w.Helper()
	w.request(client, stun.MethodAllocate, number(stun.AttrRequestedTransport, 17, 0, 0, 0), number(0x8000, 2, 0, 0, 0))
	for i, p := range peers {
		w.request(client, stun.MethodChannelBind, number(stun.AttrChannelNumber, 0x40, byte(i), 0, 0), peerAt(p))
	}
	// A slow machine may take longer than it is until user space has to see a packet.
	for _, f := range w.engine.table.flows {
		for _, b := range f.bindings {
			w.engine.table.side(b.slot, toPeer)[sideTouch], w.engine.table.side(b.slot, toClient)[sideTouch] = 1<<62, 1<<62
		}
	}
}

// relay is the client's relay for peers of the family of peer.
func (w *world) relay(client, peer netip.AddrPort) (core.RelayID, netip.AddrPort) {
	w.Helper()
	for b := range w.core.Bindings(w.now, flowOf(client)) {
		if b.Peer == peer {
			return b.Relay, b.Relayed
		}
	}
	w.Fatalf("%v has no binding to %v", client, peer)
	return 0, netip.AddrPort{}
}

// sideFresh is where struct side has hop.fresh, in words.
const sideFresh = 4

// sides are both directions of a client's only binding.
func (w *world) sides(client netip.AddrPort) [2][]uint64 {
	w.Helper()
	for _, b := range w.engine.table.flows[flowOf(client)].bindings {
		return [2][]uint64{w.engine.table.side(b.slot, toPeer), w.engine.table.side(b.slot, toClient)}
	}
	w.Fatalf("%v has no binding", client)
	return [2][]uint64{}
}

// used is what the core has counted for a client.
func (w *world) used(client netip.AddrPort) core.Usage {
	flow := flowOf(client)
	w.core.Credit(w.now, flow, w.engine.Counters(flow))
	for a := range w.core.Allocations() {
		if a.Flow == flow {
			return a.Usage
		}
	}
	return core.Usage{}
}

// checks of a UDP checksum in a packet.
type check uint8

const (
	full    check = iota // over all
	partial              // as on virtual links: of the pseudo header
	none
	wrong
)

// packet is an Ethernet frame with a UDP datagram.
type packet struct {
	srcMAC, dstMAC net.HardwareAddr
	from, to       netip.AddrPort
	data           []byte
	ttl, tos       uint8
	id             uint16
	whole          bool // IPv4's DF
	check          check
	excess         uint16 // of a wrong checksum: what there is too much
}

// marshal writes the frame, by nothing that the program or rehearse uses but sum.
func (p packet) marshal() []byte {
	b := slices.Concat(p.dstMAC, p.srcMAC)
	udp := binary.BigEndian.AppendUint16(nil, p.from.Port())
	udp = binary.BigEndian.AppendUint16(udp, p.to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(p.data)))
	udp = append(udp, 0, 0)
	udp = append(udp, p.data...)
	pseudo := slices.Concat(p.from.Addr().AsSlice(), p.to.Addr().AsSlice(), []byte{0, 17}, udp[4:6])
	switch p.check {
	case full, wrong:
		c := ^sum(sum(0, pseudo), udp)
		if p.check == wrong {
			c = sum(c, binary.BigEndian.AppendUint16(nil, p.excess))
		}
		if c == 0 {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(udp[6:], c)
	case partial:
		binary.BigEndian.PutUint16(udp[6:], sum(0, pseudo))
	}
	if p.from.Addr().Is4() {
		b = append(b, 0x08, 0x00)
		ip := []byte{0x45, p.tos}
		ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(udp)))
		ip = binary.BigEndian.AppendUint16(ip, p.id)
		ip = append(ip, 0, 0, p.ttl, 17, 0, 0)
		if p.whole {
			ip[6] = 0x40
		}
		ip = slices.Concat(ip, p.from.Addr().AsSlice(), p.to.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))
		b = append(b, ip...)
	} else {
		b = append(b, 0x86, 0xdd, 0x60|p.tos>>4, p.tos<<4, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(udp)))
		b = append(b, 17, p.ttl)
		b = slices.Concat(b, p.from.Addr().AsSlice(), p.to.Addr().AsSlice())
	}
	return append(b, udp...)
}

// received is a packet as a host of the near network sends it to the server.
func received(from, to netip.AddrPort, data []byte) packet {
	return packet{
		srcMAC: mac(from.Addr()), dstMAC: mac(server4.Addr()), from: from, to: to, data: data,
		ttl: 57, tos: 0xb8, id: 0x1234, whole: true,
	}
}

// context is struct xdp_md, as far as a test may say what is in it.
type context struct{ Data, DataEnd, DataMeta, Ingress, Queue, Egress uint32 }

// run gives a frame that came in at near to a program.
func (w *world) run(program string, frame []byte) (action uint32, out []byte) {
	w.Helper()
	action, out, err := w.try(program, frame)
	must(w, err)
	return action, out
}

func (w *world) try(program string, frame []byte) (action uint32, out []byte, err error) {
	options := ebpfRun(frame, w.near)
	action, err = w.engine.programs.Programs[program].Run(&options)
	return action, options.DataOut, err
}

// random returns n bytes.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

var errWant = errors.New("not as it should be")

func describe(action uint32) string {
	names := []string{"aborted", "dropped", "passed", "sent back", "redirected"}
	if int(action) < len(names) {
		return names[action]
	}
	return fmt.Sprint(action)
}

// contains fails the test if a journal lacks a line with all parts.
func (j *journal) contains(tb testing.TB, parts ...string) {
	tb.Helper()
	for _, p := range parts {
		if !strings.Contains(j.String(), p) {
			tb.Errorf("the log has no %q:\n%s", p, j)
		}
	}
}
