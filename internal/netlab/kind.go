// SPDX-License-Identifier: Apache-2.0

package netlab

import "fmt"

// Kind is how a side reaches the rest of the network.
type Kind int

// The kinds of sides. All but IPv6Only and DualStack have IPv4 alone.
const (
	// Open is a public address and no firewall.
	Open Kind = iota
	// FullCone is a NAT that lets everyone in at a port that was used.
	FullCone
	// AddressRestricted is a NAT that lets in who was sent to, from any port.
	AddressRestricted
	// PortRestricted is a NAT that lets only answers in: most home routers.
	PortRestricted
	// Symmetric is a NAT that uses another port for each destination.
	Symmetric
	// CGNAT is a PortRestricted NAT behind another one, that of a carrier.
	CGNAT
	// CGNATSymmetric is a PortRestricted NAT behind a Symmetric one.
	CGNATSymmetric
	// UDPBlocked is a NAT that loses all UDP.
	UDPBlocked
	// Only443 lets only TCP to port 443 out.
	Only443
	// IPv6Only has no IPv4, and a firewall that lets only answers in.
	IPv6Only
	// DualStack is PortRestricted for IPv4 and like IPv6Only for IPv6.
	DualStack

	kinds // their number
)

// Kinds returns all kinds, in the order above.
func Kinds() []Kind {
	var list []Kind
	for k := range kinds {
		list = append(list, k)
	}
	return list
}

// String is a word that can stand in names.
func (k Kind) String() string {
	if k < 0 || k >= kinds {
		return fmt.Sprintf("kind-%d", int(k))
	}
	return [kinds]string{"open", "full-cone", "address-restricted", "port-restricted", "symmetric", "cgnat",
		"cgnat-symmetric", "udp-blocked", "only-443", "ipv6-only", "dual-stack"}[k]
}

// Dependence is on what of the other end the mapping or the filtering of a NAT
// depends (RFC 4787 sections 4.1 and 5).
type Dependence int

// What there is to depend on; the zero value is for where no UDP goes at all.
const (
	NoUDP Dependence = iota
	EndpointIndependent
	AddressDependent
	AddressAndPortDependent
)

// String names it as RFC 5780 does.
func (d Dependence) String() string {
	switch d {
	case EndpointIndependent:
		return "endpoint-independent"
	case AddressDependent:
		return "address-dependent"
	case AddressAndPortDependent:
		return "address and port-dependent"
	default:
		return "no UDP"
	}
}

// NAT is what a side does to UDP of one IP version, in theory. The zero value
// lets none through. A firewall without translation is a NAT whose mapping is
// endpoint-independent.
type NAT struct {
	Mapping, Filtering Dependence
}

// IPv4 returns what a side of the kind does to UDP over IPv4.
func (k Kind) IPv4() NAT {
	switch k {
	case Open, FullCone:
		return NAT{EndpointIndependent, EndpointIndependent}
	case AddressRestricted:
		return NAT{EndpointIndependent, AddressDependent}
	case PortRestricted, CGNAT, DualStack:
		return NAT{EndpointIndependent, AddressAndPortDependent}
	case Symmetric, CGNATSymmetric:
		return NAT{AddressAndPortDependent, AddressAndPortDependent}
	default:
		return NAT{}
	}
}

// IPv6 returns what a side of the kind does to UDP over IPv6.
func (k Kind) IPv6() NAT {
	if k == IPv6Only || k == DualStack {
		return NAT{EndpointIndependent, AddressAndPortDependent}
	}
	return NAT{}
}

// Direct reports whether hosts behind the two kinds can get UDP to each other
// over one IP version at least.
func Direct(a, b Kind) bool {
	return a.IPv4().Meets(b.IPv4()) || a.IPv6().Meets(b.IPv6())
}

// Meets reports whether two hosts that know the address at which a third one
// sees the other can get UDP to each other, when both keep sending there and
// answer to where they hear from.
func (n NAT) Meets(other NAT) bool {
	switch {
	case n.Mapping == NoUDP || other.Mapping == NoUDP:
		return false
	case n.Mapping == EndpointIndependent && other.Mapping == EndpointIndependent:
		return true // each is where the other one sends to
	case n.Mapping == EndpointIndependent:
		return n.Filtering < AddressAndPortDependent // the other one comes from a port that nobody sent to
	case other.Mapping == EndpointIndependent:
		return other.Filtering < AddressAndPortDependent
	default:
		return false
	}
}

// plan is what a side is made of.
type plan struct {
	v4, v6 bool
	// public: its own IPv4 addresses are public ones.
	public bool
	// boxes are the rules of each box between the host and the network, from
	// the host outwards: names of files in rules.
	boxes [][]string
}

func (k Kind) plan() plan {
	portRestricted := []string{"cone", "replies_only", "guard"}
	symmetric := []string{"symmetric", "replies_only", "guard"}
	nat := func(boxes ...[]string) plan { return plan{v4: true, boxes: boxes} }
	switch k {
	case FullCone:
		return nat([]string{"cone", "from_all", "guard"})
	case AddressRestricted:
		return nat([]string{"cone", "from_addresses", "guard"})
	case PortRestricted:
		return nat(portRestricted)
	case Symmetric:
		return nat(symmetric)
	case CGNAT:
		return nat(portRestricted, portRestricted)
	case CGNATSymmetric:
		return nat(portRestricted, symmetric)
	case UDPBlocked:
		return nat([]string{"masquerade", "no_udp", "replies_only", "guard"})
	case Only443:
		return nat([]string{"masquerade", "only_443", "guard"})
	case IPv6Only:
		return plan{v6: true, boxes: [][]string{{"firewall6"}}}
	case DualStack:
		return plan{v4: true, v6: true, boxes: [][]string{append(portRestricted, "firewall6")}}
	default:
		return plan{v4: true, public: true, boxes: [][]string{nil}}
	}
}
