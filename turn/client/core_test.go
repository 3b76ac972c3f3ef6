// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

const (
	testUser     = "user"
	testPassword = "password"
	testRealm    = "realm"
)

var (
	testRelayed = netip.MustParseAddrPort("192.0.2.1:50000")
	testMapped  = netip.MustParseAddrPort("198.51.100.1:40000")
	testPeer    = netip.MustParseAddrPort("203.0.113.1:1000")
)

// fakeServer answers requests as a TURN server does, without a network.
type fakeServer struct {
	user     string
	password string
	nonce    string
	realm    string
	relayed  netip.AddrPort
	life     uint32
	refuse   map[uint16]int         // codes, by method
	extra    []attribute            // of refusals
	also     map[uint16][]attribute // of success, by method
	forbid   map[netip.AddrPort]int // codes, by peer
	unsigned bool                   // refusals are
	seen     []uint16               // methods of good requests
	channels map[uint16]netip.AddrPort
	data     []netip.AddrPort // peers of Send indications
}

// attribute is one of a message.
type attribute struct {
	kind  uint16
	value []byte
}

func newFakeServer() *fakeServer {
	return &fakeServer{
		user: testUser, password: testPassword, nonce: "nonce-0", realm: testRealm, relayed: testRelayed, life: 600,
		refuse: map[uint16]int{}, forbid: map[netip.AddrPort]int{}, channels: map[uint16]netip.AddrPort{},
	}
}

func (s *fakeServer) key() []byte { return longTermKey(s.user, s.realm, s.password) }

// answer returns the response to m; nil for none.
func (s *fakeServer) answer(m message) message {
	if m.kind() == sendIndication {
		s.data = append(s.data, m.address(attrXORPeerAddress))
		return nil
	}
	if m.kind()&classMask != 0 {
		return nil
	}
	if _, valid := m.signed(s.key()); !valid {
		return s.challenge(m, 401)
	}
	if string(m.get(attrNonce)) != s.nonce {
		return s.challenge(m, 438)
	}
	s.seen = append(s.seen, m.kind())
	code := s.refuse[m.kind()]
	if c := s.forbid[m.address(attrXORPeerAddress)]; c != 0 {
		code = c
	}
	if code != 0 {
		r := newMessage(m.kind()|classError, m.transaction()).add(attrErrorCode, []byte{0, 0, byte(code / 100), byte(code % 100)})
		for _, a := range s.extra {
			r = r.add(a.kind, a.value)
		}
		if s.unsigned {
			return r
		}
		return r.sign(s.key())
	}
	r := newMessage(m.kind()|classSuccess, m.transaction())
	switch m.kind() {
	case methodAllocate:
		r = r.add(attrXORRelayedAddress, xorValue(s.relayed, m.transaction())).
			add(attrXORMappedAddress, xorValue(testMapped, m.transaction())).
			add(attrLifetime, binary.BigEndian.AppendUint32(nil, s.life))
	case methodRefresh:
		life := s.life
		if n, ok := m.number(attrLifetime); ok {
			life = n
		}
		r = r.add(attrLifetime, binary.BigEndian.AppendUint32(nil, life))
	case methodChannelBind:
		s.channels[binary.BigEndian.Uint16(m.get(attrChannelNumber))] = m.address(attrXORPeerAddress)
	}
	for _, a := range s.also[m.kind()] {
		r = r.add(a.kind, a.value)
	}
	return r.sign(s.key())
}

func (s *fakeServer) challenge(m message, code int) message {
	return newMessage(m.kind()|classError, m.transaction()).add(attrErrorCode, []byte{0, 0, byte(code / 100), byte(code % 100)}).
		add(attrRealm, []byte(s.realm)).add(attrNonce, []byte(s.nonce))
}

func (s *fakeServer) count(method uint16) (n int) {
	for _, k := range s.seen {
		if k == method {
			n++
		}
	}
	return n
}

