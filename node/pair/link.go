// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

const (
	// openEvery is how often a path is asked for until the device has the peer.
	openEvery = 20 * time.Millisecond
	// shakeEvery is how often a session is asked for until there is one, by the
	// lesser of the two nodes; the other one waits shakeLate first.
	shakeEvery = time.Second
	shakeLate  = 2 * time.Second
	// lookShaken is how often the device is asked whether there is a session, to
	// begin with: while there is none, less and less. What is sent between the times
	// at which both ends see it is lost.
	lookShaken = 5 * time.Millisecond
	// busyEvery is how often a link looks at its packets while there are any. Then
	// the pause doubles, up to idleEvery: what is sent then and lost is noticed so
	// much later, which has to be within 5 s with what the finder takes.
	busyEvery, idleEvery = 250 * time.Millisecond, time.Second
	// brokenAfter is how long a pair is without a way before the gateway carries
	// its packets again, and brokenMost the same while no gateway answers: with one
	// that starts anew the relays of the pair come back, and both ends need not agree
	// again on who carries its packets.
	brokenAfter, brokenMost = 500 * time.Millisecond, 3 * time.Second
	// silentAfter is how long a gateway may be silent before it is looked for by
	// way of relays, on an idle host.
	silentAfter = 700 * time.Millisecond
	// A gateway that answers nothing for staleAfter while packets go to it may have
	// started anew: it is asked for a session, each reviveEvery at most.
	staleAfter, reviveEvery = 3 * time.Second, 15 * time.Second
)

// kind is why there is a link.
type kind int

const (
	sought  kind = iota // packets were sent there, or the other node called
	edge                // the mesh has an edge that asks for ICE
	gateway             // the node's gateway
)

// finder is a *path.Agent or *path.Probe.
type finder interface {
	Tag() path.Tag
	Packet(now time.Time, s path.Socket, from netip.AddrPort, b []byte) bool
	SetLocal(now time.Time, s path.Socket, local []path.Candidate) error
	Sent(at time.Time)
	Heard(at time.Time, from path.Route)
	Tick(now time.Time) time.Time
	Outgoing() []path.Packet
	Selected() (path.Route, bool)
	Narrow() bool
	Accepted(now time.Time) []path.Route
	Verified(r path.Route) time.Time
	Restart(now time.Time)
	Doubt(now time.Time, relay string)
	State() path.State
}

// link is the way to one node.
type link struct {
	pairs  *Pairs
	kind   kind
	peer   mesh.Peer
	key    mesh.WireGuardKey
	finder finder
	agent  *path.Agent // finder, unless kind is gateway
	own    path.Credentials
	number uint64 // of the session, for signals

	way    Way // nil until the device has the peer
	opened time.Time
	// session is the one of the other node, and began when it had begun; a
	// WireGuard session from before is none.
	session  uint64
	began    time.Time
	route    path.Route
	narrow   bool
	accepted []path.Route
	claimed  []path.Route // see claims

	// answered is when the directory last told of the node.
	answered time.Time
	// stands is true once there is a session; only links that are no gateway's
	// have to wait for one.
	stands bool
	// veils is true when this node takes veiled packets of the other one, and
	// peerVeils when that one takes those of this node: see veil.go.
	veils, peerVeils bool
	// lost is since when a link that stands is without a way; zero when it has one.
	lost time.Time
	// ready is since when there is a way; zero when there is none.
	ready time.Time
	shook time.Time
	// unsure is since when there is no way, or nothing comes back on a relayed one;
	// zero when all is well.
	unsure time.Time
	// unanswered is when the first packet went out of those since the last one
	// that came; zero for none.
	unanswered time.Time
	// verified is when the way to a gateway was last known to stand, and gone since
	// when it is not; zero for never, and while it does. mute is set once that is
	// logged.
	verified, gone time.Time
	mute           bool
	// over is the transport by which a gateway is reached, as was logged last:
	// NoRelay, which is where all begin, for directly.
	over    path.Transport
	silence silence
	used    time.Time // when the last packet went or came, or was sought
	// seen is what the packets were at the last look, and pause how long the next
	// one may wait.
	seen  wg.Activity
	pause time.Duration

	calls    []*call
	nextCall time.Time
	failures int
	told     []path.Candidate // what the other node knows of this one
	last     path.State
	counted  carrier // by the metrics
	due      time.Time
}

