// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"strings"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// MaxPathCandidates is how many candidates one signal may bring.
	MaxPathCandidates = 16
	// The lengths of ICE user name fragments and passwords, in bytes: from what
	// RFC 8445 section 5.3 asks for up to what anybody needs.
	minUfrag, maxUfrag               = 4, 64
	minPathPassword, maxPathPassword = 22, 128
	// maxAddrPort is the longest text of an IPv6 address in brackets and a port.
	maxAddrPort = 64
)

// PathSignal is what a node tells another one so that both look for a path
// between their WireGuard devices; see v1.PathSignal.
type PathSignal struct {
	// Ufrag and Password are the sender's, for checks that are sent to it. The
	// password is a secret between the two, and belongs in no log.
	Ufrag, Password string
	// Session grows when the sender begins anew; it is never 0.
	Session uint64
	// Candidates are at most MaxPathCandidates.
	Candidates []PathCandidate
}

// PathCandidate is an address at which a node may be reached.
type PathCandidate struct {
	Kind v1.PathCandidate_Kind
	// Addr is a unicast address, neither link-local nor with a zone, and a port.
	// It may be a loopback one, or one of the mesh: whether to ask it is for the
	// receiver to say.
	Addr netip.AddrPort
	// Transport and Relay tell of a relayed candidate how it gets to the node, and
	// by which gateway; zero for others.
	Transport v1.PathCandidate_Transport
	Relay     NodeID
}

// PathSignalFromProto reads a signal. Its errors wrap ErrInvalid, name the field
// and say nothing of what is in it.
func PathSignalFromProto(p *v1.PathSignal) (PathSignal, error) {
	s := PathSignal{Ufrag: p.GetUfrag(), Password: p.GetPassword(), Session: p.GetSession()}
	switch {
	case p == nil:
		return PathSignal{}, fmt.Errorf("path: it is missing: %w", ErrInvalid)
	case !iceText(s.Ufrag, minUfrag, maxUfrag):
		return PathSignal{}, fmt.Errorf("path.ufrag: not %d to %d letters, digits, \"+\" and \"/\": %w", minUfrag, maxUfrag, ErrInvalid)
	case !iceText(s.Password, minPathPassword, maxPathPassword):
		return PathSignal{}, fmt.Errorf("path.password: not %d to %d letters, digits, \"+\" and \"/\": %w", minPathPassword, maxPathPassword, ErrInvalid)
	case s.Session == 0:
		return PathSignal{}, fmt.Errorf("path.session: it is 0: %w", ErrInvalid)
	case len(p.GetCandidates()) > MaxPathCandidates:
		return PathSignal{}, fmt.Errorf("path.candidates: %d entries, at most %d are taken: %w", len(p.GetCandidates()), MaxPathCandidates, ErrInvalid)
	}
	for i, c := range p.GetCandidates() {
		one, err := pathCandidateFromProto(c)
		if err != nil {
			return PathSignal{}, fmt.Errorf("path.candidates[%d].%w", i, err)
		}
		s.Candidates = append(s.Candidates, one)
	}
	return s, nil
}

// PathSignalToProto returns the message for s.
func PathSignalToProto(s PathSignal) *v1.PathSignal {
	return &v1.PathSignal{
		Ufrag: s.Ufrag, Password: s.Password, Session: s.Session,
		Candidates: convert(s.Candidates, func(c PathCandidate) *v1.PathCandidate {
			return &v1.PathCandidate{Kind: c.Kind, Address: c.Addr.String(), Transport: c.Transport, Relay: string(c.Relay)}
		}),
	}
}

func pathCandidateFromProto(p *v1.PathCandidate) (PathCandidate, error) {
	c := PathCandidate{Kind: p.GetKind(), Transport: p.GetTransport()}
	if _, known := v1.PathCandidate_Kind_name[int32(c.Kind)]; !known || c.Kind == v1.PathCandidate_KIND_UNSPECIFIED {
		return c, fmt.Errorf("kind: %d is none: %w", c.Kind, ErrInvalid)
	}
	if _, known := v1.PathCandidate_Transport_name[int32(c.Transport)]; !known {
		return c, fmt.Errorf("transport: %d is none: %w", c.Transport, ErrInvalid)
	}
	if c.Kind != v1.PathCandidate_KIND_RELAY && (c.Transport != v1.PathCandidate_TRANSPORT_UNSPECIFIED || p.GetRelay() != "") {
		return c, fmt.Errorf("kind: a candidate with a transport or a relay is a KIND_RELAY: %w", ErrInvalid)
	}
	if text := p.GetRelay(); text != "" {
		id, err := ParseNodeID(text)
		if err != nil {
			return c, fmt.Errorf("relay: %w", err)
		}
		c.Relay = id
	}
	var err error
	if text := p.GetAddress(); len(text) <= maxAddrPort {
		c.Addr, err = netip.ParseAddrPort(text)
	}
	addr := c.Addr.Addr().Unmap()
	c.Addr = netip.AddrPortFrom(addr, c.Addr.Port())
	switch {
	case err != nil || !c.Addr.IsValid():
		return c, fmt.Errorf("address: not an \"ip:port\": %w", ErrInvalid)
	case c.Addr.Port() == 0:
		return c, fmt.Errorf("address: the port is 0: %w", ErrInvalid)
	case addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return c, fmt.Errorf("address: not a unicast address beyond a link: %w", ErrInvalid)
	}
	return c, nil
}

// iceText reports whether s is so many ice-chars of RFC 8839 section 5.1.
func iceText(s string, least, most int) bool {
	return len(s) >= least && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '+' && r != '/'
	})
}
