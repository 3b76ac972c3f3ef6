// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// chain is a chain with its rules.
type chain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

// chains are what the table is made of:
//
//	chain ledger { comments only; no packet comes here }
//	chain forward { type filter hook forward priority mangle;
//		iifname != MESH iifname != lo saddr NETWORKS fib saddr oifname MESH drop
//		iifname SWITCHED oifname != MESH ct state != established,related drop
//		iifname MESH | oifname MESH, tcp syn: tcp option maxseg size set MTU - headers }
//	chain input { type filter hook input priority filter;
//		iifname != MESH iifname != lo saddr OWN drop; as in forward
//		iifname MESH daddr OWN accept; iifname MESH drop }
//	chain leave { type nat hook postrouting priority srcnat;
//		oifname != MESH saddr MASQUERADE daddr SERVE masquerade }
func (f *firewall) chains() []chain {
	list := []chain{{&nftables.Chain{Name: chainLedger}, f.ledgerRules()}}
	if len(f.serve) == 0 {
		return list
	}
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, at nftables.ChainPriority, rules []*nftables.Rule) {
		list = append(list, chain{&nftables.Chain{Name: name, Type: kind, Hooknum: hook, Priority: &at}, rules})
	}
	base(chainForward, nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityMangle, slices.Concat(f.disguiseRules(), f.joinRules(), f.clampRules()))
	base(chainInput, nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, append(f.disguiseRules(), f.inputRules()...))
	if len(f.masquerade) > 0 {
		base(chainLeave, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, f.masqueradeRules())
	}
	return list
}

// ledgerRules are comments.
func (f *firewall) ledgerRules() []*nftables.Rule {
	notes := append([]string{noteInterface + f.mesh, noteState + f.fingerprint()}, f.notes()...)
	var list []*nftables.Rule
	for _, note := range notes {
		list = append(list, &nftables.Rule{
			Exprs:    []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}},
			UserData: userdata.AppendString(nil, userdata.TypeComment, note),
		})
	}
	return list
}

// Lengths of headers without options.
const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
)

// clampRules lower the segment size that TCP offers over the mesh interface, in
// either direction, to what fits. The kernel never raises one. Without them each
// connection depends on ICMP, which many filter.
func (f *firewall) clampRules() []*nftables.Rule {
	var list []*nftables.Rule
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		for _, v4 := range []bool{true, false} {
			size := f.mtu - tcpHeader - ipv6Header
			if v4 {
				size = f.mtu - tcpHeader - ipv4Header
			}
			list = append(list, rule(
				onInterface(key, f.mesh, true), family(v4), protocol(unix.IPPROTO_TCP),
				// Of the flags, SYN is set and RST is not.
				[]expr.Any{
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
					&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x06}, Xor: []byte{0}},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
				},
				// The size is 2 bytes into the option of kind 2 (RFC 9293 3.2).
				[]expr.Any{
					&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(size))},
					&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
				},
			))
		}
	}
	return list
}

// disguiseRules drop what comes in elsewhere with an address of the mesh: a
// machine in a network that is served is not to speak as a node. An address that
// the host reaches in another way than through the mesh, say in a network of
// containers, is none of the mesh. What the kernel finds for the host's own
// addresses depends on its version.
func (f *firewall) disguiseRules() []*nftables.Rule {
	var list []*nftables.Rule
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	elsewhere := append(f.others(expr.MetaKeyIIFNAME), onInterface(expr.MetaKeyIIFNAME, "lo", false)...)
	for _, p := range f.own {
		own := netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
		list = append(list, rule(elsewhere, within(own, source), drop))
	}
	for _, p := range f.networks {
		list = append(list, rule(elsewhere, within(p, source), []expr.Any{
			&expr.Fib{Register: 1, FlagSADDR: true, ResultOIFNAME: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded(f.mesh)},
		}, drop))
	}
	return list
}

// joinRules keep the host from being a router between networks, where it only
// forwards since we told it to: what comes in there is for the mesh, or belongs to
// a conversation that began elsewhere.
func (f *firewall) joinRules() []*nftables.Rule {
	var list []*nftables.Rule
	for _, s := range f.ledger {
		parts := strings.Split(s.path, "/") // FAMILY/conf/INTERFACE/NAME
		v4 := parts[0] == "ipv4"
		if !strings.HasSuffix(parts[3], "forwarding") || v4 && f.router4 || !v4 && f.router6 {
			continue
		}
		in := f.others(expr.MetaKeyIIFNAME)
		if s.path != allForwarding6 {
			in = onInterface(expr.MetaKeyIIFNAME, parts[2], true)
		}
		list = append(list, rule(
			in, f.others(expr.MetaKeyOIFNAME), family(v4),
			[]expr.Any{
				&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
				&expr.Bitwise{
					SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
					Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
				},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
				&expr.Verdict{Kind: expr.VerdictDrop},
			},
		))
	}
	return list
}

// others matches packets of all interfaces but those of nodes on this host.
func (f *firewall) others(key expr.MetaKey) []expr.Any {
	list := onInterface(key, f.mesh, false)
	for _, name := range f.siblings {
		list = append(list, onInterface(key, name, false)...)
	}
	return list
}

// inputRules keep the mesh off the host's other addresses. Some of them are in
// the networks that it serves, and behind them are services that nobody exposed.
func (f *firewall) inputRules() []*nftables.Rule {
	var list []*nftables.Rule
	for _, p := range f.own {
		own := netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
		list = append(list, rule(
			onInterface(expr.MetaKeyIIFNAME, f.mesh, true), within(own, destination),
			[]expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}},
		))
	}
	return append(list, rule(
		onInterface(expr.MetaKeyIIFNAME, f.mesh, true), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}},
	))
}

// masqueradeRules are looked at for the first packet of each conversation.
func (f *firewall) masqueradeRules() []*nftables.Rule {
	var list []*nftables.Rule
	for _, from := range f.masquerade {
		for _, to := range f.serve {
			if from.Addr().Is4() != to.Addr().Is4() {
				continue
			}
			list = append(list, rule(
				onInterface(expr.MetaKeyOIFNAME, f.mesh, false), within(from, source), within(to, destination),
				[]expr.Any{&expr.Masq{}},
			))
		}
	}
	return list
}

// rule joins parts to a rule.
func rule(parts ...[]expr.Any) *nftables.Rule {
	r := new(nftables.Rule)
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	return r
}

// onInterface matches packets of one interface, or of all others.
func onInterface(key expr.MetaKey, name string, is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: padded(name)},
	}
}

// padded is a name of an interface as the kernel compares it.
func padded(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// family matches packets of IPv4, or of IPv6.
func family(v4 bool) []expr.Any {
	number := byte(unix.NFPROTO_IPV6)
	if v4 {
		number = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// protocol matches packets of a transport protocol.
func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// side is one of the addresses of a packet.
type side int

const (
	source side = iota
	destination
)

// within matches packets that have an address in p, and so its family.
func within(p netip.Prefix, s side) []expr.Any {
	size := uint32(p.Addr().BitLen() / 8)
	offset := uint32(12) // RFC 791 3.1
	if p.Addr().Is6() {
		offset = 8 // RFC 8200 3
	}
	if s == destination {
		offset += size
	}
	return append(family(p.Addr().Is4()),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: ipNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	)
}
