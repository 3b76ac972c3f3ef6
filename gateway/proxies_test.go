// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"connectrpc.com/connect"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func prefixes(list ...string) proxies {
	var out proxies
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestProxies_Client(t *testing.T) {
	trusted := prefixes("10.0.0.0/8", "fd00::/64")
	many := strings.TrimSuffix(strings.Repeat("10.0.0.9,", 3*maxHops), ",")
	for _, tt := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"no proxy", "192.0.2.1:5", nil, "192.0.2.1:5"},
		{"a stranger speaks for another", "192.0.2.1:5", []string{"198.51.100.7"}, "192.0.2.1:5"},
		{"a stranger speaks for a proxy", "192.0.2.1:5", []string{"10.0.0.1"}, "192.0.2.1:5"},
		{"a proxy for itself", "10.0.0.1:5", nil, "10.0.0.1:5"},
		{"a proxy", "10.0.0.1:5", []string{"198.51.100.7"}, "198.51.100.7:0"},
		{"a proxy over IPv6", "[fd00::1]:5", []string{"2001:db8::7"}, "[2001:db8::7]:0"},
		{"a proxy in mapped form", "[::ffff:10.0.0.1]:5", []string{"::ffff:198.51.100.7"}, "198.51.100.7:0"},
		{"two proxies", "10.0.0.1:5", []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7:0"},
		{"two headers", "10.0.0.1:5", []string{"203.0.113.1", "198.51.100.7"}, "198.51.100.7:0"},
		{"the client invents", "10.0.0.1:5", []string{"127.0.0.1, 10.0.0.3, 198.51.100.7"}, "198.51.100.7:0"},
		{"the client invents a proxy", "10.0.0.1:5", []string{"203.0.113.1,10.9.9.9,198.51.100.7,10.0.0.2"}, "198.51.100.7:0"},
		{"proxies only", "10.0.0.1:5", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3:0"},
		{"with a port", "10.0.0.1:5", []string{"198.51.100.7:4711"}, "198.51.100.7:0"},
		{"with brackets", "10.0.0.1:5", []string{"[2001:db8::7]"}, "[2001:db8::7]:0"},
		{"with brackets and a port", "10.0.0.1:5", []string{"[2001:db8::7]:4711"}, "[2001:db8::7]:0"},
		{"with a zone", "10.0.0.1:5", []string{"fe80::1%eth0"}, "[fe80::1]:0"},
		{"nonsense", "10.0.0.1:5", []string{"nonsense"}, "10.0.0.1:5"},
		{"nonsense before a proxy", "10.0.0.1:5", []string{"unknown, 10.0.0.2"}, "10.0.0.2:0"},
		{"empty", "10.0.0.1:5", []string{""}, "10.0.0.1:5"},
		{"commas", "10.0.0.1:5", []string{",,,"}, "10.0.0.1:5"},
		{"very many", "10.0.0.1:5", []string{"198.51.100.7," + many}, "10.0.0.9:0"},
	} {
		h := http.Header{"X-Forwarded-For": tt.forwarded}
		if got := trusted.client(netip.MustParseAddrPort(tt.peer), h); got.String() != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		if got := prefixes().client(netip.MustParseAddrPort(tt.peer), h); got.String() != tt.peer {
			t.Errorf("%s, with no proxies: %s", tt.name, got)
		}
	}
}

// FuzzProxies holds that an address comes out whatever goes in, and that it is
// never one that only the client has written.
func FuzzProxies(f *testing.F) {
	f.Add("198.51.100.7, 10.0.0.2", "203.0.113.1")
	f.Add(",", "[::1]:2")
	trusted := prefixes("10.0.0.0/8")
	f.Fuzz(func(t *testing.T, invented, last string) {
		h := http.Header{"X-Forwarded-For": {invented, last}}
		got := trusted.client(netip.MustParseAddrPort("10.0.0.1:5"), h)
		if !got.IsValid() || got.Addr().Zone() != "" {
			t.Errorf("got %s", got)
		}
		// What the proxy has appended decides, unless it is a proxy again.
		if a, err := netip.ParseAddr(last); err == nil && !trusted.trusts(a) && got.Addr() != a.Unmap().WithZone("") {
			t.Errorf("got %s, the proxy heard it from %s", got, a)
		}
		if other := trusted.client(netip.MustParseAddrPort("192.0.2.1:5"), h); other.String() != "192.0.2.1:5" {
			t.Errorf("a stranger became %s", other)
		}
	})
}

