// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

const meshNetwork = "10.99.0.0/16"

// victim is an agent whose peer is the test: it can make every message that the
// peer could.
type victim struct {
	t        testing.TB
	a        *path.Agent
	now      time.Time
	own      path.Credentials
	peer     path.Credentials
	self     string // the name of a; that of the peer is bob
	sequence uint64
}

// sealed is the key of what the peer sends, of the password of the side that it
// is for.
func (v *victim) sealed(password string) string { return password + "\x00bob\x00" + v.self }

// peerAddr is where the peer says that it is.
var peerAddr = netip.MustParseAddrPort("198.51.100.2:51820")

func newVictim(t testing.TB) *victim {
	t.Helper()
	v := &victim{t: t, now: time.Unix(1_800_000_000, 0), own: path.NewCredentials(), peer: path.NewCredentials(), self: "alice"}
	mesh := netip.MustParsePrefix(meshNetwork)
	a, err := path.New(path.Config{Self: "alice", Peer: "bob", Local: v.own, Forbidden: mesh.Contains})
	if err != nil {
		t.Fatal(err)
	}
	v.a = a
	v.check(a.SetRemote(v.now, v.peer, 1))
	v.check(a.SetLocal(v.now, path.Native, []path.Candidate{{Addr: netip.MustParseAddrPort("192.168.1.10:51820")}, {Addr: netip.MustParseAddrPort("[2001:db8::1]:51820")}}))
	v.check(a.SetLocal(v.now, 1, []path.Candidate{{Kind: path.Relayed, Addr: netip.MustParseAddrPort("203.0.113.1:49152"), Transport: path.UDP}}))
	v.check(a.AddRemote(v.now, path.Candidate{Kind: path.ServerReflexive, Addr: peerAddr}))
	return v
}

