// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/child"
	"github.com/meshgate/meshgate/internal/netlab"
)

// mixedWithin is how long one may need to reach another: the first packets go by
// way of the gateway, where they begin with a handshake.
const mixedWithin = 10 * time.Second

// mixedNever is how long two are given that policy keeps apart.
const mixedNever = time.Second

// member is somebody in a mesh, who pings others.
type member struct {
	id   string
	addr netip.Addr
	ping func(to netip.Addr, within time.Duration) error
}

// Two stock WireGuard peers, a peer that knows v1's ICE alone, a page, and nodes
// behind two kinds of NAT share one mesh: each reaches each that policy grants,
// our nodes directly, all others by way of the gateway.
func TestMixed_EachReachesEach(t *testing.T) {
	m := newLabMesh(t)
	m.manage(t, "put", "networkacls", "apart-1", "--priority", "10", "--src-node", "stock-2", "--dst-node", "node-2", "--deny")
	m.manage(t, "put", "networkacls", "apart-2", "--priority", "10", "--src-node", "node-2", "--dst-node", "stock-2", "--deny")
	apart := map[string]string{"stock-2": "node-2", "node-2": "stock-2"}

	implementation := wireguardGo(t)
	all := []member{{"gate", m.gate.addr, m.gate.ping}}
	var nodes []*labNode
	for i, kind := range []netlab.Kind{netlab.PortRestricted, netlab.CGNAT} {
		id := fmt.Sprintf("node-%d", i+1)
		n := m.joinEcho(t, id, m.lab.Side(id, kind))
		nodes, all = append(nodes, n), append(all, member{id, n.addr, n.ping})
	}
	for i, kind := range []netlab.Kind{netlab.FullCone, netlab.Symmetric} {
		id := fmt.Sprintf("stock-%d", i+1)
		n := m.stock(t, id, m.lab.Side(id, kind), implementation)
		all = append(all, member{id, n.addr, n.ping})
	}
	ice := m.guest(t, m.lab.Side("ice", netlab.PortRestricted), guestConfig{Kind: guestICE, ID: "ice"})
	all = append(all, member{"ice", netip.MustParseAddr(ice.ready.Addr), func(to netip.Addr, within time.Duration) error {
		return ice.reaches(to.String(), within)
	}})
	page := m.guest(t, m.lab.Side("page", netlab.Symmetric), guestConfig{Kind: guestPage})
	everybodyReaches(t, all, apart)
	for _, to := range all[1:] {
		if err := page.reaches(to.id, patience); err != nil {
			t.Errorf("the page to %s: %v", to.id, err)
		}
	}
	for _, n := range nodes {
		eventually(t, patience, func() (bool, string) {
			got := n.metrics(t)
			ways := fmt.Sprintf("%v direct, %v by relay, %v by the gateway", got[`meshgate_pair_pairs{way="direct"}`],
				got[`meshgate_pair_pairs{way="relay"}`], got[`meshgate_pair_pairs{way="gateway"}`])
			return ways == "1 direct, 0 by relay, 0 by the gateway", n.id + " has pairs: " + ways
		})
	}
	if n := m.gate.metrics(t)["meshgate_wg_forwarded_packets_total"]; n == 0 {
		t.Error("the gateway has forwarded nothing")
	}
}

// everybodyReaches has all ping all others, but those that policy holds apart,
// who must not reach each other.
func everybodyReaches(t *testing.T, all []member, apart map[string]string) {
	t.Helper()
	var g sync.WaitGroup
	for _, from := range all {
		g.Go(func() {
			for _, to := range all {
				switch {
				case to.id == from.id:
				case apart[from.id] == to.id:
					if err := from.ping(to.addr, mixedNever); err == nil || err.Error() != errNoEcho.Error() {
						t.Errorf("%s to %s, which policy does not grant: %v, want %v", from.id, to.id, err, errNoEcho)
					}
				default:
					if err := from.ping(to.addr, mixedWithin); err != nil {
						t.Errorf("%s to %s: %v", from.id, to.id, err)
					}
				}
			}
		})
	}
	g.Wait()
}

