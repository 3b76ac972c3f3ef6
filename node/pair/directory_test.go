// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// What is new is told once, and what cancels out as what came last.
func TestRequests_AreTakenOnce(t *testing.T) {
	var r requests
	r.init()
	r.put([]string{"a", "b"}, nil)
	r.put([]string{"c"}, []string{"b", "x"})
	r.put([]string{"x"}, nil)
	add, drop := r.take()
	slices.Sort(add)
	if !slices.Equal(add, []string{"a", "c", "x"}) || !slices.Equal(drop, []string{"b"}) || len(r.ready) != 1 {
		t.Errorf("add %v, drop %v", add, drop)
	}
	if add, drop := r.take(); len(add)+len(drop) != 0 {
		t.Errorf("again: add %v, drop %v", add, drop)
	}
}

// Only what a gateway carries for somebody else is asked about.
func TestPairs_SeekWhatGatewaysCarry(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		near := s.peer("able", 5)
		router := s.peer("router", 6)
		router.AllowedIPs = append(router.AllowedIPs, netip.MustParsePrefix("192.168.0.0/16"))
		s.follow(near, s.gate("gate", 9), router)
		for addr, want := range map[string]bool{
			"172.16.0.2": true, "172.16.0.9": false, "172.16.0.5": false, "172.16.0.6": false, "192.168.1.1": false, "8.8.8.8": false,
		} {
			s.seek(time.Now(), netip.MustParseAddr(addr))
			if got := s.wanted[addr] != nil; got != want {
				t.Errorf("%s: asked %v", addr, got)
			}
		}
	})
}

// A packet to an address keeps its pair in use.
func TestPairs_SeekKeepsThePair(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		s.follow(s.gate("gate", 9))
		ada := s.peer("ada", 1)
		at := netip.MustParseAddr("172.16.0.1")
		s.seek(time.Now(), at)
		s.tell("172.16.0.1", ada, "")
		if w := s.wanted["172.16.0.1"]; w.node != "ada" || s.wanted["ada"] == nil || s.wanted["ada"].node != "ada" {
			t.Fatalf("%+v, %+v", w, s.wanted["ada"])
		}
		s.pass(time.Minute)
		s.tell("172.16.0.1", ada, "")
		if s.links["ada"].answered != time.Now() {
			t.Errorf("told of at %s", s.links["ada"].answered)
		}
		s.pass(time.Minute)
		s.seek(time.Now(), at)
		if now := time.Now(); s.links["ada"].used != now || s.wanted["172.16.0.1"].sought != now {
			t.Errorf("used %s, sought %s", s.links["ada"].used, s.wanted["172.16.0.1"].sought)
		}
	})
}

// There is a bound for what is wanted: what nobody has used for longest makes room,
// and nothing that is in use.
func TestPairs_WantAtMost(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		name := func(i int) string { return fmt.Sprintf("10.0.%d.%d", i/250, i%250) }
		for i := range maxWanted {
			s.want(time.Now(), name(i))
			s.pass(time.Second)
		}
		l, _ := s.link(sought, s.peer("ada", 1))
		s.wanted[name(0)].node = "ada" // the oldest is in use
		s.want(time.Now(), name(1))    // and the next one was wanted again
		s.told()
		s.want(time.Now(), "new")
		if add, drop := s.told(); !slices.Equal(add, []string{"new"}) || !slices.Equal(drop, []string{name(2)}) || len(s.wanted) != maxWanted {
			t.Errorf("add %v, drop %v of %d", add, drop, len(s.wanted))
		}
		for _, w := range s.wanted {
			w.node = l.peer.Node.ID
		}
		s.want(time.Now(), "newer")
		if add, drop := s.told(); len(add)+len(drop) != 0 || len(s.wanted) != maxWanted || value(t, s.metrics.dropped[dropWanted]) != 1 {
			t.Errorf("while all are in use: add %v, drop %v of %d", add, drop, len(s.wanted))
		}
	})
}

// A gateway that says something has nodes call who still wait for a way, and no
// others.
func TestPairs_CallWhenTheGatewayIsBack(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		waits, _ := s.link(sought, s.peer("ada", 1))
		stands, f := s.link(sought, s.peer("cid", 3))
		f.finds(true)
		stands.last = f.state
		later := time.Now().Add(time.Hour)
		waits.nextCall, waits.due, stands.nextCall, stands.due = later, later, later, later
		s.learn(time.Now(), News{})
		if waits.nextCall != later {
			t.Error("news without servers")
		}
		s.learn(time.Now(), News{Servers: []Server{}})
		if now := time.Now(); waits.nextCall != now || waits.due != now || stands.nextCall != later {
			t.Errorf("%s, %s; %s", waits.nextCall, waits.due, stands.nextCall)
		}
	})
}

