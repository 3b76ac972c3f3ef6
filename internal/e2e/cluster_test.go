// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clustered is a gateway of several, over its starts.
type clustered struct {
	*process
	id, dir string
	args    []string
}

// newClustered is a gateway on an address of its own that was not started yet.
func newClustered(t testing.TB, n int, extra ...string) *clustered {
	t.Helper()
	host := fmt.Sprintf("127.0.0.%d", n)
	g := &clustered{id: fmt.Sprintf("gw%d", n), dir: filepath.Join(t.TempDir(), "gateway")}
	g.args = append([]string{"up", "--data-dir", g.dir, "--id", g.id, "--public-address", host,
		"--listen", host + ":" + freePort(t), "--metrics.listen", "127.0.0.1:0",
		"--wireguard.mode", "netstack", "--wireguard.listen-port", freePort(t),
		"--ice.listen", host + ":0", "--turn.listen", host + ":0", "--mesh.default-network-policy", "accept"}, extra...)
	return g
}

func (g *clustered) launch(t testing.TB, extra ...string) {
	t.Helper()
	g.process = launch(t, nil, append(append([]string{}, g.args...), extra...)...)
}

// run runs a command on the gateway's own host.
func (g *clustered) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(args, "--data-dir", g.dir)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), nil
}

// put writes a group at this gateway.
func (g *clustered) put(t testing.TB, name string) {
	t.Helper()
	if _, err := g.run("put", "groups", name, "--user", "alice"); err != nil {
		t.Fatalf("put %s at %s: %v", name, g.id, err)
	}
}

// shows fails unless each gateway has each group, as seen by a linearizable read.
func shows(t testing.TB, gates []*clustered, groups ...string) {
	t.Helper()
	for _, g := range gates {
		out, err := g.run("get", "groups")
		for _, name := range groups {
			if err != nil || !strings.Contains(out, name) {
				t.Errorf("%s does not show %s: %v\n%s", g.id, name, err, out)
			}
		}
	}
}

// seats asks a gateway for its own part and who leads.
func (g *clustered) seats() (part, leader string, err error) {
	out, err := g.run("status", g.id, "--output", "json")
	var s struct{ ClusterStatus, CurrentLeader string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s.ClusterStatus, s.CurrentLeader, err
}

// lead returns who leads, once a gateway knows.
func lead(t testing.TB, gates []*clustered) (leader *clustered) {
	t.Helper()
	eventually(t, patience, func() (bool, string) {
		var state string
		for _, asked := range gates {
			_, id, err := asked.seats()
			state += fmt.Sprintf("%s says %q leads (%s); ", asked.id, id, errText(err))
			for _, g := range gates {
				if g.id == id {
					leader = g
				}
			}
		}
		return leader != nil, state
	})
	return leader
}

func others(gates []*clustered, but *clustered) []*clustered {
	var list []*clustered
	for _, g := range gates {
		if g != but {
			list = append(list, g)
		}
	}
	return list
}

// pinFile reads what a gateway left for the commands of its host.
func (g *clustered) local(t testing.TB) (url, pin string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, "local.json"))
	if err != nil {
		t.Fatal(err)
	}
	var l struct{ URL, Pin string }
	if err := json.Unmarshal(raw, &l); err != nil {
		t.Fatal(err)
	}
	return l.URL, l.Pin
}

// Three gateways keep one state: a change made at any of them is seen at all,
// it survives the leader, and all of them, being killed; and a gateway that lost
// its state gets it from the others.
func TestCluster_ThreeGatewaysKeepOneState(t *testing.T) {
	began := time.Now()
	gates, join := threeGateways(t)
	first := gates[0]
	t.Logf("three gateways after %s", time.Since(began).Round(time.Millisecond))
	var leader *clustered
	eventually(t, patience, func() (agreed bool, state string) { // on a busy machine it may be another one soon
		leader, agreed = lead(t, gates), true
		for _, g := range gates {
			part, id, err := g.seats()
			want := map[bool]string{true: "CLUSTER_LEADER", false: "CLUSTER_VOTER"}[g == leader]
			agreed = agreed && part == want && id == leader.id && err == nil
			state += fmt.Sprintf("%s is %s, with %s for the leader: %v; ", g.id, part, id, err)
		}
		return agreed, state
	})
	others(gates, leader)[0].put(t, "by-a-follower")
	leader.put(t, "by-the-leader")
	shows(t, gates, "by-a-follower", "by-the-leader")
	if out, err := gates[2].run("get", "groups", "voters", "--output", "json"); err != nil || !strings.Contains(out, "gw2") || !strings.Contains(out, "gw3") {
		t.Errorf("the group of the gateways: %v %s", err, out)
	}

	leader.kill()
	killed, left := time.Now(), others(gates, leader)
	eventually(t, patience, func() (bool, string) {
		_, err := left[0].run("put", "groups", "without-the-leader", "--user", "alice")
		return err == nil, errText(err)
	})
	t.Logf("changes were taken again %s after the leader was killed", time.Since(killed).Round(time.Millisecond))
	shows(t, left, "by-a-follower", "by-the-leader", "without-the-leader")
	leader.launch(t) // it needs neither token nor gateway to come back
	leader.await()
	shows(t, gates, "without-the-leader")

	for _, g := range gates {
		g.kill()
	}
	cold := time.Now()
	for _, g := range gates {
		g.launch(t)
	}
	for _, g := range gates {
		g.await()
	}
	t.Logf("all three were back %s after a cold start", time.Since(cold).Round(time.Millisecond))
	shows(t, gates, "by-a-follower", "by-the-leader", "without-the-leader")
	gates[1].put(t, "after-the-cold-start")
	shows(t, gates, "after-the-cold-start")

	// What follows needs nothing of the mesh itself: its ACLs let nobody through.
	if out, err := gates[1].run("put", "networkacls", "lockdown", "--priority", "100", "--src-node", "*", "--dst-node", "*", "--deny"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	watcher := newClustered(t, 4)
	watcher.launch(t, append([]string{"--cluster.role", "observer"}, join...)...)
	watcher.await()
	if part, _, err := watcher.seats(); part != "CLUSTER_OBSERVER" {
		t.Errorf("a gateway without a vote is %s: %v", part, err)
	}
	watcher.put(t, "by-an-observer")
	shows(t, append(gates, watcher), "by-an-observer", "by-a-follower")

	lost := others(gates, lead(t, gates))[0]
	lost.kill()
	if err := os.RemoveAll(filepath.Join(lost.dir, "state")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, lost.args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--cluster.join") && lost != first {
		t.Errorf("start without the state: %v\n%s", err, out)
	}
	if lost == first {
		url, pin := gates[1].local(t)
		join = []string{"--cluster.join", url, "--cluster.pin", pin, "--cluster.token-file", filepath.Join(gates[1].dir, "admin.token")}
	}
	lost.launch(t, join...)
	lost.await()
	shows(t, gates, "by-a-follower", "after-the-cold-start")
	if part, _, err := lost.seats(); part != "CLUSTER_VOTER" {
		t.Errorf("the gateway that lost its state is %s: %v", part, err)
	}
}
