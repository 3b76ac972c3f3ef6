// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	tcp  = mesh.ProtocolTCP
	udp  = mesh.ProtocolUDP
	icmp = mesh.ProtocolICMP
)

// ported is an ACL between two nodes for a protocol and ports.
func ported(accept bool, src, dst string, protocol mesh.Protocol, ports ...uint16) mesh.ACL {
	acl := mesh.ACL{Name: "ported", Accept: accept, SourceNodes: []string{src}, DestinationNodes: []string{dst}, Ports: ports}
	if protocol != 0 {
		acl.Protocols = []mesh.Protocol{protocol}
	}
	return acl
}

func TestDecide_HonoursProtocolAndPort(t *testing.T) {
	web := ported(true, "a", "b", tcp, 80, 443)
	noSSH := ported(false, "*", "b", tcp, 22)
	cases := []struct {
		name     string
		acls     []mesh.ACL
		protocol mesh.Protocol
		port     uint16
		want     bool
	}{
		{"the port", []mesh.ACL{web}, tcp, 443, true},
		{"the other port", []mesh.ACL{web}, tcp, 80, true},
		{"another port", []mesh.ACL{web}, tcp, 444, false},
		{"another protocol", []mesh.ACL{web}, udp, 443, false},
		{"an unknown port", []mesh.ACL{web}, tcp, 0, false},
		{"an unknown protocol", []mesh.ACL{web}, 0, 443, false},
		{"ports of every protocol that has them", []mesh.ACL{ported(true, "a", "b", 0, 53)}, udp, 53, true},
		{"ports, but no port", []mesh.ACL{ported(true, "a", "b", 0, 53)}, icmp, 0, false},
		{"a protocol without ports", []mesh.ACL{ported(true, "a", "b", icmp)}, icmp, 0, true},
		{"a protocol, any port", []mesh.ACL{ported(true, "a", "b", tcp)}, tcp, 9, true},
		{"all but a port", []mesh.ACL{noSSH, {Accept: true}}, tcp, 22, false},
		{"all but a port, another", []mesh.ACL{noSSH, {Accept: true}}, tcp, 23, true},
		{"all but a port, everything", []mesh.ACL{noSSH, {Accept: true}}, 0, 0, true},
		{"a port although all is denied", []mesh.ACL{web, {}}, tcp, 80, true},
		{"a port after all was denied", []mesh.ACL{{}, web}, tcp, 80, false},
		{"the opposite direction", []mesh.ACL{ported(true, "b", "a", tcp, 443)}, tcp, 443, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n := policy.Compile(acls(c.acls...))
			f := policy.Flow{
				SrcNode: "a", Src: addr("172.16.0.1"), DstNode: "b", Dst: addr("172.16.0.2"), Protocol: c.protocol, Port: c.port,
			}
			if got := n.Decide(f); got.Allowed != c.want {
				t.Errorf("Decide = %v", got)
			}
			if got := n.Opens(f); got.Allowed != c.want {
				t.Errorf("Opens = %v", got)
			}
		})
	}
}

func TestDecision_NamesTheACL(t *testing.T) {
	s := acls(
		mesh.ACL{Name: "block-ssh", Priority: 100, Protocols: []mesh.Protocol{tcp}, Ports: []uint16{22}},
		mesh.ACL{Name: "team", Priority: -5, Accept: true, SourceNodes: []string{"a"}},
	)
	n := policy.Compile(s)
	for _, c := range []struct {
		from, to string
		port     uint16
		want     string
		packets  string
	}{
		{"a", "b", 22, `denied by acl "block-ssh" (priority 100)`, ""},
		{"a", "b", 80, `accepted by acl "team" (priority -5)`, ""},
		{"b", "c", 80, "no ACL accepts", ""},
		{"b", "a", 80, "no ACL accepts", `accepted by acl "team" (priority -5)`},
	} {
		f := policy.Flow{SrcNode: c.from, DstNode: mesh.NodeID(c.to), Protocol: tcp, Port: c.port}
		if got := n.Decide(f).String(); got != c.want {
			t.Errorf("%+v: %s", f, got)
		}
		if c.packets == "" {
			c.packets = c.want
		}
		if got := n.Opens(f).String(); got != c.packets {
			t.Errorf("%+v, packets: %s", f, got)
		}
	}
}