func xorValue(a netip.AddrPort, id txID) []byte {
	var v [20]byte
	return v[:putAddress(v[:], a, id)]
}

// bench runs a core against a fake server, with a clock of its own.
type bench struct {
	testing.TB
	*core
	server *fakeServer
	clock  time.Time
	lose   func(m message) bool // drops requests; nil drops none
	sentAt []time.Duration      // of everything that was sent
	start  time.Time
}

func newBench(t testing.TB, change func(*Config, *fakeServer)) *bench {
	t.Helper()
	b := &bench{TB: t, server: newFakeServer(), start: time.Unix(1e9, 0)}
	b.clock = b.start
	cfg := Config{Username: testUser, Password: testPassword}
	if change != nil {
		change(&cfg, b.server)
	}
	b.core = newCore(cfg, false)
	return b
}

// standingBench returns a bench with an allocation.
func standingBench(t testing.TB, change func(*Config, *fakeServer)) *bench {
	t.Helper()
	b := newBench(t, change)
	b.open(b.clock)
	b.pump()
	if b.state != standing {
		t.Fatalf("no allocation: %v", b.err)
	}
	return b
}

// pump lets the server answer until nothing is left to be sent.
func (b *bench) pump() {
	for len(b.out) > 0 {
		out := b.out
		b.out = nil
		for _, m := range out {
			b.sentAt = append(b.sentAt, b.clock.Sub(b.start))
			if b.lose != nil && b.lose(m) {
				continue
			}
			if r := b.server.answer(m); r != nil {
				b.receive(r, b.clock)
			}
		}
		if len(b.out) == 0 {
			b.left(b.clock)
		}
	}
}

// run lets time pass, tick by tick.
func (b *bench) run(d time.Duration) {
	b.Helper()
	end := b.clock.Add(d)
	for ticks := 0; ; ticks++ {
		b.tick(b.clock)
		b.pump()
		next := b.next(b.clock)
		if !next.After(b.clock) || ticks > 10_000 {
			b.Fatalf("the next deadline is %s after now, tick %d", next.Sub(b.clock), ticks)
		}
		if next.After(end) || b.state == ended {
			b.clock = end
			return
		}
		b.clock = next
	}
}

// write sends n packets to a peer as the shell does, and says how they left.
func (b *bench) write(to netip.AddrPort, n int) (route, error) {
	var last route
	for range n {
		p, r, err := b.prepare(to, 1, b.clock)
		if err != nil {
			return r, err
		}
		if last = r; r == queued {
			b.enqueue(p, []byte("data"))
		}
		b.pump()
	}
	return last, nil
}

func never(message) bool  { return false }
func always(message) bool { return true }

func TestCore_RetransmitsAsRFC8489Says(t *testing.T) {
	b := newBench(t, nil)
	b.lose = always
	b.open(b.clock)
	b.run(time.Minute)
	want := []time.Duration{0, 500, 1500, 3500, 7500, 15500, 31500}
	for i := range want {
		want[i] *= time.Millisecond
	}
	if !slices.Equal(b.sentAt, want) {
		t.Errorf("sent at %v, want %v", b.sentAt, want)
	}
	if !errors.Is(b.err, ErrTimeout) {
		t.Errorf("ended with %v, want %v", b.err, ErrTimeout)
	}
}

func TestCore_SendsOnceOverAStream(t *testing.T) {
	b := newBench(t, nil)
	b.stream, b.lose = true, always
	b.open(b.clock)
	b.run(39 * time.Second)
	if len(b.sentAt) != 1 || b.state != allocating {
		t.Errorf("sent %d times, state %d", len(b.sentAt), b.state)
	}
	b.run(time.Second)
	if !errors.Is(b.err, ErrTimeout) {
		t.Errorf("ended with %v, want %v", b.err, ErrTimeout)
	}
}