// newLink makes the link to a peer.
func (p *Pairs) newLink(now time.Time, k kind, peer mesh.Peer) (*link, error) {
	l := &link{pairs: p, kind: k, peer: peer, key: peer.Node.PublicKey.WireGuard(), due: now, used: now}
	if k == gateway {
		probe := path.NewProbe()
		if err := probe.SetRemote(now, p.outside(peer)); err != nil {
			return nil, err
		}
		l.finder, l.stands = probe, true
	} else {
		l.own = path.NewCredentials()
		l.number = uint64(now.UnixMicro())
		agent, err := path.New(path.Config{Self: p.cfg.Self, Peer: peer.Node.ID, Local: l.own, Forbidden: p.forbidden})
		if err != nil {
			return nil, err
		}
		l.finder, l.agent = agent, agent
	}
	p.native.introduce(now, l)
	p.relays.introduce(now, l)
	p.links[peer.Node.ID], p.tags[l.finder.Tag()] = l, l
	p.fresh = true
	return l, nil
}

// endpoints are where a gateway can be asked: its endpoint in the plan, and all at
// which it says that WireGuard listens.
func endpoints(peer mesh.Peer) []netip.AddrPort {
	var list []netip.AddrPort
	if at, err := netip.ParseAddrPort(peer.Endpoint); err == nil {
		list = append(list, at)
	}
	for _, at := range peer.Node.WireGuardEndpoints {
		if !slices.Contains(list, at) && len(list) < path.MaxRemote {
			list = append(list, at)
		}
	}
	return list
}

// outside are the endpoints of a gateway at which it can be asked from here. What
// the plan says holds, since an operator has said so.
func (p *Pairs) outside(peer mesh.Peer) []netip.AddrPort {
	return slices.DeleteFunc(endpoints(peer), func(at netip.AddrPort) bool {
		return at.String() != peer.Endpoint && p.forbidden(at.Addr())
	})
}

// forbidden are addresses of the mesh, and those behind the tunnels of other meshes
// on the host: a tunnel does not run in itself, nor in one that may run in it.
func (p *Pairs) forbidden(a netip.Addr) bool {
	return p.inMesh(a) || p.cfg.Beside != nil && p.cfg.Beside(a)
}

// drop ends a link.
func (p *Pairs) drop(l *link, why string) {
	if l.kind != gateway {
		p.log.Debug("pair ends", "node", string(l.peer.Node.ID), "reason", why)
	}
	l.end()
	delete(p.links, l.peer.Node.ID)
	delete(p.tags, l.finder.Tag())
	p.fresh = true
}

// end gives back what a link holds.
func (l *link) end() {
	l.unclaim()
	for _, c := range slices.Clone(l.calls) {
		c.end()
	}
	l.calls = nil
	if l.way != nil {
		l.way.Close()
		l.way = nil
	}
}

// tend does what is due for the link, and returns when to do so again.
func (l *link) tend(now time.Time) time.Time {
	if !l.open(now) {
		return now.Add(openEvery)
	}
	a := l.way.Activity()
	if !a.Sent.IsZero() {
		l.finder.Sent(a.Sent)
		l.used = later(l.used, a.Sent)
	}
	if !a.Heard.IsZero() {
		l.finder.Heard(a.Heard, path.Route{Socket: path.Socket(a.From.Socket), To: a.From.To})
		l.used = later(l.used, a.Heard)
	}
	next := l.finder.Tick(now)
	for _, out := range l.finder.Outgoing() {
		// A socket that is gone loses it, as networks do.
		_ = l.pairs.cfg.Device.SendSTUN(wg.Socket(out.Socket), out.To, out.Bytes)
	}
	l.agree()
	l.steer(now)
	l.doubt(now, a)
	if l.voiceless(a) {
		l.mistrust(now)
	}
	next = earlier(next, l.settle(now))
	next = earlier(next, l.call(now))
	// Packets that go out unanswered are to be noticed.
	return earlier(next, now.Add(l.rest(a)))
}

