// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/turn/client"
)

// devGateway opens a gateway for development that does not serve, with further
// flags as pairs of name and value.
func devGateway(t *testing.T, flags ...string) *gatewayProcess {
	t.Helper()
	p := openDev(t, flags...)
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// openDev opens one that the caller has to run or close.
func openDev(t *testing.T, flags ...string) *gatewayProcess {
	t.Helper()
	c := &upConfig{dev: true}
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(f)
	c.dev = true
	for pair := range slices.Chunk(append([]string{"listen", "127.0.0.1:0"}, flags...), 2) {
		if err := f.Set(pair[0], pair[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.load(f); err != nil {
		t.Fatal(err)
	}
	log, err := (&app{stderr: io.Discard}).newLogger("error", "text")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := newGatewayProcess(ctx, c, log)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A relay reaches the gateway's end of DataChannels, what signalling has named
// to its user, and nothing else.
func TestAllowPeer(t *testing.T) {
	p := devGateway(t)
	ice := p.icePort
	p.relayUsers.Candidate("alice", "friend", netip.MustParseAddrPort("8.8.8.8:4000"))
	p.relayUsers.Candidate("alice", "friend", netip.AddrPortFrom(netip.MustParseAddr("9.9.9.9"), 22))
	check := func(user, addr string, port uint16, want bool) {
		t.Helper()
		if got := p.allowPeer(user, netip.AddrPortFrom(netip.MustParseAddr(addr), port)); got != want {
			t.Errorf("%s to %s:%d: %t", user, addr, port, got)
		}
	}
	check("alice", "127.0.0.1", ice, true)
	check("alice", "127.0.0.1", ice+1, false)
	check("alice", "127.0.0.1", 0, false)
	check("alice", "8.8.8.8", 4000, true)
	check("alice", "8.8.8.8", 53, false)
	check("bob", "8.8.8.8", 4000, false)
	check("alice", "8.8.4.4", ice, false)
	check("alice", "9.9.9.9", 22, true)

	// The same on the Internet: loopback is not offered, and a candidate that
	// names this host opens nothing of it.
	p.cfg.dev, p.address, p.iceAddr = false, netip.MustParseAddr("9.9.9.9"), netip.IPv4Unspecified()
	check("alice", "127.0.0.1", ice, false)
	check("alice", "9.9.9.9", 22, false)
	check("alice", "9.9.9.9", ice, true)
	p.iceAddr = netip.MustParseAddr("9.9.9.8")
	check("alice", "9.9.9.8", ice, false) // no address of this host
	p.icePort = 0
	check("alice", "9.9.9.9", 0, false)
}

// Credentials are good as long as the right by which they were given.
func TestICEServers_FollowTheRight(t *testing.T) {
	p := devGateway(t)
	var lost error
	ctx := api.WithCaller(t.Context(), api.Caller{ID: "alice", Allowed: func() error { return lost }})
	if p.relayUsers.AllowUser("alice") {
		t.Error("nobody was given credentials yet")
	}
	for _, user := range []string{"alice", "absent-node"} {
		if servers := p.iceServers(ctx, user); len(servers) != 2 || servers[1].GetUsername() == "" {
			t.Fatalf("servers for %s: %v", user, servers)
		}
	}
	if !p.relayUsers.AllowUser("alice") || p.relayUsers.AllowUser("absent-node") {
		t.Error("alice has a right, and a node that is not in the mesh has none")
	}
	lost = fmt.Errorf("%w: no role", mesh.ErrDenied)
	if p.relayUsers.AllowUser("alice") {
		t.Error("alice has lost the right")
	}
	p.rightsChanged() // evicts nobody, and does not mind
}

// Who calls nodes gets credentials with one bound, and nodes with another; both follow the
// configuration file.
func TestICEServers_CarryABandwidth(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("turn.session-bytes-per-second: 1250000\n")
	p := devGateway(t, "config", file)
	s := &mesh.Snapshot{Nodes: mesh.NodesOf(&mesh.Node{ID: "laptop"})}
	for _, step := range []struct {
		file, username string
		node           int64
	}{
		{"turn.session-bytes-per-second: 1250000\n", "/1250000:alice", 0},
		{"turn:\n  session-bytes-per-second: 7\n  node-bytes-per-second: 9\n", "/7:alice", 9},
		{"turn.node-bytes-per-second: 9\n", ":alice", 9},
		{"turn.node-bytes-per-second: -9\n", ":alice", 9}, // it is wrong
	} {
		write(step.file)
		p.rereadConfig()
		username := p.iceServers(t.Context(), "alice")[1].GetUsername()
		if got := strings.TrimLeft(username, "0123456789"); got != step.username || p.turnRates.of(s, "laptop") != step.node {
			t.Errorf("after %q: alice is %q, and nodes have %d", step.file, got, p.turnRates.of(s, "laptop"))
		}
		if session := p.turnRates.of(s, "phone"); session != p.turnRates.of(nil, "laptop") {
			t.Errorf("after %q: who is no node has %d bytes a second", step.file, session)
		}
	}
}

func TestHostAddrs(t *testing.T) {
	var h hostAddrs
	for addr, want := range map[string]bool{"127.0.0.1": true, "::ffff:127.0.0.1": true, "192.0.2.77": false} {
		if h.has(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s: %t", addr, !want)
		}
	}
	h.last.Store(&hostAddrList{addrs: []netip.Addr{netip.MustParseAddr("192.0.2.77")}, read: time.Now().Add(-2 * hostAddrsAge)})
	if h.has(netip.MustParseAddr("192.0.2.77")) || !h.has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("an old list was not read again")
	}
}

func TestNetworks(t *testing.T) {
	got, err := networks("--x", []string{"192.0.2.1", "192.0.2.0/24", "2001:db8::1", "::ffff:192.0.2.9"})
	if want := "[192.0.2.1/32 192.0.2.0/24 2001:db8::1/128 192.0.2.9/32]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "x", "192.0.2.1/24", "::ffff:192.0.2.0/120", "fe80::1%eth0", "192.0.2.0/33"} {
		if _, err := networks("--x", []string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A relay ends with the right of its user at each gateway, also where another one
// gave the credential.
func TestRightsChanged_EndsRelaysThatOthersGaveCredentialsFor(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("what others mint with, too"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := devGateway(t, "turn.secret-file", secret)
	was := &mesh.Snapshot{Nodes: mesh.NodesOf(&mesh.Node{ID: "laptop"}, &mesh.Node{ID: "phone"})}
	p.departed.follow(was)
	for _, user := range []string{"laptop", "phone", "outsider"} {
		c := p.secrets.Mint(user, time.Minute)
		a, err := client.Allocate(t.Context(), client.Config{
			Server: "turn:" + p.turn.UDPAddrs()[0].String() + "?transport=udp", Username: c.Username, Password: c.Password,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
	}
	p.rightsChanged()
	if n := len(p.turn.Users()); n != 3 {
		t.Fatalf("%d users have relays", n)
	}
	p.departed.follow(&mesh.Snapshot{Nodes: was.Nodes.Without("laptop")})
	p.rightsChanged()
	deadline := time.Now().Add(time.Minute)
	for len(p.turn.Users()) != 2 && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if users := p.turn.Users(); len(users) != 2 || slices.Contains(users, "laptop") || p.relayStranger("laptop") {
		t.Errorf("%q have relays after laptop is gone", users)
	}
	p.departed.follow(was)
	if !p.relayStranger("laptop") {
		t.Error("who came back stays out")
	}
}
