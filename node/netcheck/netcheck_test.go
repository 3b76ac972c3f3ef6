// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/node/path"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a STUN server that says of everybody what says makes of the address;
// nil is silence.
func server(t *testing.T, says func(from netip.AddrPort) netip.AddrPort) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, path.MaxMessage)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			m, err := path.ParseMessage(buf[:n])
			if err != nil || says == nil {
				continue
			}
			answer := path.Message{Type: path.BindingSuccess, ID: m.ID, Mapped: says(from.(*net.UDPAddr).AddrPort()), Fingerprint: true}
			_, _ = c.WriteTo([]byte("no STUN at all"), from)
			_, _ = c.WriteTo(answer.Marshal(""), from)
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func as(text string) func(netip.AddrPort) netip.AddrPort {
	return func(netip.AddrPort) netip.AddrPort { return netip.MustParseAddrPort(text) }
}

func same(from netip.AddrPort) netip.AddrPort { return from }

func TestMappingOf(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("192.0.2.5")}
	of := func(pairs ...string) (list []answer) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, answer{server: netip.MustParseAddrPort(pairs[i]), mapped: netip.MustParseAddrPort(pairs[i+1])})
		}
		return list
	}
	const a1, a2, b1, b2 = "198.51.100.1:3478", "198.51.100.1:51820", "198.51.100.2:3478", "198.51.100.2:51820"
	for name, c := range map[string]struct {
		answers []answer
		want    Mapping
	}{
		"its own address":             {of(a1, "192.0.2.5:7"), NoNAT},
		"one port":                    {of(a1, "203.0.113.7:7"), UnknownMapping},
		"two ports alike":             {of(a1, "203.0.113.7:7", a2, "203.0.113.7:7"), PortIndependent},
		"two addresses alike":         {of(a1, "203.0.113.7:7", b1, "203.0.113.7:7"), EndpointIndependent},
		"all alike":                   {of(a1, "203.0.113.7:7", a2, "203.0.113.7:7", b1, "203.0.113.7:7"), EndpointIndependent},
		"alike for each address":      {of(a1, "203.0.113.7:7", a2, "203.0.113.7:7", b1, "203.0.113.7:8", b2, "203.0.113.7:8"), AddressDependent},
		"another for each port":       {of(a1, "203.0.113.7:7", a2, "203.0.113.7:8"), AddressAndPortDependent},
		"another for each of both":    {of(a1, "203.0.113.7:7", b1, "203.0.113.7:8"), AddressAndPortDependent},
		"another address for a port":  {of(a1, "203.0.113.7:7", a2, "203.0.113.8:7"), AddressAndPortDependent},
		"alike at one address, mixed": {of(a1, "203.0.113.7:7", a2, "203.0.113.7:7", b1, "203.0.113.7:8", b2, "203.0.113.7:9"), AddressAndPortDependent},
	} {
		if got := mappingOf(c.answers, own); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestCheck_TellsWhatServersSee(t *testing.T) {
	stun, wireguard, silent := server(t, as("203.0.113.7:7")), server(t, as("203.0.113.7:8")), server(t, nil)
	r, err := Check(t.Context(), Config{Targets: []Target{{Gateway: "gw1", STUN: []netip.AddrPort{stun, wireguard}}, {Gateway: "gw2", STUN: []netip.AddrPort{silent}}}})
	if err != nil {
		t.Fatal(err)
	}
	if f := r.IPv4; !f.Asked || !f.Works || f.Mapped.String() != "203.0.113.7:7" || f.Mapping != AddressAndPortDependent || f.Hairpin != "no" {
		t.Errorf("IPv4: %+v", f)
	}
	if r.IPv6.Asked || r.IPv6.Works {
		t.Errorf("IPv6: %+v", r.IPv6)
	}
	if g := r.Gateways[0]; g.RoundTrip <= 0 || len(g.UDP) != 2 || g.UDP[1].Mapped.String() != "203.0.113.7:8" || len(g.TURN) != 0 {
		t.Errorf("gw1: %+v", g)
	}
	if g := r.Gateways[1]; g.RoundTrip != 0 || len(g.UDP) != 1 || g.UDP[0].RoundTrip != 0 {
		t.Errorf("gw2: %+v", g)
	}
	if !strings.Contains(r.Advice, "another port for each destination (address and port-dependent)") {
		t.Error(r.Advice)
	}
}

func TestCheck_HairpinIsWhatComesBack(t *testing.T) {
	at := server(t, same)
	r, err := Check(t.Context(), Config{Targets: []Target{{Gateway: "gw1", STUN: []netip.AddrPort{at}}}})
	if err != nil || r.IPv4.Hairpin != "yes" {
		t.Errorf("%+v, %v", r, err)
	}
	// One that sees the host's own address makes the question void.
	r, err = Check(t.Context(), Config{Targets: []Target{{Gateway: "gw1", STUN: []netip.AddrPort{at}}}, Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil || r.IPv4.Hairpin != "" || r.IPv4.Mapping != NoNAT {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestCheck_ABlockedNetworkSaysSo(t *testing.T) {
	at := server(t, nil)
	r, err := Check(t.Context(), Config{Targets: []Target{{
		Gateway: "gw1", STUN: []netip.AddrPort{at}, TURN: []string{"turn:127.0.0.1:1?transport=tcp"}, Username: "u", Password: "p",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if relay := r.Gateways[0].TURN; len(relay) != 1 || relay[0].Transport != "TCP" || !strings.Contains(relay[0].Error, "nothing listens there") {
		t.Errorf("%+v", relay)
	}
	if r.IPv4.Works || !strings.Contains(r.Advice, "No gateway answers in any way") {
		t.Errorf("%+v", r)
	}
}

func TestCheck_EndsWithItsContext(t *testing.T) {
	at := server(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Check(ctx, Config{Targets: []Target{{STUN: []netip.AddrPort{at}}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := Check(t.Context(), Config{}); err == nil {
		t.Error("nothing to look at is no error")
	}
}

func TestAdvice(t *testing.T) {
	works := func(m Mapping) Family { return Family{Asked: true, Works: true, Mapping: m} }
	turn := func(transport, failure string) []Gateway {
		return []Gateway{{TURN: []Relay{{Transport: transport, Error: failure}}}}
	}
	for want, r := range map[string]Report{
		"UDP is blocked here":                         {Gateways: turn("TLS", "")},
		"give a token":                                {Gateways: []Gateway{{}}},
		"No gateway answers in any way":               {Gateways: turn("TLS", "x")},
		"an address of its own":                       {IPv4: works(NoNAT), Gateways: turn("UDP", "")},
		"everywhere but behind a NAT":                 {IPv4: works(PortIndependent), Gateways: turn("UDP", "")},
		"takes a second port or gateway":              {IPv4: works(UnknownMapping)},
		"no TURN server serves this host":             {IPv4: works(AddressDependent), Gateways: turn("UDP", "x")},
		"a UDP port that is forwarded to this host":   {IPv4: works(AddressAndPortDependent), Gateways: turn("UDP", "")},
		"(address-dependent): direct paths work only": {IPv6: works(AddressDependent)},
	} {
		if got := advice(&r); !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
}

func TestHere_IsAnAddressThatReachesOut(t *testing.T) {
	servers := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}
	own := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("::1")}
	if here(own, servers, "udp4") || here(own, servers, "udp6") {
		t.Error("loopback and link-local addresses reach a server")
	}
	if !here(own, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, "udp4") {
		t.Error("loopback does not reach a server on this host")
	}
	if own = append(own, netip.MustParseAddr("10.0.0.7")); !here(own, servers, "udp4") || here(own, servers, "udp6") {
		t.Error("IPv4 is not told from IPv6")
	}
	if !here(nil, servers, "udp6") {
		t.Error("unknown addresses are none")
	}
}

func TestServersOf_TakesEachGatewayInTurn(t *testing.T) {
	at := func(list ...string) (out []netip.AddrPort) {
		for _, s := range list {
			out = append(out, netip.MustParseAddrPort(s))
		}
		return out
	}
	got := serversOf([]Target{
		{STUN: at("192.0.2.1:1", "192.0.2.1:2", "[2001:db8::1]:1")},
		{STUN: at("192.0.2.2:1", "192.0.2.1:1", "192.0.2.2:3")},
	}, "udp4")
	want := at("192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.2:3")
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got, want)
		}
	}
	var many []netip.AddrPort
	for port := range uint16(100) {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port+1))
	}
	if got := serversOf([]Target{{STUN: many}}, "udp4"); len(got) != maxServers {
		t.Errorf("%d servers are asked, want %d", len(got), maxServers)
	}
}
