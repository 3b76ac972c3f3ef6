// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// patience bounds every wait of a test; nothing should come near it.
const patience = time.Minute

// served is a running gateway.
type served struct {
	*Gateway
	node      *fakeNode
	signaling *fakeSignaling
	public    string // host:port
	mesh      string
	operators string
	registry  *prometheus.Registry
	stop      func() error // ends Run and waits; idempotent
}

// serve runs a gateway until the test ends; change may alter its configuration.
func serve(t testing.TB, change func(*Config)) *served {
	t.Helper()
	s := &served{node: newFakeNode(testSnapshot()), signaling: &fakeSignaling{}, registry: prometheus.NewRegistry()}
	public, inside, operators := listen(t), listen(t), listen(t)
	cfg := Config{
		Node: s.node, Signaling: s.signaling,
		Public: public, Mesh: []net.Listener{inside}, Metrics: operators,
		Console:    fstest.MapFS{"index.html": {Data: []byte("<!doctype html>console")}, "assets/app-1234.js": {Data: []byte("1")}},
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
	s.public, s.mesh, s.operators = public.Addr().String(), inside.Addr().String(), operators.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var result error
	done := false
	s.stop = func() error {
		cancel()
		if !done {
			result, done = <-ended, true
		}
		return result
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// testContext ends with the test, or when it takes too long.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// httpClient makes a client; http2 picks the version, over TLS or not. from is
// the source address, or empty.
func httpClient(t testing.TB, http2 bool, from string, tlsConfig *tls.Config) *http.Client {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: tlsConfig}
	dialer := &net.Dialer{}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	tr.DialContext = dialer.DialContext
	if http2 {
		tr.Protocols.SetHTTP2(true)
		tr.Protocols.SetUnencryptedHTTP2(true)
	} else {
		tr.Protocols.SetHTTP1(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// bearer adds a user's token to every request of c; no user: no token.
func bearer(c *http.Client, who string) *http.Client {
	if who == "" {
		return c
	}
	return withHeader(c, "Authorization", "Bearer "+tokenOf(who))
}

func withHeader(c *http.Client, key, value string) *http.Client {
	next := c.Transport
	return &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.Header[key] = append(r.Header[key], value)
		return next.RoundTrip(r)
	})}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// poll waits until done.
func poll(t testing.TB, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("it did not happen")
		}
	}
}

// metric is the sum of a metric's series that have all of the label values.
func (s *served) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			missing := slices.Clone(labels)
			for _, l := range m.GetLabel() {
				missing = slices.DeleteFunc(missing, func(v string) bool { return v == l.GetValue() })
			}
			if len(missing) == 0 {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func serveLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