func TestCore_AllocatesThroughLoss(t *testing.T) {
	b := newBench(t, nil)
	n := 0
	b.lose = func(message) bool { n++; return n%3 != 0 }
	b.open(b.clock)
	b.run(20 * time.Second)
	if b.state != standing || b.relayed != testRelayed || b.mapped != testMapped {
		t.Errorf("state %d, relayed %s, mapped %s, %v", b.state, b.relayed, b.mapped, b.err)
	}
}

// What does not come from the server, or not as the RFC demands, changes nothing.
func TestCore_BelievesOnlyTheServer(t *testing.T) {
	forge := map[string]func(b *bench, m message) []byte{
		"unsigned success": func(b *bench, m message) []byte {
			return newMessage(m.kind()|classSuccess, m.transaction()).add(attrXORRelayedAddress, xorValue(testPeer, m.transaction()))
		},
		"success under another key": func(b *bench, m message) []byte {
			return newMessage(m.kind()|classSuccess, m.transaction()).add(attrXORRelayedAddress, xorValue(testPeer, m.transaction())).
				sign(longTermKey(testUser, testRealm, "guess"))
		},
		"attributes behind the signature": func(b *bench, m message) []byte {
			r := newMessage(m.kind()|classSuccess, m.transaction()).sign([]byte("x"))
			return r.add(attrXORRelayedAddress, xorValue(testPeer, m.transaction()))
		},
		"short signature": func(b *bench, m message) []byte {
			return newMessage(m.kind()|classSuccess, m.transaction()).add(attrIntegrity, make([]byte, 4))
		},
		"another transaction": func(b *bench, m message) []byte { return b.server.answer(sameKind(m, newTxID())) },
		"another method": func(b *bench, m message) []byte {
			return newMessage(methodRefresh|classSuccess, m.transaction()).sign(b.server.key())
		},
		"a request": func(b *bench, m message) []byte { return m },
		"forged error": func(b *bench, m message) []byte {
			return newMessage(m.kind()|classError, m.transaction()).add(attrErrorCode, []byte{0, 0, 4, 37}).sign([]byte("x"))
		},
		"cut":       func(b *bench, m message) []byte { return b.server.answer(m)[:24] },
		"empty":     func(b *bench, m message) []byte { return nil },
		"no cookie": func(b *bench, m message) []byte { r := b.server.answer(m); r[4]++; return r },
	}
	for name, forged := range forge {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.open(b.clock)
			challenged := false
			b.lose = func(m message) bool { // everything from the signed request on
				if _, valid := m.signed(b.server.key()); valid && !challenged {
					challenged = true
					b.receive(forged(b, m), b.clock)
				}
				return challenged
			}
			b.pump()
			if !challenged || b.state != allocating || len(b.transactions) != 1 {
				t.Fatalf("state %d with %d transactions, %v", b.state, len(b.transactions), b.err)
			}
			b.lose = never
			b.run(time.Second)
			if b.state != standing || b.relayed != testRelayed {
				t.Errorf("state %d at %s, %v", b.state, b.relayed, b.err)
			}
		})
	}
}

func sameKind(m message, id txID) message {
	c := slices.Clone(m)
	copy(c[8:], id[:])
	return c
}