// A node with another key is another node: nothing of the session before is left.
func TestPairs_ANewKeyEndsTheOldSession(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		ada := s.peer("ada", 1)
		s.want(time.Now(), "ada")
		s.tell("ada", ada, "")
		old := s.links["ada"]
		old.tend(time.Now())
		s.wait()
		old.stands = true
		way, call, tag := s.ways[old.key], old.calls[0], old.finder.Tag()
		s.tell("ada", ada, "")
		if s.links["ada"] != old || way.closed {
			t.Fatal("the same key again made another link")
		}
		s.tell("ada", s.peer("ada", 1), "")
		l := s.links["ada"]
		if l == old || l.key == old.key || l.stands || l.way != nil {
			t.Errorf("the new link is %+v", l)
		}
		if !way.closed || old.way != nil || len(old.calls) != 0 || s.tags[tag] != nil || s.tags[l.finder.Tag()] != l || len(s.tags) != 1 {
			t.Error("something of the old session is left")
		}
		s.wait()
		if call.cancel(); len(s.calls()) != 1 {
			t.Errorf("called %v", s.calls())
		}
		s.publish()
		if peers := s.View().Peers(); len(peers) != 1 || peers[0].Node.PublicKey.WireGuard() != l.key {
			t.Errorf("the plan has %v", peers)
		}
	})
}

// Neither itself nor a neighbour is a pair, whatever a gateway says.
func TestPairs_MeetNoNeighbours(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate, plain := s.gate("gate", 9), s.peer("plain", 4)
		plain.Endpoint = "10.0.0.4:51820"
		s.follow(gate, plain)
		for _, peer := range []mesh.Peer{s.peer("bob", 2), gate, plain} {
			id := peer.Node.ID
			before := s.links[id]
			s.want(time.Now(), string(id))
			s.tell(string(id), peer, "")
			if s.links[id] != before {
				t.Errorf("%s has a link of a pair", id)
			}
		}
		s.tell("ada", s.peer("ada", 1), "")
		if s.links["ada"] != nil {
			t.Error("a pair that nobody asked for")
		}
	})
}

// What is refused ends, and only that: an edge of the mesh is none of the directory's.
func TestPairs_Refused(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		edge := s.peer("edge", 5)
		s.follow(s.gate("gate", 9), edge)
		for wanted, peer := range map[string]mesh.Peer{"172.16.0.5": edge, "172.16.0.1": s.peer("ada", 1)} {
			s.want(time.Now(), wanted)
			s.tell(wanted, peer, "")
			ended := 0
			s.callers["172.16.0.5"] = []*call{newCall(func() { ended++ }, false)}
			s.tell(wanted, mesh.Peer{}, "not any more")
			if s.wanted[wanted].node != "" {
				t.Errorf("%s is %s still", wanted, s.wanted[wanted].node)
			}
			if wanted == "172.16.0.5" && (ended != 1 || len(s.callers) != 0) {
				t.Errorf("who called as %s waits", wanted)
			}
			delete(s.callers, "172.16.0.5")
		}
		if s.links["edge"] == nil || s.links["ada"] != nil {
			t.Errorf("links %v", s.links)
		}
	})
}

// What nobody uses is forgotten, and the directory told so.
func TestPairs_ForgetAndTell(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate := s.gate("gate", 9)
		s.follow(gate, s.peer("edge", 5))
		for _, wanted := range []string{"172.16.0.1", "192.168.7.1", "nobody"} {
			s.want(time.Now(), wanted)
		}
		ada := s.peer("ada", 1)
		s.tell("172.16.0.1", ada, "")
		s.tell("192.168.7.1", ada, "")
		s.tell("nobody", mesh.Peer{}, "no such node")
		s.told()
		s.pass(idleAfter - time.Second)
		if next := s.forget(time.Now()); next != time.Now().Add(time.Second) || len(s.wanted) != 4 {
			t.Errorf("%d are wanted; to look again after %s", len(s.wanted), time.Until(next))
		}
		s.links["ada"].used = time.Now() // by its packets
		s.pass(time.Second)
		s.forget(time.Now())
		if add, drop := s.told(); len(add) != 0 || !slices.Equal(drop, []string{"nobody"}) || s.links["ada"] == nil || len(s.wanted) != 3 {
			t.Errorf("what is in use: add %v, drop %v; wanted %d", add, drop, len(s.wanted))
		}
		s.pass(idleAfter)
		s.forget(time.Now())
		if add, drop := s.told(); len(add) != 0 || !slices.Equal(drop, []string{"172.16.0.1", "192.168.7.1", "ada"}) || len(s.wanted) != 0 {
			t.Errorf("what nobody uses: add %v, drop %v; wanted %v", add, drop, s.wanted)
		}
		if len(s.links) != 2 || s.links["edge"] == nil || s.links["gate"] == nil {
			t.Errorf("of the mesh there are %v", s.links)
		}
	})
}

