// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// The listeners of a world: UDP and TCP over IPv4, the same over IPv6, and three
// that make up the square of RFC 5780 with the first.
const (
	udp4 = iota
	tcp4
	udp6
	tcp6
	udp4Q
	udp4B
	udp4BQ
)

// world is a core with a driver that opens relays at once, in memory, and keeps
// all that went out.
type world struct {
	testing.TB
	core   *Core
	ledger *Ledger
	now    time.Time
	out    Output

	refuse    map[Family]bool // relays that cannot be opened
	port      uint16          // of the next relay
	relays    map[RelayID]netip.AddrPort
	toClient  []sent
	toPeer    []sent
	actions   []Action // of all other kinds
	forbidden func(netip.AddrPort) bool
	silent    bool // Config.Answer says no
	async     bool // leave OpenRelay among the actions
	conns     uint64
}

type sent struct {
	flow  Flow
	relay RelayID
	peer  netip.AddrPort
	whole bool
	data  []byte
}

// people are the accounts of a world.
type people map[string][]string // passwords by username

func (p people) Authenticate(_ time.Time, username []byte) (Account, bool) {
	name := string(username)
	passwords, ok := p[name]
	a := Account{User: name[strings.IndexByte(name, ':')+1:]}
	for _, password := range passwords {
		a.Keys = append(a.Keys, NewKey(name, "meshgate", password))
	}
	if name == "ending" {
		a.Expires = start.Add(30 * time.Minute)
	}
	if name == "slow" {
		a.BytesPerSecond = 1000
	}
	return a, ok
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{
		TB: t, now: start, port: 49152, refuse: map[Family]bool{}, relays: map[RelayID]netip.AddrPort{},
		ledger: NewLedger(Counts{Relays: 4}, Counts{Relays: 6}),
	}
	cfg := Config{
		Realm: "meshgate",
		Listeners: []Listener{
			udp4:   {Addr: netip.MustParseAddrPort("203.0.113.1:3478")},
			tcp4:   {Addr: netip.MustParseAddrPort("203.0.113.1:3478"), Stream: true},
			udp6:   {Addr: netip.MustParseAddrPort("[2001:db8::1]:3478")},
			tcp6:   {Addr: netip.MustParseAddrPort("[2001:db8::1]:3478"), Stream: true},
			udp4Q:  {Addr: netip.MustParseAddrPort("203.0.113.1:3479")},
			udp4B:  {Addr: netip.MustParseAddrPort("203.0.113.2:3478")},
			udp4BQ: {Addr: netip.MustParseAddrPort("203.0.113.2:3479")},
		},
		Offers: Offers{IPv4: true, IPv6: true, TCP: true, DontFragment: true},
		Authenticator: people{
			"alice": {"wonder"}, "bob": {"builder"}, "1:carol": {"new", "old"}, "2:carol": {"old"}, "ending": {"x"}, "slow": {"x"},
		},
		Permit: func(_ string, p Peer) bool { return w.forbidden == nil || !w.forbidden(p.Canonical) },
		Answer: func(time.Time, netip.Addr) bool { return !w.silent },
		Quota:  w.ledger,
		Limits: Limits{Permissions: 8, Channels: 4, Connections: 2},
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(start, cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.core = c
	return w
}

// drive executes what the core has asked for.
func (w *world) drive() {
	for len(w.out.Actions) > 0 {
		actions := slices.Clone(w.out.Actions)
		w.out.Actions = nil // what they point to is read below
		for _, a := range actions {
			switch a.Kind {
			case SendClient:
				w.toClient = append(w.toClient, sent{flow: a.Flow, data: slices.Clone(a.Data)})
			case SendPeer:
				w.toPeer = append(w.toPeer, sent{relay: a.Relay, peer: a.Peer, whole: a.DontFragment, data: slices.Clone(a.Data)})
			case OpenRelay:
				if w.async {
					w.actions = append(w.actions, a)
				} else {
					w.openRelay(a)
				}
			case CloseRelay:
				delete(w.relays, a.Relay)
				if w.async {
					w.actions = append(w.actions, a)
				}
			default:
				w.actions = append(w.actions, a)
			}
		}
	}
	w.out.Reset()
}

func (w *world) openRelay(a Action) {
	if w.refuse[a.Family] {
		w.core.RelayFailed(w.now, a.Relay, &w.out)
		return
	}
	if a.Even && w.port%2 != 0 {
		w.port++
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr(map[Family]string{IPv4: "198.51.100.1", IPv6: "2001:db8:1::1"}[a.Family]), w.port)
	w.port++
	w.relays[a.Relay] = addr
	if a.Second != 0 {
		w.relays[a.Second] = netip.AddrPortFrom(addr.Addr(), w.port)
		w.port++
	}
	w.core.RelayOpened(w.now, a.Relay, addr, &w.out)
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	w.core.Expire(w.now, &w.out)
	w.drive()
}

// client is a client of a world.
type client struct {
	*world
	flow               Flow
	username, password string
	nonce              string
	sha256             bool // negotiate SHA-256
	serial             uint32
	transaction        [12]byte // of the last request
}

// client returns client number n at a listener.
func (w *world) client(listener uint16, n int) *client {
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), uint16(1000+n))
	if listener == udp6 || listener == tcp6 {
		addr = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:c::%x", n)), uint16(1000+n))
	}
	c := &client{world: w, flow: Flow{Client: addr, Listener: listener}, username: "alice", password: "wonder"}
	if w.core.cfg.Listeners[listener].Stream {
		w.conns++
		c.flow.Conn = w.conns
	}
	return c
}

