// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlMessage builds a control message; size 0 is its true size.
func controlMessage(level, kind int32, data []byte, size int) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	if size == 0 {
		size = unix.CmsgLen(len(data))
	}
	h.SetLen(size)
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func TestParseControl(t *testing.T) {
	gro := controlMessage(unix.SOL_UDP, unix.UDP_GRO, word(1200), 0)
	overflow := controlMessage(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, word(7), 0)
	to4 := controlMessage(unix.IPPROTO_IP, unix.IP_PKTINFO, []byte{1, 0, 0, 0, 127, 0, 0, 2, 255, 255, 255, 255}, 0)
	v6 := netip.MustParseAddr("fe80::1").As16()
	to6 := controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, append(v6[:], word(3)...), 0)
	for name, test := range map[string]struct {
		in   []byte
		want control
	}{
		"none":        {nil, control{}},
		"merged":      {gro, control{segment: 1200}},
		"all of IPv4": {slices.Concat(overflow, gro, to4), control{1200, 7, local{addr: netip.MustParseAddr("127.0.0.2")}}},
		"link-local":  {to6, control{local: local{netip.MustParseAddr("fe80::1"), 3}}},
		"unknown":     {slices.Concat(controlMessage(99, 99, word(1), 0), gro), control{segment: 1200}},
		"short data":  {controlMessage(unix.SOL_UDP, unix.UDP_GRO, []byte{1, 2}, 0), control{}},
		"no length":   {slices.Concat(controlMessage(unix.SOL_UDP, unix.UDP_GRO, word(1), 1), gro), control{}},
		"too long":    {controlMessage(unix.SOL_UDP, unix.UDP_GRO, word(1), 1000), control{}},
		"huge":        {controlMessage(unix.SOL_UDP, unix.UDP_GRO, word(1), -1), control{}},
		"cut":         {gro[:len(gro)-8], control{}},
	} {
		if got := parseControl(test.in); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// extended is a struct sock_extended_err.
func extended(errno unix.Errno, origin, kind, code byte, info uint32) []byte {
	return append(append(word(uint32(errno)), origin, kind, code, 0), append(word(info), 0, 0, 0, 0)...)
}

func TestParseError(t *testing.T) {
	four := func(data []byte) []byte { return controlMessage(unix.IPPROTO_IP, unix.IP_RECVERR, data, 0) }
	six := func(data []byte) []byte { return controlMessage(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, data, 0) }
	for name, test := range map[string]struct {
		in   []byte
		want icmp
		ok   bool
	}{
		"ICMP":         {four(extended(unix.ECONNREFUSED, unix.SO_EE_ORIGIN_ICMP, 3, 3, 0)), icmp{3, 3, 0}, true},
		"too big":      {four(extended(unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP, 3, 4, 1400)), icmp{3, 4, 1400}, true},
		"ICMPv6":       {six(extended(unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP6, 2, 0, 1280)), icmp{2, 0, 1280}, true},
		"from here":    {four(extended(unix.EMSGSIZE, unix.SO_EE_ORIGIN_LOCAL, 0, 0, 1500)), icmp{3, 4, 1500}, true},
		"from here, 6": {six(extended(unix.EMSGSIZE, unix.SO_EE_ORIGIN_LOCAL, 0, 0, 1500)), icmp{2, 0, 1500}, true},
		"other local":  {four(extended(unix.EACCES, unix.SO_EE_ORIGIN_LOCAL, 0, 0, 0)), icmp{}, false},
		"wrong family": {four(extended(unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP6, 2, 0, 1280)), icmp{}, false},
		"timestamp":    {four(extended(unix.ENOMSG, unix.SO_EE_ORIGIN_TIMESTAMPING, 0, 0, 0)), icmp{}, false},
		"cut":          {four(extended(unix.ECONNREFUSED, unix.SO_EE_ORIGIN_ICMP, 3, 3, 0)[:12]), icmp{}, false},
		"none":         {nil, icmp{}, false},
	} {
		if got, ok := parseError(test.in); got != test.want || ok != test.ok {
			t.Errorf("%s: %+v, %v, want %+v, %v", name, got, ok, test.want, test.ok)
		}
	}
}

// FuzzControl gives both parsers whatever there is: they read nothing beyond it,
// and what they find is in it.
func FuzzControl(f *testing.F) {
	f.Add(controlMessage(unix.SOL_UDP, unix.UDP_GRO, word(1200), 0))
	f.Add(slices.Concat(controlMessage(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, word(1), 0), controlMessage(unix.IPPROTO_IP, unix.IP_PKTINFO, make([]byte, 12), 0)))
	f.Add(controlMessage(unix.IPPROTO_IP, unix.IP_RECVERR, extended(unix.ECONNREFUSED, 2, 3, 3, 0), 0))
	f.Add(controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, make([]byte, 20), 17))
	f.Fuzz(func(t *testing.T, in []byte) {
		aligned := make([]uint64, (len(in)+7)/8) // as the kernel's are
		b := in
		if len(in) > 0 {
			b = unsafe.Slice((*byte)(unsafe.Pointer(&aligned[0])), len(in))
			copy(b, in)
		}
		c := parseControl(b)
		if len(b) < unix.SizeofCmsghdr && c != (control{}) {
			t.Errorf("%+v in %d bytes", c, len(b))
		}
		total := 0
		each(b, func(_, _ int32, data []byte) { total += unix.CmsgLen(len(data)) })
		if total > len(b) {
			t.Errorf("messages of %d bytes in %d", total, len(b))
		}
		parseError(b)
	})
}

func TestName_RoundTrips(t *testing.T) {
	for _, s := range []string{"192.0.2.1:3478", "0.0.0.0:1", "[2001:db8::1]:65535", "[fe80::1%2]:9"} {
		want := netip.MustParseAddrPort(s)
		var n, other name
		size := n.set(want, want.Addr().Is6())
		if got := n.get(size); got != want {
			t.Errorf("%v became %v", want, got)
		}
		if other.set(want, want.Addr().Is6()); !n.same(&other) {
			t.Errorf("%v is not the same as itself", want)
		}
		if other.set(netip.AddrPortFrom(want.Addr(), 7), want.Addr().Is6()); n.same(&other) {
			t.Errorf("%v is the same as %v", want, other.get(size))
		}
		if got := n.get(size - 1); got.IsValid() {
			t.Errorf("%v, cut, became %v", want, got)
		}
	}
	var n name // an IPv4 address on a socket of both
	mapped := netip.MustParseAddrPort("192.0.2.1:9")
	if got := n.get(n.set(mapped, true)); got != mapped {
		t.Errorf("%v became %v", mapped, got)
	}
}