func TestExplain_NamesRoleAndBinding(t *testing.T) {
	s := granted([]mesh.Rule{rule(edges, put, "web")}, group("devs"))
	for _, c := range []struct {
		subject, name, want string
	}{
		{"alice", "web", `granted by role "role" (binding "binding")`},
		{"alice", "db", "no role grants it"},
		{"bob", "web", "no role grants it"},
	} {
		if got := policy.Explain(s, c.subject, mesh.Action{Resource: edges, Verb: put, Name: c.name}).String(); got != c.want {
			t.Errorf("%s, %s: %s", c.subject, c.name, got)
		}
	}
	s.RBACDisabled = true
	if got := policy.Explain(s, "bob", mesh.Action{}); !got.Allowed || got.String() != "RBAC is switched off" {
		t.Errorf("%+v: %s", got, got)
	}
}

func TestConnects_WhenSomeTrafficIsAccepted(t *testing.T) {
	every := mesh.ACL{Accept: true}
	cases := []struct {
		name string
		acls []mesh.ACL
		want bool
	}{
		{"one port", []mesh.ACL{ported(true, "a", "b", tcp, 443)}, true},
		{"one port, the other way", []mesh.ACL{ported(true, "b", "a", tcp, 443)}, true},
		{"a port of others", []mesh.ACL{ported(true, "a", "c", tcp, 443)}, false},
		{"all but a port", []mesh.ACL{ported(false, "a", "b", tcp, 443), every}, true},
		{"a port that was denied", []mesh.ACL{ported(false, "a", "b", tcp, 443), ported(true, "a", "b", tcp, 443)}, false},
		{"a port that was denied the other way", []mesh.ACL{ported(false, "b", "a", tcp, 443), ported(true, "a", "b", tcp, 443)}, true},
		{"one of two ports was denied", []mesh.ACL{ported(false, "a", "b", tcp, 443), ported(true, "a", "b", tcp, 80, 443)}, true},
		{"a protocol of which a port was denied", []mesh.ACL{ported(false, "a", "b", tcp, 443), ported(true, "a", "b", tcp)}, true},
		{"a port of a denied protocol", []mesh.ACL{ported(false, "a", "b", tcp), ported(true, "a", "b", tcp, 443)}, false},
		{"a port of two protocols, one denied", []mesh.ACL{ported(false, "a", "b", tcp), ported(true, "a", "b", 0, 443)}, true},
		{"denied in two pieces", []mesh.ACL{ported(false, "a", "b", tcp, 1), ported(false, "a", "b", tcp, 2), ported(true, "a", "b", tcp, 1, 2)}, false},
		{"all denied below a port", []mesh.ACL{ported(true, "a", "b", tcp, 443), {}}, true},
		{"all denied above a port", []mesh.ACL{{}, ported(true, "a", "b", tcp, 443)}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := policy.Endpoint{Node: "a", Network: netip.MustParsePrefix("172.16.0.1/32")}
			b := policy.Endpoint{Node: "b", Network: netip.MustParsePrefix("172.16.0.2/32")}
			n := policy.Compile(acls(c.acls...))
			if n.Connects(a, b) != c.want || n.Connects(b, a) != c.want {
				t.Errorf("Connects = %v, %v", n.Connects(a, b), n.Connects(b, a))
			}
		})
	}
}

// packet is one between the nodes a, b and c of filterSnapshot.
func packet(src, dst string, protocol mesh.Protocol, kind mesh.PacketKind, ports ...uint16) mesh.Packet {
	at := map[string]string{"a": "172.16.0.1", "b": "172.16.0.2", "c": "172.16.0.3"}
	p := mesh.Packet{Src: addr(at[src]), Dst: addr(at[dst]), Protocol: protocol, Kind: kind}
	if len(ports) == 2 {
		p.SrcPort, p.DstPort = ports[0], ports[1]
	}
	return p
}