func (v *victim) check(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// request is a valid check of the peer.
func (v *victim) request() path.Message {
	v.sequence++
	m := path.Message{
		Type:        path.BindingRequest,
		Username:    []byte(v.own.Ufrag + ":" + v.peer.Ufrag),
		Priority:    1,
		Note:        &path.Note{Sequence: v.sequence},
		Fingerprint: true,
	}
	binary.BigEndian.PutUint64(m.ID[4:], v.sequence)
	return m
}

// packet hands bytes to the agent and returns what it sends at once.
func (v *victim) packet(from netip.AddrPort, b []byte) []path.Packet {
	v.t.Helper()
	v.a.Packet(v.now, path.Native, from, b)
	return v.a.Outgoing()
}

// tick returns what the agent asks within some time.
func (v *victim) tick(d time.Duration) (asked []path.Packet) {
	for end := v.now.Add(d); v.now.Before(end); {
		next := v.a.Tick(v.now)
		asked = append(asked, v.a.Outgoing()...)
		v.now = next
		if v.now.After(end) {
			v.now = end
		}
	}
	return asked
}

// answer is the valid answer to a check.
func (v *victim) answer(p path.Packet) path.Message {
	v.t.Helper()
	m, err := path.ParseMessage(p.Bytes)
	v.check(err)
	return path.Message{Type: path.BindingSuccess, ID: m.ID, Mapped: peerAddr, Fingerprint: true}
}

// stand lets the way to the peer stand, and the agent come to rest.
func (v *victim) stand() {
	v.t.Helper()
	for range 50 {
		for _, p := range v.tick(20 * time.Millisecond) {
			if p.Route == (path.Route{To: peerAddr}) {
				answer := v.answer(p)
				v.packet(peerAddr, answer.Marshal(v.sealed(v.peer.Password)))
			}
		}
	}
	if !v.a.State().Standing {
		v.t.Fatalf("no way: %+v", v.a.State())
	}
}

// unchanged fails the test if what is done changes anything but the counters.
func (v *victim) unchanged(do func()) {
	v.t.Helper()
	snapshot := func() string {
		s := v.a.State()
		s.Counters = path.Counters{}
		r, ok := v.a.Selected()
		return fmt.Sprint(s, r, ok, v.a.Accepted(v.now), v.a.Tick(v.now), len(v.a.Outgoing()))
	}
	v.tick(time.Millisecond)
	before := snapshot()
	do()
	if after := snapshot(); after != before {
		v.t.Errorf("from %s\nto %s", before, after)
	}
}

func TestAgent_AnswersTheChecksOfItsPeer(t *testing.T) {
	v := newVictim(t)
	v.stand()
	for _, from := range []string{"198.51.100.2:51820", "198.51.100.2:7", "[2001:db8::2]:5", "[::ffff:198.51.100.2]:8", "192.168.7.7:5"} {
		m := v.request()
		request := m.Marshal(v.sealed(v.own.Password))
		if tag, ok := path.Owner(request); !ok || tag != v.a.Tag() {
			t.Error("the request has another owner")
		}
		out := v.packet(netip.MustParseAddrPort(from), request)
		if len(out) != 1 {
			t.Fatalf("%s: %d answers", from, len(out))
		}
		got, err := path.ParseMessage(out[0].Bytes)
		if err != nil || got.Type != path.BindingSuccess || got.ID != m.ID || got.Mapped != out[0].To || !got.Fingerprint || !got.Holds(v.own.Password+"\x00alice\x00bob") {
			t.Errorf("%s: %+v, %v", from, got, err)
		}
		if len(out[0].Bytes) > len(request) {
			t.Errorf("an answer of %d bytes for %d", len(out[0].Bytes), len(request))
		}
	}
}

func TestAgent_ForgedRequestsChangeNothing(t *testing.T) {
	elsewhere := netip.MustParseAddrPort("198.51.100.66:6")
	for _, tt := range []struct {
		name     string
		password func(*victim) string // nil: the right one
		change   func(*victim, *path.Message)
		from     netip.AddrPort // zero: elsewhere
	}{
		{name: "wrong password", password: func(v *victim) string { return v.sealed(path.NewCredentials().Password) }},
		{name: "the peer's own password", password: func(v *victim) string { return v.sealed(v.peer.Password) }},
		{name: "the password alone", password: func(v *victim) string { return v.own.Password }},
		{name: "of another node", password: func(v *victim) string { return v.own.Password + "\x00eve\x00alice" }},
		{name: "to another node", password: func(v *victim) string { return v.own.Password + "\x00bob\x00eve" }},
		{name: "the other way round", password: func(v *victim) string { return v.own.Password + "\x00alice\x00bob" }},
		{name: "no seal", password: func(*victim) string { return "" }},
		{name: "another sender", change: func(v *victim, m *path.Message) { m.Username = []byte(v.own.Ufrag + ":someone") }},
		{name: "an empty sender", change: func(v *victim, m *path.Message) { m.Username = []byte(v.own.Ufrag + ":") }},
		{name: "another receiver", change: func(v *victim, m *path.Message) { m.Username = []byte("someone1:" + v.peer.Ufrag) }},
		{name: "no user name", change: func(_ *victim, m *path.Message) { m.Username = nil }},
		{name: "no note", change: func(_ *victim, m *path.Message) { m.Note = nil }},
		{name: "no fingerprint", change: func(_ *victim, m *path.Message) { m.Fingerprint = false }},
		{name: "sequence 0", change: func(_ *victim, m *path.Message) { m.Note.Sequence = 0 }},
		{name: "loopback", from: netip.MustParseAddrPort("127.0.0.1:9")},
		{name: "mapped loopback", from: netip.MustParseAddrPort("[::ffff:127.0.0.1]:9")},
		{name: "link-local", from: netip.MustParseAddrPort("[fe80::1%eth0]:9")},
		{name: "port 0", from: netip.MustParseAddrPort("198.51.100.66:0")},
		{name: "in the mesh", from: netip.MustParseAddrPort("10.99.3.4:51820")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newVictim(t)
			v.stand()
			m := v.request()
			if tt.change != nil {
				tt.change(v, &m)
			}
			password := v.sealed(v.own.Password)
			if tt.password != nil {
				password = tt.password(v)
			}
			from := tt.from
			if !from.IsValid() {
				from = elsewhere
			}
			v.unchanged(func() {
				if out := v.packet(from, m.Marshal(password)); len(out) > 0 {
					t.Errorf("%d packets to %v", len(out), out[0].To)
				}
			})
		})
	}
}

func TestAgent_RequestsToSocketsThatAreNotThereChangeNothing(t *testing.T) {
	v := newVictim(t)
	v.stand()
	m := v.request()
	v.unchanged(func() {
		v.a.Packet(v.now, 7, peerAddr, m.Marshal(v.sealed(v.own.Password)))
		if len(v.a.Outgoing()) > 0 {
			t.Error("an answer")
		}
	})
}

