// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pion/webrtc/v3"
)

func TestCandidateAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"candidate:1 1 udp 1 8.8.8.8 53 typ host":                                     "[8.8.8.8:53]",
		`{"candidate":"candidate:1 1 udp 1 2a00::1 9 typ host","sdpMid":"0"}`:         "[[2a00::1]:9]",
		"candidate:1 1 udp 1 9.9.9.9 9 typ relay raddr 1.1.1.1 rport 7":               "[9.9.9.9:9]",
		"candidate:1 1 udp 1 ::ffff:8.8.8.8 53 typ host":                              "[8.8.8.8:53]",
		"candidate:1 1 tcp 1 8.8.8.8 53 typ host tcptype active":                      "[]",
		"candidate:1 1 udp 1 0b1c.local 9 typ host":                                   "[]",
		"candidate:1 1 udp 1 8.8.8.8 0 typ host":                                      "[]",
		"":                                                                            "[]",
		`{"candidate":""}`:                                                            "[]",
		"candidate:1 1 udp 1 8.8.8.8 99999 typ host":                                  "[]",
		"candidate:1 1 udp 1 8.8.8.8 53 typ host\r\na=candidate:1 1 udp 1 1.1.1.1 53": "[]",
	} {
		if got := fmt.Sprint(CandidateAddresses(text)); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestDescriptionAddresses(t *testing.T) {
	for _, kind := range []webrtc.SDPType{webrtc.SDPTypeOffer, webrtc.SDPTypeAnswer} {
		text := describe(t, kind, "a=candidate:1 1 udp 1 8.8.8.8 53 typ host", "a=candidate:2 1 udp 1 9.9.9.9 54 typ srflx raddr 10.0.0.1 rport 1")
		if got := fmt.Sprint(DescriptionAddresses(text)); got != "[8.8.8.8:53 9.9.9.9:54]" {
			t.Errorf("%s: %s", kind, got)
		}
	}
	many := make([]string, 3*MaxRemoteCandidates)
	for i := range many {
		many[i] = fmt.Sprintf("a=candidate:%d 1 udp 1 8.8.8.8 %d typ host", i, i+1)
	}
	if n := len(DescriptionAddresses(describe(t, webrtc.SDPTypeOffer, many...))); n != MaxRemoteCandidates {
		t.Errorf("%d addresses", n)
	}
	for _, text := range []string{"", "x", `{"type":"offer","sdp":""}`, strings.Repeat("x", MaxDescriptionSize+1)} {
		if got := DescriptionAddresses(text); got != nil {
			t.Errorf("%.20q: %v", text, got)
		}
	}
}

// describe is a description with more lines.
func describe(t testing.TB, kind webrtc.SDPType, lines ...string) string {
	t.Helper()
	d := description{kind: kind, mid: "0", ufrag: "abcd", pwd: strings.Repeat("p", 22), setup: setupActive,
		fingerprints: []webrtc.DTLSFingerprint{{Algorithm: "sha-256", Value: strings.TrimSuffix(strings.Repeat("AA:", 32), ":")}}}
	text, err := d.encode()
	if err != nil {
		t.Fatal(err)
	}
	tail := `a=max-message-size:`
	return strings.Replace(text, tail, strings.Join(lines, `\r\n`)+`\r\n`+tail, 1)
}

// FuzzDescriptionAddresses holds that nothing a client sends breaks the search
// for addresses, and that their number stays bounded.
func FuzzDescriptionAddresses(f *testing.F) {
	f.Add(describe(f, webrtc.SDPTypeOffer, "a=candidate:1 1 udp 1 8.8.8.8 53 typ host"))
	f.Add("candidate:1 1 udp 1 8.8.8.8 53 typ host")
	f.Fuzz(func(t *testing.T, text string) {
		for _, a := range append(DescriptionAddresses(text), CandidateAddresses(text)...) {
			if !a.IsValid() || a.Port() == 0 {
				t.Errorf("address %s", a)
			}
		}
		if n := len(DescriptionAddresses(text)); n > MaxRemoteCandidates {
			t.Errorf("%d addresses", n)
		}
	})
}
