// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// Directory says who other nodes are: gateways do.
type Directory interface {
	// Follow opens a stream to a gateway. It ends with ctx.
	Follow(ctx context.Context) (Book, error)
}

// Book is an open stream of a Directory. One goroutine calls Ask and another
// Next.
type Book interface {
	// Ask says what the node wants to know from now on, and what no more: IP
	// addresses and node ids.
	Ask(add, drop []string) error
	// Next waits for news.
	Next() (News, error)
}

// News is what a Directory says.
type News struct {
	Answers []Answer
	// Servers are STUN and TURN servers with credentials; nil: as before.
	Servers []Server
}

// Answer is about one thing that was wanted.
type Answer struct {
	Wanted string
	// Peer is the WireGuard peer to have for it, if Reason is empty.
	Peer mesh.Peer
	// Reason says why there is none.
	Reason string
}

const (
	// askAgainFirst and askAgainMost bound the pause after a stream has broken.
	askAgainFirst, askAgainMost = 300 * time.Millisecond, 10 * time.Second
)

// want is something that the directory is asked for.
type want struct {
	// node is who it is; empty while that is not known, or when it cannot be a pair.
	node mesh.NodeID
	// sought is when it was last wanted.
	sought time.Time
}

// requests are what the directory has to be told. Run adds to them, and follow
// takes them.
type requests struct {
	mu sync.Mutex // guards wanted
	// wanted is what is new since the directory was told: true for what the node
	// wants to know now, false for what no more.
	wanted map[string]bool
	ready  chan struct{} // of capacity 1
}

func (r *requests) init() { r.wanted, r.ready = make(map[string]bool), make(chan struct{}, 1) }

func (r *requests) put(add, drop []string) {
	r.mu.Lock()
	for _, text := range drop {
		r.wanted[text] = false
	}
	for _, text := range add {
		r.wanted[text] = true
	}
	r.mu.Unlock()
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

func (r *requests) take() (add, drop []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for text, want := range r.wanted {
		if want {
			add = append(add, text)
		} else {
			drop = append(drop, text)
		}
	}
	clear(r.wanted)
	return add, drop
}

// follow keeps a stream to the directory until ctx ends.
func (p *Pairs) follow(ctx context.Context) {
	wait := askAgainFirst
	for ctx.Err() == nil {
		began := time.Now()
		told, err := p.read(ctx)
		if time.Since(began) > askAgainMost {
			wait = askAgainFirst
		}
		if told {
			// Its relays may be gone as well, or are about to.
			p.do(func(now time.Time) { p.relays.doubted = now })
		}
		p.log.Debug("directory of pairs is lost, trying again", "err", err)
		timer := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		wait = min(2*wait, askAgainMost)
	}
}

// read follows one stream to its end. told says that the directory had spoken.
func (p *Pairs) read(ctx context.Context) (told bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	book, err := p.cfg.Directory.Follow(ctx)
	if err != nil {
		return false, err
	}
	// A new stream knows of nothing.
	all := make(chan []string, 1)
	p.do(func(time.Time) {
		p.asking.take()
		list := make([]string, 0, len(p.wanted))
		for text := range p.wanted {
			list = append(list, text)
		}
		all <- list
	})
	select {
	case list := <-all:
		if err := book.Ask(list, nil); err != nil {
			return false, err
		}
	case <-ctx.Done():
		return false, ctx.Err()
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		defer cancel()
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.asking.ready:
			}
			if add, drop := p.asking.take(); len(add)+len(drop) > 0 && book.Ask(add, drop) != nil {
				return // the reader has the reason
			}
		}
	}()
	defer func() { cancel(); <-asked }()
	for {
		news, err := book.Next()
		if err != nil {
			return told, err
		}
		told = true
		p.do(func(now time.Time) { p.learn(now, news) })
	}
}

// seek is for a packet of this node to an address.
func (p *Pairs) seek(now time.Time, dst netip.Addr) {
	if w := p.wanted[dst.String()]; w != nil {
		w.sought = now
		if l := p.links[w.node]; l != nil {
			l.used = now
		}
		return
	}
	if p.byGateway(dst) {
		p.want(now, dst.String())
	}
}

