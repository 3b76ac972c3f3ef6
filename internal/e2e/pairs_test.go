// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/meshgate/meshgate/internal/netlab"
)

const (
	// pairWithin is how long after the second join two nodes may need for their
	// first answer.
	pairWithin = 3 * time.Second
	// directWithin is how long after that a pair may be relayed that could be
	// direct.
	directWithin = 10 * time.Second
)

// labNode is a node on a host of a lab.
type labNode struct {
	*process
	id   string
	side *netlab.Side
	addr netip.Addr // in the mesh
	kind netlab.Kind
	dir  string // its data
}

// labMesh is a gateway in a lab, and how nodes join it.
type labMesh struct {
	lab     *netlab.TestLab
	gate    *labNode
	up      []string // the arguments of the gateway but for the id
	joining []string // the arguments of join but for the id and the directory
}

// newLabMesh starts the gateway, on the ports that it has in the world.
func newLabMesh(t testing.TB) *labMesh {
	t.Helper()
	return meshIn(t, netlab.New(t), "gate")
}

// meshIn is newLabMesh in a lab that is there, with more arguments for the gateway.
func meshIn(t testing.TB, lab *netlab.TestLab, id string, more ...string) *labMesh {
	t.Helper()
	dir := t.TempDir()
	server := lab.Server(id)
	gate := &labNode{id: id, side: server, kind: server.Kind()}
	up := []string{"up", "--data-dir", dir, "--public-address", server.Addr4().String(), "--listen", ":443",
		"--turn.listen", ":3478", "--wireguard.listen-port", "51820", "--metrics.listen", "127.0.0.1:9090",
		"--mesh.default-network-policy", "accept"}
	up = append(up, more...)
	gate.process = gate.run(t, up...)
	gate.found(t)
	raw, err := os.ReadFile(filepath.Join(dir, "local.json"))
	var local struct{ Pin string }
	if err := errors.Join(err, json.Unmarshal(raw, &local)); err != nil {
		t.Fatal(err)
	}
	return &labMesh{lab: lab, gate: gate, up: up, joining: []string{"--pin", local.Pin, "--token-file", filepath.Join(dir, "admin.token")}}
}

// join starts a node behind the given kind of access and returns when it is up.
func (m *labMesh) join(t testing.TB, kind netlab.Kind) *labNode {
	t.Helper()
	n := m.node(t, kind.String(), kind)
	m.enter(t, n)
	return n
}

// node is one that has not been started.
func (m *labMesh) node(t testing.TB, id string, kind netlab.Kind) *labNode {
	return &labNode{id: id, side: m.lab.Side(id, kind), kind: kind, dir: t.TempDir()}
}

// enter starts a node and returns when it is up.
func (m *labMesh) enter(t testing.TB, n *labNode) {
	t.Helper()
	host := m.gate.side.Addr4()
	if !n.side.Addr4().IsValid() {
		host = m.gate.side.Addr6()
	}
	url := "https://" + net.JoinHostPort(host.String(), "443")
	n.process = n.run(t, append([]string{"join", url, "--data-dir", n.dir}, m.joining...)...)
	n.found(t)
}

// run starts meshgate on the host of the node, with an interface of its own.
func (n *labNode) run(t testing.TB, args ...string) *process {
	t.Helper()
	args = append(append([]string{program}, args...), "--id", n.id, "--wireguard.mode", "tun", "--output", "json")
	p := follow(t, n.side.Exec(t.Context(), args...))
	p.await()
	return p
}

// found takes the node's IPv4 address from its ready line.
func (n *labNode) found(t testing.TB) {
	t.Helper()
	for _, r := range n.ready.Nodes {
		if a, err := netip.ParseAddr(r.Address); r.ID == n.id && err == nil && a.Is4() {
			n.addr = a
			return
		}
	}
	t.Fatalf("%s has no IPv4 address: %+v", n.id, n.ready)
}

