// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test; nothing should come near it.
const patience = time.Minute

func newEngine(t testing.TB, cfg Config) *Engine {
	t.Helper()
	cfg.Loopback = true
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func newPeer(t testing.TB, e *Engine) *Peer {
	t.Helper()
	p, err := e.NewPeer(context.Background(), PeerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// trickle carries the candidates of one peer to another until it is connected.
func trickle(from, to *Peer) {
	for {
		select {
		case c, ok := <-from.Candidates():
			if !ok {
				return
			}
			_ = to.AddCandidate(c)
		case <-from.Done():
			return
		}
	}
}

func connect(t testing.TB, offerer, answerer *Peer) {
	t.Helper()
	offer, err := offerer.Offer()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := answerer.Answer(offer)
	if err != nil {
		t.Fatal(err)
	}
	if err := offerer.SetAnswer(answer); err != nil {
		t.Fatal(err)
	}
	go trickle(offerer, answerer)
	go trickle(answerer, offerer)
	for _, p := range []*Peer{offerer, answerer} {
		select {
		case <-p.Connected():
		case <-p.Closing():
			t.Fatal(p.Err())
		case <-time.After(patience):
			t.Fatal("not connected")
		}
	}
}

func pair(t testing.TB, a, b Config) (*Peer, *Peer) {
	t.Helper()
	p, q := newPeer(t, newEngine(t, a)), newPeer(t, newEngine(t, b))
	connect(t, p, q)
	return p, q
}

func TestPeer_ChannelOpenedInBand(t *testing.T) {
	p, q := pair(t, Config{}, Config{})
	if p.FirstID() != 1 || q.FirstID() != 0 {
		t.Fatalf("first ids %d, %d: the answerer is the DTLS client and has the even ones", p.FirstID(), q.FirstID())
	}
	out, err := q.Open(ChannelConfig{ID: 2, Label: "tcp:host:80", Protocol: "meshgate.1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := out.WriteMessage([]byte("first"), false); err != nil {
		t.Fatal(err)
	}
	in, err := p.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ch, err := in.Open(patience)
	if err != nil {
		t.Fatal(err)
	}
	if ch.ID() != 2 || ch.Label() != "tcp:host:80" || ch.Protocol() != "meshgate.1" {
		t.Fatalf("got channel %d %q %q", ch.ID(), ch.Label(), ch.Protocol())
	}
	buf := make([]byte, 3)
	if _, _, err := ch.ReadMessage(buf); !errors.Is(err, io.ErrShortBuffer) {
		t.Fatalf("a short buffer gave %v", err)
	}
	buf = make([]byte, 16)
	n, text, err := ch.ReadMessage(buf)
	if err != nil || text || string(buf[:n]) != "first" {
		t.Fatalf("got %q, text %v, %v", buf[:n], text, err)
	}
	if path := p.Path(); path.Kind != "direct" {
		t.Fatalf("path %+v", path)
	}
	_ = out.Close()
	if _, _, err := ch.ReadMessage(buf); !errors.Is(err, io.EOF) {
		t.Fatalf("after close: %v", err)
	}
	if _, _, err := out.ReadMessage(buf); !errors.Is(err, io.EOF) {
		t.Fatalf("after close, opener: %v", err)
	}
}

// A receive buffer of a message and a quarter takes messages of any size.
func TestPeer_NarrowReceiveBuffer(t *testing.T) {
	e := newEngine(t, Config{})
	p, err := e.NewPeer(context.Background(), PeerConfig{ReceiveBuffer: MaxMessageSize + 64<<10})
	if err != nil {
		t.Fatal(err)
	}
	q := newPeer(t, newEngine(t, Config{}))
	connect(t, p, q)
	in, err := p.Negotiated(ChannelConfig{ID: 1})
	if err != nil {
		t.Fatal(err)
	}
	out, err := q.Negotiated(ChannelConfig{ID: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		_ = out.WriteMessage(make([]byte, MaxMessageSize), false)
	}
	buf := make([]byte, MaxMessageSize)
	for range 8 {
		if n, _, err := in.ReadMessage(buf); err != nil || n != MaxMessageSize {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
}

func TestPeer_CloseIsSeenByTheOther(t *testing.T) {
	p, q := pair(t, Config{}, Config{})
	_ = p.Close()
	select {
	case <-q.Done():
	case <-time.After(patience):
		t.Fatal("the other side did not end")
	}
}

// What the other side did on a negotiated channel before we heard of it must
// still be there when we do: data, and even the end.
func TestPeer_NegotiatedLate(t *testing.T) {
	p, q := pair(t, Config{}, Config{})
	marker, err := q.Negotiated(ChannelConfig{ID: 0})
	if err != nil {
		t.Fatal(err)
	}
	heard, err := p.Negotiated(ChannelConfig{ID: 0})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	for id := uint16(1); id <= 100; id++ {
		ch, err := q.Negotiated(ChannelConfig{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		_ = ch.WriteMessage([]byte("here and gone"), false)
		_ = ch.Close()
		_ = marker.WriteMessage([]byte("look"), false)
		if _, _, err := heard.ReadMessage(buf); err != nil {
			t.Fatal(err)
		}
		late, err := p.Negotiated(ChannelConfig{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		if n, _, err := late.ReadMessage(buf); err != nil || string(buf[:n]) != "here and gone" {
			t.Fatalf("channel %d: %q, %v", id, buf[:n], err)
		}
		if _, _, err := late.ReadMessage(buf); !errors.Is(err, io.EOF) {
			t.Fatalf("channel %d: %v", id, err)
		}
	}
	if n := p.Live(); n != 1 {
		t.Fatalf("%d channels live", n)
	}
}

func TestPeer_NegotiatedTwiceIsInUse(t *testing.T) {
	p, _ := pair(t, Config{}, Config{})
	if _, err := p.Negotiated(ChannelConfig{ID: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Negotiated(ChannelConfig{ID: 4}); !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
}

func TestPeer_TooManyStreamsEndIt(t *testing.T) {
	p, q := pair(t, Config{}, Config{})
	for id := range uint16(maxUnclaimed + 1) {
		ch, err := q.Negotiated(ChannelConfig{ID: id})
		if err != nil {
			break
		}
		_ = ch.WriteMessage([]byte("x"), false)
	}
	<-p.Done()
	if !errors.Is(p.Err(), errTooManyStreams) {
		t.Fatalf("reason %v", p.Err())
	}
}

func FuzzDataChunks(f *testing.F) {
	f.Add([]byte("\x13\x88\x13\x88\x00\x00\x00\x01\x00\x00\x00\x00\x00\x03\x00\x11\x00\x00\x00\x01\x00\x05\x00\x00\x00\x00\x00\x35x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		dataChunks(b, func(uint32, uint16) { n++ })
		if n*minDataLength > len(b) {
			t.Fatalf("%d chunks in %d bytes", n, len(b))
		}
	})
}
