// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pion/stun"
)

// requirement is one row of the table: what an RFC wants of a server, what a client
// does to see it, and all of what it must get.
type requirement struct {
	section string // of the RFC: "8656-7.2"
	name    string // what is sent
	over    string // for which clients: "" all, "stream" TCP and TLS, "native" not of the portable engine, else how their way begins
	at      string // of the servers; "" is the one that offers everything
	do      func(*party) string
	want    string // as party.render writes it: what is not named must not be there
}

// table is what RFC 8489, RFC 8656, RFC 6062 and RFC 5780 want of a server, as far as it is
// seen from outside and needs no waiting. What the clock decides is in the table of package core,
// and what ends a silent connection in the tests of package stream.
func table() []requirement {
	return slices.Concat(messageRows(), credentialRows(), ownerRows(), refreshRows(), permissionRows(), policyRows(),
		channelRows(), tcpRows(), alternateRows(), socketRows())
}

// socketRows are those of the table that the sockets of the server have a part in.
func socketRows() []requirement {
	return slices.Concat(allocateRows(), reservationRows(), sendRows(), dataRows(), frameRows(), discoveryRows())
}

// concerns says whether the requirement is one of clients that come in by way.
func (r requirement) concerns(engine, way string) bool {
	switch r.over {
	case "stream":
		return !strings.HasPrefix(way, "udp")
	case "native":
		return engine == ""
	default:
		return strings.HasPrefix(way, r.over)
	}
}

// Every requirement holds over each transport and family of clients. The portable
// engine has other sockets of UDP, and is asked again for what they have a part in.
func TestConformance(t *testing.T) {
	rows, names := table(), map[string]bool{}
	for _, r := range rows {
		name := strings.Join([]string{r.section, r.name, r.over, r.at}, " ")
		if names[name] {
			t.Errorf("%s is there twice", name)
		}
		names[name] = true
	}
	for engine, rows := range map[string][]requirement{"": rows, "portable ": socketRows()} {
		servers := startServers(t, engine != "")
		said := servers[""].lines.Load()
		for _, way := range []string{"udp4", "udp6", "tcp4", "tcp6", "tls4", "tls6"} {
			if engine != "" && !strings.HasPrefix(way, "udp") {
				continue
			}
			t.Run(engine+way, func(t *testing.T) {
				for i, r := range rows {
					if r.concerns(engine, way) {
						t.Run(r.section+" "+r.name, func(t *testing.T) {
							c := servers[r.at].party(t, way, fmt.Sprintf("row-%d-%s", i, way))
							if got := r.do(c); got != r.want {
								t.Errorf("got  %s\nwant %s", got, r.want)
							}
						})
					}
				}
			})
		}
		if n := servers[""].lines.Load() - said; n != 0 {
			t.Errorf("%s%d lines were logged of clients, want the ends of relays alone", engine, n)
		}
	}
}

// public6 is where relays of IPv6 are, behind a one-to-one NAT: loopback itself is nobody's peer.
var public6 = netip.MustParseAddr("2a00:77::1")

// Names of servers of the table.
const (
	atIPv4   = "relays of IPv4 and UDP alone"
	atIPv6   = "relays of IPv6 alone"
	atFew    = "one allocation for each user, two in all"
	atDrain  = "draining"
	atCorner = "four corners of RFC 5780"
)

// alternates are the servers that the one which drains sends its clients to.
func alternates() map[string]Alternate {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	return map[string]Alternate{
		"udp4": {Addr: at("192.0.2.1:3478")}, "udp6": {Addr: at("[2001:db8::1]:3478")},
		"tcp4": {Addr: at("192.0.2.2:3478"), Stream: true}, "tcp6": {Addr: at("[2001:db8::2]:3478"), Stream: true},
		"tls4": {Addr: at("192.0.2.3:443"), Stream: true, Secure: true, Domain: "b.test"},
		"tls6": {Addr: at("[2001:db8::3]:443"), Stream: true, Secure: true, Domain: "b.test"},
	}
}