// manage runs a command of an administrator on the host of the gateway.
func (m *labMesh) manage(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := m.gate.side.Exec(ctx, append([]string{program}, args...)...)
	cmd.Env = append(os.Environ(), "MESHGATE_SERVER="+m.url(), "MESHGATE_PIN="+m.joining[1], "MESHGATE_TOKEN_FILE="+m.joining[3])
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("meshgate %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// url is that of the gateway.
func (m *labMesh) url() string {
	return "https://" + net.JoinHostPort(m.gate.side.Addr4().String(), "443")
}

// joinEcho runs a node on a side, which exposes an echo service.
func (m *labMesh) joinEcho(t testing.TB, id string, side *netlab.Side) *labNode {
	n := &labNode{id: id, side: side, kind: side.Kind()}
	at := listenEcho(t, side, "127.0.0.1:0")
	n.process = n.run(t, append([]string{"join", m.url(), "--data-dir", t.TempDir(), "--metrics.listen", "127.0.0.1:9090",
		"--expose", fmt.Sprintf("tcp:%d=%s", portEcho, at)}, m.joining...)...)
	n.found(t)
	return n
}

// listenEcho serves echoes on a side.
func listenEcho(t testing.TB, side *netlab.Side, address string) net.Addr {
	var l net.Listener
	err := side.Run(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go echo(l)
	return l.Addr()
}

// stock lets a peer into the mesh and brings it up on a side, as a user does with
// WireGuard's own tools.
func (m *labMesh) stock(t testing.TB, id string, side *netlab.Side, implementation string) *labNode {
	n := &labNode{id: id, side: side, kind: side.Kind()}
	var made struct {
		Addresses []string
		Config    string
	}
	if err := json.Unmarshal([]byte(m.manage(t, "peer", "create", id, "--output", "json")), &made); err != nil || len(made.Addresses) == 0 {
		t.Fatalf("peer create %s: %v", id, err)
	}
	n.addr = netip.MustParsePrefix(made.Addresses[0]).Addr()
	listenEcho(t, side, fmt.Sprintf(":%d", portEcho))
	path := filepath.Join(t.TempDir(), fmt.Sprintf("mg%d.conf", rand.N(1<<24)))
	if err := os.WriteFile(path, []byte(made.Config), 0o600); err != nil {
		t.Fatal(err)
	}
	quick := func(word string) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := side.Exec(ctx, "wg-quick", word, path)
		cmd.Env = append(os.Environ(), "WG_QUICK_USERSPACE_IMPLEMENTATION="+implementation)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("wg-quick %s of %s: %v: %s", word, id, err, out)
		}
	}
	t.Cleanup(func() { quick("down") })
	quick("up")
	return n
}

// guestProcess is a guest of the mesh.
type guestProcess struct {
	*child.Process
	t     testing.TB
	ready guestAnswer
}

// guest starts one on a side.
func (m *labMesh) guest(t testing.TB, side *netlab.Side, cfg guestConfig) *guestProcess {
	token, err := os.ReadFile(m.joining[3])
	if err != nil {
		t.Fatal(err)
	}
	cfg.Gateway, cfg.URL, cfg.Pin, cfg.Token = m.gate.id, m.url(), m.joining[1], strings.TrimSpace(string(token))
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := side.Exec(context.Background(), os.Args[0])
	cmd.Env = append(os.Environ(), guestEnv+"="+string(text))
	p := &guestProcess{t: t}
	if p.Process, err = child.Start(t.Context(), cmd, &p.ready); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.End()
		if t.Failed() {
			t.Logf("log of the guest:\n%s", p.Stderr())
		}
	})
	return p
}

// reaches has the guest reach somebody.
func (p *guestProcess) reaches(to string, within time.Duration) error {
	var a guestAnswer
	if err := errors.Join(p.Send(guestOrder{to, within}), p.Receive(p.t.Context(), &a)); err != nil {
		return err
	}
	if a.Err != "" {
		return errors.New(a.Err)
	}
	return nil
}