// ping asks for an echo every 20 ms, and returns when the first one came.
func (n *labNode) ping(to netip.Addr, within time.Duration) error {
	var c *icmp.PacketConn
	err := n.side.Run(func() (err error) {
		c, err = icmp.ListenPacket("ip4:icmp", n.addr.String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	// Other pings of the host are answered at this socket, too.
	id := int(to.As4()[2])<<8 | int(to.As4()[3])
	ask, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id}}).Marshal(nil)
	if err != nil {
		return err
	}
	b := make([]byte, 256)
	for end := time.Now().Add(within); time.Now().Before(end); {
		if _, err := c.WriteTo(ask, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			return err
		}
		for {
			size, from, err := c.ReadFrom(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			m, err := icmp.ParseMessage(1, b[:size])
			if echo, ok := bodyOf(m, err); ok && m.Type == ipv4.ICMPTypeEchoReply && echo.ID == id && from.String() == to.String() {
				return nil
			}
		}
	}
	return errNoEcho
}

func bodyOf(m *icmp.Message, err error) (*icmp.Echo, bool) {
	if err != nil {
		return nil, false
	}
	echo, ok := m.Body.(*icmp.Echo)
	return echo, ok
}

// firstEcho is how long after the second join of two nodes the first answer
// came.
type firstEcho struct {
	pair  string
	after time.Duration
}

// Nodes behind all kinds of access join one after the other; each pings the
// gateway and all that were there before at once. All of them answer, and where
// both NATs let it be, the two are soon without a relay.
func TestPairs_AllKinds(t *testing.T) {
	m := newLabMesh(t)
	there := []*labNode{m.gate}
	var echoes []firstEcho
	for _, kind := range netlab.Kinds() {
		n := m.join(t, kind)
		echoes = append(echoes, n.pingAll(t, there)...)
		there = append(there, n)
	}
	slices.SortFunc(echoes, func(a, b firstEcho) int { return int(a.after - b.after) })
	if len(echoes) == 0 {
		t.Fatal("no pair has a path")
	}
	var all strings.Builder
	for _, e := range echoes {
		fmt.Fprintf(&all, "\n%8s %s", e.after.Round(time.Millisecond), e.pair)
	}
	median, worst := echoes[len(echoes)/2].after, echoes[len(echoes)-1].after
	t.Logf("%d nodes and pairs with a path; first echo after the second join: median %s, worst %s%s",
		len(echoes), median.Round(time.Millisecond), worst.Round(time.Millisecond), &all)
	if median > time.Second {
		t.Errorf("the median of the first echoes is %s, want at most 1 s", median)
	}
	checkDirect(t, there[1:])
}

// checkDirect waits until each two nodes have a path of the kind that theory
// tells of their NATs.
func checkDirect(t *testing.T, nodes []*labNode) {
	t.Helper()
	began := time.Now()
	for i, a := range nodes {
		for _, b := range nodes[:i] {
			want := relayed
			if netlab.Direct(a.kind, b.kind) {
				want = direct
			}
			eventually(t, time.Until(began.Add(directWithin)), func() (bool, string) {
				there, back := a.way(b.id), b.way(a.id)
				return there == want && back == want, fmt.Sprintf("%s to %s: %s, and back: %s; want %s", a.id, b.id, there, back, want)
			})
		}
	}
	t.Logf("all pairs had the path of theory %s after the last join", time.Since(began).Round(time.Millisecond))
}

// What nodes say of their pairs.
const (
	direct  = "direct"
	relayed = "over a relay"
	carried = "by the gateway"
)

// way is how packets of the node get to another one, by its log.
func (n *labNode) way(to string) string {
	now, stands := carried, false
	for line := range strings.Lines(n.log.String()) {
		if !strings.Contains(line, " component=pair node="+to+" ") {
			continue
		}
		switch {
		case strings.Contains(line, `msg="pair stands"`):
			stands, now = true, relayed
			if strings.Contains(line, " direct=true") {
				now = direct
			}
		case strings.Contains(line, `msg="pair is broken`):
			stands, now = false, carried
		case !stands:
		case strings.Contains(line, `msg="packets go directly"`):
			now = direct
		case strings.Contains(line, `msg="packets go over a relay"`):
			now = relayed
		}
	}
	return now
}

// pingAll pings all at once, and fails the test where nobody answers in time.
func (n *labNode) pingAll(t *testing.T, all []*labNode) []firstEcho {
	t.Helper()
	joined := time.Now()
	results := make([]error, len(all))
	after := make([]time.Duration, len(all))
	var wg sync.WaitGroup
	for i, to := range all {
		wg.Go(func() {
			results[i] = n.ping(to.addr, pairWithin)
			after[i] = time.Since(joined)
		})
	}
	wg.Wait()
	var echoes []firstEcho
	for i, to := range all {
		pair := n.id + " to " + to.id
		if err := results[i]; err != nil {
			t.Errorf("%s: %v", pair, err)
			continue
		}
		echoes = append(echoes, firstEcho{pair, after[i]})
	}
	return echoes
}
