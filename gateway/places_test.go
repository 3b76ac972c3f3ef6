// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// http2Opening is what a client of HTTP/2 says first: the preface, and settings
// that are none (RFC 9113 section 3.4).
const http2Opening = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// silent opens HTTP/2 from an address and calls nothing.
func silent(t *testing.T, s *served, from string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", s.public)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, http2Opening); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil {
		t.Fatalf("a stranger is not let in, although others keep silent: %v", err)
	}
	return conn
}

// getNode makes a call that takes credentials.
func getNode(t *testing.T, c *http.Client, base string) error {
	t.Helper()
	_, err := v1connect.NewMeshClient(c, base).GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
	return err
}

// counted makes c, which is of httpClient or of pipes, count its connections.
func counted(c *http.Client) (_ *http.Client, dials func() int64) {
	var n atomic.Int64
	transport := c.Transport.(*http.Transport)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		n.Add(1)
		return dial(ctx, network, address)
	}
	return c, n.Load
}

// Connections that say nothing, or nothing with credentials, keep nobody out,
// and cost nobody known a connection.
func TestPlaces_SilentStrangersMakeRoom(t *testing.T) {
	for limit, tt := range map[string]struct {
		limits Limits
		from   func(i int) string
	}{
		limitNetwork: {Limits{Connections: 1000, NetworkConnections: 8}, func(int) string { return "127.0.0.5" }},
		limitAll:     {Limits{Connections: 8, NetworkConnections: 8}, func(i int) string { return fmt.Sprintf("127.0.1.%d", i+1) }},
	} {
		t.Run(limit, func(t *testing.T) {
			s := serve(t, func(c *Config) { c.Limits = tt.limits })
			base := "http://" + s.public
			resting, dials := counted(httpClient(t, true, "127.0.0.5", nil))
			if err := getNode(t, bearer(resting, "viewer"), base); err != nil {
				t.Fatal(err)
			}
			busy, err := watchAs(t, testContext(t), bearer(httpClient(t, true, "127.0.0.5", nil), "viewer"), base)
			if err != nil {
				t.Fatal(err)
			}
			bystander := silent(t, s, "127.0.0.9")
			var all []net.Conn
			for i := range 24 {
				all = append(all, silent(t, s, tt.from(i)))
			}
			a := ask(t, httpClient(t, true, "127.0.0.5", nil), http.MethodGet, base+"/livez", "")
			if a.StatusCode != http.StatusOK {
				t.Errorf("the newcomer gets %s", a.Status)
			}
			closed(t, all[0])
			_ = bystander.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // it was closed before, or is not
			_, err = io.Copy(io.Discard, bystander)
			if open := errors.Is(err, os.ErrDeadlineExceeded); open != (limit == limitNetwork) {
				t.Errorf("a stranger of another network: %v", err)
			}
			s.node.set(changed(8, func(s *mesh.Snapshot) { s.Nodes = s.Nodes.Without("laptop") }))
			if !busy.Receive() {
				t.Errorf("the stream of somebody known made room: %v", busy.Err())
			}
			if err := getNode(t, bearer(resting, "viewer"), base); err != nil || dials() != 1 {
				t.Errorf("somebody known needed %d connections: %v", dials(), err)
			}
			if n := s.metric(t, "meshgate_gateway_connections_displaced_total", limit); n < 18 {
				t.Errorf("counted %v", n)
			}
			if n := s.metric(t, "meshgate_gateway_connections_refused_total", listenerPublic); n != 0 {
				t.Errorf("%v were refused", n)
			}
		})
	}
}

// Where nobody is a stranger, who makes no call makes room; and where all make
// calls, the newcomer goes.
func TestPlaces_CallsKeepTheirs(t *testing.T) {
	var log lockedBuffer
	s := serve(t, func(c *Config) { c.Limits.Connections, c.Logger = 2, slog.New(slog.NewTextHandler(&log, nil)) })
	base := "http://" + s.public
	viewer := func() *http.Client { return bearer(httpClient(t, true, "", nil), "viewer") }
	if err := getNode(t, viewer(), base); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second one needs the place of who made the call
		if _, err := watchAs(t, testContext(t), viewer(), base); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, base+"/livez", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := httpClient(t, true, "", nil).Do(req); err == nil {
		t.Error("one connection too many")
	}
	if n := s.metric(t, "meshgate_gateway_connections_refused_total", listenerPublic); n < 1 {
		t.Errorf("counted %v", n)
	}
	if n := strings.Count(log.String(), "the public port is full"); n != 1 {
		t.Errorf("%d records in the log:\n%s", n, log.String())
	}
}

