// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

// stillRelay is a relay that does what a test says.
type stillRelay struct {
	wg.PacketSocket
	at       netip.AddrPort
	done     chan struct{}
	draining chan struct{}
	once     sync.Once
	silent   time.Duration
	checks   int
	user     string
	password string
}

func (r *stillRelay) Relayed() netip.AddrPort             { return r.at }
func (r *stillRelay) SetCredential(user, password string) { r.user, r.password = user, password }
func (r *stillRelay) Check()                              { r.checks++ }
func (r *stillRelay) Silent() time.Duration               { return r.silent }
func (r *stillRelay) Draining() <-chan struct{}           { return r.draining }
func (r *stillRelay) Done() <-chan struct{}               { return r.done }
func (r *stillRelay) Close() error                        { r.once.Do(func() { close(r.done) }); return nil }

func newStillRelay() *stillRelay {
	return &stillRelay{at: netip.MustParseAddrPort("192.0.2.9:49152"), done: make(chan struct{}), draining: make(chan struct{})}
}

const udpURL, tcpURL, tlsURL = "turn:gate:3478?transport=udp", "turn:gate:3478?transport=tcp", "turns:gate:443?transport=tcp"

func turnServer(relay, password string) Server {
	return Server{Relay: relay, URLs: []string{tlsURL, udpURL, tcpURL}, Username: "bob", Password: password}
}

// attempts are the URLs that were tried since the last call.
func (s *still) attempts() []string {
	s.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.tries
	s.tries = nil
	return list
}

// grants has relays stand where a URL begins with one of those given, and others fail.
func (s *still) grants(from ...string) *[]*stillRelay {
	s.mu.Lock()
	defer s.mu.Unlock()
	given := new([]*stillRelay)
	s.allocate = func(_ context.Context, url string) (Relay, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.ContainsFunc(from, func(p string) bool { return strings.HasPrefix(url, p) }) {
			return nil, mesh.ErrUnavailable
		}
		r := newStillRelay()
		*given = append(*given, r)
		return r, nil
	}
	return given
}

// work has the relays tended for a time, whenever they ask to be.
func (s *still) work(d time.Duration) {
	step := max(d/1000, 10*time.Millisecond) // Run does so after each event, too
	for end := time.Now().Add(d); ; {
		s.wait()
		next := earlier(earlier(s.relays.tend(time.Now()), end), time.Now().Add(step))
		s.wait()
		if !time.Now().Before(end) {
			return
		}
		s.pass(max(time.Until(next), time.Millisecond))
	}
}

// standing has a relay stand for a pair.
func (s *still) standing() (*link, *stillFinder, *stillRelay) {
	s.t.Helper()
	given := s.grants("turn:")
	l, f := s.link(sought, s.peer("ada", 1))
	l.due = time.Now().Add(time.Hour)
	s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
	s.work(time.Millisecond)
	if len(*given) != 1 || s.relays.servers[0].have == nil {
		s.t.Fatal("no relay stands")
	}
	s.attempts()
	return l, f, (*given)[0]
}

// Servers that are offered anew keep their relays, with new credentials, and those
// that are no more lose them.
func TestRelays_AreOffered(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f, one := s.standing()
		if got := f.local[1]; len(got) != 1 || got[0] != (path.Candidate{Kind: path.Relayed, Addr: one.at, Transport: path.UDP, Relay: "gate"}) || l.due.After(time.Now()) {
			t.Errorf("the link knows %v", got)
		}
		known := s.relays.servers[0]
		known.again, known.fails = time.Now().Add(time.Hour), 5
		s.pass(time.Second)
		s.relays.offer(time.Now(), []Server{
			{Relay: "none"}, turnServer("gate", "two"), turnServer("other", "x"), turnServer("third", "x"),
		})
		if len(s.relays.servers) != maxServers || s.relays.servers[0] != known || s.relays.servers[1].Relay != "other" {
			t.Fatalf("servers %v", s.relays.servers)
		}
		if one.user != "bob" || one.password != "two" || known.Password != "two" || !known.again.IsZero() || known.fails != 0 || s.relays.doubted != time.Now() {
			t.Errorf("the relay has %s %s; its server %+v", one.user, one.password, known)
		}
		l.due = time.Now().Add(time.Hour)
		s.relays.offer(time.Now(), []Server{turnServer("other", "x")})
		s.wait()
		if known.have != nil || len(s.removed) != 1 || f.local[1] != nil || l.due != time.Now() || len(s.relays.candidates()) != 0 || value(t, s.metrics.relays[path.UDP]) != 0 {
			t.Errorf("a server that is no more: %+v, removed %v, the link knows %v", known, s.removed, f.local[1])
		}
	})
}