// rest returns how long the link may leave its packets alone, of which a is what
// there is to know.
func (l *link) rest(a wg.Activity) time.Duration {
	_, ok := l.finder.Selected()
	// A gateway that does not answer is soon looked for over relays.
	if a != l.seen || l.kind == gateway && !ok {
		l.pause = busyEvery
	} else {
		l.pause = min(max(2*l.pause, busyEvery), idleEvery)
	}
	l.seen = a
	return l.pause
}

// doubt notes whether the packets of the link seem to arrive.
func (l *link) doubt(now time.Time, a wg.Activity) {
	relayed := l.route.Socket != path.Socket(wg.NativeSocket)
	silent := now.Sub(a.Sent) < 2*time.Second && a.Sent.Sub(a.Heard) > time.Second || l.finder.State().Doubtful
	switch {
	case !l.ready.IsZero() && !(relayed && silent):
		l.unsure = time.Time{}
	case l.unsure.IsZero():
		l.unsure = now
	}
	switch {
	case !a.Sent.After(a.Heard):
		l.unanswered = time.Time{}
	case l.unanswered.IsZero() || a.Heard.After(l.unanswered):
		l.unanswered = a.Sent
	}
	if l.kind == gateway && a.Sent.Sub(l.unanswered) >= staleAfter && !l.unanswered.IsZero() {
		l.revive(now)
	}
}

// revive asks the node for a new session in place of one that it may have lost.
// WireGuard does so by itself, but after 15 seconds.
func (l *link) revive(now time.Time) {
	if now.Sub(l.shook) >= reviveEvery {
		l.shook = now
		l.pairs.cfg.Device.Handshake(l.key)
	}
}

// open asks the device for a path to the peer until there is one.
func (l *link) open(now time.Time) bool {
	if l.way != nil && !l.way.Closed() {
		return true
	}
	way, err := l.pairs.cfg.Device.OpenPath(l.key)
	if err != nil {
		if !errors.Is(err, mesh.ErrNotFound) {
			l.pairs.log.Debug("no path in the device", "node", string(l.peer.Node.ID), "err", err)
		}
		return false
	}
	l.way, l.opened, l.route, l.accepted = way, now, path.Route{}, nil
	l.narrow = false
	return true
}

// steer leads packets where the finder says.
func (l *link) steer(now time.Time) {
	route, ok := l.finder.Selected()
	accepted := l.finder.Accepted(now)
	if home, is := l.home(); is {
		// Its own endpoint holds until something is known to be better: nobody else
		// answers there.
		if !ok {
			route, ok = home, true
		}
		if !slices.Contains(accepted, home) {
			accepted = append(accepted[:min(len(accepted), path.MaxAccepted-1)], home)
		}
	}
	accepted = l.claim(now, accepted)
	if !slices.Equal(accepted, l.accepted) {
		routes := make([]wg.Route, 0, len(accepted))
		for _, r := range accepted {
			routes = append(routes, wg.Route{Socket: wg.Socket(r.Socket), To: r.To})
		}
		if err := l.way.Accept(routes); err != nil {
			l.pairs.log.Debug("path does not accept", "node", string(l.peer.Node.ID), "err", err)
		}
		l.accepted = accepted
	}
	moved := route != l.route
	if moved {
		l.way.Route(wg.Socket(route.Socket), route.To)
		l.route = route
		if l.kind == gateway && now.Sub(l.way.Activity().Heard) > l.pairs.late.patience(silentAfter) {
			// WireGuard tries again in its own time only, which is long; and what was
			// asked for on the way before may be lost.
			l.shook = time.Time{}
			l.revive(now)
		}
	}
	if narrow := l.finder.Narrow(); narrow != l.narrow || narrow && moved {
		l.way.Narrow(narrow)
		l.narrow = narrow
		l.pairs.log.Debug("room for full packets on the way", "node", string(l.peer.Node.ID), "addr", route.To, "ok", !narrow)
	}
	switch {
	case !ok:
		l.ready = time.Time{}
	case l.ready.IsZero():
		l.ready = now
	}
	s := l.finder.State()
	if l.kind == gateway {
		l.attest(now, s)
	}
	if s.Standing != l.last.Standing || s.Direct != l.last.Direct || s.Route != l.last.Route {
		l.moved(s)
	}
}

