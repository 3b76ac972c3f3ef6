// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"github.com/prometheus/client_golang/prometheus"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// serveTLS runs a gateway with a self-signed certificate for 127.0.0.1.
func serveTLS(t *testing.T, turn func(net.Conn)) (*served, *tls.Config) {
	t.Helper()
	return serveTLSWith(t, func(c *Config) { c.TURN = turn })
}

// serveTLSWith is serveTLS with a configuration that change has changed.
func serveTLSWith(t *testing.T, change func(*Config)) (*served, *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	s := serve(t, func(c *Config) {
		c.TLS = &TLS{SelfSignedDir: dir, Names: []string{"127.0.0.1", "gate.test"}}
		change(c)
	})
	raw, err := os.ReadFile(filepath.Join(dir, selfSignedCert))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		t.Fatal("no certificate")
	}
	return s, &tls.Config{RootCAs: pool}
}

func TestTLS_AllProtocols(t *testing.T) {
	for name, turn := range map[string]func(net.Conn){"alone": nil, "beside TURN": func(c net.Conn) { _ = c.Close() }} {
		t.Run(name, func(t *testing.T) {
			s, cfg := serveTLS(t, turn)
			for _, http2 := range []bool{true, false} {
				c := bearer(httpClient(t, http2, "", cfg.Clone()), "admin")
				res, err := v1connect.NewMeshClient(c, "https://"+s.public).GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
				if err != nil || res.Msg.GetId() != "web-1" {
					t.Errorf("HTTP/2 %v: %v", http2, err)
				}
				a := ask(t, httpClient(t, http2, "", cfg.Clone()), http.MethodGet, "https://"+s.public+"/", "")
				if a.Header.Get("Strict-Transport-Security") == "" || (a.ProtoMajor == 2) != http2 {
					t.Errorf("HTTP/2 %v: %s, %v", http2, a.Proto, a.Header)
				}
			}
			bidi := connectClient("", "https://"+s.public, httpClient(t, true, "", cfg.Clone()), true, []connect.ClientOption{connect.WithGRPC()})
			if offers, err := bidi.bidi(t, "admin", "a", "b"); err != nil || len(offers) != 2 {
				t.Errorf("bidi: %v", err)
			}
		})
	}
}

// A gateway that is alone, which has no front, reads no longer hellos than one that
// has: crypto/tls would keep four times as much of each.
func TestTLS_TooLargeHelloIsRefused(t *testing.T) {
	for name, turn := range map[string]func(net.Conn){"alone": nil, "beside TURN": func(c net.Conn) { _ = c.Close() }} {
		s, cfg := serveTLS(t, turn)
		for size, fits := range map[int]bool{maxHello - 2048: true, maxHello + 1: false} {
			cfg := cfg.Clone()
			cfg.NextProtos = []string{"http/1.1"}
			for said := 0; said < size; said += 250 {
				cfg.NextProtos = append(cfg.NextProtos, strings.Repeat("x", min(249, size-said)))
			}
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.public, cfg)
			if (err == nil) != fits {
				t.Errorf("%s: a hello of more than %d bytes: %v", name, size, err)
			}
			if err == nil {
				_ = c.Close()
			}
		}
	}
}

// What comes behind the hello is bounded as well, until the handshake is over.
func TestShaking_ReadsSoMuch(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		defer far.Close()
		_, _ = far.Write(make([]byte, 100))
	}()
	s := &shaking{Conn: near, left: 10}
	if n, err := io.Copy(io.Discard, s); n != 10 || !errors.Is(err, errTooLarge) {
		t.Errorf("read %d bytes, %v, want 10 and errTooLarge", n, err)
	}
	s.over = true
	if n, err := io.Copy(io.Discard, s); n != 90 || err != nil {
		t.Errorf("afterwards read %d bytes, %v, want the other 90", n, err)
	}
}

