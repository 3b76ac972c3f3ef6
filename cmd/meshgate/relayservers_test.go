// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestTurnsURLs(t *testing.T) {
	for api, want := range map[string][]string{
		"https://gate.example.org":        {"turns:gate.example.org:443?transport=tcp"},
		"https://192.0.2.1:8443":          {"turns:192.0.2.1:8443?transport=tcp"},
		"https://[2001:db8::1]:8443/path": {"turns:[2001:db8::1]:8443?transport=tcp"},
		"http://192.0.2.1":                nil,
		"https://":                        nil,
		"":                                nil,
		"https://a b":                     nil,
	} {
		if got := turnsURLs(api); !slices.Equal(got, want) {
			t.Errorf("%q: %q", api, got)
		}
	}
}

// A relay opens the WireGuard ports of gateways to nodes: to nobody else, and no
// port of one that only says it is a gateway.
func TestTunnelPorts(t *testing.T) {
	gate := func(id mesh.NodeID, at string) *mesh.Node {
		return &mesh.Node{
			ID: id, PublicKey: mesh.PublicKey{id[0]}, PrimaryEndpoint: netip.MustParseAddrPort(at).Addr().String(),
			Features:           []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}},
			WireGuardEndpoints: []netip.AddrPort{netip.MustParseAddrPort(at)},
		}
	}
	role := mesh.Role{Name: "gateway", Rules: []mesh.Rule{{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT}}}}
	s := &mesh.Snapshot{
		Nodes: mesh.NodesOf(gate("gw", "192.0.2.1:51820"), gate("liar", "192.0.2.2:51820"), &mesh.Node{ID: "laptop"}),
		Roles: []mesh.Role{role},
		Bindings: []mesh.RoleBinding{{Name: "gateway", Role: "gateway", Subjects: []mesh.Subject{
			{Type: v1.SubjectType_SUBJECT_USER, Name: "gw"},
		}}},
	}
	var ports tunnelPorts
	for _, c := range []struct {
		user, at string
		want     bool
	}{
		{"laptop", "192.0.2.1:51820", true},
		{"laptop", "[::ffff:192.0.2.1]:51820", true},
		{"laptop", "192.0.2.1:51821", false},
		{"laptop", "192.0.2.2:51820", false},
		{"alice", "192.0.2.1:51820", false},
		{"", "192.0.2.1:51820", false},
	} {
		if got := ports.opens(s, c.user, netip.MustParseAddrPort(c.at)); got != c.want {
			t.Errorf("%s to %s: %t", c.user, c.at, got)
		}
	}
	after := *s
	after.Bindings = nil
	if ports.opens(&after, "laptop", netip.MustParseAddrPort("192.0.2.1:51820")) {
		t.Error("a gateway that lost its role is open still")
	}
	if ports.opens(nil, "laptop", netip.MustParseAddrPort("192.0.2.1:51820")) {
		t.Error("open without a mesh")
	}
}

func TestRelayServers_NameThoseOfTheGateway(t *testing.T) {
	p := devGateway(t)
	list := p.relayServers(t.Context(), "laptop")
	if len(list) != 2 || list[1].GetUsername() == "" || len(list[1].GetUrls()) != 2 || !list[1].GetExpiresAt().IsValid() {
		t.Errorf("got %v", list)
	}
	p.turn, list = nil, nil
	if list = p.relayServers(t.Context(), "laptop"); list != nil {
		t.Errorf("without TURN: %v", list)
	}
}

func TestHandedOver(t *testing.T) {
	l := newHandedOver(&net.TCPAddr{})
	near, far := net.Pipe()
	defer near.Close()
	go l.hand(far)
	c, err := l.Accept()
	if err != nil || c != far {
		t.Fatalf("%v, %v", c, err)
	}
	_ = c.Close()
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	near, far = net.Pipe()
	l.hand(far)
	if _, err := near.Write([]byte{1}); err == nil {
		t.Error("a connection that nobody takes stays open")
	}
}

// The port of the API takes TURN over TLS, and nodes and users are told so.
func TestRelayServers_ThePortOfTheAPITakesTURN(t *testing.T) {
	c := &upConfig{}
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(f)
	for name, value := range map[string]string{
		"listen": "127.0.0.1:0", "turn.listen": "127.0.0.1:0", "ice.listen": "127.0.0.1:0", "public-address": "127.0.0.1",
		"data-dir": t.TempDir(), "wireguard.mode": "netstack", "wireguard.listen-port": "0",
	} {
		if err := f.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.load(f); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := newGatewayProcess(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- p.run(ctx, func() error { close(ready); return nil }) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal("the gateway does not serve")
	}
	at := p.public.Addr().String()
	servers := p.relayServers(ctx, "laptop")
	want := "turns:" + at + "?transport=tcp"
	if len(servers) != 2 || !slices.Contains(servers[1].GetUrls(), want) {
		t.Errorf("%v, want %s among them", servers, want)
	}
	for caller, told := range map[string]bool{"alice": true, string(p.node.Self()): false} {
		servers := p.sessionServers(ctx, caller)
		if len(servers) != 2 || slices.Contains(servers[1].GetUrls(), want) != told {
			t.Errorf("a session of %s: %v, want %s among them: %t", caller, servers, want, told)
		}
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"stun.turn"}}}).DialContext(ctx, "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	// A Binding request (RFC 8489 section 5) with a transaction id and nothing else.
	request := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, "transaction!"...)
	if _, err := conn.Write(request); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 20)
	if _, err := io.ReadFull(conn, answer); err != nil || answer[0] != 1 || answer[1] != 1 || string(answer[8:]) != "transaction!" {
		t.Errorf("answered %x, %v", answer, err)
	}
}
