// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// callAgainFirst and callAgainMost bound the pause after a call that brought no
	// way.
	callAgainFirst, callAgainMost = time.Second, 30 * time.Second
	// callRest is how long a call of this node stays open while there is nothing
	// to say.
	callRest = 10 * time.Second
	// mayBeLost is how old the last word of a channel that breaks may be for it to
	// be said again.
	mayBeLost = 5 * time.Second
	// maxCalls bounds the open channels with one node: both may have called at
	// once, and again before an end was noticed. The oldest makes room.
	maxCalls = 4
	// callerPatience is how long a caller waits for what the directory says of it.
	callerPatience = 10 * time.Second
)

// Signals reaches other nodes by way of gateways.
type Signals interface {
	// Call opens a channel to a node. It ends with ctx.
	Call(ctx context.Context, node mesh.NodeID) (Channel, error)
}

// Channel carries signals. One goroutine calls Send and another Receive.
type Channel interface {
	Send(s mesh.PathSignal) error
	Receive() (mesh.PathSignal, error)
}

// call is an open channel with a node.
type call struct {
	cancel context.CancelFunc
	// outbox holds the next signal: each says all that there is to say.
	outbox chan mesh.PathSignal
	mine   bool // this node opened it
	// latest is what the other node last said; nil before it has.
	latest *mesh.PathSignal
	spoke  time.Time // when either side last did
}

func newCall(cancel context.CancelFunc, mine bool) *call {
	return &call{cancel: cancel, outbox: make(chan mesh.PathSignal, 1), mine: mine}
}

// end closes the channel.
func (c *call) end() { c.cancel() }

// say sends a signal in place of one that waits.
func (c *call) say(s mesh.PathSignal) {
	select {
	case <-c.outbox:
	default:
	}
	c.outbox <- s
}