func TestCore_RefusedAllocations(t *testing.T) {
	tests := map[string]struct {
		code     int
		unsigned bool
		change   func(*Config, *fakeServer)
		want     error
		after    time.Duration
	}{
		"quota":          {code: 486, want: ErrQuota},
		"quota unsigned": {code: 486, unsigned: true, want: ErrQuota, after: hintWait},
		"capacity":       {code: 508, want: ErrCapacity},
		"elsewhere":      {code: 300, want: ErrCapacity},
		"forbidden":      {code: 403, want: ErrForbidden},
		"family":         {code: 440, want: ErrFamily},
		"mismatch":       {code: 437, want: ErrLost},
		"other user":     {code: 441, want: ErrCredential},
		"transport":      {code: 442, want: ErrProtocol},
		"bad request":    {code: 400, unsigned: true, want: ErrProtocol},
		"out of range":   {code: 999, want: ErrProtocol},
		"wrong password": {change: func(c *Config, _ *fakeServer) { c.Password = "x" }, want: ErrCredential},
		"no username":    {change: func(c *Config, _ *fakeServer) { c.Username = "" }, want: ErrCredential},
		"no nonce":       {change: func(_ *Config, s *fakeServer) { s.nonce = "" }, want: ErrCredential},
		"long nonce":     {change: func(_ *Config, s *fakeServer) { s.nonce = string(make([]byte, maxText+1)) }, want: ErrCredential},
		"no address":     {change: func(_ *Config, s *fakeServer) { s.relayed = netip.AddrPort{} }, want: ErrProtocol},
		"port 0":         {change: func(_ *Config, s *fakeServer) { s.relayed = netip.MustParseAddrPort("192.0.2.1:0") }, want: ErrProtocol},
		"multicast":      {change: func(_ *Config, s *fakeServer) { s.relayed = netip.MustParseAddrPort("224.0.0.1:9") }, want: ErrProtocol},
		"lifetime 0":     {change: func(_ *Config, s *fakeServer) { s.life = 0 }, want: ErrProtocol},
		"ipv4 for ipv6":  {change: func(c *Config, _ *fakeServer) { c.Family = IPv6 }, want: ErrFamily},
		"ipv6 for ipv4": {change: func(c *Config, s *fakeServer) {
			c.Family, s.relayed = IPv4, netip.MustParseAddrPort("[2001:db8::1]:9")
		}, want: ErrFamily},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, tc.change)
			if tc.code != 0 {
				b.server.refuse[methodAllocate] = tc.code
			}
			b.server.unsigned = tc.unsigned
			b.open(b.clock)
			b.pump()
			if tc.after != 0 {
				if b.state != allocating {
					t.Fatalf("an unsigned refusal ends it at once: %v", b.err)
				}
				b.run(tc.after)
			}
			if len(b.sentAt) > 3 {
				t.Errorf("it took %d requests", len(b.sentAt))
			}
			if b.state != ended || !errors.Is(b.err, tc.want) {
				t.Fatalf("state %d, error %v, want %v", b.state, b.err, tc.want)
			}
			var code *CodeError
			if tc.code > 0 && tc.code < 700 && (!errors.As(b.err, &code) || code.Code != tc.code) {
				t.Errorf("error %v does not say %d", b.err, tc.code)
			}
		})
	}
}

// An unsigned refusal may be forged: the server's own word comes first.
func TestCore_SignedAnswerBeatsAnUnsignedRefusal(t *testing.T) {
	b := newBench(t, nil)
	b.server.refuse[methodAllocate], b.server.unsigned = 486, true
	b.open(b.clock)
	b.pump()
	id := b.transactions[0].raw
	delete(b.server.refuse, methodAllocate)
	b.receive(b.server.answer(id), b.clock)
	if b.state != standing {
		t.Errorf("state %d, %v", b.state, b.err)
	}
}

func TestCore_TakesANewNonceWhenToldTo(t *testing.T) {
	b := standingBench(t, nil)
	b.server.nonce = "nonce-1"
	b.run(460 * time.Second)
	if b.err != nil || b.server.count(methodRefresh) == 0 {
		t.Errorf("%d refreshes, %v", b.server.count(methodRefresh), b.err)
	}
}

// A server, or who claims to be it, that never likes a nonce does not keep us busy.
func TestCore_NonceLoopsEnd(t *testing.T) {
	b := newBench(t, nil)
	n := 0
	b.lose = func(m message) bool {
		n++
		b.server.nonce = fmt.Sprint("nonce-", n)
		b.receive(b.server.challenge(m, 438), b.clock)
		return true
	}
	b.open(b.clock)
	b.pump()
	if n != maxLogins+1 || !errors.Is(b.err, ErrCredential) {
		t.Errorf("%d requests, %v", n, b.err)
	}
}