// A connection on which nobody has signed in is kept for a short while only.
func TestPlaces_IdleStrangersGoSoon(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		c, dials := counted(p.client(t, true))
		if err := getNode(t, bearer(c, "viewer"), "http://gate.test"); err != nil {
			t.Fatal(err)
		}
		conn, err := p.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		began := time.Now()
		go func() { _, _ = io.WriteString(conn, http2Opening) }()
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != strangerIdle {
			t.Errorf("a stranger was kept for %s, want %s", took, strangerIdle)
		}
		pass(idleTimeout - 2*strangerIdle)
		if err := getNode(t, bearer(c, "viewer"), "http://gate.test"); err != nil || dials() != 1 {
			t.Errorf("somebody known needed %d connections: %v", dials(), err)
		}
	})
}

// TURN has bounds of its own; it may not take the port from the rest.
func TestPlaces_TURNTakesAQuarter(t *testing.T) {
	handed := make(chan net.Conn, 8)
	s, cfg := serveTLSWith(t, func(c *Config) {
		c.Limits.Connections = 8
		c.TURN = func(c net.Conn) { handed <- c }
	})
	dial := func() net.Conn {
		cfg := cfg.Clone()
		cfg.NextProtos = []string{alpnTURN}
		c, err := tls.Dial("tcp", s.public, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	settle := func(c net.Conn, holds bool) { c.(interface{ Settled(bool) }).Settled(holds) }
	next := func(what string) net.Conn {
		t.Helper()
		select {
		case c := <-handed:
			return c
		case <-time.After(patience):
			t.Fatalf("%s was not handed to TURN", what)
			return nil
		}
	}
	first := dial()
	settle(next("the first connection"), false)
	var relays []net.Conn
	for range 2 { // the second one gets the place of who has no relay
		dial()
		relays = append(relays, next("a connection after it"))
		settle(relays[len(relays)-1], true)
	}
	closed(t, first)
	closed(t, dial())
	for want, got := range map[float64]float64{
		1: s.metric(t, "meshgate_gateway_connections_displaced_total", limitRelays) * s.metric(t, "meshgate_gateway_connections_refused_total", listenerTURN),
		2: s.metric(t, "meshgate_gateway_connections_turn"),
	} {
		if got != want {
			t.Errorf("counted %v, want %v", got, want)
		}
	}
	for range 16 {
		conn, err := net.Dial("tcp", s.public)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	if a := ask(t, httpClient(t, true, "", cfg.Clone()), http.MethodGet, "https://"+s.public+"/livez", ""); a.StatusCode != http.StatusOK {
		t.Error(a.Status)
	}
	for _, conn := range relays {
		if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a relay made room: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	dial() // there is a place again
	_ = next("a connection in the place of a relay that ended").Close()
}

// One network cannot take the places of TURN from others: the one of its own that
// has no relay for the longest time makes room, at last none.
func TestPlaces_TURNOfOneNetwork(t *testing.T) {
	l := &placesListener{
		total: 16384, share: 4096, all: newHolders(), byKey: make(map[string]*holders),
		relays: prometheus.NewGauge(prometheus.GaugeOpts{}),
	}
	var open []*place
	lend := func(key string) (limit string, displaced *place, ok bool) {
		p := &place{of: l, key: key, heard: make(chan struct{}, 1)}
		if _, _, ok := l.enter(p); !ok {
			t.Fatal("the port is full")
		}
		open = append(open, p)
		return p.borrow()
	}
	defer func() {
		for _, p := range open {
			p.leaveLocked()
		}
		if l.all.lent != 0 || l.all.held != 0 || len(l.byKey) != 0 {
			t.Errorf("%d lent and %d held of %d when all have gone", l.all.lent, l.all.held, len(l.byKey))
		}
	}()
	if limit, _, ok := lend("bystander"); limit != "" || !ok {
		t.Fatalf("the first one meets %q", limit)
	}
	for range maxLentShare {
		if limit, _, ok := lend("net"); limit != "" || !ok {
			t.Fatalf("the network meets %q", limit)
		}
	}
	for i := range maxLentShare {
		limit, displaced, ok := lend("net")
		if limit != limitRelaysNetwork || !ok || displaced != open[i+1] {
			t.Fatalf("newcomer %d: %q, %v", i, limit, ok)
		}
		open[len(open)-1].settle(true)
	}
	if limit, displaced, ok := lend("net"); limit != limitRelaysNetwork || ok || displaced != nil {
		t.Errorf("beside relays alone: %q, %v", limit, ok)
	}
	open[len(open)-2].settle(false)
	if _, displaced, ok := lend("net"); !ok || displaced != open[len(open)-3] {
		t.Error("who has a relay no more does not make room")
	}
	for range 2 * maxLentShare { // those of a proxy are of many networks
		if limit, _, ok := lend(""); limit != "" || !ok {
			t.Fatalf("the proxy meets %q", limit)
		}
	}
}

// What a stranger makes the gateway keep after the handshake is bounded, also
// where it is no request at all. Requests are: as many as it likes, and what
// somebody known sends.
func TestPlaces_StrangersSayLittle(t *testing.T) {
	s, cfg := serveTLS(t, nil)
	stranger, dials := counted(httpClient(t, true, "", cfg.Clone()))
	for range 2 * maxUnknown / (16 << 10) {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "https://"+s.public+"/livez", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Padding", strings.Repeat("x", 16<<10))
		res, err := stranger.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if dials() != 1 {
		t.Errorf("requests took %d connections", dials())
	}
	opening := []byte(http2Opening)
	for len(opening) < 2*maxUnknown {
		opening = append(opening, "\x00\x00\x08\x06\x00\x00\x00\x00\x00a ping  "...)
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", s.public, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { _, _ = c.Write(opening) }()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a stranger may say as much as it likes")
	}
	if n := s.metric(t, "meshgate_gateway_connections_refused_total", listenerPublic); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// wordy is the place of a connection whose other end says n bytes and closes.
func wordy(t *testing.T, n int) (*place, *shaking) {
	t.Helper()
	l := &placesListener{total: 8, share: 8, all: newHolders(), byKey: make(map[string]*holders), refused: prometheus.NewCounter(prometheus.CounterOpts{})}
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close() })
	go func() {
		defer far.Close()
		_, _ = far.Write(make([]byte, n))
	}()
	p := &place{Conn: near, of: l, key: "net", heard: make(chan struct{}, 1)}
	l.enter(p)
	return p, &shaking{Conn: p, place: p, over: true}
}

func TestPlace_ReadsLittleOfStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := wordy(t, 4*maxUnknown)
		read := func(what string, want int64, why error) {
			t.Helper()
			if n, err := io.Copy(io.Discard, s); n != want || !errors.Is(err, why) {
				t.Errorf("%s: read %d bytes, %v, want %d", what, n, err, want)
			}
		}
		read("a stranger", maxUnknown, errUnknown)
		end := p.begin()
		read("in a request", maxUnknown, errUnknown)
		end()
		read("after it", maxUnknown, errUnknown)
		p.recognise()
		read("somebody known", maxUnknown, nil)
	})
}