// Answer serves a channel that node from has opened, until its end. Who calls
// has shown that it is a gateway, and says that from is who it says.
func (p *Pairs) Answer(ctx context.Context, from mesh.NodeID, ch Channel) error {
	if from == p.cfg.Self {
		return fmt.Errorf("%w: a node is no pair with itself", mesh.ErrInvalid)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := newCall(cancel, false)
	taken := make(chan error, 1)
	if !p.do(func(now time.Time) { taken <- p.called(now, from, c) }) {
		return fmt.Errorf("%w: this node is stopping", mesh.ErrUnavailable)
	}
	select {
	case err := <-taken:
		if err != nil {
			return err
		}
	case <-p.ended:
		return fmt.Errorf("%w: this node is stopping", mesh.ErrUnavailable)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-p.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-over }()
	return p.converse(ctx, from, c, ch)
}

// called takes the call of a node, whom the directory has to know.
func (p *Pairs) called(now time.Time, from mesh.NodeID, c *call) error {
	if l := p.links[from]; l != nil && l.kind != gateway {
		l.attach(now, c)
		return nil
	}
	waiting := 0
	for _, list := range p.callers {
		waiting += len(list)
	}
	if waiting >= maxCallers {
		p.metrics.drop(dropCaller)
		return fmt.Errorf("%w: too many nodes call at once; try again in a moment", mesh.ErrExhausted)
	}
	p.callers[from] = append(p.callers[from], c)
	c.spoke = now
	delete(p.wanted, string(from)) // what was said of it may be old
	p.want(now, string(from))
	time.AfterFunc(callerPatience, func() { p.do(func(time.Time) { p.dismiss(from, c) }) })
	return nil
}

// dismiss ends a call that the directory has said nothing of.
func (p *Pairs) dismiss(from mesh.NodeID, c *call) {
	list := p.callers[from]
	if i := slices.Index(list, c); i >= 0 {
		c.end()
		if list = slices.Delete(list, i, i+1); len(list) == 0 {
			delete(p.callers, from)
		} else {
			p.callers[from] = list
		}
	}
}

// attend gives a link the calls that waited for it.
func (p *Pairs) attend(now time.Time, l *link) {
	for _, c := range p.callers[l.peer.Node.ID] {
		l.attach(now, c)
	}
	delete(p.callers, l.peer.Node.ID)
}

// attach makes a call one of the link's.
func (l *link) attach(now time.Time, c *call) {
	if len(l.calls) >= maxCalls {
		l.calls[0].end() // it leaves the list when its goroutine has ended
		l.calls = l.calls[1:]
	}
	l.calls = append(l.calls, c)
	c.spoke, l.used, l.due = now, later(l.used, now), now
	if c.latest != nil {
		l.hear(now, c, *c.latest)
	}
	if l.told != nil {
		c.say(l.signal())
	}
}

// converse carries signals until the channel ends, or ctx does. A goroutine may
// wait in Receive until the call of the channel is over.
func (p *Pairs) converse(ctx context.Context, node mesh.NodeID, c *call, ch Channel) error {
	defer p.do(func(now time.Time) { p.hungUp(now, node, c) })
	defer c.cancel()
	over := make(chan error, 1)
	go func() { over <- p.listen(node, c, ch) }()
	for {
		select {
		case err := <-over:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case s := <-c.outbox:
			if err := ch.Send(s); err != nil {
				// What the other side says of it is the better reason.
				select {
				case err = <-over:
				case <-ctx.Done():
				}
				return err
			}
			p.metrics.sent.Inc()
		}
	}
}

// listen takes what the other node says, until the channel ends.
func (p *Pairs) listen(node mesh.NodeID, c *call, ch Channel) error {
	for {
		s, err := ch.Receive()
		if err != nil {
			return err
		}
		p.metrics.received.Inc()
		p.do(func(now time.Time) {
			c.latest = &s
			if l := p.links[node]; l != nil && slices.Contains(l.calls, c) {
				l.hear(now, c, s)
			}
		})
	}
}

// hungUp notes that a channel has ended.
func (p *Pairs) hungUp(now time.Time, node mesh.NodeID, c *call) {
	p.dismiss(node, c)
	l := p.links[node]
	if l == nil {
		return
	}
	if i := slices.Index(l.calls, c); i >= 0 {
		l.calls = slices.Delete(l.calls, i, i+1)
		l.due = now
		if now.Sub(c.spoke) < mayBeLost {
			l.told = nil // the last word may not have arrived
		}
	}
}

// hear takes what the other node says.
func (l *link) hear(now time.Time, c *call, s mesh.PathSignal) {
	c.spoke, l.due = now, now
	if err := l.agent.SetRemote(now, path.Credentials{Ufrag: s.Ufrag, Password: s.Password}, s.Session); err != nil {
		l.pairs.log.Debug("signal not used", "node", string(l.peer.Node.ID), "err", err)
		return
	}
	if l.session != 0 && l.session != s.Session {
		// It began anew, and knows no session of the pair.
		l.stands, l.began, l.shook = false, now, time.Time{}
		l.pairs.fresh = true
	}
	l.session = s.Session
	for _, one := range s.Candidates {
		if err := l.agent.AddRemote(now, candidateOf(one)); err != nil {
			l.pairs.log.Debug("candidate not used", "node", string(l.peer.Node.ID), "err", err)
		}
	}
}

// call opens a channel where one is needed, says what is new, and closes what
// has nothing to say. It returns when to look again.
func (l *link) call(now time.Time) time.Time {
	far := now.Add(time.Minute)
	if l.agent == nil {
		return far
	}
	have := l.pairs.candidates()
	news := !slices.Equal(have, l.told)
	if news && len(l.calls) > 0 {
		l.told = have
		for _, c := range l.calls {
			c.say(l.signal())
			c.spoke = now
		}
		news = false
	}
	for _, c := range l.calls {
		if c.mine && l.last.Standing && now.Sub(c.spoke) > callRest {
			c.end()
		}
	}
	if len(l.calls) > 0 || !news && l.last.Standing {
		return far
	}
	if l.nextCall.After(now) {
		return l.nextCall
	}
	// Whoever called and got no way waits longer each time.
	wait := min(callAgainFirst<<min(l.failures, 10), callAgainMost)
	l.failures++
	if l.last.Standing {
		l.failures = 0
	}
	l.nextCall = now.Add(wait)
	l.told = have
	l.pairs.dial(now, l)
	return l.nextCall
}

// dial opens a channel to the node of a link.
func (p *Pairs) dial(now time.Time, l *link) {
	ctx, cancel := context.WithCancel(p.ctx)
	c := newCall(cancel, true)
	c.spoke = now
	c.say(l.signal())
	l.calls = append(l.calls, c)
	node := l.peer.Node.ID
	p.running.Go(func() {
		defer cancel()
		ch, err := p.cfg.Signals.Call(ctx, node)
		if err == nil {
			err = p.converse(ctx, node, c, ch)
		} else {
			p.do(func(now time.Time) { p.hungUp(now, node, c) })
		}
		p.log.Debug("signals ended", "node", string(node), "err", err)
	})
}

// signal is all that there is to say.
func (l *link) signal() mesh.PathSignal {
	s := mesh.PathSignal{Ufrag: l.own.Ufrag, Password: l.own.Password, Session: l.number}
	for _, c := range l.told[:min(len(l.told), mesh.MaxPathCandidates)] {
		s.Candidates = append(s.Candidates, signalOf(c))
	}
	return s
}

// candidates are those of this node now, the best first.
func (p *Pairs) candidates() []path.Candidate {
	return append(slices.Clone(p.native.list), p.relays.candidates()...)
}

var kinds = map[v1.PathCandidate_Kind]path.Kind{
	v1.PathCandidate_KIND_HOST:             path.Host,
	v1.PathCandidate_KIND_SERVER_REFLEXIVE: path.ServerReflexive,
	v1.PathCandidate_KIND_RELAY:            path.Relayed,
}

var transports = map[v1.PathCandidate_Transport]path.Transport{
	v1.PathCandidate_TRANSPORT_UNSPECIFIED: path.NoRelay,
	v1.PathCandidate_TRANSPORT_UDP:         path.UDP,
	v1.PathCandidate_TRANSPORT_TCP:         path.TCP,
	v1.PathCandidate_TRANSPORT_TLS:         path.TLS,
}

func candidateOf(c mesh.PathCandidate) path.Candidate {
	return path.Candidate{Kind: kinds[c.Kind], Addr: c.Addr, Transport: transports[c.Transport], Relay: string(c.Relay)}
}

func signalOf(c path.Candidate) mesh.PathCandidate {
	s := mesh.PathCandidate{Addr: c.Addr, Relay: mesh.NodeID(c.Relay)}
	for from, to := range kinds {
		if to == c.Kind {
			s.Kind = from
		}
	}
	for from, to := range transports {
		if to == c.Transport {
			s.Transport = from
		}
	}
	return s
}
