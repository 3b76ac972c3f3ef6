// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

var netipValues = cmp.Options{
	cmp.Comparer(samePrefix),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

func fullNode(t testing.TB) *mesh.Node {
	t.Helper()
	return &mesh.Node{
		ID:              "node-a",
		PublicKey:       vectorKey(t).Public(),
		PrimaryEndpoint: "192.0.2.1",
		WireGuardEndpoints: []netip.AddrPort{
			netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("[2001:db8::1]:51820"),
		},
		Zone:       "home",
		IPv4:       netip.MustParsePrefix("172.16.0.1/32"),
		IPv6:       netip.MustParsePrefix(vectorIPv6),
		Features:   []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_LEADER_PROXY}},
		Services:   []mesh.Service{{Protocol: "tcp", Port: 80, Kind: "http"}},
		Multiaddrs: []string{"/ip4/192.0.2.1/udp/51820"},
		JoinedAt:   time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

func TestNode_RoundTrips(t *testing.T) {
	for name, n := range map[string]*mesh.Node{"full": fullNode(t), "placeholder": {ID: "node-b"}} {
		t.Run(name, func(t *testing.T) {
			got, err := mesh.NodeFromProto(mesh.NodeToProto(n))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(n, got, netipValues); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The values that v1 nodes store are protojson of the messages.
func TestNodeToProto_WritesWhatV1NodesRead(t *testing.T) {
	want := `{
		"id": "node-a", "publicKey": "` + vectorPublic + `", "primaryEndpoint": "192.0.2.1",
		"wireguardEndpoints": ["192.0.2.1:51820", "[2001:db8::1]:51820"], "zoneAwarenessId": "home",
		"privateIpv4": "172.16.0.1/32", "privateIpv6": "` + vectorIPv6 + `",
		"features": [{"feature": "NODES", "port": 8443}, {"feature": "LEADER_PROXY"}],
		"multiaddrs": ["/ip4/192.0.2.1/udp/51820"], "joinedAt": "2026-01-02T03:04:05.000000006Z",
		"services": [{"protocol": "tcp", "port": 80, "kind": "http"}]
	}`
	p := new(v1.MeshNode)
	if err := protojson.Unmarshal([]byte(want), p); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, mesh.NodeToProto(fullNode(t)), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestNodeFromProto_ToleratesV1Nodes(t *testing.T) {
	n, err := mesh.NodeFromProto(&v1.MeshNode{
		Id: "b", PrivateIpv4: "invalid Prefix", PrivateIpv6: "invalid Prefix", PrimaryEndpoint: "192.0.2.7:51820",
		Features: []*v1.FeaturePort{{Feature: 77, Port: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n.IPv4.IsValid() || n.IPv6.IsValid() || n.PrimaryEndpoint != "192.0.2.7" || !n.HasFeature(77) {
		t.Errorf("got %+v", n)
	}
}

func TestNodeFromProto_NamesTheBadField(t *testing.T) {
	cases := []struct {
		field  string
		change func(*v1.MeshNode)
	}{
		{"id", func(p *v1.MeshNode) { p.Id = "leader" }},
		{"public_key", func(p *v1.MeshNode) { p.PublicKey = vectorWGPublic }},
		{"primary_endpoint", func(p *v1.MeshNode) { p.PrimaryEndpoint = "not a host" }},
		{"zone_awareness_id", func(p *v1.MeshNode) { p.ZoneAwarenessId = "a\nb" }},
		{"wireguard_endpoints: [1]", func(p *v1.MeshNode) { p.WireguardEndpoints[1] = "192.0.2.1" }},
		{"wireguard_endpoints: [0]", func(p *v1.MeshNode) { p.WireguardEndpoints[0] = "192.0.2.1:0" }},
		{"wireguard_endpoints: [0]", func(p *v1.MeshNode) { p.WireguardEndpoints[0] = "[fe80::1%eth0]:1" }},
		{"private_ipv4", func(p *v1.MeshNode) { p.PrivateIpv4 = "172.16.0.1" }},
		{"private_ipv4", func(p *v1.MeshNode) { p.PrivateIpv4 = "172.16.0.0/12" }},
		{"private_ipv4", func(p *v1.MeshNode) { p.PrivateIpv4 = vectorIPv6 }},
		{"private_ipv6", func(p *v1.MeshNode) { p.PrivateIpv6 = "fd00::/32" }},
		{"private_ipv6", func(p *v1.MeshNode) { p.PrivateIpv6 = "::ffff:172.16.0.1/128" }},
		{"features: [0]", func(p *v1.MeshNode) { p.Features[0].Port = 65536 }},
		{"features: [0]", func(p *v1.MeshNode) { p.Features[0].Port = -1 }},
		{"services: [0]", func(p *v1.MeshNode) { p.Services[0].Protocol = "icmp" }},
		{"services: [0]", func(p *v1.MeshNode) { p.Services[0].Port = 0 }},
		{"services: [0]", func(p *v1.MeshNode) { p.Services[0].Port = 1 << 16 }},
		{"services: [0]", func(p *v1.MeshNode) { p.Services[0].Kind = "\x1b[2J" }},
		{"services: [0]", func(p *v1.MeshNode) { p.Services[0].Kind = strings.Repeat("x", 65) }},
		{"api_url", func(p *v1.MeshNode) { p.ApiUrl = "ftp://192.0.2.1" }},
		{"api_url", func(p *v1.MeshNode) { p.ApiUrl = "192.0.2.1:8443" }},
		{"api_url", func(p *v1.MeshNode) { p.ApiUrl = "https:///v1" }},
		{"api_url", func(p *v1.MeshNode) { p.ApiUrl = "https://admin:secret@192.0.2.1" }},
		{"api_url", func(p *v1.MeshNode) { p.ApiUrl = "https://192.0.2.1/\x7f" }},
		{"api_url", func(p *v1.MeshNode) { p.ApiUrl = "https://" + strings.Repeat("x", 505) }},
		{"api_pin", func(p *v1.MeshNode) { p.ApiPin = make([]byte, 31) }},
		{"joined_at", func(p *v1.MeshNode) { p.JoinedAt = &timestamppb.Timestamp{Nanos: -1} }},
	}
	for _, c := range cases {
		p := mesh.NodeToProto(fullNode(t))
		c.change(p)
		n, err := mesh.NodeFromProto(p)
		if !errors.Is(err, mesh.ErrInvalid) || !strings.HasPrefix(err.Error(), c.field+":") || n != nil {
			t.Errorf("%s: got %v, %v", c.field, n, err)
		}
	}
	if _, err := mesh.NodeFromProto(nil); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("nil message: %v", err)
	}
}

// A gateway behind a proxy, or on a trusted network, may serve without TLS.
func TestNodeFromProto_APIURL(t *testing.T) {
	for _, u := range []string{"", "https://gate.example.com", "https://[2001:db8::1]:8443", "http://192.0.2.1:8080", "https://" + strings.Repeat("x", 504)} {
		n, err := mesh.NodeFromProto(&v1.MeshNode{Id: "gw", ApiUrl: u})
		if err != nil || n.API.URL != u {
			t.Errorf("%q: %v", u, err)
		}
	}
	_, err := mesh.NodeFromProto(&v1.MeshNode{Id: "gw", ApiUrl: "ftp://192.0.2.1"})
	if err == nil || !strings.Contains(err.Error(), "not the https or http URL of an API, of at most 512 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestParsePrimaryEndpoint(t *testing.T) {
	cases := map[string]string{ // "!" = refused
		"":                       "",
		"192.0.2.1":              "192.0.2.1",
		"192.0.2.1:51820":        "192.0.2.1",
		"2001:db8::1":            "2001:db8::1",
		"[2001:db8::1]:51820":    "2001:db8::1",
		"::ffff:192.0.2.1":       "192.0.2.1",
		"gate.example.com":       "gate.example.com",
		"gate.example.com:51820": "gate.example.com",
		"gate.example.com.":      "gate.example.com.",
		"under_score":            "under_score",
		"localhost":              "localhost",
		"0.0.0.0":                "!",
		"::":                     "!",
		"224.0.0.1":              "!",
		"fe80::1%eth0":           "!",
		"192.0.2.256":            "!",
		"1.2.3":                  "!",
		":51820":                 "!",
		"a b":                    "!",
		"a..b":                   "!",
		"-a":                     "!",
		"host:99999":             "!",
		"http://host":            "!",
		strings.Repeat("a", 64):  "!",
	}
	for in, want := range cases {
		got, err := mesh.ParsePrimaryEndpoint(in)
		if want == "!" {
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Errorf("ParsePrimaryEndpoint(%q) = %q, %v, want ErrInvalid", in, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("ParsePrimaryEndpoint(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestEdgeFromProto_PutsEndsInOrder(t *testing.T) {
	p := &v1.MeshEdge{Source: "b", Target: "a", Weight: 7, Attributes: map[string]string{"EDGE_ATTRIBUTE_ICE": "true"}}
	e, err := mesh.EdgeFromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	want := mesh.Edge{Source: "a", Target: "b", Weight: 7, Attributes: map[string]string{"EDGE_ATTRIBUTE_ICE": "true"}}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
	p.Attributes["EDGE_ATTRIBUTE_ICE"] = "changed"
	if e.Attributes["EDGE_ATTRIBUTE_ICE"] != "true" {
		t.Error("the edge shares its attributes with the message")
	}
	back, err := mesh.EdgeFromProto(mesh.EdgeToProto(e))
	if err != nil || !cmp.Equal(e, back) {
		t.Errorf("round trip: %+v, %v", back, err)
	}
	for field, bad := range map[string]*v1.MeshEdge{
		"source": {Target: "a"}, "target": {Source: "a"}, "target: edge": {Source: "a", Target: "a"},
	} {
		if _, err := mesh.EdgeFromProto(bad); !errors.Is(err, mesh.ErrInvalid) || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// FuzzNodeFromProto holds the decoder to its word: what it accepts it writes
// back in a form that it reads as the same node.
func FuzzNodeFromProto(f *testing.F) {
	for _, n := range []*mesh.Node{fullNode(f), {ID: "b"}} {
		raw, err := proto.Marshal(mesh.NodeToProto(n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := new(v1.MeshNode)
		if proto.Unmarshal(raw, p) != nil {
			return
		}
		n, err := mesh.NodeFromProto(p)
		if err != nil {
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Fatalf("error %v does not wrap ErrInvalid", err)
			}
			return
		}
		again, err := mesh.NodeFromProto(mesh.NodeToProto(n))
		if err != nil {
			t.Fatalf("own message is refused: %v", err)
		}
		if diff := cmp.Diff(n, again, netipValues); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzParsePrimaryEndpoint(f *testing.F) {
	for _, seed := range []string{"", "192.0.2.1:1", "[::1]:1", "host.example:80", "::1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := mesh.ParsePrimaryEndpoint(s)
		if err != nil {
			return
		}
		if again, err := mesh.ParsePrimaryEndpoint(got); err != nil || again != got {
			t.Fatalf("%q reads as %q, which reads as %q, %v", s, got, again, err)
		}
	})
}
