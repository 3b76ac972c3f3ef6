// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// The ports from which freePort takes its own. The host gives them to nobody who
// does not ask for them, so that they stay free until a process is started with
// one, and while it is down. internal/chaos runs beside these tests and has the
// ones behind them.
const firstPort, lastPort = 20000, 25999

// freePorts counts the ports that freePort has tried.
var freePorts atomic.Int64

// freePort is a TCP and UDP port that nobody uses now, another one each time.
func freePort(t testing.TB) string {
	t.Helper()
	for range lastPort - firstPort + 1 {
		n := int64(os.Getpid()) + freePorts.Add(1)
		port := strconv.FormatInt(firstPort+n%(lastPort-firstPort+1), 10)
		if portIsFree(port) {
			return port
		}
	}
	t.Fatalf("no port from %d to %d is free", firstPort, lastPort)
	return ""
}

func portIsFree(port string) bool {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return false
	}
	defer l.Close()
	c, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// mesh is what must survive: every node with key and addresses.
func mesh(t testing.TB, p *process) map[string]*v1.MeshNode {
	t.Helper()
	conn, ctx := grpcConn(t, p)
	list := &v1.NodeList{}
	if err := conn.Invoke(ctx, "/v1.Mesh/ListNodes", &emptypb.Empty{}, list); err != nil {
		t.Fatal(err)
	}
	out := map[string]*v1.MeshNode{}
	for _, n := range list.GetNodes() {
		out[n.GetId()] = n
	}
	return out
}

func TestRestart_AfterKillKeepsEverythingAndNodesReconnect(t *testing.T) {
	dir := t.TempDir()
	api, wireguard := freePort(t), freePort(t)
	up := []string{"up", "--data-dir", filepath.Join(dir, "gateway"), "--id", "gate",
		"--public-address", "127.0.0.1", "--listen", "127.0.0.1:" + api, "--tls.off",
		"--wireguard.mode", "netstack", "--wireguard.listen-port", wireguard, "--metrics.listen", "127.0.0.1:0",
		"--ice.listen", "127.0.0.1:0", "--turn.listen", "127.0.0.1:0", "--mesh.default-network-policy", "accept"}
	gate := start(t, up...)
	gate.tool("peer", "create", "phone")
	join := []string{"join", gate.ready.URL, "--token", gate.ready.Token, "--id", "nas",
		"--data-dir", filepath.Join(dir, "nas"), "--wireguard.mode", "netstack", "--ice.listen", "127.0.0.1:0"}
	nas := start(t, join...)
	before := mesh(t, gate)
	if len(before) != 3 {
		t.Fatalf("nodes before: %v", before)
	}

	gate.kill()
	gate = start(t, up...)
	restarted := time.Now()
	after := mesh(t, gate)
	for id, want := range before {
		// A start may refresh when a node was last heard, never who it is.
		if got := after[id]; !proto.Equal(got, want) {
			t.Errorf("node %s changed:\n before %v\n after  %v", id, want, got)
		}
	}
	if len(after) != len(before) {
		t.Errorf("nodes after: %v", after)
	}
	eventually(t, patience, func() (bool, string) {
		out, err := gate.try("status", "nas")
		return err == nil && strings.Contains(out, "nas"), out + errText(err)
	})
	t.Logf("the node was reached %s after the gateway was back", time.Since(restarted).Round(time.Millisecond))

	// The node itself restarts without its token.
	nas.kill()
	for i, arg := range join {
		if arg == "--token" {
			join[i+1] = "spent-spent-spent-spent-spent"
		}
	}
	began := time.Now()
	again := start(t, join...)
	t.Logf("the node was back after %s", time.Since(began).Round(time.Millisecond))
	if got, want := again.ready.node(t, "nas"), nas.ready.node(t, "nas"); got != want {
		t.Errorf("the node has the address %s, before %s", got, want)
	}
	eventually(t, patience, func() (bool, string) {
		out, err := gate.try("status", "nas")
		return err == nil, out + errText(err)
	})
}