func TestAgent_ReplayedRequestsChangeNothing(t *testing.T) {
	v := newVictim(t)
	v.stand()
	m := v.request()
	b := m.Marshal(v.sealed(v.own.Password))
	if len(v.packet(peerAddr, b)) != 1 {
		t.Fatal("the first one is not answered")
	}
	for _, from := range []string{"198.51.100.66:6", "198.51.100.2:51820", "[2001:db8::66]:6"} {
		v.unchanged(func() {
			if out := v.packet(netip.MustParseAddrPort(from), b); len(out) > 0 {
				t.Errorf("a replay from %s is answered", from)
			}
		})
	}
	// A flood of replays does not use up what the peer may ask.
	for range 10_000 {
		v.packet(netip.MustParseAddrPort("198.51.100.66:6"), b)
	}
	next := v.request()
	if len(v.packet(peerAddr, next.Marshal(v.sealed(v.own.Password)))) != 1 {
		t.Error("after a flood of replays the peer is not answered")
	}
}

func TestAgent_ReflectedMessagesChangeNothing(t *testing.T) {
	v := newVictim(t)
	v.stand()
	var own []path.Packet
	for len(own) == 0 {
		own = v.tick(time.Second)
	}
	m := v.request()
	own = append(own, v.packet(peerAddr, m.Marshal(v.sealed(v.own.Password)))...)
	v.stand()
	for _, p := range own {
		v.unchanged(func() {
			if v.a.Packet(v.now, path.Native, p.To, p.Bytes) || len(v.a.Outgoing()) > 0 {
				t.Error("the agent takes what it sent")
			}
		})
	}
}

func TestAgent_ForgedResponsesChangeNothing(t *testing.T) {
	for _, tt := range []struct {
		name     string
		from     netip.AddrPort
		socket   path.Socket
		after    time.Duration
		password func(*victim) string
		change   func(*path.Message)
	}{
		{name: "another port", from: netip.AddrPortFrom(peerAddr.Addr(), 9)},
		{name: "another address", from: netip.MustParseAddrPort("198.51.100.66:51820")},
		{name: "another socket", socket: 1},
		{name: "too late", after: 6 * time.Second},
		{name: "wrong password", password: func(v *victim) string { return v.sealed(v.own.Password) }},
		{name: "the password alone", password: func(v *victim) string { return v.peer.Password }},
		{name: "of another node", password: func(v *victim) string { return v.peer.Password + "\x00eve\x00alice" }},
		{name: "to another node", password: func(v *victim) string { return v.peer.Password + "\x00bob\x00eve" }},
		{name: "no seal", password: func(*victim) string { return "" }},
		{name: "another id", change: func(m *path.Message) { m.ID[11]++ }},
		{name: "no address", change: func(m *path.Message) { m.Mapped = netip.AddrPort{} }},
		{name: "no fingerprint", change: func(m *path.Message) { m.Fingerprint = false }},
		{name: "an error", change: func(m *path.Message) { m.Type, m.ErrorCode = path.BindingError, 487 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newVictim(t)
			var asked path.Packet
			for _, p := range v.tick(15 * time.Millisecond) {
				if p.Route == (path.Route{To: peerAddr}) {
					asked = p
				}
			}
			answer := v.answer(asked)
			if tt.change != nil {
				tt.change(&answer)
			}
			password, from := v.sealed(v.peer.Password), peerAddr
			if tt.password != nil {
				password = tt.password(v)
			}
			if tt.from.IsValid() {
				from = tt.from
			}
			v.now = v.now.Add(tt.after)
			v.a.Packet(v.now, tt.socket, from, answer.Marshal(password))
			if s := v.a.State(); s.Standing || s.Alive > 0 || s.Counters.Answered > 0 || len(v.a.Accepted(v.now)) > 0 {
				t.Errorf("believed: %+v", s)
			}
			if tt.after > 0 {
				return
			}
			good := v.answer(asked)
			v.a.Packet(v.now, path.Native, peerAddr, good.Marshal(v.sealed(v.peer.Password)))
			if !v.a.State().Standing {
				t.Error("the right answer is not believed any more")
			}
			v.a.Packet(v.now, path.Native, peerAddr, good.Marshal(v.sealed(v.peer.Password)))
			if s := v.a.State(); s.Counters.Answered != 1 {
				t.Error("an answer counts twice")
			}
		})
	}
}