// A link that is made when a relay stands is told of it.
func TestRelays_AreToldToNewLinks(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		_, _, one := s.standing()
		l, err := s.newLink(time.Now(), sought, s.peer("cid", 3))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.agent.SetRemote(time.Now(), path.NewCredentials(), 1); err != nil {
			t.Fatal(err)
		}
		if err := l.agent.AddRemote(time.Now(), path.Candidate{Kind: path.Host, Addr: netip.MustParseAddrPort("10.0.0.3:1")}); err != nil {
			t.Fatal(err)
		}
		l.agent.Tick(time.Now())
		var over bool
		for range 50 {
			l.agent.Tick(time.Now())
			for _, out := range l.agent.Outgoing() {
				over = over || out.Socket == path.Socket(s.relays.servers[0].have.socket)
			}
			s.pass(50 * time.Millisecond)
		}
		if !over {
			t.Errorf("no check goes over %s", one.at)
		}
	})
}

// Relays are there for pairs, and for gateways that do not answer; what nobody needs
// for a while is given back.
func TestRelays_StandWhileNeeded(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.grants("turn:")
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		if s.work(time.Minute); len(s.attempts()) != 0 {
			t.Error("a relay for nobody")
		}
		l, f := s.link(gateway, s.gate("gate", 9))
		if s.work(time.Minute); len(s.attempts()) != 0 {
			t.Error("a relay for a gateway that is no peer of the device yet")
		}
		f.finds(true)
		l.tend(time.Now())
		if s.work(time.Minute); len(s.attempts()) != 0 {
			t.Error("a relay for a gateway that answers")
		}
		f.finds(false)
		s.ways[l.key].activity.Heard = time.Now()
		if s.work(silentAfter); len(s.attempts()) != 0 {
			t.Error("a relay for a gateway that was heard just now")
		}
		s.pass(time.Millisecond)
		if s.work(time.Millisecond); len(s.attempts()) != 1 || s.relays.servers[0].have == nil {
			t.Fatal("no relay for a gateway that is silent")
		}
		f.finds(true)
		f.selected.Socket = 1
		if s.work(2 * relayRest); s.relays.servers[0].have == nil {
			t.Error("the relay that carries the way to a gateway is given back")
		}
		f.selected.Socket = path.Native
		if s.work(relayRest); s.relays.servers[0].have == nil {
			t.Error("a relay is given back too soon")
		}
		if s.work(2 * time.Second); s.relays.servers[0].have != nil || len(s.removed) != 1 || !s.relays.needed.IsZero() {
			t.Error("a relay that nobody needs stays")
		}
		s.attempts()
		if s.work(time.Minute); len(s.attempts()) != 0 {
			t.Error("and is asked for again")
		}
	})
}