func TestDataDir_SecretsAreTheOwners(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gateway")
	start(t, "up", "--data-dir", dir, "--id", "gate", "--public-address", "127.0.0.1", "--listen", "127.0.0.1:0",
		"--wireguard.mode", "netstack", "--wireguard.listen-port", "0", "--metrics.listen", "127.0.0.1:0",
		"--ice.listen", "127.0.0.1:0", "--turn.listen", "127.0.0.1:0")
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 && strings.Contains(path, dir) {
			if name := d.Name(); strings.HasSuffix(name, ".key") || strings.HasSuffix(name, "key.pem") ||
				name == "local.json" || name == "admin.token" || path == dir {
				t.Errorf("%s has mode %o", path, mode)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// What a node is started with is what the mesh knows of it, and a node that an
// admin removed stays out until somebody says otherwise.
func TestJoin_ChangedFlagsCountAndRemovalHolds(t *testing.T) {
	gate := dev(t)
	dir := t.TempDir()
	base := []string{"join", gate.ready.URL, "--token", gate.ready.Token, "--id", "nas", "--data-dir", dir,
		"--wireguard.mode", "netstack", "--ice.listen", "127.0.0.1:0"}
	nas := start(t, append(base, "--expose", "tcp:80=127.0.0.1:1", "--routes", "198.18.5.0/24")...)
	nas.interrupt()
	nas = start(t, append(base, "--expose", "tcp:81=127.0.0.1:1", "--zone", "z1")...)
	eventually(t, patience, func() (bool, string) {
		n := mesh(t, gate)["nas"]
		s := n.GetServices()
		return n.GetZoneAwarenessId() == "z1" && len(s) == 1 && s[0].GetPort() == 81, n.String()
	})
	if out := gate.tool("status", "nas"); !strings.Contains(out, "nas") {
		t.Errorf("status: %s", out)
	}

	gate.tool("peer", "delete", "nas")
	select {
	case <-nas.done:
	case <-time.After(patience):
		t.Fatal("a removed node goes on")
	}
	if !strings.Contains(nas.log.String(), "--again") {
		t.Errorf("a removed node says: %s", nas.log)
	}
	if _, ok := mesh(t, gate)["nas"]; ok {
		t.Error("the node let itself in again")
	}
	again := start(t, append(base, "--again")...)
	if again.ready.node(t, "nas") == "" {
		t.Error("it does not join when told to")
	}
}

// A state that is gone is missed: a new mesh in its place would have no node.
func TestRestart_WithoutItsStateIsRefused(t *testing.T) {
	dir := t.TempDir()
	up := []string{"up", "--data-dir", dir, "--id", "gate", "--public-address", "127.0.0.1", "--listen", "127.0.0.1:0",
		"--wireguard.mode", "netstack", "--wireguard.listen-port", "0", "--metrics.listen", "127.0.0.1:0",
		"--ice.listen", "127.0.0.1:0", "--turn.listen", "127.0.0.1:0", "--tls.off"}
	start(t, up...).interrupt()
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, up...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "state of the mesh fd") || !strings.Contains(string(out), "backup") {
		t.Errorf("start without the state: %v, %s", err, out)
	}
	// Who wants a new mesh says so.
	if err := os.Remove(filepath.Join(dir, "mesh")); err != nil {
		t.Fatal(err)
	}
	// Flags that only count when a mesh is made lock nobody out later.
	start(t, up...).interrupt()
	gate := start(t, append(up, "--mesh.admin", "bob")...)
	if _, err := gate.try("status"); err != nil {
		t.Errorf("the admin after --mesh.admin was changed: %v", err)
	}
	if !strings.Contains(gate.log.String(), "--mesh.admin") {
		t.Errorf("nobody is told that the flag has no effect: %s", gate.log)
	}
}