// An old client names no protocol; the first bytes tell what it speaks.
func TestDemux(t *testing.T) {
	binding := []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	got := make(chan []byte, 1)
	s, cfg := serveTLS(t, func(c net.Conn) {
		defer c.Close()
		buf := make([]byte, len(binding))
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Error(err)
		}
		got <- buf
	})
	dial := func(protocols ...string) net.Conn {
		t.Helper()
		cfg := cfg.Clone()
		cfg.NextProtos = protocols
		c, err := tls.Dial("tcp", s.public, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, c := range map[string]net.Conn{
		"by ALPN": dial("stun.turn"), "by first byte": dial(), "among others": dial("http/1.1", "stun.turn", "stun.nat-discovery"),
	} {
		if _, err := c.Write(binding); err != nil {
			t.Fatal(err)
		}
		select {
		case raw := <-got:
			if !bytes.Equal(raw, binding) {
				t.Errorf("%s: %x", name, raw)
			}
		case <-time.After(patience):
			t.Errorf("%s: TURN did not get it", name)
		}
		_ = c.Close()
	}
	for name, c := range map[string]net.Conn{"HTTP by ALPN": dial("http/1.1"), "HTTP by first byte": dial()} {
		if _, err := io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 200 || res.Header.Get("Strict-Transport-Security") == "" {
			t.Errorf("%s: %v %v", name, res, err)
		}
		_ = c.Close()
	}
	// A client that is silent, before or after the handshake, is not waited
	// for at shutdown; that it is at all bounded is tested below.
	raw, err := net.Dial("tcp", s.public)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	silent := dial()
	defer silent.Close()
	started := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > headerTimeout {
		t.Errorf("shutdown took %s", took)
	}
}

func TestDemux_SilentClientsAreCutOff(t *testing.T) {
	dir := t.TempDir()
	for name, turn := range map[string]func(net.Conn){"alone": nil, "beside TURN": func(c net.Conn) { _ = c.Close() }} {
		bubble(t, func(c *Config) {
			c.TLS, c.TURN = &TLS{SelfSignedDir: dir, Names: []string{"gate.test"}}, turn
		}, func(t *testing.T, s *served, p *pipes) {
			conn, err := p.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			started := time.Now()
			_, _ = io.Copy(io.Discard, conn)
			if took := time.Since(started); took != headerTimeout {
				t.Errorf("%s: took %s", name, took)
			}
			if n := s.metric(t, "meshgate_gateway_tls_handshakes_failed_total", "timeout"); n != 1 {
				t.Errorf("%s: %v handshakes were counted as too long, want 1", name, n)
			}
		})
	}
}

func TestTLS_OldVersionsAndSuitesAreRefused(t *testing.T) {
	s, cfg := serveTLS(t, nil)
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		"CBC": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		},
		"unknown protocol": func(c *tls.Config) { c.NextProtos = []string{"acme-tls/1"} },
	} {
		cfg := cfg.Clone()
		change(cfg)
		if c, err := tls.Dial("tcp", s.public, cfg); err == nil {
			t.Errorf("%s was accepted", name)
			_ = c.Close()
		}
	}
}