// UDP is tried first, and TCP and TLS soon, or at once where it failed or did not
// get through before.
func TestRelays_TryTransportsInTurn(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.link(sought, s.peer("ada", 1))
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		server := s.relays.servers[0]
		began := time.Now()
		check := func(what string, want ...string) {
			t.Helper()
			got := s.attempts()
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: tried %v", what, got)
			}
		}
		s.work(streamsAfter - time.Millisecond) // nobody answers
		check("at first", udpURL)
		s.work(time.Millisecond)
		check("soon", tcpURL, tlsURL)
		s.work(allocateTime - time.Millisecond - time.Since(began))
		check("while these last")
		s.work(streamsAfter + time.Second + time.Millisecond) // all have ended, and rest a moment
		if server.fails != 1 || value(t, s.metrics.failed[path.UDP]) != 1 || value(t, s.metrics.failed[path.TLS]) != 1 {
			t.Errorf("failed %d times", server.fails)
		}
		check("again", udpURL, tcpURL, tlsURL)
	})
	inStill(t, func(t *testing.T, s *still) {
		s.link(sought, s.peer("ada", 1))
		given := s.grants("turns:")
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		server := s.relays.servers[0]
		s.work(time.Millisecond)
		if got := s.attempts(); len(got) != 3 || server.have == nil || server.worked != path.TLS || !server.began.IsZero() || len(server.trying) != 0 {
			t.Fatalf("where UDP is refused: tried %v, %+v", got, server)
		}
		if value(t, s.metrics.made[path.TLS]) != 1 || value(t, s.metrics.relays[path.TLS]) != 1 || value(t, s.metrics.failed[path.TLS]) != 0 {
			t.Error("the relay is not counted")
		}
		s.pass(youngRelay)
		s.mu.Lock()
		s.allocate = func(ctx context.Context, _ string) (Relay, error) { <-ctx.Done(); return nil, ctx.Err() }
		s.mu.Unlock()
		_ = (*given)[0].Close()
		s.work(time.Millisecond)
		if got := s.attempts(); len(got) != 3 || server.have != nil {
			t.Errorf("after it is lost: tried %v at once", got)
		}
		if s.tried[0].Username != "bob" || s.tried[0].Password != "one" {
			t.Errorf("tried with %+v", s.tried[0])
		}
	})
}

// Where TCP and TLS are refused, UDP has some time still.
func TestRelays_GiveDatagramsTime(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.link(sought, s.peer("ada", 1))
		s.allocate = func(ctx context.Context, url string) (Relay, error) {
			if url != udpURL {
				return nil, mesh.ErrUnavailable
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		server := s.relays.servers[0]
		s.work(datagramsTime - time.Millisecond)
		if server.fails != 0 || !server.tries(path.UDP) || server.tries(path.TCP) {
			t.Errorf("too soon: %+v", server)
		}
		if s.work(time.Millisecond); server.fails != 1 || len(server.trying) != 0 || server.again != time.Now().Add(relayAgainFirst) {
			t.Errorf("in time: %+v", server)
		}
		if value(t, s.metrics.failed[path.UDP]) != 0 {
			t.Error("an attempt that was ended here counts as failed")
		}
		s.attempts()
		if s.work(relayAgainFirst - time.Millisecond); len(s.attempts()) != 0 {
			t.Error("tried again without a pause")
		}
		if s.work(time.Millisecond); !slices.Equal(s.attempts(), []string{udpURL}) {
			t.Error("not tried again after the pause")
		}
		var pauses []time.Duration
		for range patientFails + 9 {
			fails := server.fails
			for server.fails == fails {
				s.work(time.Millisecond)
				s.pass(max(time.Until(earlier(server.again, time.Now().Add(50*time.Millisecond))), 0))
			}
			pauses = append(pauses, time.Until(server.again))
		}
		for i, p := range pauses {
			want := min(relayAgainFirst<<max(0, i+1-patientFails), relayAgainMost)
			if p > want || p < want-100*time.Millisecond {
				t.Errorf("pause %d is %s", i, p)
			}
		}
	})
}

// Of several that answer, one relay is kept.
func TestRelays_KeepOneOfSeveral(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.link(sought, s.peer("ada", 1))
		answer := make(chan struct{})
		var all []*stillRelay
		s.allocate = func(context.Context, string) (Relay, error) {
			<-answer
			r := newStillRelay()
			s.mu.Lock()
			defer s.mu.Unlock()
			all = append(all, r)
			return r, nil
		}
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		s.work(time.Second)
		close(answer)
		s.wait()
		open := 0
		for _, r := range all {
			select {
			case <-r.done:
			default:
				open++
			}
		}
		if len(all) != 3 || open != 1 || s.sockets != 1 || value(t, s.metrics.made[path.UDP]) != 1 {
			t.Errorf("of %d relays %d are open, %d in use", len(all), open, s.sockets)
		}
	})
}

