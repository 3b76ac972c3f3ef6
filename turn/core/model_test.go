// SPDX-License-Identifier: Apache-2.0

package core

import (
	goflag "flag"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is what RFC 8656 says of a few clients at a server, written a second
// time and without tables, timers or bytes.
type model struct {
	now     time.Time
	clients []*modelClient
	limits  [NumBounds]Counts
	full    [NumResources][NumBounds]uint64 // requests that were refused for want of room
}

type modelClient struct {
	user        string
	ends        time.Time // of the allocation; zero: none
	permissions map[string]time.Time
	channels    map[uint16]modelChannel
}

type modelChannel struct {
	peer string
	ends time.Time
}

func (m *model) live(c *modelClient) bool { return c.ends.After(m.now) }

// forget drops what has ended.
func (m *model) forget(c *modelClient) {
	if !m.live(c) {
		c.ends, c.permissions, c.channels = time.Time{}, map[string]time.Time{}, map[uint16]modelChannel{}
	}
	for n, v := range c.channels {
		if !v.ends.After(m.now) {
			delete(c.channels, n)
		}
	}
	for a, ends := range c.permissions {
		if !ends.After(m.now) && !c.channelTo(a) {
			delete(c.permissions, a)
		}
	}
}

func (c *modelClient) channelTo(host string) bool {
	for _, v := range c.channels {
		if strings.HasPrefix(v.peer, host+":") {
			return true
		}
	}
	return false
}

// holds says how many a client has of a resource.
func (m *model) holds(c *modelClient, what Resource) int {
	m.forget(c)
	switch {
	case !m.live(c):
		return 0
	case what == Relays:
		return 1
	case what == Permissions:
		return len(c.permissions)
	case what == Channels:
		return len(c.channels)
	default:
		return 0
	}
}

// held is what a user has of a resource, and what all have.
func (m *model) held(user string, what Resource) (mine, all int) {
	for _, c := range m.clients {
		n := m.holds(c, what)
		if all += n; c.user == user {
			mine += n
		}
	}
	return mine, all
}

// room is the code with which a client is refused n more, "ok" if it is not.
func (m *model) room(c *modelClient, what Resource, n int) string {
	mine, all := m.held(c.user, what)
	for whose, held := range [NumBounds]int{m.holds(c, what), mine, all} {
		if limit := m.limits[whose].Of(what); limit == 0 || held+n <= limit {
			continue
		}
		m.full[what][whose]++
		if what == Relays && Bound(whose) == BoundUser {
			return "486"
		}
		return "508"
	}
	return "ok"
}

func (m *model) allocate(c *modelClient, seconds int) string {
	if m.live(c) {
		return "437"
	}
	got := m.room(c, Relays, 1)
	if got == "ok" {
		c.ends = m.now.Add(granted(seconds))
	}
	return got
}

func granted(seconds int) time.Duration {
	return time.Duration(min(max(seconds, 600), 3600)) * time.Second
}

func (m *model) refresh(c *modelClient, user string, seconds int) string {
	switch {
	case !m.live(c):
		return "437"
	case user != c.user:
		return "441"
	case seconds == 0:
		c.ends = time.Time{}
		m.forget(c)
	default:
		c.ends = m.now.Add(granted(seconds))
	}
	return "ok"
}

func (m *model) permit(c *modelClient, hosts ...string) string {
	if !m.live(c) {
		return "437"
	}
	m.forget(c)
	fresh := map[string]bool{}
	for _, host := range hosts {
		if host == modelForbidden {
			return "403"
		}
		if _, ok := c.permissions[host]; !ok {
			fresh[host] = true
		}
	}
	if len(fresh) > 0 {
		if got := m.room(c, Permissions, len(fresh)); got != "ok" {
			return got
		}
	}
	for _, host := range hosts {
		c.permissions[host] = m.now.Add(5 * time.Minute)
	}
	return "ok"
}

func (m *model) bind(c *modelClient, n uint16, peer string) string {
	if !m.live(c) {
		return "437"
	}
	m.forget(c)
	for number, v := range c.channels {
		if (number == n) != (v.peer == peer) {
			return "400"
		}
	}
	host, _, _ := strings.Cut(peer, ":")
	if host == modelForbidden {
		return "403"
	}
	if _, ok := c.channels[n]; !ok {
		if got := m.room(c, Channels, 1); got != "ok" {
			return got
		}
	}
	if got := m.permit(c, host); got != "ok" {
		return got
	}
	c.channels[n] = modelChannel{peer: peer, ends: m.now.Add(10 * time.Minute)}
	return "ok"
}

// hears says whether c hears a peer, and on which channel.
func (m *model) hears(c *modelClient, peer string) (uint16, bool) {
	host, _, _ := strings.Cut(peer, ":")
	if !m.live(c) || !c.permissions[host].After(m.now) {
		return 0, false
	}
	for n, v := range c.channels {
		if v.peer == peer && v.ends.After(m.now) {
			return n, true
		}
	}
	return 0, true
}

const modelForbidden = "10.0.0.1"

// modelWorld runs a model beside a core.
type modelWorld struct {
	*model
	world *world
	peers []*client
	asked []time.Time // when each got its nonce
}

func newModelWorld(t *testing.T) *modelWorld {
	w := newWorld(t, func(cfg *Config) {
		cfg.Limits.NonceLifetime = 12 * time.Hour
	})
	w.forbid(modelForbidden + "/32")
	v := &modelWorld{model: &model{now: w.now}, world: w}
	v.limit(modelLimits()[0])
	for i, user := range []string{"alice", "alice", "bob", "alice", "bob", "bob"} {
		c := w.client(uint16(i%2*tcp4), i+1)
		if user == "bob" {
			c.as("bob", "builder")
		}
		v.peers = append(v.peers, c)
		mc := &modelClient{user: user}
		v.clients = append(v.clients, mc)
		v.asked = append(v.asked, time.Time{})
		v.forget(mc)
	}
	return v
}

// modelLimits are what an operator changes the bounds to: some in which each of
// them counts, others that are lower than what is held, and some with room for all.
func modelLimits() [][NumBounds]Counts {
	return [][NumBounds]Counts{
		{{Permissions: 3, Channels: 2}, {Relays: 2, Permissions: 4, Channels: 3}, {Relays: 3, Permissions: 6, Channels: 4}},
		{{Permissions: 1, Channels: 1}, {Relays: 1, Permissions: 2, Channels: 1}, {Relays: 2, Permissions: 3, Channels: 1}},
		{{Permissions: 8, Channels: 8}, {}, {}},
	}
}

// limit changes the bounds of the core and of the model.
func (v *modelWorld) limit(to [NumBounds]Counts) {
	v.limits = to
	v.world.ledger.SetLimits(to[BoundUser], to[BoundTotal])
	one := to[BoundAllocation]
	if err := v.world.core.SetLimits(Limits{Permissions: one.Permissions, Channels: one.Channels, NonceLifetime: 12 * time.Hour}); err != nil {
		v.world.Fatal(err)
	}
}

func drawPeer(t *rapid.T) string {
	host := rapid.SampledFrom([]string{"198.51.100.7", "198.51.100.8", "198.51.100.9", "203.0.113.50", modelForbidden}).Draw(t, "host")
	return host + rapid.SampledFrom([]string{":1", ":2"}).Draw(t, "port")
}

// pick draws a client, in the core and in the model.
func (v *modelWorld) pick(t *rapid.T) (*client, *modelClient) {
	i := rapid.IntRange(0, len(v.peers)-1).Draw(t, "client")
	c := v.peers[i]
	v.now = v.world.now
	if len(c.toClient) > 1000 {
		c.toClient, c.toPeer = nil, nil
	}
	if v.now.Sub(v.asked[i]) > 11*time.Hour { // a nonce lasts for 12
		c.nonce, v.asked[i] = "", v.now
	}
	return c, v.clients[i]
}

func same(t *rapid.T, got, want string) {
	t.Helper()
	if word, _, _ := strings.Cut(got, " "); word != want {
		t.Fatalf("the core says %q, the model %q", got, want)
	}
}

var seconds = []int{0, 1, 600, 700, 3600, 1 << 30}

func (v *modelWorld) allocateStep(t *rapid.T) {
	c, m := v.pick(t)
	s := rapid.SampledFrom(seconds).Draw(t, "seconds")
	b := c.signed(methodAllocate, udp(), lifetime(uint32(s)))
	want := v.allocate(m, s)
	same(t, c.exchange(b), want)
	if want == "ok" && rapid.Bool().Draw(t, "again") {
		same(t, c.exchange(b), "ok")
	}
}

func (v *modelWorld) refreshStep(t *rapid.T) {
	c, m := v.pick(t)
	s := rapid.SampledFrom(seconds).Draw(t, "seconds")
	stranger := rapid.IntRange(0, 9).Draw(t, "stranger") == 0
	user := m.user
	username, password, nonce := c.username, c.password, c.nonce
	if stranger && user == "bob" {
		user = "alice"
		c.as("alice", "wonder")
	}
	same(t, c.ask(methodRefresh, lifetime(uint32(s))), v.refresh(m, user, s))
	if user != m.user {
		c.username, c.password, c.nonce = username, password, nonce
	}
}

func (v *modelWorld) permitStep(t *rapid.T) {
	c, m := v.pick(t)
	one, two := drawPeer(t), drawPeer(t)
	hostOne, _, _ := strings.Cut(one, ":")
	hostTwo, _, _ := strings.Cut(two, ":")
	same(t, c.ask(methodCreatePermission, peerAt(one), peerAt(two)), v.permit(m, hostOne, hostTwo))
}

func (v *modelWorld) bindStep(t *rapid.T) {
	c, m := v.pick(t)
	n, p := rapid.Uint16Range(0x4000, 0x4003).Draw(t, "channel"), drawPeer(t)
	same(t, c.ask(methodChannelBind, channel(n), peerAt(p)), v.bind(m, n, p))
}

func (v *modelWorld) sendStep(t *rapid.T) {
	c, m := v.pick(t)
	p := drawPeer(t)
	want := "none"
	if _, ok := v.hears(m, p); ok {
		want = `"x"`
	}
	same(t, c.indication(peerAt(p), data("x")), want)
}

func (v *modelWorld) channelStep(t *rapid.T) {
	c, m := v.pick(t)
	n := rapid.Uint16Range(0x4000, 0x4003).Draw(t, "channel")
	want := "none"
	if at, ok := m.channels[n]; ok && v.live(m) && at.ends.After(v.now) {
		want = `"x" to ` + at.peer
	}
	if got := c.emit(channelData(n, "x")); got != want {
		t.Fatalf("the core sends %s, the model %s", got, want)
	}
}

func (v *modelWorld) peerStep(t *rapid.T) {
	c, m := v.pick(t)
	p := drawPeer(t)
	n, ok := v.hears(m, p)
	b := c.receive(p, "four")
	got := "nothing"
	switch {
	case b != nil && b[0] >= 0x40:
		got = fmt.Sprintf("%x", b)
	case b != nil:
		got = c.render(b)
	}
	want := "nothing"
	switch {
	case ok && n != 0:
		want = fmt.Sprintf("%04x0004666f7572", n)
	case ok:
		want = "data peer=" + p + ` "four"`
	}
	if got != want {
		t.Fatalf("the client gets %s, the model says %s", got, want)
	}
}

func (v *modelWorld) timeStep(t *rapid.T) {
	d := rapid.SampledFrom([]time.Duration{time.Nanosecond, time.Second, time.Minute, 5 * time.Minute, 599 * time.Second, time.Hour}).Draw(t, "time")
	v.world.now = v.world.now.Add(d)
	v.now = v.world.now
	if rapid.Bool().Draw(t, "timer") {
		v.world.pass(0)
	}
}

func (v *modelWorld) limitStep(t *rapid.T) {
	v.limit(rapid.SampledFrom(modelLimits()).Draw(t, "limits"))
}

// evictStep has an operator end all that a user holds.
func (v *modelWorld) evictStep(t *rapid.T) {
	user := rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "user")
	v.world.core.Evict(func(i Info) bool { return i.User == user }, &v.world.out)
	v.world.drive()
	for _, m := range v.clients {
		if m.user == user {
			m.ends = time.Time{}
		}
	}
}

