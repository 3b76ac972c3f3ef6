// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/webrtc/v3"
)

func TestParseCandidate(t *testing.T) {
	const line = "2878742611 1 udp 2130706431 127.0.0.1 50709 typ host"
	long := strings.Repeat("x", maxCandidateSize+1)
	for _, tc := range []struct {
		name, text, want string
		ok               bool
	}{
		{"line", "candidate:" + line, line, true},
		{"line of an SDP", "a=candidate:" + line, line, true},
		{"JSON", `{"candidate":"candidate:` + line + `","sdpMid":"","sdpMLineIndex":0,"usernameFragment":null}`, line, true},
		{"JSON with less", `{"candidate":"candidate:` + line + `"}`, line, true},
		{"nothing", "", "", true},
		{"null", "null", "", true},
		{"end in JSON", `{"candidate":""}`, "", true},
		{"name of mDNS", "candidate:1 1 udp 1 0b1c.local 9 typ host", "1 1 udp 1 0b1c.local 9 typ host", true},
		{"TCP", "candidate:1 1 tcp 1 10.0.0.1 9 typ host tcptype active", "1 1 tcp 1 10.0.0.1 9 typ host tcptype active", true},
		{"protocol of the future", "candidate:1 1 quic 1 10.0.0.1 9 typ host", "1 1 quic 1 10.0.0.1 9 typ host", true},
		{"JSON of something else", `{"a":`, "", false},
		{"too short", "candidate:1 1 udp", "", false},
		{"name of DNS", "candidate:1 1 udp 1 evil.example 9 typ host", "", false},
		{"port too high", "candidate:1 1 udp 1 10.0.0.1 99999 typ host", "", false},
		{"two lines", "candidate:" + line + "\r\na=x", "", false},
		{"too long", long, "", false},
	} {
		got, err := ParseCandidate(tc.text)
		if got != tc.want || (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrCandidate) {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
	var init webrtc.ICECandidateInit
	if err := json.Unmarshal([]byte(EncodeCandidate(line, "0")), &init); err != nil ||
		init.Candidate != "candidate:"+line || *init.SDPMid != "0" || *init.SDPMLineIndex != 0 {
		t.Fatalf("%+v, %v", init, err)
	}
}

func TestNormalizeCandidate(t *testing.T) {
	for _, tc := range []struct{ text, mid string }{
		{"candidate:1 1 udp 1 127.0.0.1 9 typ host", "0"},
		{`{"candidate":"candidate:1 1 udp 1 127.0.0.1 9 typ host","sdpMid":"data"}`, "data"},
		{`{"candidate":"candidate:1 1 udp 1 127.0.0.1 9 typ host","sdpMid":""}`, "0"},
	} {
		got, err := NormalizeCandidate(tc.text)
		var init webrtc.ICECandidateInit
		if err != nil || json.Unmarshal([]byte(got), &init) != nil || *init.SDPMid != tc.mid {
			t.Errorf("%s: %s, %v", tc.text, got, err)
		}
	}
	if got, err := NormalizeCandidate(""); got != "" || err != nil {
		t.Errorf("the end of candidates: %q, %v", got, err)
	}
}

func TestUsable(t *testing.T) {
	e := newEngine(t, Config{Remote: func(a netip.AddrPort) bool { return a.Addr() != netip.MustParseAddr("10.9.9.9") }})
	strict, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		address   string
		dev, prod bool
	}{
		{"192.0.2.1 9", true, true}, {"2001:db8::1 9", true, true}, {"10.0.0.1 9", true, true},
		{"127.0.0.1 9", true, false}, {"::1 9", true, false}, {"::ffff:127.0.0.1 9", true, false},
		{"0.0.0.0 9", false, false}, {":: 9", false, false}, {"192.0.2.1 0", false, false},
		{"224.0.0.1 9", false, false}, {"ff02::1 9", false, false}, {"255.255.255.255 9", false, false},
		{"169.254.169.254 9", false, false}, {"fe80::1 9", false, false},
		{"abc.local 9", false, false}, {"10.9.9.9 9", false, true},
	} {
		line := "1 1 udp 1 " + tc.address + " typ host"
		if _, _, ok := e.usable(line); ok != tc.dev {
			t.Errorf("%s with loopback: %v", tc.address, ok)
		}
		if _, _, ok := strict.usable(line); ok != tc.prod {
			t.Errorf("%s: %v", tc.address, ok)
		}
	}
	if _, _, ok := e.usable("1 1 tcp 1 192.0.2.1 9 typ host tcptype passive"); ok {
		t.Error("TCP is used")
	}
}

func TestRemoteCandidatesBeyondTheLimitAreIgnored(t *testing.T) {
	p := newPeer(t, newEngine(t, Config{}))
	for i := range 3 * MaxRemoteCandidates {
		if err := p.AddCandidate(fmt.Sprintf("candidate:1 1 udp 1 192.0.2.%d 9 typ host", 1+i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.pending); n != MaxRemoteCandidates {
		t.Fatalf("%d candidates are kept", n)
	}
}

func TestRemotePortsBeyondTheLimitAreIgnored(t *testing.T) {
	p := newPeer(t, newEngine(t, Config{}))
	add := func(address string, port int, rest string) {
		t.Helper()
		if err := p.AddCandidate(fmt.Sprintf("candidate:1 1 udp 1 %s %d typ %s", address, port, rest)); err != nil {
			t.Fatal(err)
		}
	}
	for port := range 3 * MaxRemotePorts {
		add("192.0.2.1", 1+port, "host")
		add("::ffff:192.0.2.1", 100+port, "host") // the same address
		add("192.0.2.1", 1, fmt.Sprintf("srflx raddr 10.0.0.1 rport %d", 1+port))
	}
	add("192.0.2.2", 1, "host")
	// The relays of a client on the relay's own machine do not lose their places.
	for port := range 3 * MaxRemotePorts {
		add("192.0.2.1", 200+port, "relay raddr 192.0.2.1 rport 1")
		add("192.0.2.1", 1, "relay raddr 192.0.2.1 rport 1") // known under another name
	}
	if n := len(p.pending); n != 2*MaxRemotePorts+1 {
		t.Fatalf("%d candidates are kept", n)
	}
}

func TestDescription_RoundTrip(t *testing.T) {
	d := description{
		kind: webrtc.SDPTypeOffer, mid: "0", ufrag: "abcd", pwd: strings.Repeat("p", 22), setup: setupActpass,
		fingerprints: []webrtc.DTLSFingerprint{{Algorithm: "sha-256", Value: "AA:BB"}},
	}
	text, err := d.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeDescription(text, webrtc.SDPTypeOffer)
	if err != nil {
		t.Fatal(err)
	}
	if got.ufrag != d.ufrag || got.pwd != d.pwd || got.setup != d.setup || got.mid != "0" ||
		got.maxMessage != MaxMessageSize || len(got.fingerprints) != 1 || got.fingerprints[0] != d.fingerprints[0] {
		t.Fatalf("%+v", got)
	}
	var outer webrtc.SessionDescription
	_ = json.Unmarshal([]byte(text), &outer)
	if strings.Contains(outer.SDP, "a=candidate") || !strings.Contains(outer.SDP, "a=max-message-size:262144") {
		t.Fatal(outer.SDP)
	}
}

func FuzzParseCandidate(f *testing.F) {
	f.Add("candidate:1 1 udp 1 127.0.0.1 9 typ host")
	f.Add(`{"candidate":"candidate:1 1 udp 1 127.0.0.1 9 typ srflx raddr 0.0.0.0 rport 0"}`)
	e, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line, err := ParseCandidate(text)
		if err != nil || line == "" {
			return
		}
		e.usable(line)
		again, err := ParseCandidate(EncodeCandidate(line, "0"))
		if err != nil {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
	})
}

func FuzzDecodeDescription(f *testing.F) {
	d := description{
		kind: webrtc.SDPTypeAnswer, mid: "0", ufrag: "abcd", pwd: strings.Repeat("p", 22), setup: setupActive,
		fingerprints: []webrtc.DTLSFingerprint{{Algorithm: "sha-256", Value: "AA:BB"}},
	}
	text, err := d.encode()
	if err != nil {
		f.Fatal(err)
	}
	var outer webrtc.SessionDescription
	_ = json.Unmarshal([]byte(text), &outer)
	f.Add(outer.SDP)
	f.Fuzz(func(t *testing.T, s string) {
		b, err := json.Marshal(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: s})
		if err != nil {
			return
		}
		got, err := decodeDescription(string(b), webrtc.SDPTypeAnswer)
		if err == nil && (got.maxMessage <= 0 || got.maxMessage > MaxMessageSize) {
			t.Fatalf("max message %d", got.maxMessage)
		}
	})
}

func FuzzParseOpen(f *testing.F) {
	f.Add([]byte("\x03\x00\x01\x00\x00\x00\x00\x00\x00\x01\x00\x01ab"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseOpen(b); err == nil && len(c.Label)+len(c.Protocol) > len(b) {
			t.Fatal("longer than the message")
		}
	})
}