func (c *client) as(username, password string) *client {
	c.username, c.password, c.nonce = username, password, ""
	return c
}

// attr is an attribute of a test's message.
type attr struct {
	kind  uint16
	value []byte
}

func u32(kind uint16, v uint32) attr { return attr{kind, binary.BigEndian.AppendUint32(nil, v)} }
func word(kind uint16, v byte) attr  { return attr{kind, []byte{v, 0, 0, 0}} }
func flag(kind uint16, v ...byte) attr {
	return attr{kind, v}
}
func text(kind uint16, v string) attr { return attr{kind, []byte(v)} }

func udp() attr                { return word(attrRequestedTransport, byte(UDP)) }
func tcp() attr                { return word(attrRequestedTransport, byte(TCP)) }
func lifetime(s uint32) attr   { return u32(attrLifetime, s) }
func channel(n uint16) attr    { return u32(attrChannelNumber, uint32(n)<<16) }
func data(s string) attr       { return text(attrData, s) }
func family(f Family) attr     { return word(attrRequestedFamily, byte(f)) }
func additional(f Family) attr { return word(attrAdditionalFamily, byte(f)) }

// peerAt is XOR-PEER-ADDRESS; write encodes it, which needs the header.
func peerAt(s string) attr { return attr{attrXORPeerAddress, []byte("@" + s)} }

// unsigned builds a message without credentials.
func (c *client) unsigned(m method, k class, attrs ...attr) []byte {
	var out Output
	return c.write(&out, m, k, attrs).finish(signer{}, false)
}

func (c *client) write(out *Output, m method, k class, attrs []attr) builder {
	c.serial++
	c.transaction = [12]byte{byte(c.flow.Listener), byte(c.flow.Client.Port())}
	binary.BigEndian.PutUint32(c.transaction[8:], c.serial)
	w := out.build(m, k, c.transaction)
	for _, a := range attrs {
		if a.kind == attrXORPeerAddress && len(a.value) > 0 && a.value[0] == '@' {
			w.address(a.kind, netip.MustParseAddrPort(string(a.value[1:])))
		} else {
			w.bytes(a.kind, a.value)
		}
	}
	return w
}