func TestFilter_HonoursProtocolAndPort(t *testing.T) {
	const opens, continues, unclear = mesh.PacketOpens, mesh.PacketContinues, mesh.PacketUnclear
	web, dns, ping := ported(true, "a", "b", tcp, 443), ported(true, "a", "b", udp, 53), ported(true, "a", "b", icmp)
	noSSH := ported(false, "*", "b", tcp, 22)
	cases := []struct {
		name   string
		acls   []mesh.ACL
		packet mesh.Packet
		want   bool
	}{
		{"request", []mesh.ACL{web}, packet("a", "b", tcp, opens, 5000, 443), true},
		{"reply", []mesh.ACL{web}, packet("b", "a", tcp, continues, 443, 5000), true},
		{"next packet", []mesh.ACL{web}, packet("a", "b", tcp, continues, 5000, 443), true},
		{"another port", []mesh.ACL{web}, packet("a", "b", tcp, opens, 5000, 22), false},
		{"from the port, but no reply", []mesh.ACL{web}, packet("b", "a", tcp, opens, 443, 22), false},
		{"the port of the wrong side", []mesh.ACL{web}, packet("b", "a", tcp, opens, 5000, 443), false},
		{"another protocol", []mesh.ACL{web}, packet("a", "b", udp, unclear, 5000, 443), false},
		{"unasked answer", []mesh.ACL{dns}, packet("b", "a", udp, unclear, 53, 5000), false},
		{"question", []mesh.ACL{dns}, packet("a", "b", udp, unclear, 5000, 53), true},
		{"ping", []mesh.ACL{ping}, packet("a", "b", icmp, opens), true},
		{"pong", []mesh.ACL{ping}, packet("b", "a", icmp, continues), true},
		{"ping back", []mesh.ACL{ping}, packet("b", "a", icmp, opens), false},
		{"error about a request", []mesh.ACL{web}, packet("b", "a", tcp, mesh.PacketReports, 443, 5000), true},
		{"error about a reply", []mesh.ACL{web}, packet("a", "b", tcp, mesh.PacketReports, 5000, 443), true},
		{"error about what is not accepted", []mesh.ACL{web}, packet("b", "a", tcp, mesh.PacketReports, 22, 5000), false},
		{"later fragment", []mesh.ACL{dns}, packet("b", "a", udp, mesh.PacketFragment), true},
		{"later fragment of another protocol", []mesh.ACL{dns}, packet("a", "b", tcp, mesh.PacketFragment), false},
		{"broken", []mesh.ACL{web}, packet("a", "b", tcp, mesh.PacketBroken), false},
		{"broken, all but a port", []mesh.ACL{noSSH, {Accept: true}}, packet("a", "b", tcp, mesh.PacketBroken), false},
		{"broken, everything", []mesh.ACL{{Accept: true}}, packet("a", "b", tcp, mesh.PacketBroken), true},
		{"all but a port", []mesh.ACL{noSSH, {Accept: true}}, packet("a", "b", tcp, opens, 5000, 80), true},
		{"all but a port, that port", []mesh.ACL{noSSH, {Accept: true}}, packet("a", "b", tcp, opens, 5000, 22), false},
		{"all but a port, that port as a source", []mesh.ACL{noSSH, {Accept: true}}, packet("b", "a", tcp, opens, 22, 5000), true},
		{"all but a port, fragment", []mesh.ACL{noSSH, {Accept: true}}, packet("a", "b", tcp, mesh.PacketFragment), true},
		{"all but a port, unknown protocol", []mesh.ACL{noSSH, {Accept: true}}, packet("a", "b", 0, unclear), true},
		{"a port that is denied anyway", []mesh.ACL{noSSH, {}}, packet("a", "b", tcp, opens, 5000, 22), false},
		{"other nodes", []mesh.ACL{web}, packet("a", "c", tcp, opens, 5000, 443), false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := policy.ForwardFilter(filterSnapshot(c.acls...), policy.NewFlows())
			for range 2 { // decided, then remembered
				if got := f.Allow(c.packet); got != c.want {
					t.Errorf("Allow = %v", got)
				}
			}
		})
	}
}

