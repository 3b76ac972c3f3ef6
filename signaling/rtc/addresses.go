// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"net/netip"

	"github.com/pion/ice/v2"
	"github.com/pion/webrtc/v3"
)

// CandidateAddresses returns the UDP addresses that a candidate message, in
// either encoding of ParseCandidate, tells the other side to send to. What is
// malformed, and mDNS names, give none.
func CandidateAddresses(text string) []netip.AddrPort {
	line, err := ParseCandidate(text)
	if err != nil {
		return nil
	}
	return addressesOf([]string{line})
}

// DescriptionAddresses is CandidateAddresses for the candidates inside of a
// session description; at most MaxRemoteCandidates of them count.
func DescriptionAddresses(text string) []netip.AddrPort {
	for _, kind := range []webrtc.SDPType{webrtc.SDPTypeOffer, webrtc.SDPTypeAnswer} {
		if d, err := decodeDescription(text, kind); err == nil {
			return addressesOf(d.candidates[:min(len(d.candidates), MaxRemoteCandidates)])
		}
	}
	return nil
}

func addressesOf(lines []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, line := range lines {
		c, err := ice.UnmarshalCandidate(line)
		if err != nil || !c.NetworkType().IsUDP() || c.Port() <= 0 || c.Port() > 65535 {
			continue
		}
		if addr, err := netip.ParseAddr(c.Address()); err == nil {
			out = append(out, netip.AddrPortFrom(addr.Unmap().WithZone(""), uint16(c.Port())))
		}
	}
	return out
}