func TestCore_RefreshesAtThreeQuarters(t *testing.T) {
	b := standingBench(t, func(_ *Config, s *fakeServer) { s.life = 80 })
	for range 7 { // data both ways, so that nothing else is a reason
		b.run(8 * time.Second)
		b.wrote(b.clock)
		b.heard()
	}
	if n := b.server.count(methodRefresh); n != 0 {
		t.Fatalf("%d refreshes in the first 56 s of 80", n)
	}
	b.run(5 * time.Second)
	if n := b.server.count(methodRefresh); n != 1 {
		t.Errorf("%d refreshes after 61 s of 80", n)
	}
	b.run(time.Hour)
	if b.state != standing {
		t.Errorf("it ended: %v", b.err)
	}
}

// A server that promises a lifetime without an end is asked again within the hour.
func TestCore_LifetimesAreBounded(t *testing.T) {
	b := standingBench(t, func(_ *Config, s *fakeServer) { s.life = math.MaxInt32 })
	if within := b.refreshAt.Sub(b.clock); within > maxLife*3/4 {
		t.Errorf("refreshed after %s", within)
	}
}

func TestCore_KeepsTheWayOpenWhileQuiet(t *testing.T) {
	b := standingBench(t, nil)
	b.run(5 * time.Minute)
	if n := b.server.count(methodRefresh); n < 11 || n > 12 {
		t.Errorf("%d refreshes in 5 minutes of silence, want one in 25 s", n)
	}
}

// A peer that only listens makes no noise of its own: one question in 10 s.
func TestCore_AsksWhenNothingIsHeard(t *testing.T) {
	b := standingBench(t, nil)
	for range 600 {
		b.wrote(b.clock)
		b.run(100 * time.Millisecond)
	}
	if n := b.server.count(methodRefresh); n < 5 || n > 6 {
		t.Errorf("%d refreshes in 60 s of one-way traffic", n)
	}
}

func TestCore_ServerThatStopsAnswering(t *testing.T) {
	b := standingBench(t, nil)
	b.lose = always
	b.wrote(b.clock)
	b.run(49 * time.Second)
	if b.state != standing {
		t.Fatalf("ended after 49 s: %v", b.err)
	}
	b.run(time.Second)
	if !errors.Is(b.err, ErrTimeout) {
		t.Errorf("ended with %v", b.err)
	}
}

func TestCore_SurvivesABlackout(t *testing.T) {
	b := standingBench(t, nil)
	b.lose = always
	b.wrote(b.clock)
	b.run(30 * time.Second)
	b.lose = never
	b.run(time.Minute)
	if b.state != standing {
		t.Errorf("ended: %v", b.err)
	}
}

func TestCore_RefusedRefreshes(t *testing.T) {
	tests := map[int]error{437: ErrLost, 508: nil, 500: nil, 0: nil}
	for code, want := range tests {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			b := standingBench(t, nil)
			b.server.refuse[methodRefresh] = code
			b.run(30 * time.Second)
			if !errors.Is(b.err, want) {
				t.Fatalf("after one refusal: %v, want %v", b.err, want)
			}
			if want != nil {
				return
			}
			delete(b.server.refuse, methodRefresh)
			b.run(time.Hour)
			if b.state != standing {
				t.Errorf("it did not recover: %v", b.err)
			}
		})
	}
}