// Relays are in doubt for a while after something has happened to the host, and
// while a link is unsure, for as long.
func TestRelays_AreDoubted(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _, one := s.standing()
		s.pass(time.Hour)
		for _, c := range []struct {
			what            string
			doubted, unsure time.Duration // ago; negative: never
			want            bool
		}{
			{"nothing", -1, -1, false},
			{"the host moved", 0, -1, true},
			{"long ago", doubtFor, -1, false},
			{"a link lost its way", -1, doubtFor - 1, true},
			{"long ago, too", doubtFor, doubtFor, false},
		} {
			ago := func(d time.Duration) time.Time {
				if d < 0 {
					return time.Time{}
				}
				return time.Now().Add(-d)
			}
			s.relays.doubted, l.unsure = ago(c.doubted), ago(c.unsure)
			if got := s.relays.doubt(time.Now()); got != c.want {
				t.Errorf("%s: %v", c.what, got)
			}
		}
		server := s.relays.servers[0]
		doubt := func(yes bool) { s.relays.verify(time.Now(), server, yes) }
		if doubt(false); one.checks != 0 || !server.have.doubted.IsZero() {
			t.Error("a relay without doubt is asked for")
		}
		one.silent = time.Hour
		for range 2 {
			for i := range 10 { // it has as long as others after each doubt
				doubt(true)
				s.pass(hurryEvery - 1)
				before := one.checks
				if doubt(true); one.checks != before {
					t.Errorf("time %d: asked again too soon", i)
				}
				s.pass(1)
			}
			if server.have == nil {
				t.Fatal("given up too soon")
			}
			doubt(false)
		}
		if one.checks != 20 {
			t.Errorf("asked %d times", one.checks)
		}
		one.silent = 0 // who answers is asked less often after a while
		asked := func(during time.Duration) int {
			before := one.checks
			for range during / hurryEvery {
				doubt(true)
				s.pass(hurryEvery)
			}
			return one.checks - before
		}
		if soon, later := asked(hurryFor), asked(5*checkEvery); soon != int(hurryFor/hurryEvery) || later != 5 {
			t.Errorf("asked %d times at first and %d times later", soon, later)
		}
		one.silent = silentRelay - 1
		doubt(true)
		s.pass(silentRelay)
		if doubt(true); server.have == nil {
			t.Fatal("one that answered is given up")
		}
		one.silent = silentRelay
		if doubt(true); server.have != nil || s.relays.doubted != time.Now() || value(t, s.metrics.lost) != 1 {
			t.Error("one that is silent stays")
		}
	})
}

// Where an address of the host is gone a relay that is silent has less time.
func TestRelays_MoveSooner(t *testing.T) {
	for moved, within := range map[bool]time.Duration{true: silentMoved, false: silentRelay} {
		inStill(t, func(t *testing.T, s *still) {
			_, _, one := s.standing()
			s.pass(time.Hour)
			one.silent = time.Hour
			began := time.Now()
			s.relays.doubted = began
			if moved {
				s.relays.moved = began
			}
			first := s.relays.servers[0].have
			for s.relays.servers[0].have == first && time.Since(began) < time.Minute {
				s.work(10 * time.Millisecond)
			}
			if took := time.Since(began); took < within || took > within+300*time.Millisecond {
				t.Errorf("moved %v: given up after %s", moved, took)
			}
		})
	}
}

// A relay that is lost is asked for again at once, and its gateway for a session,
// unless several in a row have stood for a moment only.
func TestRelays_AreLost(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		_, _, one := s.standing()
		gate, _ := s.link(gateway, s.gate("gate", 9))
		other, _ := s.link(gateway, s.gate("other", 8))
		server := s.relays.servers[0]
		for i, stood := range []time.Duration{0, 0, youngRelay, youngRelay - 1, 0, 0, 0} {
			s.pass(stood)
			s.shakes[gate.key], gate.shook = 0, time.Time{}
			_ = one.Close()
			s.wait()
			if server.have != nil || value(t, s.metrics.lost) != float64(i+1) || s.relays.doubted != time.Now() {
				t.Fatalf("relay %d is lost: %+v", i, server)
			}
			if paused := i == 6; (server.again == time.Now()) == paused || (server.fails == 1) != paused {
				t.Errorf("relay %d stood for %s: again in %s", i, stood, time.Until(server.again))
			}
			if s.shakes[gate.key] != 1 || s.shakes[other.key] != 0 {
				t.Errorf("relay %d: %d and %d sessions", i, s.shakes[gate.key], s.shakes[other.key])
			}
			one = newStillRelay()
			s.relays.open(time.Now(), server, path.UDP, one)
			s.wait()
		}
	})
}