// moved notes where packets go now.
func (l *link) moved(s path.State) {
	log := l.pairs.log.Debug
	if l.stands && l.kind != gateway {
		log = l.pairs.log.Info
	}
	switch {
	case !s.Standing:
		log("no way to the node", "node", string(l.peer.Node.ID), "reason", s.Why)
	case s.Direct:
		log("packets go directly", "node", string(l.peer.Node.ID), "addr", s.Route.To, "dur", s.RTT)
	default:
		log("packets go over a relay", "node", string(l.peer.Node.ID), "gateway", s.Relay, "transport", s.Transport.String(), "reason", s.Why)
	}
	if l.kind == gateway && s.Standing {
		l.reached(s)
	}
	l.last = s
	l.pairs.fresh = true
}

// settle decides who carries the packets: the pair, once it has a way and a
// session, or the gateway.
func (l *link) settle(now time.Time) time.Time {
	far := now.Add(time.Minute)
	if l.kind == gateway {
		return far
	}
	if l.stands {
		switch {
		case !l.ready.IsZero():
			l.lost = time.Time{}
			return far
		case l.lost.IsZero():
			l.lost = now
			l.pairs.askGateways(now)
		}
		if now.Sub(l.lost) < brokenAfter {
			return l.lost.Add(brokenAfter)
		}
		if now.Sub(l.lost) < brokenMost && !l.pairs.gatewaySince(l.lost) {
			return now.Add(lookShaken)
		}
		if l.pairs.gatewaySince(l.lost) {
			l.pairs.log.Info("pair is broken; the gateway carries its packets", "node", string(l.peer.Node.ID), "reason", l.last.Why)
		} else {
			l.pairs.log.Warn("pair is broken, and no gateway has answered since", "node", string(l.peer.Node.ID), "reason", l.last.Why)
		}
		l.stands, l.lost = false, time.Time{}
		l.pairs.fresh = true
		return far
	}
	if l.ready.IsZero() {
		return far
	}
	look := min(max(now.Sub(later(l.ready, l.began))/8, lookShaken), shakeEvery)
	return earlier(now.Add(look), l.shakeAt())
}

// askGateways has the ways to the gateways checked at once.
func (p *Pairs) askGateways(now time.Time) {
	for _, l := range p.links {
		if l.kind == gateway {
			l.finder.Restart(now)
			l.due = now
		}
	}
}

// gatewaySince reports whether a gateway is known to have been there after a time.
func (p *Pairs) gatewaySince(at time.Time) bool {
	for _, l := range p.links {
		if l.kind != gateway {
			continue
		}
		if s := l.finder.State(); s.Standing && s.Verified.After(at) || l.way != nil && l.way.Activity().Heard.After(at) {
			return true
		}
	}
	return false
}

// shakeAt is when to ask for a session next.
func (l *link) shakeAt() time.Time {
	first := l.ready
	if l.pairs.cfg.Self > l.peer.Node.ID {
		first = first.Add(shakeLate)
	}
	if l.shook.Before(l.ready) {
		return first
	}
	return l.shook.Add(shakeEvery)
}

// shake asks for sessions, and sees which there are now.
func (p *Pairs) shake(now time.Time) {
	var wait []*link
	for _, l := range p.links {
		if !l.stands && !l.ready.IsZero() && !l.due.After(now) {
			wait = append(wait, l)
		}
	}
	if len(wait) == 0 {
		return
	}
	stats, err := p.cfg.Device.Stats()
	if err != nil {
		return // it is closing
	}
	shaken := make(map[mesh.WireGuardKey]time.Time, len(stats.Peers))
	for _, s := range stats.Peers {
		shaken[s.PublicKey] = s.LastHandshake
	}
	for _, l := range wait {
		if shaken[l.key].After(later(l.opened, l.began)) {
			l.stands = true
			p.fresh = true
			p.log.Info("pair stands", "node", string(l.peer.Node.ID), "direct", l.last.Direct)
			continue
		}
		if !l.shakeAt().After(now) {
			l.shook = now
			p.cfg.Device.Handshake(l.key)
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
