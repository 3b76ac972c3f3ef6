// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// The functions below turn values into messages of the v1 API and back. Every
// FromProto function checks all it takes over, copies what it keeps, and
// returns errors that wrap ErrInvalid and name the field.

const (
	// invalidPrefix is what v1 nodes store for an address that a node does not have.
	invalidPrefix = "invalid Prefix"
	// maxKindLen bounds Service.Kind, in bytes.
	maxKindLen = 64
	// maxURLLen bounds API.URL, in bytes.
	maxURLLen = 512
)

// NodeToProto returns the message for n.
func NodeToProto(n *Node) *v1.MeshNode {
	p := &v1.MeshNode{
		Id:                 string(n.ID),
		PublicKey:          n.PublicKey.Encode(),
		PrimaryEndpoint:    n.PrimaryEndpoint,
		WireguardEndpoints: toStrings(n.WireGuardEndpoints),
		ZoneAwarenessId:    n.Zone,
		PrivateIpv4:        PrefixString(n.IPv4),
		PrivateIpv6:        PrefixString(n.IPv6),
		Features:           FeaturesToProto(n.Features),
		Multiaddrs:         slices.Clone(n.Multiaddrs),
		Services:           convert(n.Services, ServiceToProto),
	}
	if !n.JoinedAt.IsZero() {
		p.JoinedAt = timestamppb.New(n.JoinedAt)
	}
	p.ApiUrl = n.API.URL
	if n.API.Pin != [sha256.Size]byte{} {
		p.ApiPin = n.API.Pin[:]
	}
	p.Paths, p.Exit = n.Paths, n.Exit
	return p
}

// NodeFromProto reads a node. An empty public key is a node that was named but
// never joined. The text "invalid Prefix" is an address that the node does not
// have. A primary endpoint with a port, as v1 nodes send it within a
// WireGuardPeer, loses the port.
func NodeFromProto(p *v1.MeshNode) (*Node, error) {
	n := &Node{Zone: p.GetZoneAwarenessId(), Multiaddrs: slices.Clone(p.GetMultiaddrs()), Paths: p.GetPaths(), Exit: p.GetExit()}
	var err error
	if n.ID, err = ParseNodeID(p.GetId()); err != nil {
		return nil, fmt.Errorf("id: %w", err)
	}
	if p.GetPublicKey() != "" {
		if n.PublicKey, err = ParsePublicKey(p.GetPublicKey()); err != nil {
			return nil, fmt.Errorf("public_key: %w", err)
		}
	}
	if n.PrimaryEndpoint, err = ParsePrimaryEndpoint(p.GetPrimaryEndpoint()); err != nil {
		return nil, fmt.Errorf("primary_endpoint: %w", err)
	}
	if len(n.Zone) > MaxNameLen || !printable(n.Zone) {
		return nil, fmt.Errorf("zone_awareness_id: not %d bytes of printable text: %w", MaxNameLen, ErrInvalid)
	}
	if n.WireGuardEndpoints, err = ParseAddrPorts(p.GetWireguardEndpoints()); err != nil {
		return nil, fmt.Errorf("wireguard_endpoints: %w", err)
	}
	if n.IPv4, err = parseNodePrefix(p.GetPrivateIpv4(), true); err != nil {
		return nil, fmt.Errorf("private_ipv4: %w", err)
	}
	if n.IPv6, err = parseNodePrefix(p.GetPrivateIpv6(), false); err != nil {
		return nil, fmt.Errorf("private_ipv6: %w", err)
	}
	if n.Features, err = FeaturesFromProto(p.GetFeatures()); err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	if n.Services, err = ServicesFromProto(p.GetServices()); err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	if n.JoinedAt, err = timeFromProto(p.GetJoinedAt()); err != nil {
		return nil, fmt.Errorf("joined_at: %w", err)
	}
	if n.API, err = apiFromProto(p); err != nil {
		return nil, err
	}
	return n, nil
}