// check runs the timer and compares what the core holds with the model.
func (v *modelWorld) check(t *rapid.T) {
	v.now = v.world.now
	v.world.pass(0)
	for i, m := range v.clients {
		v.forget(m)
		a := v.world.core.flows[v.peers[i].flow.key()]
		if (a != nil) != v.live(m) {
			t.Fatalf("client %d has an allocation: %v, in the model %v", i, a != nil, v.live(m))
		}
		if a == nil {
			continue
		}
		if len(a.channels) != len(m.channels) || len(a.permissions) != len(m.permissions) {
			t.Fatalf("client %d holds %d channels and %d permissions, in the model %d and %d", i,
				len(a.channels), len(a.permissions), len(m.channels), len(m.permissions))
		}
	}
	for what := range NumResources {
		for _, user := range []string{"alice", "bob"} {
			mine, all := v.held(user, what)
			if got, total := v.world.ledger.Held(user, what), v.world.ledger.Total(what); got != mine || total != all {
				t.Fatalf("the ledger has %d %s of %s and %d of all, want %d and %d", got, what, user, total, mine, all)
			}
		}
	}
	if got := v.world.core.Stats().Full; got != v.full {
		t.Fatalf("refused for want of room were %v, in the model %v", got, v.full)
	}
	if _, n := v.held("", Relays); len(v.world.relays) != n || len(v.world.core.relays.byAddr) != n || v.world.core.relays.held != n {
		t.Fatalf("%d sockets are open, %d known, %d held, want %d", len(v.world.relays), len(v.world.core.relays.byAddr), v.world.core.relays.held, n)
	}
	if next, ok := v.world.core.Next(); ok && !next.After(v.now) {
		t.Fatalf("the timer is due at %v, and it is %v", next, v.now)
	}
}