// The body of a request comes right behind its header: what is too much of it waits
// until the header was looked at.
func TestPlace_WaitsForCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := wordy(t, 4*maxUnknown)
		read := make(chan error, 1)
		go func() {
			n, err := io.Copy(io.Discard, s)
			if n != 4*maxUnknown {
				err = fmt.Errorf("read %d bytes, want %d: %w", n, 4*maxUnknown, err)
			}
			read <- err
		}()
		for range 2 {
			time.AfterFunc(unknownWait-1, func() { p.begin() })
			<-time.After(unknownWait - 1)
			synctest.Wait()
		}
		p.recognise()
		if err := <-read; err != nil {
			t.Error(err)
		}
	})
}

// A connection that is lent to TURN can end one direction, with TLS knowing of it,
// and be closed below TLS, with its place knowing of it.
func TestLentConn_ReachesBothSidesOfTLS(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	below := &shaking{Conn: theirs}
	for _, c := range []net.Conn{tls.Server(below, nil), &peekedConn{Conn: tls.Server(below, nil)}} {
		lent := &lentConn{Conn: c}
		if lent.NetConn() != net.Conn(below) {
			t.Errorf("below a %T is a %T", c, lent.NetConn())
		}
		if err := lent.CloseWrite(); err == nil || errors.Is(err, errors.ErrUnsupported) { // before a handshake
			t.Errorf("a %T ends one direction: %v", c, err)
		}
	}
	if plain := (&lentConn{Conn: theirs}); plain.NetConn() != theirs || !errors.Is(plain.CloseWrite(), errors.ErrUnsupported) {
		t.Error("a connection without TLS is not what it is")
	}
}
