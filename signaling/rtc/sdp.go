// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v3"
)

// ErrDescription says that a session description cannot be used.
var ErrDescription = errors.New("unusable session description")

// DTLS roles as a=setup names them (RFC 8842).
const (
	setupActpass = "actpass"
	setupActive  = "active"
	setupPassive = "passive"
)

// description is what a session description says about the one section that
// this package knows: a data channel section.
type description struct {
	kind         webrtc.SDPType
	mid          string
	ufrag, pwd   string
	setup        string
	fingerprints []webrtc.DTLSFingerprint
	candidates   []string // lines without "candidate:"
	maxMessage   int      // bytes the other side takes in one message
}

// encode writes the description as the JSON of an RTCSessionDescription, with
// no candidates in it: they always trickle.
func (d description) encode() (string, error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", err
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	line("v=0")
	line("o=- %d 2 IN IP4 127.0.0.1", binary.BigEndian.Uint64(id[:])>>1)
	line("s=-")
	line("t=0 0")
	line("a=group:BUNDLE %s", d.mid)
	line("m=application 9 UDP/DTLS/SCTP webrtc-datachannel")
	line("c=IN IP4 0.0.0.0")
	line("a=ice-ufrag:%s", d.ufrag)
	line("a=ice-pwd:%s", d.pwd)
	line("a=ice-options:trickle")
	for _, f := range d.fingerprints {
		line("a=fingerprint:%s %s", f.Algorithm, f.Value)
	}
	line("a=setup:%s", d.setup)
	line("a=mid:%s", d.mid)
	line("a=sendrecv")
	line("a=sctp-port:5000")
	line("a=max-message-size:%d", MaxMessageSize)
	text, err := json.Marshal(webrtc.SessionDescription{Type: d.kind, SDP: b.String()})
	return string(text), err
}

// decodeDescription reads the JSON of an RTCSessionDescription and refuses
// everything but one data channel section.
func decodeDescription(text string, want webrtc.SDPType) (*description, error) {
	if len(text) > MaxDescriptionSize {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrDescription, MaxDescriptionSize)
	}
	var outer webrtc.SessionDescription
	if err := json.Unmarshal([]byte(text), &outer); err != nil {
		return nil, fmt.Errorf("%w: not the JSON of an RTCSessionDescription", ErrDescription)
	}
	if outer.Type != want {
		return nil, fmt.Errorf("%w: type %q where %q is due", ErrDescription, outer.Type, want)
	}
	var s sdp.SessionDescription
	if err := s.Unmarshal([]byte(outer.SDP)); err != nil {
		return nil, fmt.Errorf("%w: malformed SDP", ErrDescription)
	}
	if len(s.MediaDescriptions) != 1 {
		return nil, fmt.Errorf("%w: %d sections where 1 is due", ErrDescription, len(s.MediaDescriptions))
	}
	m := s.MediaDescriptions[0]
	if name := m.MediaName; name.Media != "application" || len(name.Formats) != 1 || name.Formats[0] != "webrtc-datachannel" {
		return nil, fmt.Errorf("%w: a section of type %q; only data channels are spoken here", ErrDescription, name.Media)
	}
	d := &description{kind: outer.Type, maxMessage: 65536}
	for _, a := range s.Attributes {
		if err := d.set(a); err != nil {
			return nil, err
		}
	}
	for _, a := range m.Attributes {
		if err := d.set(a); err != nil {
			return nil, err
		}
	}
	return d, d.check()
}

// set takes one attribute; those of the section come after those of the session.
func (d *description) set(a sdp.Attribute) error {
	switch a.Key {
	case "mid":
		d.mid = a.Value
	case "ice-ufrag":
		d.ufrag = a.Value
	case "ice-pwd":
		d.pwd = a.Value
	case "setup":
		d.setup = a.Value
	case "fingerprint":
		algorithm, value, ok := strings.Cut(a.Value, " ")
		if !ok {
			return fmt.Errorf("%w: malformed fingerprint", ErrDescription)
		}
		d.fingerprints = append(d.fingerprints, webrtc.DTLSFingerprint{Algorithm: strings.ToLower(algorithm), Value: value})
	case "candidate":
		line, err := ParseCandidate(a.Value)
		if err != nil {
			return err
		}
		if line != "" {
			d.candidates = append(d.candidates, line)
		}
	case "sctp-port":
		if a.Value != "5000" {
			return fmt.Errorf("%w: sctp-port other than 5000", ErrDescription)
		}
	case "max-message-size":
		n, err := strconv.ParseUint(a.Value, 10, 63)
		if err != nil {
			return fmt.Errorf("%w: malformed max-message-size", ErrDescription)
		}
		if n == 0 || n > MaxMessageSize {
			n = MaxMessageSize // 0 says there is no limit
		}
		d.maxMessage = int(n)
	}
	return nil
}

func (d *description) check() error {
	switch {
	case !iceChars(d.ufrag, 4):
		return fmt.Errorf("%w: no proper ice-ufrag", ErrDescription)
	case !iceChars(d.pwd, 22):
		return fmt.Errorf("%w: no proper ice-pwd", ErrDescription)
	case d.setup != setupActpass && d.setup != setupActive && d.setup != setupPassive,
		d.kind == webrtc.SDPTypeAnswer && d.setup == setupActpass:
		return fmt.Errorf("%w: no proper setup role", ErrDescription)
	case len(d.fingerprints) == 0:
		return fmt.Errorf("%w: no fingerprint", ErrDescription)
	case len(d.mid) > 16 || strings.ContainsAny(d.mid, " \t"):
		return fmt.Errorf("%w: odd mid", ErrDescription)
	}
	return nil
}

// iceChars says whether s is least to 256 ice-chars (RFC 8839 section 5.4).
func iceChars(s string, least int) bool {
	if len(s) < least || len(s) > 256 {
		return false
	}
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/') {
			return false
		}
	}
	return true
}
