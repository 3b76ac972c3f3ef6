// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/node/path"
)

// wire is the way of a probe to its peer, which has room for packets up to a size.
type wire struct {
	*path.Probe
	now  time.Time
	from netip.AddrPort
	room int // of datagrams, in bytes
	full int // full checks so far
}

// newWire is one between addresses, over which data flows.
func newWire(t *testing.T, from, to string) *wire {
	t.Helper()
	w := &wire{Probe: path.NewProbe(), now: time.Unix(1_800_000_000, 0), from: netip.MustParseAddrPort(from), room: 1452}
	err := w.SetLocal(w.now, path.Native, []path.Candidate{{Kind: path.Host, Addr: w.from}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetRemote(w.now, []netip.AddrPort{netip.MustParseAddrPort(to)}); err != nil {
		t.Fatal(err)
	}
	return w
}

// pass lets time pass, while data flows or not.
func (w *wire) pass(d time.Duration, data bool) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(20 * time.Millisecond) {
		if data {
			w.Sent(w.now)
		}
		w.Tick(w.now)
		for _, p := range w.Outgoing() {
			if len(p.Bytes) > 1280 {
				w.full++
			}
			if answer, ok := path.Answer(p.Bytes, w.from); ok && len(p.Bytes) <= w.room {
				w.Packet(w.now.Add(time.Millisecond), p.Socket, p.To, answer)
			}
		}
	}
}

const here6, there6 = "[2001:db8::1]:51820", "[2001:db8::2]:51820"

func TestNarrow_FollowsTheRoomOfTheWay(t *testing.T) {
	w := newWire(t, here6, there6)
	if w.Narrow() {
		t.Error("narrow before there is a way")
	}
	for _, step := range []struct {
		name   string
		room   int
		after  time.Duration
		narrow bool
	}{
		{"at first", 1452, 100 * time.Millisecond, false},
		{"one byte too narrow", 1451, 7 * time.Second, true},
		{"wide again", 1452, 6 * time.Second, false},
		{"as narrow as it gets", 1232, 7 * time.Second, true},
	} {
		w.room = step.room
		w.pass(step.after, true)
		if w.Narrow() != step.narrow {
			t.Errorf("%s: narrow is %v", step.name, w.Narrow())
		}
		if s := w.State(); !s.Standing || s.Doubtful {
			t.Errorf("%s: what has no room is taken for dead: %+v", step.name, s)
		}
	}
}

// A way is narrow until a full check was answered: nothing gets lost meanwhile.
func TestNarrow_BeginsNarrow(t *testing.T) {
	w := newWire(t, here6, there6)
	w.room = 1232
	w.pass(100*time.Millisecond, true)
	if !w.State().Standing || !w.Narrow() {
		t.Errorf("not narrow: %+v", w.State())
	}
}

func TestNarrow_AsksLittle(t *testing.T) {
	w := newWire(t, here6, there6)
	w.room = 1232
	w.pass(time.Minute, true)
	if w.full < 10 || w.full > 36 {
		t.Errorf("%d full checks in a minute, want 3 each 5 s", w.full)
	}
	w.room, w.full = 1452, 0
	w.pass(time.Minute, true)
	if w.full < 10 || w.full > 13 {
		t.Errorf("%d full checks in a minute of a way with room, want one each 5 s", w.full)
	}
	w.pass(time.Minute, false)
	w.full = 0
	w.pass(10*time.Minute, false)
	if w.full > 0 {
		t.Errorf("%d full checks on an idle way", w.full)
	}
	v4 := newWire(t, "192.0.2.1:51820", "192.0.2.2:51820")
	v4.pass(time.Minute, true)
	if v4.full > 0 || v4.Narrow() {
		t.Errorf("an IPv4 way: %d full checks, narrow is %v", v4.full, v4.Narrow())
	}
}

// A relay that is reached by UDP may be so over IPv6. What a Send indication makes
// of a full check still fits 1500 bytes.
func TestNarrow_OverRelays(t *testing.T) {
	for _, transport := range []path.Transport{path.UDP, path.TCP, path.TLS} {
		w := newWire(t, "192.0.2.1:51820", "192.0.2.2:51820")
		relayed := path.Candidate{Kind: path.Relayed, Addr: netip.MustParseAddrPort("203.0.113.1:5000"), Transport: transport}
		must(t, w.SetLocal(w.now, path.Native, nil))
		must(t, w.SetLocal(w.now, 1, []path.Candidate{relayed}))
		for _, narrow := range []bool{false, true} {
			if w.room = 1452 - 44; narrow {
				w.room--
			}
			w.pass(7*time.Second, true)
			if !w.State().Standing || w.Narrow() != (narrow && transport == path.UDP) || (w.full > 0) != (transport == path.UDP) {
				t.Errorf("%v, room for %d: narrow is %v after %d full checks: %+v", transport, w.room, w.Narrow(), w.full, w.State())
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMessage_IsFilledUp(t *testing.T) {
	const password = "VOkJxbRl1RmTxUk/WvJxBt"
	for _, m := range samples() {
		bare := len(m.Marshal(password))
		for _, length := range []int{bare - 4, bare, bare + 4, bare + 8, 1452} {
			m.Length = length
			b := m.Marshal(password)
			got, err := path.ParseMessage(b)
			if err != nil || !got.Holds(password) || len(b) != max(bare, length) {
				t.Errorf("%d bytes, want %d: %v", len(b), max(bare, length), err)
			}
			var other stun.Message
			if err := stun.Decode(b, &other); err != nil {
				t.Error(err)
			}
		}
	}
}