// Behind a trusted proxy, each client has its own tries; without trust, or on
// the mesh, the header counts for nothing.
func TestProxies_OverTheWire(t *testing.T) {
	passwords := testPasswords(t)
	s := serve(t, func(c *Config) {
		c.Access.Authenticators = append(c.Access.Authenticators, passwords)
		c.Access.TrustedProxies = prefixes("127.0.0.7/32")
		c.Limits.NetworkConnections = 2
	})
	guess := func(from, forwarded string, n int) connect.Code {
		c := withHeader(withHeader(httpClient(t, true, from, nil), headerUsername, fmt.Sprintf("user-%d", n)), headerPassword, "wrong")
		if forwarded != "" {
			c = withHeader(c, headerForwardedFor, forwarded)
		}
		_, err := v1connect.NewMeshClient(c, "http://"+s.public).GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
		return connect.CodeOf(err)
	}
	guesses := 0 // and connections, of which one network may hold two
	for code := connect.CodeUnauthenticated; code == connect.CodeUnauthenticated && guesses < 10*networkFailures; guesses++ {
		code = guess("127.0.0.7", "198.51.100.1", guesses)
	}
	if guesses <= networkFailures || guesses == 10*networkFailures {
		t.Errorf("%d guesses", guesses)
	}
	for _, tt := range []struct {
		from, forwarded string
		want            connect.Code
	}{
		{"127.0.0.7", "198.51.100.2", connect.CodeUnauthenticated},
		{"127.0.0.7", "198.51.100.1, 198.51.100.2", connect.CodeUnauthenticated},
		{"127.0.0.8", "198.51.100.1", connect.CodeUnauthenticated}, // no proxy
	} {
		if code := guess(tt.from, tt.forwarded, 1000); code != tt.want {
			t.Errorf("%s for %s: %s", tt.from, tt.forwarded, code)
		}
	}
	member := withHeader(httpClient(t, true, "127.0.0.2", nil), headerForwardedFor, "127.0.0.3")
	call := v1connect.NewNodeClient(member, "http://"+s.mesh, connect.WithGRPC()).NegotiateDataChannel(testContext(t))
	_ = call.Send(&v1.DataChannelNegotiation{}) // the answer counts
	if _, err := call.Receive(); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a member became a gateway by a header: %v", err)
	}
}

func TestConfig_TrustedProxies(t *testing.T) {
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("::ffff:10.0.0.0/104")} {
		_, err := New(Config{Node: newFakeNode(nil), Signaling: &fakeSignaling{}, Access: Access{TrustedProxies: proxies{p}}})
		if err == nil || !strings.Contains(err.Error(), "trusted proxies") {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// One member holds a few connections, and keeps nobody else out.
func TestMeshConnections_PerMember(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.MemberConnections = 3 })
	probe := func(from string) error {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+s.mesh+"/livez", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := httpClient(t, false, from, nil).Do(req) // a client, and so a connection, of its own
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body) // keeps the connection
		}
		return err
	}
	for range 3 {
		if err := probe("127.0.0.2"); err != nil {
			t.Fatal(err)
		}
	}
	if err := probe("127.0.0.2"); err == nil {
		t.Error("one connection too many")
	}
	for _, other := range []string{"127.0.0.3", "127.0.0.77"} { // another member, and nobody's address
		if err := probe(other); err != nil {
			t.Errorf("%s suffers: %v", other, err)
		}
	}
	if n := s.metric(t, "meshgate_gateway_connections_refused_total", listenerMesh); n < 1 {
		t.Errorf("counted %v", n)
	}
}

func TestMemberKey(t *testing.T) {
	g := &Gateway{cfg: Config{Node: newFakeNode(nil)}}
	for addr, want := range map[string]string{
		"172.16.0.9": "172.16.0.9", "::ffff:172.16.0.9": "172.16.0.9",
		"fd00:1:2:3::1:7": "fd00:1:2:3::1:0/112", "fd00:1:2:3::1:8": "fd00:1:2:3::1:0/112", "fd00:1:2:3::2:8": "fd00:1:2:3::2:0/112",
	} {
		if got := g.memberKey(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %s", addr, got)
		}
	}
	snap := testSnapshot()
	laptop := *snap.Node("laptop")
	laptop.IPv6 = netip.MustParsePrefix("fd00:1:2:3::1:0/112")
	snap.Nodes = snap.Nodes.With(&laptop)
	g.cfg.Node = newFakeNode(snap)
	for _, addr := range []string{"127.0.0.2", "fd00:1:2:3::1:7", "fd00:1:2:3::1:8"} { // whichever of its addresses it uses
		if got := g.memberKey(netip.MustParseAddr(addr)); got != "node laptop" {
			t.Errorf("%s: %s", addr, got)
		}
	}
	_ = g.memberKey(netip.Addr{}) // an unknown address is one member
}