// script is a directory that does as it is told.
type script struct {
	mu      sync.Mutex // guards the fields below
	follows []time.Time
	asks    []string // "add [..] drop [..]" of each Ask, with "--" where a stream begins
	fail    error    // of Follow
	deaf    error    // of Ask
	news    chan error
}

func (d *script) Follow(ctx context.Context) (Book, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.follows, d.asks = append(d.follows, time.Now()), append(d.asks, "--")
	return scriptBook{d, ctx}, d.fail
}

type scriptBook struct {
	*script
	ctx context.Context
}

func (b scriptBook) Ask(add, drop []string) error {
	slices.Sort(add)
	slices.Sort(drop)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asks = append(b.asks, fmt.Sprintf("add %v drop %v", add, drop))
	return b.deaf
}

func (b scriptBook) Next() (News, error) {
	select {
	case err := <-b.news:
		return News{}, err
	case <-b.ctx.Done():
		return News{}, b.ctx.Err()
	}
}

// said is what the directory was asked since the last call.
func (d *script) said() []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	said := d.asks
	d.asks = nil
	return said
}

// inScript runs pairs with a directory of a test.
func inScript(t *testing.T, test func(t *testing.T, p *Pairs, d *script)) {
	inStill(t, func(t *testing.T, s *still) {
		d := &script{news: make(chan error)}
		cfg := s.cfg
		cfg.Directory = d
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = p.Run(ctx) })
		defer running.Wait()
		defer cancel()
		p.Follow(mesh.Plan{Peers: mesh.PeersOf(s.gate("gate", 9))}, netip.MustParsePrefix("172.16.0.0/12").Contains)
		test(t, p, d)
	})
}

// Each stream is told all that is wanted, once, and then what is new.
func TestPairs_TellEachStreamAll(t *testing.T) {
	inScript(t, func(t *testing.T, p *Pairs, d *script) {
		seek := func(addr string) { p.Seek(netip.MustParseAddr(addr)) }
		check := func(what string, want ...string) {
			t.Helper()
			if got := d.said(); !slices.Equal(got, want) {
				t.Errorf("%s: %q", what, got)
			}
		}
		check("at first", "--", "add [] drop []")
		seek("172.16.0.1")
		check("one packet", "add [172.16.0.1] drop []")
		seek("172.16.0.1")
		check("one more")
		d.mu.Lock()
		d.fail = mesh.ErrUnavailable
		d.mu.Unlock()
		d.news <- mesh.ErrUnavailable
		check("the stream broke")
		seek("172.16.0.3")
		<-time.After(time.Minute)
		d.mu.Lock()
		d.fail = nil
		d.mu.Unlock()
		d.said()
		<-time.After(askAgainMost)
		check("a new stream", "--", "add [172.16.0.1 172.16.0.3] drop []")
		<-time.After(idleAfter + time.Second)
		seek("172.16.0.4") // Run looks at what is idle
		synctest.Wait()
		said := d.said()
		if joined := fmt.Sprint(said); len(said) == 0 || joined != "[add [172.16.0.4] drop [172.16.0.1 172.16.0.3]]" && joined != "[add [] drop [172.16.0.1 172.16.0.3] add [172.16.0.4] drop []]" {
			t.Errorf("what is idle: %q", said)
		}
		d.mu.Lock()
		d.deaf = mesh.ErrUnavailable
		d.mu.Unlock()
		d.news <- mesh.ErrUnavailable
		<-time.After(askAgainMost)
		if n := len(d.said()); n < 4 {
			t.Errorf("a stream that takes no questions stays: %d", n)
		}
	})
}

// A directory that is away is asked for less and less, and at once again after it
// was there for long.
func TestPairs_AskForTheDirectoryAgain(t *testing.T) {
	inScript(t, func(t *testing.T, _ *Pairs, d *script) {
		follows := func() []time.Time {
			synctest.Wait()
			d.mu.Lock()
			defer d.mu.Unlock()
			return slices.Clone(d.follows)
		}
		d.said()
		d.mu.Lock()
		d.fail = mesh.ErrUnavailable
		d.mu.Unlock()
		d.news <- mesh.ErrUnavailable
		<-time.After(2 * time.Minute)
		list := follows()
		// Of a pause up to half is left to chance: they double twice over in six.
		if n := len(list); n < 14 || n > 32 {
			t.Errorf("%d times in two minutes", n)
		}
		for i, at := range list[1:] {
			if pause := at.Sub(list[i]); pause > askAgainMost || i > 8 && pause < askAgainMost/2 || i < 2 && pause > 4*askAgainFirst {
				t.Errorf("pause %d is %s", i, pause)
			}
		}
		d.mu.Lock()
		d.fail = nil
		d.mu.Unlock()
		<-time.After(askAgainMost + time.Minute)
		before := len(follows())
		d.news <- mesh.ErrUnavailable
		<-time.After(askAgainFirst)
		if n := len(follows()); n != before+1 {
			t.Errorf("%d streams soon after one that was long", n-before)
		}
	})
}