// apiFromProto reads where a gateway serves its API.
func apiFromProto(p *v1.MeshNode) (API, error) {
	a := API{URL: p.GetApiUrl()}
	if a.URL != "" {
		u, err := url.Parse(a.URL)
		if err != nil || len(a.URL) > maxURLLen || !printable(a.URL) || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
			return API{}, fmt.Errorf("api_url: not the https or http URL of an API, of at most %d bytes: %w", maxURLLen, ErrInvalid)
		}
	}
	switch len(p.GetApiPin()) {
	case 0:
	case sha256.Size:
		copy(a.Pin[:], p.GetApiPin())
	default:
		return API{}, fmt.Errorf("api_pin: it has %d bytes where %d were expected: %w", len(p.GetApiPin()), sha256.Size, ErrInvalid)
	}
	return a, nil
}

// FeaturesToProto returns the messages for features.
func FeaturesToProto(features []Feature) []*v1.FeaturePort {
	return convert(features, func(f Feature) *v1.FeaturePort {
		return &v1.FeaturePort{Feature: f.Kind, Port: int32(f.Port)}
	})
}

// FeaturesFromProto reads features. Kinds that this build does not know are kept.
func FeaturesFromProto(ps []*v1.FeaturePort) ([]Feature, error) {
	return parse(ps, func(p *v1.FeaturePort) (Feature, error) {
		if p.GetPort() < 0 || p.GetPort() > 65535 {
			return Feature{}, fmt.Errorf("port %d is out of range: %w", p.GetPort(), ErrInvalid)
		}
		return Feature{Kind: p.GetFeature(), Port: uint16(p.GetPort())}, nil
	})
}

// ServiceToProto returns the message for s.
func ServiceToProto(s Service) *v1.Service {
	return &v1.Service{Protocol: s.Protocol, Port: uint32(s.Port), Kind: s.Kind}
}

// ServiceFromProto reads an exposed service.
func ServiceFromProto(p *v1.Service) (Service, error) {
	switch {
	case p.GetProtocol() != "tcp" && p.GetProtocol() != "udp":
		return Service{}, fmt.Errorf("protocol %q is neither tcp nor udp: %w", p.GetProtocol(), ErrInvalid)
	case p.GetPort() == 0 || p.GetPort() > 65535:
		return Service{}, fmt.Errorf("port %d is out of range: %w", p.GetPort(), ErrInvalid)
	case len(p.GetKind()) > maxKindLen || !printable(p.GetKind()):
		return Service{}, fmt.Errorf("kind is not %d bytes of printable text: %w", maxKindLen, ErrInvalid)
	}
	return Service{Protocol: p.GetProtocol(), Port: uint16(p.GetPort()), Kind: p.GetKind()}, nil
}

// ServicesFromProto reads exposed services.
func ServicesFromProto(ps []*v1.Service) ([]Service, error) { return parse(ps, ServiceFromProto) }

// EdgeToProto returns the message for e.
func EdgeToProto(e Edge) *v1.MeshEdge {
	return &v1.MeshEdge{
		Source:     string(e.Source),
		Target:     string(e.Target),
		Weight:     e.Weight,
		Attributes: maps.Clone(e.Attributes),
	}
}

// EdgeFromProto reads an edge and puts its ends in order. An edge from a node
// to itself is refused.
func EdgeFromProto(p *v1.MeshEdge) (Edge, error) {
	source, err := ParseNodeID(p.GetSource())
	if err != nil {
		return Edge{}, fmt.Errorf("source: %w", err)
	}
	target, err := ParseNodeID(p.GetTarget())
	if err != nil {
		return Edge{}, fmt.Errorf("target: %w", err)
	}
	if source == target {
		return Edge{}, fmt.Errorf("target: edge from %q to itself: %w", source, ErrInvalid)
	}
	e := Edge{Source: min(source, target), Target: max(source, target), Weight: p.GetWeight()}
	if len(p.GetAttributes()) > 0 {
		e.Attributes = maps.Clone(p.GetAttributes())
	}
	return e, nil
}