// A relay that the device does not take is asked for again after a pause.
func TestRelays_NotTaken(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.socketErr = mesh.ErrExhausted
		s.grants("turn:")
		s.link(sought, s.peer("ada", 1))
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		s.work(time.Millisecond)
		if server := s.relays.servers[0]; server.have != nil || server.fails != 1 || len(s.attempts()) != 1 {
			t.Errorf("%+v", server)
		}
	})
}

// A server without a relay left is not asked over the other transports, and has a
// rest; the status of the links says so until there is a relay.
func TestRelays_NoneIsLeft(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		f.state.Why = "no answer"
		s.mu.Lock()
		s.allocate = func(context.Context, string) (Relay, error) { return nil, fmt.Errorf("%w: all are in use", ErrFull) }
		s.mu.Unlock()
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		s.work(3 * time.Second)
		if got := s.attempts(); len(got) != 1 {
			t.Errorf("within 3 s it tried %v", got)
		}
		if got, want := l.status().Path.Why, "no answer; gateway gate: no relay left: all are in use"; got != want {
			t.Errorf("the status says %q, want %q", got, want)
		}
		s.work(2 * time.Minute)
		if got := s.attempts(); len(got) < 5 || len(got) > 8 {
			t.Errorf("within 2 minutes it tried %d times", len(got))
		}
		f.state.Why = ""
		s.grants("turn:")
		s.work(relayAgainMost)
		if server := s.relays.servers[0]; server.have == nil || server.full != nil || l.status().Path.Why != "" {
			t.Errorf("once there is room: %+v, %q", server, l.status().Path.Why)
		}
	})
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		f.state = path.State{Standing: true}
		s.relays.servers = []*server{{Server: turnServer("gate", "one"), full: ErrFull}}
		if got := l.status().Path.Why; got != "" {
			t.Errorf("of a path that stands the status says %q", got)
		}
	})
}

// All that is held is given back at the end.
func TestPairs_EndGivesBack(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, _, _ := s.standing()
		l.tend(time.Now())
		s.wait()
		way, ended := s.ways[l.key], 0
		l.calls = append(l.calls, newCall(func() { ended++ }, false))
		s.callers["eve"] = []*call{newCall(func() { ended++ }, false)}
		s.end()
		s.wait()
		if !way.closed || ended != 2 || len(s.removed) != 1 {
			t.Errorf("way closed %v, %d calls ended, sockets removed %v", way.closed, ended, s.removed)
		}
	})
}

// A relay over TLS gives its place to one over UDP once that gets through: the new
// one stands before the old one goes, and what does not get through is tried ever
// more seldom.
func TestRelays_MoveBackToUDP(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		l, f := s.link(sought, s.peer("ada", 1))
		l.due = time.Now().Add(time.Hour)
		s.grants("turns:")
		s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
		server := s.relays.servers[0]
		s.work(time.Millisecond)
		first := server.have
		if first == nil || first.transport != path.TLS {
			t.Fatalf("a relay over TLS does not stand: %+v", server)
		}
		s.attempts()
		s.work(improveFirst - 10*time.Millisecond)
		if got := s.attempts(); len(got) != 0 {
			t.Errorf("tried %v at once", got)
		}
		began := time.Now()
		s.work(10 * time.Minute)
		got := s.attempts()
		if n := len(got); n < 4 || n > 6 || slices.ContainsFunc(got, func(url string) bool { return url != udpURL }) {
			t.Errorf("tried %v within %s", got, time.Since(began))
		}
		if server.have != first || server.old != nil {
			t.Error("the relay is gone, although no other one stands")
		}
		s.grants("turn:gate:3478?transport=udp")
		s.work(improveMost)
		if server.have == first || server.have.transport != path.UDP || server.old != nil || server.worked != path.UDP {
			t.Fatalf("no relay over UDP took over: %+v", server)
		}
		s.mu.Lock()
		removed := slices.Clone(s.removed)
		s.mu.Unlock()
		if !slices.Equal(removed, []wg.Socket{first.socket}) || f.local[path.Socket(first.socket)] != nil || len(f.local[path.Socket(server.have.socket)]) != 1 {
			t.Errorf("removed %v; the link has %v", removed, f.local)
		}
		if value(t, s.metrics.relays[path.TLS]) != 0 || value(t, s.metrics.relays[path.UDP]) != 1 {
			t.Error("the relays are not counted")
		}
		s.attempts()
		s.work(10 * time.Minute)
		if got := s.attempts(); len(got) != 0 {
			t.Errorf("tried %v with a relay over UDP", got)
		}
	})
}

