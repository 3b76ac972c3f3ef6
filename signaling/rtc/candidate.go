// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/pion/ice/v2"
	"github.com/pion/webrtc/v3"
)

// maxCandidateSize is the longest candidate message that is looked at.
const maxCandidateSize = 2 << 10

// ErrCandidate says that a text is no ICE candidate.
var ErrCandidate = errors.New("malformed ICE candidate")

// ParseCandidate reads a candidate in either of the encodings that are in use:
// the JSON of an RTCIceCandidateInit, or the bare "candidate:..." line. It
// returns the line without its prefix, or "" for the end of candidates.
func ParseCandidate(text string) (line string, err error) {
	if len(text) > maxCandidateSize {
		return "", fmt.Errorf("%w: longer than %d bytes", ErrCandidate, maxCandidateSize)
	}
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "{") {
		var init webrtc.ICECandidateInit
		if err := json.Unmarshal([]byte(text), &init); err != nil {
			return "", fmt.Errorf("%w: not the JSON of an RTCIceCandidateInit", ErrCandidate)
		}
		text = strings.TrimSpace(init.Candidate)
	} else if text == "null" {
		return "", nil
	}
	text = strings.TrimPrefix(strings.TrimPrefix(text, "a="), "candidate:")
	if text == "" {
		return "", nil
	}
	if strings.ContainsAny(text, "\r\n\x00") {
		return "", fmt.Errorf("%w: control character", ErrCandidate)
	}
	if _, err := ice.UnmarshalCandidate(text); err != nil && !errors.Is(err, ice.ErrDetermineNetworkType) {
		return "", fmt.Errorf("%w: %w", ErrCandidate, err)
	}
	return text, nil
}

// EncodeCandidate writes a line of ParseCandidate as the JSON of an
// RTCIceCandidateInit for the media section mid. It is what browsers and v1
// clients expect.
func EncodeCandidate(line, mid string) string {
	index := uint16(0)
	text, err := json.Marshal(webrtc.ICECandidateInit{
		Candidate: "candidate:" + line, SDPMid: &mid, SDPMLineIndex: &index,
	})
	if err != nil {
		return "" // cannot happen: the struct holds strings and numbers only
	}
	return string(text)
}

// NormalizeCandidate returns a candidate in either encoding as JSON, for the
// media section that it names itself or else the only one there is. The end of
// candidates is "".
func NormalizeCandidate(text string) (string, error) {
	line, err := ParseCandidate(text)
	if err != nil || line == "" {
		return "", err
	}
	mid := "0"
	var init webrtc.ICECandidateInit
	if json.Unmarshal([]byte(text), &init) == nil && init.SDPMid != nil && *init.SDPMid != "" && len(*init.SDPMid) <= 16 {
		mid = *init.SDPMid
	}
	return EncodeCandidate(line, mid), nil
}

// usable returns the candidate of a line, and its address, if this engine may
// send packets to it: UDP, with a literal unicast address that policy allows.
func (e *Engine) usable(line string) (ice.Candidate, netip.AddrPort, bool) {
	var none netip.AddrPort
	c, err := ice.UnmarshalCandidate(line)
	if err != nil || !c.NetworkType().IsUDP() || c.Port() <= 0 || c.Port() > math.MaxUint16 {
		return nil, none, false
	}
	addr, err := netip.ParseAddr(c.Address())
	if err != nil {
		return nil, none, false // an mDNS name; the peer's checks will show its address
	}
	addr = addr.Unmap()
	if addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return nil, none, false
	}
	if addr.IsLoopback() && !e.cfg.Loopback {
		return nil, none, false
	}
	at := netip.AddrPortFrom(addr, uint16(c.Port()))
	if e.cfg.Remote != nil && !e.cfg.Remote(at) {
		return nil, none, false
	}
	return c, at, true
}

// portsOf tells the candidates of one peer on one address from its relays there.
type portsOf struct {
	addr    netip.Addr
	relayed bool
}

// AddCandidate takes a candidate of the other side in either encoding; the
// empty end of candidates is no error. What cannot be used, and what goes
// beyond MaxRemoteCandidates or MaxRemotePorts, is ignored.
func (p *Peer) AddCandidate(text string) error {
	line, err := ParseCandidate(text)
	if err != nil || line == "" {
		return err
	}
	p.addCandidate(line)
	return nil
}

func (p *Peer) addCandidate(line string) {
	c, at, ok := p.engine.usable(line)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	own, relayed := portsOf{at.Addr(), false}, portsOf{at.Addr(), true}
	mine := own
	if c.Type() == ice.CandidateTypeRelay {
		mine = relayed
	}
	// An address that came before is the same candidate under another name.
	known := slices.Contains(p.ports[own], at.Port()) || slices.Contains(p.ports[relayed], at.Port())
	if p.ended || known || p.remote == MaxRemoteCandidates || len(p.ports[mine]) == MaxRemotePorts {
		return
	}
	p.ports[mine] = append(p.ports[mine], at.Port())
	p.remote++
	if !p.started {
		p.pending = append(p.pending, c)
		return
	}
	_ = p.agent.AddRemoteCandidate(c) // as in start
}

// Candidates are ours, as JSON. The channel is closed when gathering is over;
// a peer that ends before may never close it, so select on Done too.
func (p *Peer) Candidates() <-chan string { return p.candidates }