// TestCore_BehavesLikeTheModel draws sequences of what clients, peers and time
// do. "make soak" draws a million steps, and sees that it does.
func TestCore_BehavesLikeTheModel(t *testing.T) {
	sequences, steps := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		v := newModelWorld(t)
		sequences++
		rt.Repeat(counted(&steps, map[string]func(*rapid.T){
			"allocate": v.allocateStep,
			"refresh":  v.refreshStep,
			"permit":   v.permitStep,
			"bind":     v.bindStep,
			"send":     v.sendStep,
			"channel":  v.channelStep,
			"peer":     v.peerStep,
			"limit":    v.limitStep,
			"evict":    v.evictStep,
			"time":     v.timeStep,
			"":         v.check,
		}))
	})
	// Their lengths are drawn, about as far from the average as that is: five deviations
	// of the sum less are none by chance.
	length, n := flagged(t, "rapid.steps"), float64(sequences)
	if testing.Short() {
		length /= 2
	}
	if least := int(length * (n - 5*math.Sqrt(n))); steps < least {
		t.Errorf("%d steps in %d sequences, want %d at least", steps, sequences, least)
	}
	t.Logf("%d steps in %d sequences", steps, sequences)
}

// counted counts the steps that are taken.
func counted(steps *int, actions map[string]func(*rapid.T)) map[string]func(*rapid.T) {
	for name, take := range actions {
		if name != "" { // which looks after each step
			actions[name] = func(t *rapid.T) { *steps++; take(t) }
		}
	}
	return actions
}

// flagged is the number that a flag has.
func flagged(t *testing.T, name string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(goflag.Lookup(name).Value.String(), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