// A relay whose server drains gives its place to another one, over the same transport,
// and is the last that both nodes take until it is given back.
func TestRelays_LeaveAServerThatDrains(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		_, f, one := s.standing()
		server := s.relays.servers[0]
		first := server.have
		s.grants() // nobody has room
		close(one.draining)
		s.work(leaveFirst - time.Millisecond)
		if got := s.attempts(); !slices.Equal(got, []string{udpURL}) || server.have != first || server.old != nil {
			t.Errorf("tried %v; %+v", got, server)
		}
		s.work(time.Minute)
		if got := s.attempts(); len(got) < 4 || len(got) > 5 || server.have != first || len(server.trying) != 0 {
			t.Errorf("within a minute it tried %v; %+v", got, server)
		}
		s.grants("turn:")
		for began := time.Now(); server.have == first; s.work(10 * time.Millisecond) {
			if time.Since(began) > relayAgainMost {
				t.Fatalf("no other relay: %+v", server)
			}
		}
		worse := first.candidate
		if server.old != first || worse.Transport != path.TLS || !slices.Equal(f.local[path.Socket(first.socket)], []path.Candidate{worse}) {
			t.Errorf("the old one is %+v, the link has %v", server.old, f.local)
		}
		if got := s.relays.candidates(); !slices.Equal(got, []path.Candidate{server.have.candidate, worse}) || got[0].Transport != path.UDP {
			t.Errorf("others are told of %v", got)
		}
		s.work(overlap - 20*time.Millisecond)
		if server.old != first {
			t.Error("it is given back too soon")
		}
		s.work(time.Second)
		s.mu.Lock()
		removed := slices.Clone(s.removed)
		s.mu.Unlock()
		if server.old != nil || !slices.Equal(removed, []wg.Socket{first.socket}) || f.local[path.Socket(first.socket)] != nil || len(s.relays.candidates()) != 1 {
			t.Errorf("removed %v; the link has %v", removed, f.local)
		}
		if value(t, s.metrics.relays[path.UDP]) != 1 || value(t, s.metrics.lost) != 0 {
			t.Error("the relays are not counted")
		}
		s.attempts()
		if s.work(10 * time.Minute); len(s.attempts()) != 0 {
			t.Error("another one is tried, although nobody drains")
		}
	})
}

// While both stand, either may be lost.
func TestRelays_OverlapOnTheWayToUDP(t *testing.T) {
	for what, lose := range map[string]func(first, second *stillRelay){
		"the old one": func(first, _ *stillRelay) { _ = first.Close() },
		"the new one": func(_, second *stillRelay) { _ = second.Close() },
	} {
		inStill(t, func(t *testing.T, s *still) {
			s.link(sought, s.peer("ada", 1))
			first := s.grants("turns:")
			s.relays.offer(time.Now(), []Server{turnServer("gate", "one")})
			server := s.relays.servers[0]
			s.work(time.Millisecond)
			second := s.grants("turn:gate:3478?transport=udp", "turns:")
			s.work(improveFirst + time.Millisecond)
			if server.old == nil || server.have.transport != path.UDP {
				t.Fatalf("%s: both do not stand: %+v", what, server)
			}
			lose((*first)[0], (*second)[0])
			s.work(100 * time.Millisecond)
			if server.old != nil || server.have == nil || value(t, s.metrics.relays[path.TLS])+value(t, s.metrics.relays[path.UDP]) != 1 {
				t.Errorf("%s: %+v", what, server)
			}
		})
	}
}
