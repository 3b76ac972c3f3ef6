// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"fmt"
	"io"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// book is a stream of the directory to one node.
type book struct {
	n      *testNode
	ctx    context.Context
	news   chan News
	wanted map[string]bool
}

// Follow implements Directory.
func (n *testNode) Follow(ctx context.Context) (Book, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	if n.lab.down {
		return nil, mesh.ErrUnavailable
	}
	b := &book{n: n, ctx: ctx, news: make(chan News, 2048), wanted: make(map[string]bool)}
	b.news <- News{Servers: []Server{{Relay: "gate", URLs: []string{"turn:10.0.9.9:3478?transport=udp"}}}}
	n.lab.books = append(n.lab.books, b)
	return b, nil
}

// Ask implements Book.
func (b *book) Ask(add, drop []string) error {
	b.n.lab.mu.Lock()
	held := b.n.lab.held
	b.n.lab.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
	}
	b.n.lab.mu.Lock()
	defer b.n.lab.mu.Unlock()
	for _, text := range drop {
		delete(b.wanted, text)
	}
	for _, text := range add {
		b.wanted[text] = true
		b.tell(text)
	}
	return nil
}

// tell answers. The caller holds the lab.
func (b *book) tell(text string) {
	for _, o := range b.n.lab.nodes {
		if string(o.id) != text && o.record.IPv4.Addr().String() != text {
			continue
		}
		if why := b.n.lab.refused(b.n.id, o.id); why != "" {
			b.news <- News{Answers: []Answer{{Wanted: text, Reason: why}}}
			return
		}
		allowed := o.record.Prefixes()
		if route, ok := b.n.lab.routes[o.id]; ok {
			allowed = append(allowed, route)
		}
		b.news <- News{Answers: []Answer{{Wanted: text, Peer: mesh.Peer{
			Node: o.record, AllowedIPs: allowed, Protocol: v1.ConnectProtocol_CONNECT_ICE,
		}}}}
		return
	}
	b.news <- News{Answers: []Answer{{Wanted: text, Reason: "no such node"}}}
}

// changed has the directory tell everything again.
func (l *lab) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.books {
		for text := range b.wanted {
			b.tell(text)
		}
	}
}

// cut ends all streams and calls, and no gateway answers any more.
func (l *lab) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for _, b := range l.books {
		close(b.news)
	}
	l.books = nil
}

// Next implements Book.
func (b *book) Next() (News, error) {
	select {
	case news, ok := <-b.news:
		if !ok {
			return News{}, io.EOF
		}
		return news, nil
	case <-b.ctx.Done():
		return News{}, b.ctx.Err()
	}
}

// end is one end of a channel.
type end struct {
	ctx context.Context
	in  <-chan mesh.PathSignal
	out chan<- mesh.PathSignal
}

// Call implements Signals.
func (n *testNode) Call(ctx context.Context, to mesh.NodeID) (Channel, error) {
	n.lab.mu.Lock()
	peer, down := n.lab.nodes[to], n.lab.down
	n.lab.mu.Unlock()
	if peer == nil || down {
		return nil, mesh.ErrUnavailable
	}
	there, back := make(chan mesh.PathSignal, 4), make(chan mesh.PathSignal, 4)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_ = peer.pairs.Answer(ctx, n.id, end{ctx, there, back})
	}()
	return end{ctx, back, there}, nil
}

func (e end) Send(s mesh.PathSignal) error {
	if s.Ufrag == "" || s.Session == 0 {
		return fmt.Errorf("a signal that says nothing: %v", s)
	}
	select {
	case e.out <- s:
		return nil
	case <-e.ctx.Done():
		return e.ctx.Err()
	}
}

func (e end) Receive() (mesh.PathSignal, error) {
	select {
	case s := <-e.in:
		return s, nil
	case <-e.ctx.Done():
		return mesh.PathSignal{}, e.ctx.Err()
	}
}