// A node holds what comes to itself against the ACLs, except what a gateway
// answers for.
func TestDeliveryFilter(t *testing.T) {
	const opens, unclear = mesh.PacketOpens, mesh.PacketUnclear
	s := filterSnapshot(
		ported(true, "*", "a", tcp, 443),
		ported(true, "a", "*", udp, 53),
		mesh.ACL{Accept: true, SourceNodes: []string{"elsewhere"}},
	)
	s.Node("c").Features = []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP, Port: 8443}}
	s.Routes = nil
	plan := mesh.Plan{Self: s.Node("a"), Peers: mesh.PeersOf(
		mesh.Peer{Node: s.Node("b"), AllowedIPs: prefixes("172.16.0.2/32", "10.0.0.0/8"), Veiled: prefixes("192.168.5.0/24")},
		mesh.Peer{Node: s.Node("c"), AllowedIPs: prefixes("172.16.0.3/32", "172.16.0.9/32", "192.0.2.0/24")},
	)}
	fresh := func() *policy.Filter { return policy.DeliveryFilter(s, plan, policy.NewFlows()) }
	from := func(src string, p mesh.Packet) mesh.Packet { p.Src = addr(src); return p }
	for _, c := range []struct {
		name   string
		packet mesh.Packet
		want   bool
	}{
		{"a peer, the port", packet("b", "a", tcp, opens, 5000, 443), true},
		{"a peer, another port", packet("b", "a", tcp, opens, 5000, 22), false},
		{"the network behind a peer, the port", from("10.1.2.3", packet("b", "a", tcp, opens, 5000, 443)), true},
		{"the network behind a peer, another port", from("10.1.2.3", packet("b", "a", tcp, opens, 5000, 22)), false},
		{"a veiled network behind a peer, the port", from("192.168.5.3", packet("b", "a", tcp, opens, 5000, 443)), true},
		{"a veiled network behind a peer, another port", from("192.168.5.3", packet("b", "a", tcp, opens, 5000, 22)), false},
		{"a gateway", packet("c", "a", tcp, opens, 5000, 22), true},
		{"whom a gateway forwards", from("172.16.0.9", packet("c", "a", tcp, opens, 5000, 22)), true},
		{"a network behind a gateway", from("192.0.2.7", packet("c", "a", tcp, opens, 5000, 22)), true},
		{"an answer that nobody asked for", packet("b", "a", udp, unclear, 53, 5000), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := fresh().Allow(c.packet); got != c.want {
				t.Errorf("Allow = %v", got)
			}
		})
	}
	f := fresh()
	f.Sent(packet("a", "b", udp, unclear, 5000, 53))
	if !f.Allow(packet("b", "a", udp, unclear, 53, 5000)) {
		t.Error("the answer to a packet of ours is refused")
	}
	f.Sent(packet("a", "b", udp, unclear, 5000, 9))
	if f.Allow(packet("b", "a", udp, unclear, 9, 5000)) {
		t.Error("sending opens a port that no ACL accepts")
	}
}

func TestRestricted(t *testing.T) {
	for _, c := range []struct {
		acls []mesh.ACL
		want bool
	}{
		{nil, false},
		{[]mesh.ACL{{Accept: true}}, false},
		{[]mesh.ACL{{Accept: true}, ported(true, "a", "b", tcp)}, true},
		{[]mesh.ACL{ported(false, "a", "b", 0, 22)}, true},
	} {
		if got := policy.Restricted(acls(c.acls...)); got != c.want {
			t.Errorf("%+v: %v", c.acls, got)
		}
	}
}