// A credential that is refused is not tried again and again. The allocation
// lasts as long as it would; a new credential saves it.
func TestCore_ExpiredCredential(t *testing.T) {
	for _, renewed := range []bool{false, true} {
		b := standingBench(t, nil)
		if r, err := b.write(testPeer, 1); err != nil || r != queued {
			t.Fatal(r, err)
		}
		b.server.password = "next"
		b.run(time.Minute)
		before := len(b.sentAt)
		other := netip.MustParseAddrPort("203.0.113.2:1000")
		if _, err := b.write(other, 1); !errors.Is(err, ErrCredential) {
			t.Errorf("write to a new peer says %v", err)
		}
		b.run(2 * time.Minute)
		if b.state != standing || len(b.sentAt) != before {
			t.Fatalf("state %d, %d requests with a refused credential, %v", b.state, len(b.sentAt)-before, b.err)
		}
		if renewed {
			b.setCredential(testUser, "next", b.clock)
			b.pump()
			if r, err := b.write(other, 2); err != nil || r != indicated {
				t.Errorf("with the new credential: %d, %v", r, err)
			}
		}
		b.run(time.Hour)
		if renewed != (b.state == standing) || !renewed && !errors.Is(b.err, ErrCredential) {
			t.Errorf("renewed %t: state %d, %v", renewed, b.state, b.err)
		}
	}
}

// The answer to a request that an older credential signs is checked with that.
func TestCore_NewCredentialWhileARequestIsOnItsWay(t *testing.T) {
	b := standingBench(t, nil)
	b.refresh(b.clock)
	b.setCredential(testUser, "next", b.clock)
	b.server.password = "next"
	b.pump()
	if b.rejected != nil || b.server.count(methodRefresh) != 1 {
		t.Errorf("%d refreshes, %v", b.server.count(methodRefresh), b.rejected)
	}
}

func TestCore_RefusedSocket(t *testing.T) {
	b := newBench(t, nil)
	b.open(b.clock)
	b.noteRefusal(b.clock)
	if !errors.Is(b.err, ErrRefused) {
		t.Errorf("while allocating: %v", b.err)
	}
	b = standingBench(t, nil)
	b.noteRefusal(b.clock) // an old one: the server answers the question that follows
	b.pump()
	b.run(time.Minute)
	b.noteRefusal(b.clock)
	b.pump()
	if b.state != standing {
		t.Errorf("two refusals a minute apart: %v", b.err)
	}
	b.lose = always
	asked := len(b.sentAt)
	b.noteRefusal(b.clock)
	b.run(refusedTimeout - time.Millisecond)
	b.noteRefusal(b.clock)
	if b.state != standing {
		t.Errorf("ended early: %v", b.err)
	}
	if n := len(b.sentAt) - asked; n != int(refusedTimeout/refusedRetry) {
		t.Errorf("the server was asked %d times meanwhile, want one question each %s", n, refusedRetry)
	}
	b.run(time.Millisecond)
	b.noteRefusal(b.clock)
	if !errors.Is(b.err, ErrRefused) {
		t.Errorf("refusals for %s: %v", refusedTimeout, b.err)
	}
}

func TestCore_Close(t *testing.T) {
	b := standingBench(t, nil)
	b.refresh(b.clock)
	b.server.nonce = "nonce-1" // one more round trip
	b.close(b.clock)
	b.pump()
	if b.state != ended || !errors.Is(b.err, net.ErrClosed) {
		t.Errorf("state %d, %v", b.state, b.err)
	}
	if _, err := b.write(testPeer, 1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write says %v", err)
	}
	b = newBench(t, nil)
	b.open(b.clock)
	b.close(b.clock)
	if b.state != ended || !errors.Is(b.err, net.ErrClosed) {
		t.Errorf("while allocating: state %d, %v", b.state, b.err)
	}
}

