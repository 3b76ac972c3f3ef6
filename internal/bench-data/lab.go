// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// side is a host of the benchmark: a network namespace.
type side struct{ namespace, address string }

// The addresses of the hosts on the links between them. They do not leave the
// namespaces. That of the gateway's host is its only one, so that all of its
// answers come from there.
const (
	leftAddress, rightAddress = "10.200.0.1", "10.200.0.2"
	underlay                  = "/24"
	gateAddress               = "10.200.1.1"
	// leftOfGate and rightOfGate are those of the sides on their links to it.
	leftOfGate, rightOfGate = "10.200.1.2", "10.200.1.3"
)

// The names of interfaces. Those of tunnels begin with tunnelPrefix.
const (
	direct       = "direct" // of a side, to the other one
	toGate       = "gate"   // of a side, to the host of gateways
	tunnelPrefix = "mgb"
)

// lab is two sides with a link in between, and the host of gateways, to which
// each has a link of its own.
type lab struct{ left, right, gate side }

func newLab(ctx context.Context) (_ *lab, err error) {
	prefix := "mgbd" + strconv.Itoa(os.Getpid())
	l := &lab{
		left:  side{prefix + "l", leftAddress},
		right: side{prefix + "r", rightAddress},
		gate:  side{prefix + "g", gateAddress},
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	for _, s := range l.sides() {
		if err := ip(ctx, "netns", "add", s.namespace); err != nil {
			return nil, err
		}
		if err := s.ip(ctx, "link set lo up"); err != nil {
			return nil, err
		}
	}
	if err := l.join(ctx, l.left, direct, l.right, direct); err != nil {
		return nil, err
	}
	for _, s := range []side{l.left, l.right} {
		if err := s.ip(ctx, "addr add "+s.address+underlay+" dev "+direct); err != nil {
			return nil, err
		}
	}
	if err := l.gate.ip(ctx, "addr add "+gateAddress+"/32 dev lo"); err != nil {
		return nil, err
	}
	return l, errors.Join(l.connect(ctx, l.left, "left", leftOfGate), l.connect(ctx, l.right, "right", rightOfGate))
}

func (l *lab) sides() []side { return []side{l.left, l.right, l.gate} }

// join makes a link between two hosts.
func (l *lab) join(ctx context.Context, a side, ifA string, b side, ifB string) error {
	if err := ip(ctx, "link", "add", ifA, "netns", a.namespace, "type", "veth", "peer", "name", ifB, "netns", b.namespace); err != nil {
		return err
	}
	return errors.Join(a.ip(ctx, "link set "+ifA+" up"), b.ip(ctx, "link set "+ifB+" up"))
}

// connect gives a side its link to the host of gateways, which names it.
func (l *lab) connect(ctx context.Context, s side, name, address string) error {
	if err := l.join(ctx, s, toGate, l.gate, name); err != nil {
		return err
	}
	return errors.Join(
		s.ip(ctx, "addr add "+address+"/32 dev "+toGate),
		s.ip(ctx, "route add "+gateAddress+"/32 dev "+toGate+" src "+address),
		l.gate.ip(ctx, "route add "+address+"/32 dev "+name+" src "+gateAddress),
	)
}

// close removes the namespaces, and with them all that is in them. Nobody can
// do anything about one that stays.
func (l *lab) close() {
	for _, s := range l.sides() {
		_ = ip(context.Background(), "netns", "del", s.namespace)
	}
}

// fence keeps apart what shares the hosts: no tunnel runs in another one, and
// the WireGuard ports of relayed nodes hear the host of gateways only. Sinks are
// the ports at which datagrams are received.
func (l *lab) fence(ctx context.Context, sinks, relayed []uint16) error {
	rules := fmt.Sprintf("table inet bench {\nchain in {\ntype filter hook input priority filter; policy accept;\n"+
		"iifname %q udp dport != { %s } drop\nudp dport { %s } ip saddr != %s drop\n}\n}\n",
		tunnelPrefix+"*", ports(sinks), ports(relayed), gateAddress)
	for _, s := range l.sides() {
		cmd := s.command(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
	}
	return nil
}

// ports is a list of them as nft reads it.
func ports(list []uint16) string {
	words := make([]string, 0, len(list))
	for _, p := range list {
		words = append(words, strconv.Itoa(int(p)))
	}
	return strings.Join(words, ", ")
}

// traffic is how many bytes the host of gateways has received over its links
// and, as packets of the mesh, over an interface of one; empty for none.
type traffic struct{ links, mesh uint64 }

// passed tells the traffic since the start.
func (l *lab) passed(ctx context.Context, hub string) (t traffic, err error) {
	var list []struct {
		Name  string `json:"ifname"`
		Stats struct {
			Rx struct{ Bytes uint64 }
		} `json:"stats64"`
	}
	out, err := exec.CommandContext(ctx, "ip", "-n", l.gate.namespace, "-j", "-s", "link", "show").Output()
	if err != nil {
		return t, fmt.Errorf("read the traffic of the gateway: %w", err)
	}
	if err := json.Unmarshal(bytes.TrimSpace(out), &list); err != nil {
		return t, fmt.Errorf("read the traffic of the gateway: %w", err)
	}
	for _, link := range list {
		switch {
		case slices.Contains([]string{"left", "right"}, link.Name):
			t.links += link.Stats.Rx.Bytes
		case hub != "" && link.Name == hub:
			t.mesh += link.Stats.Rx.Bytes
		}
	}
	return t, nil
}

// command is a program that runs on the side.
func (s side) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", s.namespace, name}, args...)...)
}

// ip configures the side.
func (s side) ip(ctx context.Context, args string) error {
	return ip(ctx, append([]string{"-n", s.namespace}, strings.Fields(args)...)...)
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
