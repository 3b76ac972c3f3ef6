// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/client"
)

// threeGateways are gateways that keep one state, and how another one joins them.
func threeGateways(t testing.TB) (gates []*clustered, join []string) {
	t.Helper()
	first := newClustered(t, 1)
	first.args = append(first.args, "--cluster.address", first.args[8])
	first.launch(t)
	first.await()
	gates = append(gates, first)
	url, pin := first.local(t)
	join = []string{"--cluster.join", url, "--cluster.pin", pin, "--cluster.token-file", filepath.Join(first.dir, "admin.token")}
	for n := 2; n <= 3; n++ {
		g := newClustered(t, n)
		g.launch(t, join...)
		g.await()
		gates = append(gates, g)
	}
	return gates, join
}

// client calls the gateway as the holder of token.
func (g *clustered) client(t testing.TB, token string) *peer.Public {
	t.Helper()
	url, pin := g.local(t)
	var opts peer.TLSOptions
	raw, err := hex.DecodeString(strings.TrimPrefix(pin, "sha256:"))
	if err != nil {
		t.Fatal(err)
	}
	copy(opts.Pin[:], raw)
	p, err := peer.NewPublic(url, token, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// echoes opens a peer connection to a node, as a page does, and has its echo
// service say a word. The two meet at an address of this host: of a gateway on
// loopback neither takes a relay.
func echoes(gate *peer.Public, node string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](gate.WebRTC().StartDataChannel(ctx))
	c, err := client.Dial(ctx, call, client.Options{Node: node})
	if err != nil {
		return err
	}
	defer c.Close()
	conn, err := c.DialContext(ctx, "tcp", "localhost:7")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello\n" {
		return fmt.Errorf("%q came back: %w", got, err)
	}
	return nil
}

// mintedBy asks a gateway for TURN credentials.
func mintedBy(t testing.TB, gate *peer.Public, node string) *v1.ICEServer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](gate.WebRTC().StartDataChannel(ctx))
	if err := call.Send(&v1.StartDataChannelRequest{NodeId: node, InBand: true}); err != nil {
		t.Fatal(err)
	}
	offer, err := call.Receive()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range offer.GetIceServers() {
		if s.GetUsername() != "" {
			return s
		}
	}
	t.Fatalf("the offer names no TURN server: %v", offer.GetIceServers())
	return nil
}

// A node outlives the gateway that it joined at: it goes to another one, is
// reached through any of them, hears of changes, and starts again without the
// first one and without a token.
func TestFailover_ANodeOutlivesItsGateway(t *testing.T) {
	gates, _ := threeGateways(t)
	url, pin := gates[0].local(t)
	dir := t.TempDir()
	args := []string{"join", url, "--pin", pin, "--id", "nas", "--data-dir", dir, "--wireguard.mode", "netstack",
		"--ice.listen", ":0", "--expose", "tcp:7=" + echoService(t)}
	token, err := gates[1].run("token", "create", "nas") // at another gateway than it is used
	if err != nil {
		t.Fatalf("%v: %s", err, token)
	}
	nas := start(t, append(args, "--token", strings.TrimSpace(token))...)
	var clients []*peer.Public
	for _, g := range gates {
		clients = append(clients, g.client(t, g.ready.Token))
	}
	relayed := mintedBy(t, clients[1], "gw2")
	if out, err := uclient(t, gates[2].process, relayed.GetUsername(), relayed.GetCredential(), "127.0.0.3:3480", "-y"); err != nil || !strings.Contains(out, "tot_recv_msgs=6") {
		t.Errorf("TURN credentials of gw2 at gw3: %v\n%s", err, out)
	}
	within := func(what string, gates ...*peer.Public) {
		t.Helper()
		began := time.Now()
		for _, gate := range gates {
			eventually(t, patience, func() (bool, string) {
				err := echoes(gate, "nas")
				return err == nil, fmt.Sprintf("%s by %s: %s", what, gate.URL(), errText(err))
			})
		}
		t.Logf("%s after %s", what, time.Since(began).Round(time.Millisecond))
	}
	within("reached through each gateway", clients...)

	gates[0].kill()
	within("reached again after its gateway was killed", clients[1:]...)

	nas.interrupt()
	nas = start(t, args...)
	within("reached again after it started without its first gateway", clients[2], clients[1])
	nas.kill()
	nas = start(t, args...)
	within("reached again after it was killed", clients[1:]...)

	// The key of a node outlives the token that it was joined with.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "token", "revoke", "nas", "--data-dir", gates[1].dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "node nas stays in the mesh") || !strings.Contains(string(out), "meshgate delete nodes nas") {
		t.Errorf("%v: %s", err, out)
	}

	// What another gateway removes, its own gateway tells it.
	if out, err := gates[1].run("delete", "nodes", "nas"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	select {
	case <-nas.done:
	case <-time.After(patience):
		t.Fatal("the node does not hear that it was removed")
	}
	if !strings.Contains(nas.log.String(), "--again") {
		t.Errorf("it says: %s", nas.log)
	}

	// A gateway that is told to end leaves no pause behind.
	gates[0].launch(t)
	gates[0].await()
	leader := lead(t, gates[1:])
	began := time.Now()
	leader.interrupt()
	for _, g := range others(gates, leader) {
		g.put(t, "after-"+leader.id+"-at-"+g.id)
	}
	t.Logf("changes were taken %s after the leader was told to end", time.Since(began).Round(time.Millisecond))
	if !strings.Contains(leader.log.String(), "another gateway leads now") {
		t.Errorf("the leader that ended says: %s", leader.log)
	}
}