// byGateway reports whether packets for an address go to a gateway that is not
// their destination.
func (p *Pairs) byGateway(dst netip.Addr) bool {
	var via *mesh.Node
	longest := -1
	for peer := range p.plan.Peers.All() {
		for _, a := range peer.AllowedIPs {
			if a.Bits() > longest && a.Contains(dst) {
				via, longest = peer.Node, a.Bits()
			}
		}
	}
	return via.HoldsState() && !slices.ContainsFunc(via.Prefixes(), func(own netip.Prefix) bool { return own.Contains(dst) })
}

// want asks the directory for something, in place of what was wanted longest ago
// if there is too much.
func (p *Pairs) want(now time.Time, text string) {
	if w := p.wanted[text]; w != nil {
		w.sought = now
		return
	}
	var drop []string
	if len(p.wanted) >= maxWanted {
		oldest := ""
		for other, w := range p.wanted {
			if other != string(p.held) && p.links[w.node] == nil && (oldest == "" || w.sought.Before(p.wanted[oldest].sought)) {
				oldest = other
			}
		}
		if oldest == "" {
			p.metrics.drop(dropWanted)
			return // each is in use
		}
		delete(p.wanted, oldest)
		drop = append(drop, oldest)
	}
	p.wanted[text] = &want{sought: now}
	p.asking.put([]string{text}, drop)
}

// learn takes news of the directory.
func (p *Pairs) learn(now time.Time, news News) {
	if news.Servers != nil {
		p.relays.offer(now, news.Servers)
		// The gateway is there, maybe after a while: it has not to be waited for.
		for _, l := range p.links {
			if !l.last.Standing {
				l.nextCall, l.due = now, now
			}
		}
	}
	for _, a := range news.Answers {
		w := p.wanted[a.Wanted]
		if w == nil {
			continue
		}
		if a.Reason != "" {
			p.refused(w, a)
			continue
		}
		w.node = a.Peer.Node.ID
		p.meet(now, a.Peer)
	}
}

// refused takes the answer that there is no pair.
func (p *Pairs) refused(w *want, a Answer) {
	if l := p.links[w.node]; l != nil && l.kind == sought {
		p.drop(l, a.Reason)
	}
	w.node = ""
	if id := mesh.NodeID(a.Wanted); p.callers[id] != nil {
		for _, c := range p.callers[id] {
			c.end()
		}
		delete(p.callers, id)
	}
}

// meet makes or renews the link to a node.
func (p *Pairs) meet(now time.Time, peer mesh.Peer) {
	id := peer.Node.ID
	l := p.links[id]
	switch {
	case p.neighbour(id):
		return // its link, if any, is that of the plan
	case l != nil && l.key == peer.Node.PublicKey.WireGuard():
		l.peer = peer
		p.fresh = true
	default:
		if l != nil {
			p.drop(l, "the node has another key")
		}
		var err error
		if l, err = p.newLink(now, sought, peer); err != nil {
			p.log.Warn("no pair", "node", string(id), "err", err)
			return
		}
	}
	l.answered = now
	// Addresses move from node to node. What is behind this one has to be told for as
	// long as there is the link.
	p.want(now, string(id))
	p.wanted[string(id)].node = id
	p.attend(now, l)
}

// neighbour reports whether the plan has the node for a peer.
func (p *Pairs) neighbour(id mesh.NodeID) bool {
	_, ok := p.plan.Peers.Get(id)
	return ok
}

// hold sees to it that the pair to keep is in use.
func (p *Pairs) hold(now time.Time) {
	if p.held == "" {
		return
	}
	p.want(now, string(p.held))
	if l := p.links[p.held]; l != nil {
		l.used = now
	}
}

// forget ends pairs that nobody uses, and what is wanted no more. It returns when
// to look again.
func (p *Pairs) forget(now time.Time) time.Time {
	next := now.Add(idleAfter)
	p.hold(now)
	for text, w := range p.wanted {
		if p.links[w.node] == nil && now.Sub(w.sought) >= idleAfter {
			delete(p.wanted, text)
			p.asking.put(nil, []string{text})
		}
	}
	for _, l := range p.links {
		if l.kind != sought {
			continue
		}
		if until := l.used.Add(idleAfter); until.After(now) {
			next = earlier(next, until)
			continue
		}
		var drop []string
		for text, w := range p.wanted {
			if w.node == l.peer.Node.ID {
				delete(p.wanted, text)
				drop = append(drop, text)
			}
		}
		p.asking.put(nil, drop)
		p.drop(l, "nothing has gone over it for long")
	}
	return next
}
