// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// loopbackCertificate is one for 127.0.0.1, with the roots that trust it.
func loopbackCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, roots
}

func TestEngine_SharedSocketCarriesAllPeers(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		t.Run(address, func(t *testing.T) {
			socket, err := net.ListenPacket("udp4", address)
			if err != nil {
				t.Fatal(err)
			}
			e := newEngine(t, Config{UDP: socket, Local: netip.Addr.IsLoopback})
			want := fmt.Sprintf("127.0.0.1:%d", e.LocalPort())
			var wg sync.WaitGroup
			for range 8 {
				p, q := newPeer(t, e), newPeer(t, newEngine(t, Config{}))
				wg.Go(func() {
					connect(t, p, q)
					if path := p.Path(); !strings.HasSuffix(path.Local, " "+want) {
						t.Errorf("path %+v, want local %s", path, want)
					}
					echoOnce(t, p, q)
				})
			}
			wg.Wait()
		})
	}
}

// echoOnce sends a message from p to q and back.
func echoOnce(t testing.TB, p, q *Peer) {
	a, err := p.Negotiated(ChannelConfig{ID: 7})
	if err != nil {
		t.Error(err)
		return
	}
	b, err := q.Negotiated(ChannelConfig{ID: 7})
	if err != nil {
		t.Error(err)
		return
	}
	buf := make([]byte, 16)
	_ = a.WriteMessage([]byte("ping"), true)
	if n, text, err := b.ReadMessage(buf); err != nil || !text || string(buf[:n]) != "ping" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	_ = b.WriteMessage(nil, false)
	if n, text, err := a.ReadMessage(buf); err != nil || text || n != 0 {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

func TestEngine_LoopbackIsNotOfferedUnlessAsked(t *testing.T) {
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	p, err := e.NewPeer(context.Background(), PeerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Offer(); err != nil {
		t.Fatal(err)
	}
	for c := range p.Candidates() {
		if strings.Contains(c, " 127.") || strings.Contains(c, " ::1 ") {
			t.Errorf("offered %s", c)
		}
	}
}

func TestEngine_PublicIPsStandIn(t *testing.T) {
	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, Config{UDP: socket, PublicIPs: []string{"192.0.2.99"}})
	p := newPeer(t, e)
	if _, err := p.Offer(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for c := range p.Candidates() {
		n++
		if want := fmt.Sprintf(" 192.0.2.99 %d ", e.LocalPort()); !strings.Contains(c, want) {
			t.Errorf("offered %s", c)
		}
	}
	if n != 1 {
		t.Fatalf("%d candidates", n)
	}
}

func TestPeer_WrongFingerprintFails(t *testing.T) {
	p, q := newPeer(t, newEngine(t, Config{})), newPeer(t, newEngine(t, Config{}))
	offer, err := p.Offer()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := q.Answer(offer)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(answer, "sha-256 ") + len("sha-256 ")
	forged := answer[:i] + strings.Repeat("00:", 31) + "00" + answer[i+95:]
	if err := p.SetAnswer(forged); err != nil {
		t.Fatal(err)
	}
	go trickle(p, q)
	go trickle(q, p)
	select {
	case <-p.Closing():
		if !errors.Is(p.Err(), ErrFailed) || !strings.Contains(p.Err().Error(), "certificate") {
			t.Fatalf("reason %v", p.Err())
		}
	case <-p.Connected():
		t.Fatal("connected to somebody else")
	case <-time.After(patience):
		t.Fatal("nothing happened")
	}
}

func TestPeer_NobodyAnswersFails(t *testing.T) {
	e := newEngine(t, Config{Disconnected: 100 * time.Millisecond, Failed: 100 * time.Millisecond})
	p, q := newPeer(t, e), newPeer(t, newEngine(t, Config{}))
	offer, _ := p.Offer()
	answer, err := q.Answer(offer)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetAnswer(answer); err != nil {
		t.Fatal(err)
	}
	<-p.Done() // no candidates were exchanged
	if !errors.Is(p.Err(), ErrFailed) {
		t.Fatalf("reason %v", p.Err())
	}
	if _, err := p.Negotiated(ChannelConfig{}); err == nil {
		t.Fatal("a channel of a dead peer")
	}
	if _, err := p.Accept(context.Background()); err == nil {
		t.Fatal("accepted from a dead peer")
	}
}

func TestPeer_DescriptionsOutOfOrder(t *testing.T) {
	e := newEngine(t, Config{})
	p, q := newPeer(t, e), newPeer(t, e)
	if err := p.SetAnswer("{}"); !errors.Is(err, ErrDescription) {
		t.Errorf("garbage: %v", err)
	}
	offer, err := p.Offer()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Offer(); !errors.Is(err, ErrDescription) {
		t.Errorf("a second offer: %v", err)
	}
	answer, err := q.Answer(offer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Answer(offer); !errors.Is(err, ErrDescription) {
		t.Errorf("a second answer: %v", err)
	}
	if err := newPeer(t, e).SetAnswer(answer); !errors.Is(err, ErrDescription) {
		t.Errorf("an answer without an offer: %v", err)
	}
	_ = p.Close()
	if err := p.SetAnswer(answer); err == nil {
		t.Error("an answer after Close")
	}
	_ = p.Close() // again
}

func TestEngine_CloseEndsItsPeers(t *testing.T) {
	e := newEngine(t, Config{})
	p, q := newPeer(t, e), newPeer(t, newEngine(t, Config{}))
	connect(t, p, q)
	idle := newPeer(t, e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	<-idle.Done()
	if _, err := e.NewPeer(context.Background(), PeerConfig{}); err == nil {
		t.Fatal("a peer of a closed engine")
	}
}

func TestPeer_RecordsAreCounted(t *testing.T) {
	p, q := pair(t, Config{RenewRecords: 50, MaxRecords: 100}, Config{})
	a, err := p.Negotiated(ChannelConfig{ID: 3})
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		_ = a.WriteMessage(make([]byte, 1100), false) // one record each
	}
	<-p.Renew()
	<-p.Done()
	sent, _ := p.Records()
	if !errors.Is(p.Err(), ErrRecordLimit) || sent > 110 {
		t.Fatalf("%d records, %v", sent, p.Err())
	}
	<-q.Done()
}

// What the other side draws nonces for counts as well: it may have no limit.
func TestPeer_ReceivedRecordsAreCounted(t *testing.T) {
	p, q := pair(t, Config{MaxRecords: 100}, Config{})
	a, err := q.Negotiated(ChannelConfig{ID: 3})
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		_ = a.WriteMessage(make([]byte, 1100), false) // one record each
	}
	<-p.Done()
	sent, received := p.Records()
	// What had arrived when the limit was met is counted, too.
	if !errors.Is(p.Err(), ErrRecordLimit) || received > 200 || sent >= 100 {
		t.Fatalf("%d records received and %d sent, %v", received, sent, p.Err())
	}
	<-q.Done()
}

// Most browsers announce no address of their own. What the other side of one
// waits for must not be part of the time to connect.
func TestPeer_UnannouncedAddressWaitsOnlyWhereItMust(t *testing.T) {
	const wait = 150 * time.Millisecond
	took := func(cfg Config) time.Duration {
		p, q := newPeer(t, newEngine(t, cfg)), newPeer(t, newEngine(t, Config{}))
		offer, err := p.Offer()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := q.Answer(offer)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := p.SetAnswer(answer); err != nil {
			t.Fatal(err)
		}
		go trickle(p, q) // and nothing the other way
		select {
		case <-p.Connected():
		case <-time.After(patience):
			t.Fatal("not connected")
		}
		return time.Since(begin)
	}
	if d := took(Config{}); d < wait {
		t.Errorf("connected after %s, before a better path could be found", d)
	}
	var best time.Duration
	for range 10 { // a busy machine may be late
		if best = took(Config{Reachable: true}); best < wait {
			return
		}
	}
	t.Errorf("ten peers of a reachable engine took %s or more", best)
}