// What the server has given when nobody waits for it any more is given back, and what
// it has not is not asked for.
func TestCore_AbandonGivesBack(t *testing.T) {
	gone := errors.New("nobody waits any more")
	signed := func(b *bench, m message) bool { _, valid := m.signed(b.server.key()); return valid }
	for name, tt := range map[string]struct {
		stream bool
		// abandons says at which request it is.
		abandons func(b *bench, m message) bool
		change   func(b *bench) // at that moment
		want     []uint16       // good requests
	}{
		"before it is asked who":      {abandons: func(*bench, message) bool { return true }},
		"while the server gives it":   {abandons: signed, want: []uint16{methodAllocate, methodRefresh}},
		"while the server refuses it": {abandons: signed, change: func(b *bench) { b.server.refuse[methodAllocate] = 486 }, want: []uint16{methodAllocate}},
		"under an old nonce":          {abandons: signed, change: func(b *bench) { b.server.nonce = "nonce-1" }},
		"over a stream":               {stream: true, abandons: signed, want: []uint16{methodAllocate}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.stream = tt.stream
			done := false
			b.lose = func(m message) bool {
				if !done && tt.abandons(b, m) {
					done = true
					b.abandon(gone, b.clock)
					if tt.change != nil {
						tt.change(b)
					}
				}
				return false
			}
			b.open(b.clock)
			b.pump()
			if b.state != ended || !errors.Is(b.err, gone) {
				t.Errorf("state %d, %v", b.state, b.err)
			}
			if !slices.Equal(b.server.seen, tt.want) {
				t.Errorf("the server saw %x, want %x", b.server.seen, tt.want)
			}
		})
	}
	b := standingBench(t, nil)
	b.abandon(gone, b.clock)
	b.pump()
	if b.state != ended || !errors.Is(b.err, gone) || b.server.count(methodRefresh) != 1 {
		t.Errorf("standing: state %d, %v, requests %x", b.state, b.err, b.server.seen)
	}
}

// A server that has started anew, and so does not know the allocation any more,
// is found out as soon as it answers.
func TestCore_RefusedUntilTheServerIsBack(t *testing.T) {
	b := standingBench(t, nil)
	b.lose = always
	b.noteRefusal(b.clock)
	b.run(2 * refusedRetry)
	b.lose, b.server.nonce, b.server.refuse[methodRefresh] = never, "nonce-1", 437
	b.run(refusedRetry)
	if !errors.Is(b.err, ErrLost) {
		t.Errorf("state %d, %v", b.state, b.err)
	}
}

// Who says that there is no allocation is not believed. The server is asked, and
// not more often than it takes.
func TestCore_Hints(t *testing.T) {
	hint := newMessage(methodRefresh|classError, txID{}).add(attrErrorCode, []byte{0, 0, 4, 37})
	b := standingBench(t, nil)
	asked := len(b.sentAt)
	for range 3 {
		b.receive(hint, b.clock)
		b.pump()
	}
	b.run(hintedEvery)
	b.receive(hint, b.clock)
	b.pump()
	if n := len(b.sentAt) - asked; n != 2 || b.state != standing {
		t.Errorf("%d questions, want 2; state %d", n, b.state)
	}
	b.server.refuse[methodRefresh] = 437
	b.run(hintedEvery)
	b.receive(hint, b.clock)
	b.pump()
	if !errors.Is(b.err, ErrLost) {
		t.Errorf("state %d, %v", b.state, b.err)
	}
}

// A check asks at once, whatever waits for its answer already, and finds out
// what has become of the allocation.
func TestCore_Check(t *testing.T) {
	b := standingBench(t, nil)
	b.run(3 * time.Minute)
	b.lose = always
	b.check(b.clock)
	b.pump()
	b.run(4 * time.Second) // the next repetition is seconds away
	if b.unheard.IsZero() || b.state != standing {
		t.Errorf("silent since %s, state %d", b.unheard, b.state)
	}
	b.lose = never
	sent := len(b.sentAt)
	b.check(b.clock)
	b.pump()
	if len(b.sentAt) != sent+1 || !b.unheard.IsZero() || len(b.transactions) != 0 {
		t.Errorf("%d requests, silent since %s", len(b.sentAt)-sent, b.unheard)
	}
	b.server.refuse[methodRefresh] = 437
	b.check(b.clock)
	b.pump()
	if b.state != ended || !errors.Is(b.err, ErrLost) {
		t.Errorf("state %d, %v", b.state, b.err)
	}
	b.check(b.clock) // of one that has ended is nothing
	if len(b.out) != 0 {
		t.Error("an allocation that has ended is asked for")
	}
}