// Handshakes that fail are counted by their reason, and told at debug, not one by one;
// those that succeed, and connections that are closed at shutdown, are none.
func TestTLS_CountsHandshakesThatFail(t *testing.T) {
	var log lockedBuffer
	s, cfg := serveTLSWith(t, func(c *Config) {
		c.TURN = func(c net.Conn) { _ = c.Close() }
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	shake := func(change func(*tls.Config)) {
		cfg := cfg.Clone()
		change(cfg)
		if c, err := tls.Dial("tcp", s.public, cfg); err == nil {
			_ = c.Close()
		}
	}
	say := func(text string) {
		c, err := net.Dial("tcp", s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until the gateway is done with it
	}
	const failed = "meshgate_gateway_tls_handshakes_failed_total"
	began, total := time.Now(), 0.0
	for _, test := range []struct {
		reason string
		do     func()
	}{
		{"certificate", func() { shake(func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }) }},
		{"certificate", func() { shake(func(c *tls.Config) { c.ServerName = "other.test"; c.MaxVersion = tls.VersionTLS12 }) }},
		{"mismatch", func() { shake(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }) }},
		{"mismatch", func() { shake(func(c *tls.Config) { c.NextProtos = []string{"acme-tls/1"} }) }},
		{"no_tls", func() { say("GET / HTTP/1.1\r\nHost: x\r\n\r\n") }},
		{"closed", func() { say("") }},
		{"closed", func() { say("\x16\x03\x01\x02\x00") }},
		{"too_large", func() {
			shake(func(c *tls.Config) {
				for range maxHello / 250 {
					c.NextProtos = append(c.NextProtos, strings.Repeat("x", 250))
				}
			})
		}},
	} {
		before := s.metric(t, failed, test.reason)
		test.do()
		poll(t, func() bool { return s.metric(t, failed, test.reason) == before+1 })
		if total++; s.metric(t, failed) != total {
			t.Errorf("%s: %v were counted in all, want %v", test.reason, s.metric(t, failed), total)
		}
	}
	shake(func(*tls.Config) {})
	for range 5 * strangersBurst {
		say("")
	}
	poll(t, func() bool { return s.metric(t, failed, "closed") == 2+5*strangersBurst })
	most := strangersBurst + strangersRate*int(time.Since(began)/time.Second+1)
	if n := strings.Count(log.String(), "TLS handshake failed"); n < strangersBurst || n > most {
		t.Errorf("%d records of %d", n, int(total)+5*strangersBurst)
	}
	if !strings.Contains(log.String(), `level=DEBUG msg="TLS handshake failed" component=gateway addr=127.0.0.1:`) {
		t.Errorf("the log says %s", log.String())
	}
	silent, err := net.Dial("tcp", s.public)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if got, want := s.metric(t, failed), total+5*strangersBurst; got != want {
		t.Errorf("%v were counted in all, want %v", got, want)
	}
}

func TestSelfSigned_KeepsItsKey(t *testing.T) {
	dir := t.TempDir()
	cfg := TLS{SelfSignedDir: dir, Names: []string{"gate.test", "192.0.2.1"}}
	open := func(names ...string) (pin [32]byte, cert []byte) {
		t.Helper()
		cfg.Names = names
		c, err := openCertificates(cfg, serveLogger())
		if err != nil {
			t.Fatal(err)
		}
		return c.pin(), c.current().Certificate[0]
	}
	pin, cert := open("gate.test", "192.0.2.1")
	if pin2, cert2 := open("gate.test", "192.0.2.1"); pin2 != pin || !bytes.Equal(cert, cert2) {
		t.Error("a restart changed the certificate")
	}
	if pin2, cert2 := open("other.test"); pin2 != pin || bytes.Equal(cert, cert2) {
		t.Error("other names: the pin has to stay, the certificate not")
	}
	for _, name := range []string{selfSignedCert, selfSignedKey} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("files: %v", left)
	}
	// A year later it is renewed on the next start, with the same key.
	t.Run("expiry", func(t *testing.T) {
		before, err := readCertificate(filepath.Join(dir, selfSignedCert))
		if err != nil {
			t.Fatal(err)
		}
		cfg.CertFile, cfg.KeyFile = filepath.Join(dir, selfSignedCert), filepath.Join(dir, selfSignedKey)
		if err := ensureSelfSigned(cfg, before.NotAfter.Add(-renewBefore-time.Hour)); err != nil {
			t.Fatal(err)
		}
		if same, err := readCertificate(cfg.CertFile); err != nil || !same.Equal(before) {
			t.Error("renewed too early")
		}
		if err := ensureSelfSigned(cfg, before.NotAfter.Add(-renewBefore+time.Hour)); err != nil {
			t.Fatal(err)
		}
		after, err := readCertificate(cfg.CertFile)
		if err != nil || !after.NotAfter.After(before.NotAfter) {
			t.Errorf("not renewed: %v", err)
		}
		if pin2, _ := open(cfg.Names...); pin2 != pin {
			t.Error("renewal changed the key")
		}
		// One that was made while the clock was ahead is of no use when it is right.
		if err := ensureSelfSigned(cfg, before.NotBefore); err != nil {
			t.Fatal(err)
		}
		if right, err := readCertificate(cfg.CertFile); err != nil || right.NotBefore.After(before.NotBefore) {
			t.Errorf("a certificate of the future is kept: %v", err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, selfSignedKey), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openCertificates(cfg, serveLogger()); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("a broken key: %v", err)
	}
}

// A new certificate is shown from the next connection on, a broken one never.
func TestTLS_FilesAreReadAgain(t *testing.T) {
	first, second, dir := t.TempDir(), t.TempDir(), t.TempDir()
	for _, d := range []string{first, second} {
		if err := ensureSelfSigned(TLS{SelfSignedDir: d, Names: []string{"a"}, CertFile: filepath.Join(d, selfSignedCert), KeyFile: filepath.Join(d, selfSignedKey)}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	age := time.Now().Add(-time.Hour)
	install := func(from string) {
		t.Helper()
		for to, name := range map[string]string{cert: selfSignedCert, key: selfSignedKey} {
			raw, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(to, age, age); err != nil {
				t.Fatal(err)
			}
		}
		age = age.Add(time.Minute)
	}
	install(first)
	c, err := openCertificates(TLS{CertFile: cert, KeyFile: key}, serveLogger())
	if err != nil {
		t.Fatal(err)
	}
	pin := c.pin()
	install(second)
	renewed := c.pin()
	if renewed == pin {
		t.Error("the new files were not read")
	}
	if err := os.WriteFile(cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.pin() != renewed {
		t.Error("a broken file took effect")
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if c.pin() != renewed {
		t.Error("a missing file took effect")
	}
	install(first)
	if c.pin() != pin {
		t.Error("the repaired files were not read")
	}
}

func TestTLS_Validate(t *testing.T) {
	for _, tt := range []struct {
		cfg  TLS
		want string // part of the error
	}{
		{TLS{CertFile: "c", KeyFile: "k"}, ""},
		{TLS{SelfSignedDir: "d", Names: []string{"a"}}, ""},
		{TLS{}, "neither"},
		{TLS{CertFile: "c"}, "together"},
		{TLS{CertFile: "c", KeyFile: "k", SelfSignedDir: "d"}, "one of them"},
		{TLS{SelfSignedDir: "d"}, "Names"},
	} {
		err := tt.cfg.Validate()
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.cfg, err)
		}
	}
}

// An operator can be told in time that a certificate ends.
func TestTLS_MetricTellsWhenTheCertificateEnds(t *testing.T) {
	registry := prometheus.NewRegistry()
	c, err := openCertificates(TLS{SelfSignedDir: t.TempDir(), Names: []string{"gate.test"}}, serveLogger())
	if err != nil {
		t.Fatal(err)
	}
	if err := registerCertificate(registry, c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%d metrics, %v", len(families), err)
	}
	if got, want := families[0].GetMetric()[0].GetGauge().GetValue(), float64(c.current().Leaf.NotAfter.Unix()); got != want {
		t.Errorf("%s is %v, want %v", families[0].GetName(), got, want)
	}
}

// What clients refuse, or will soon, is for an operator to know.
func TestTLS_LogTellsWhenTheCertificateEnds(t *testing.T) {
	var log bytes.Buffer
	c, err := openCertificates(TLS{SelfSignedDir: t.TempDir(), Names: []string{"gate.test"}}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.current().Leaf
	for _, tt := range []struct {
		name string
		now  time.Time
		want string // in the log; empty: nothing is there
	}{
		{"fresh", time.Now(), ""},
		{"long before its end", leaf.NotAfter.Add(-warnBefore - time.Hour), ""},
		{"soon before its end", leaf.NotAfter.Add(-warnBefore + time.Hour), "level=WARN"},
		{"after its end", leaf.NotAfter.Add(time.Hour), "has expired"},
		{"before its beginning", leaf.NotBefore.Add(-time.Hour), "not valid yet"},
	} {
		log.Reset()
		c.judge(tt.now, judgement{})
		if got := log.String(); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: the log says %q", tt.name, got)
		}
	}
}