// PrefixString returns the wire form of an address or network: "" where there
// is none.
func PrefixString(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// ParsePrefix reads the wire form of an address or network. "" and the text
// "invalid Prefix" give the zero prefix.
func ParsePrefix(s string) (netip.Prefix, error) {
	if s == "" || s == invalidPrefix {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, noNetwork(s)
	}
	return p, nil
}

// noNetwork is the error of a text that should be a network, and says what a
// single address lacks.
func noNetwork(s string) error {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return fmt.Errorf("%q is no network: %w", s, ErrInvalid)
	}
	some := 16
	if a.Is6() {
		some = 64
	}
	network := netip.PrefixFrom(a, some).Masked()
	return fmt.Errorf("%q is no network: write a length behind it, such as %s, or /%d for one address: %w", s, network, a.BitLen(), ErrInvalid)
}

// parseNodePrefix reads a node's own addresses: an IPv4 /32, or an IPv6 /112 or
// longer. Anything wider would draw other nodes' traffic to this one.
func parseNodePrefix(s string, v4 bool) (netip.Prefix, error) {
	p, err := ParsePrefix(s)
	if err != nil || !p.IsValid() {
		return netip.Prefix{}, err
	}
	switch {
	case v4 && !(p.Addr().Is4() && p.Bits() == 32):
		return netip.Prefix{}, fmt.Errorf("%q is no IPv4 /32: %w", s, ErrInvalid)
	case !v4 && !(p.Addr().Is6() && p.Bits() >= nodeBits):
		return netip.Prefix{}, fmt.Errorf("%q is no IPv6 /%d: %w", s, nodeBits, ErrInvalid)
	}
	return p, nil
}

// ParsePrimaryEndpoint reads an IP address or DNS name and drops a port behind
// it; "" stays "".
func ParsePrimaryEndpoint(s string) (string, error) {
	host := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		if addrPort, err := netip.ParseAddrPort(s); err == nil {
			host = addrPort.Addr().String()
		} else if _, err := strconv.ParseUint(s[i+1:], 10, 16); err == nil && strings.Count(s, ":") == 1 {
			host = s[:i]
		}
	}
	if host == "" && s == "" {
		return "", nil
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			return "", fmt.Errorf("%q is no address that others can reach: %w", s, ErrInvalid)
		}
		return addr.Unmap().String(), nil
	}
	if !validHostname(host) {
		return "", fmt.Errorf("%q is neither an IP address nor a DNS name: %w", s, ErrInvalid)
	}
	return host, nil
}

// validHostname reports whether s is a DNS name: labels of letters, digits,
// hyphens and underscores, the last of which is not a number (RFC 1123 2.1), so
// that a mistyped IP address is no name.
func validHostname(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > MaxNameLen {
		return false
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return false
			}
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// ParseAddrPorts reads "ip:port" texts whose port is not 0.
func ParseAddrPorts(ss []string) ([]netip.AddrPort, error) {
	return parse(ss, func(s string) (netip.AddrPort, error) {
		ap, err := netip.ParseAddrPort(s)
		if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
			return netip.AddrPort{}, fmt.Errorf("%q is no ip:port: %w", s, ErrInvalid)
		}
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	})
}

// timeFromProto reads a timestamp; nil is the zero time.
func timeFromProto(ts *timestamppb.Timestamp) (time.Time, error) {
	if ts == nil {
		return time.Time{}, nil
	}
	if err := ts.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return ts.AsTime(), nil
}

// printable reports whether s is UTF-8 text that a terminal shows as it is.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// convert maps f over in; nil for no elements.
func convert[In, Out any](in []In, f func(In) Out) []Out {
	if len(in) == 0 {
		return nil
	}
	out := make([]Out, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

// parse maps f over in and stops at the first error, to which it adds the
// index; nil for no elements.
func parse[In, Out any](in []In, f func(In) (Out, error)) ([]Out, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]Out, len(in))
	for i, v := range in {
		var err error
		if out[i], err = f(v); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return out, nil
}

// toStrings returns the text forms of in.
func toStrings[T fmt.Stringer](in []T) []string { return convert(in, T.String) }
