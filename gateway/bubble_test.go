// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pipes is an in-memory network with one listener. Inside a synctest bubble
// its deadlines are those of the bubble's clock.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }

// dial connects from 192.0.2.9.
func (p *pipes) dial() (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- pipeConn{far}:
		return near, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	}
}

// pipeConn is an end of a pipe with an address.
type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 50000} }

// client makes an HTTP client of the pipes.
func (p *pipes) client(t *testing.T, http2 bool) *http.Client {
	tr := &http.Transport{
		Protocols:   new(http.Protocols),
		DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial() },
	}
	tr.Protocols.SetUnencryptedHTTP2(http2)
	tr.Protocols.SetHTTP1(!http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// bubble runs test beside a gateway whose public listener is pipes, on a clock
// that stands still while anybody works.
func bubble(t *testing.T, change func(*Config), test func(t *testing.T, s *served, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		s := &served{node: newFakeNode(testSnapshot()), signaling: &fakeSignaling{}, registry: prometheus.NewRegistry()}
		cfg := Config{
			Node: s.node, Signaling: s.signaling, Public: p,
			Access:     Access{Authenticators: []Authenticator{testTokens(t)}},
			Registerer: s.registry, Gatherer: s.registry,
		}
		if change != nil {
			change(&cfg)
		}
		var err error
		if s.Gateway, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		s.stop = sync.OnceValue(func() error { cancel(); return <-ended })
		// Registered first, so that it runs after the clients' cleanups.
		t.Cleanup(func() {
			if err := s.stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
		test(t, s, p)
	})
}

// pass lets time go by on the clock of the bubble.
func pass(d time.Duration) { <-time.After(d) }