// startServers starts the servers of the table.
func startServers(t *testing.T, portable bool) map[string]*tableServer {
	t.Helper()
	six := func(c *Config) { c.Relay.Public6, c.Relay.Bind6 = public6, netip.IPv6Loopback() }
	servers := map[string]*tableServer{}
	for name, change := range map[string]func(*Config){
		"": func(c *Config) {
			six(c)
			c.TCPRelays = true
			c.AllowPeer = func(_ string, p netip.AddrPort) bool { return p.Addr() == peerHost || p.Addr() == secondHost }
		},
		atIPv4:   nil,
		atIPv6:   func(c *Config) { c.Relay = Relay{Public: public6, Bind: netip.IPv6Loopback()} },
		atFew:    func(c *Config) { c.Limits.RelaysPerUser, c.Limits.Relays = 1, 2 },
		atDrain:  six,
		atCorner: func(c *Config) { c.UDP = append(c.UDP, corners(t)...) },
	} {
		servers[name] = newServerEverywhere(t, func(c *Config) {
			if c.Portable = portable; change != nil {
				change(c)
			}
		})
	}
	var list []Alternate
	for _, a := range alternates() {
		list = append(list, a)
	}
	servers[atDrain].Drain(list)
	return servers
}

// tableServer is a server that clients reach over each transport and family.
type tableServer struct {
	*testServer
	ways   map[string]func(testing.TB, Credential) *rawClient
	lines  *atomic.Int64 // that were logged, but of relays that ended
	buffer []byte        // of the row at hand
}

func newServerEverywhere(t *testing.T, change func(*Config)) *tableServer {
	t.Helper()
	cert := selfSigned(t)
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	// Handshakes are most of the work of a row.
	client := &tls.Config{RootCAs: roots, ServerName: "turn.test", CurvePreferences: []tls.CurveID{tls.X25519}, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	e := &tableServer{ways: map[string]func(testing.TB, Credential) *rawClient{}, lines: new(atomic.Int64), buffer: make([]byte, 1<<16)}
	e.testServer = newServer(t, func(c *Config) {
		six := netip.AddrPortFrom(netip.IPv6Loopback(), 0)
		c.UDP, c.TCP = append(c.UDP, six), append(c.TCP, six)
		c.Limits.PermissionsPerAllocation, c.Limits.ChannelsPerAllocation = 16, 16
		c.Logger = slog.New(slog.NewTextHandler(countLines{e.lines}, nil))
		for family, at := range map[string]netip.AddrPort{"4": c.UDP[0], "6": six} {
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			c.SecureListeners = append(c.SecureListeners, tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}))
			e.ways["tls"+family] = func(t testing.TB, cred Credential) *rawClient {
				t.Helper()
				conn, err := tls.Dial("tcp", l.Addr().String(), client)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				return &rawClient{TB: t, Conn: conn, cred: cred}
			}
		}
		change(c)
	})
	for i, family := range []string{"4", "6"} {
		at := e.UDPAddrs()[i].String()
		for _, network := range []string{"udp", "tcp"} {
			e.ways[network+family] = func(t testing.TB, cred Credential) *rawClient { return dial(t, network, at, cred) }
		}
	}
	return e
}

// countLines counts the lines of a log but for those that every relay leaves behind.
type countLines struct{ n *atomic.Int64 }

func (c countLines) Write(b []byte) (int, error) {
	if !bytes.Contains(b, []byte("relay ended")) {
		c.n.Add(1)
	}
	return len(b), nil
}

// fresh asks one thing of a client without an allocation, held of one that has one.
func fresh(method stun.Method, attrs ...stun.Setter) func(*party) string {
	return func(c *party) string { return c.ask(method, attrs...) }
}

func held(method stun.Method, attrs ...stun.Setter) func(*party) string {
	return func(c *party) string { c.hold(); return c.ask(method, attrs...) }
}

// both is what is seen one after the other.
func both(parts ...string) string { return strings.Join(parts, "; ") }