// A peer that lies about where it is has the agent send no more than its pace,
// and remember no more than its bounds.
func TestAgent_FloodOfItsPeerIsBounded(t *testing.T) {
	v := newVictim(t)
	v.stand()
	var answers, asks int
	start := v.now
	for i := range 20_000 {
		m := v.request()
		m.Note.Round, m.Note.Uses = true, i%2 == 0
		m.Note.Leg = path.Transport(i % 4)
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), uint16(1+i%1000))
		answers += len(v.packet(from, m.Marshal(v.sealed(v.own.Password))))
		_ = v.a.AddRemote(v.now, path.Candidate{Addr: netip.AddrPortFrom(from.Addr(), 9)})
		v.a.Tick(v.now)
		asks += len(v.a.Outgoing())
		v.now = v.now.Add(100 * time.Microsecond)
	}
	took := v.now.Sub(start)
	if most := 50 + int(took/(10*time.Millisecond)); answers > most {
		t.Errorf("%d answers in %v, more than %d", answers, took, most)
	}
	if most := 5 + int(took/(20*time.Millisecond)); asks > most {
		t.Errorf("%d checks in %v, more than %d", asks, took, most)
	}
	if s := v.a.State(); s.Ways > path.MaxSockets*(path.MaxRemote+8) || !s.Standing || s.Route.To != peerAddr {
		t.Errorf("state: %+v", s)
	}
	if n := len(v.a.Accepted(v.now)); n > path.MaxAccepted {
		t.Errorf("%d routes are taken", n)
	}
}

func TestAgent_FloodOfStrangersSendsNothing(t *testing.T) {
	v := newVictim(t)
	v.stand()
	m := v.request()
	forged := m.Marshal("not the password at all")
	v.unchanged(func() {
		for i := range 10_000 {
			binary.BigEndian.PutUint32(forged[8:], uint32(i))
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 7)
			if out := v.packet(from, forged); len(out) > 0 {
				t.Fatal("a stranger is answered")
			}
		}
	})
}

func TestAgent_DoesNotTakeTwoAgentsForOne(t *testing.T) {
	v, other := newVictim(t), newVictim(t)
	m := other.request()
	b := m.Marshal(other.sealed(other.own.Password))
	if v.a.Packet(v.now, 0, peerAddr, b) || v.a.Tag() == other.a.Tag() {
		t.Error("an agent takes the message of another one")
	}
	for _, p := range other.tick(15 * time.Millisecond) {
		answer := other.answer(p)
		if v.a.Packet(v.now, 0, p.To, answer.Marshal(other.sealed(other.peer.Password))) {
			t.Error("an agent takes the answer to another one")
		}
		tag, ok := path.Owner(answer.Marshal(""))
		if !ok || !reflect.DeepEqual(tag, other.a.Tag()) {
			t.Error("an answer has another owner")
		}
	}
}

func TestAgent_FollowsAtOnceWhereItDoesNotDecide(t *testing.T) {
	v := newVictim(t)
	a, err := path.New(path.Config{Self: "zoe", Peer: "bob", Local: v.own})
	v.check(err)
	v.a, v.self = a, "zoe"
	second := netip.MustParseAddrPort("198.51.100.2:52000")
	v.check(a.SetRemote(v.now, v.peer, 1))
	v.check(a.SetLocal(v.now, path.Native, []path.Candidate{{Addr: netip.MustParseAddrPort("192.168.1.10:51820")}}))
	for _, addr := range []netip.AddrPort{peerAddr, second} {
		v.check(a.AddRemote(v.now, path.Candidate{Addr: addr}))
	}
	for range 50 {
		for _, p := range v.tick(20 * time.Millisecond) {
			answer := v.answer(p)
			v.packet(p.To, answer.Marshal(v.sealed(v.peer.Password)))
		}
	}
	for _, to := range []netip.AddrPort{second, peerAddr} {
		v.now = v.now.Add(time.Second)
		m := v.request()
		m.Note.Uses = true
		v.packet(to, m.Marshal(v.sealed(v.own.Password)))
		if r, ok := a.Selected(); !ok || r.To != to {
			t.Errorf("data goes to %v, %v", r, ok)
		}
		a.Tick(v.now)
		said := false
		for _, p := range a.Outgoing() {
			m, err := path.ParseMessage(p.Bytes)
			said = said || err == nil && p.To == to && m.Note.Uses
		}
		if !said {
			t.Error("the peer is not told")
		}
	}
}