// signed builds a request with credentials. It asks for a nonce if it has none.
func (c *client) signed(m method, attrs ...attr) []byte {
	if c.nonce == "" {
		c.exchange(c.unsigned(methodAllocate, classRequest, udp(), text(0x8022, "tests.")))
	}
	auth := []attr{text(attrUsername, c.username), text(attrRealm, "meshgate"), text(attrNonce, c.nonce)}
	s := signer{kind: hasIntegrity, algorithm: algorithmMD5, key: NewKey(c.username, "meshgate", c.password)}
	if c.sha256 {
		s.kind, s.algorithm = hasIntegritySHA256, algorithmSHA256
		auth = append(auth, attr{attrPasswordAlgorithm, []byte{0, 2, 0, 0}}, attr{attrPasswordAlgorithms, passwordAlgorithms()})
	}
	var out Output
	return c.write(&out, m, classRequest, append(attrs, auth...)).finish(s, false)
}

// ask sends a request with credentials and renders the answer.
func (c *client) ask(m method, attrs ...attr) string {
	c.Helper()
	return c.exchange(c.signed(m, attrs...))
}

// exchange sends a message and renders the answer, "none" without one.
func (c *client) exchange(b []byte) string {
	c.Helper()
	before := len(c.toClient)
	c.core.FromClient(c.now, c.flow, b, &c.out)
	c.drive()
	if len(c.toClient) == before {
		return "none"
	}
	last := c.toClient[len(c.toClient)-1]
	if last.flow != c.flow && last.flow.Client != c.flow.Client {
		c.Fatalf("the answer went to %v, not to %v", last.flow, c.flow)
	}
	return c.render(last.data)
}

// allocate makes an allocation, which must succeed.
func (c *client) allocate(attrs ...attr) {
	c.Helper()
	if len(attrs) == 0 {
		attrs = []attr{udp()}
	}
	if got := c.ask(methodAllocate, attrs...); !strings.HasPrefix(got, "ok") {
		c.Fatalf("allocate: %s", got)
	}
}

// must fails the test unless a request succeeds.
func (c *client) must(m method, attrs ...attr) {
	c.Helper()
	if got := c.ask(m, attrs...); !strings.HasPrefix(got, "ok") {
		c.Fatalf("method %#x: %s", m, got)
	}
}

// receive has a peer send a datagram to the only relay of a family and returns
// what the client gets.
func (c *client) receive(from, payload string) []byte {
	c.Helper()
	addr := netip.MustParseAddrPort(from)
	before := len(c.toClient)
	buf := append(make([]byte, Headroom, Headroom+len(payload)+Tailroom), payload...)
	for id, relayed := range c.relays {
		if r := c.core.relay(id); r != nil && r.alloc != nil && r.alloc.flow == c.flow && relayed.Addr().Is4() == addr.Addr().Unmap().Is4() {
			c.core.FromPeer(c.now, id, addr, buf, Headroom, &c.out)
		}
	}
	c.drive()
	if len(c.toClient) == before {
		return nil
	}
	return c.toClient[len(c.toClient)-1].data
}

// emit sends a message without answer and returns what went to peers.
func (c *client) emit(b []byte) string {
	c.Helper()
	before, answers := len(c.toPeer), len(c.toClient)
	c.core.FromClient(c.now, c.flow, b, &c.out)
	c.drive()
	if len(c.toClient) != answers {
		c.Fatalf("an indication was answered: %x", c.toClient[answers].data)
	}
	if len(c.toPeer) == before {
		return "none"
	}
	last := c.toPeer[len(c.toPeer)-1]
	s := fmt.Sprintf("%q to %v", last.data, last.peer)
	if last.whole {
		s += " whole"
	}
	return s
}

// indication sends a Send indication and returns what went to peers.
func (c *client) indication(attrs ...attr) string {
	c.Helper()
	return c.emit(c.unsigned(methodSend, classIndication, attrs...))
}

// channelData is a ChannelData message.
func channelData(n uint16, payload string) []byte {
	b := binary.BigEndian.AppendUint16(nil, n)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}
