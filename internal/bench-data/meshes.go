// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/meshgate/meshgate/internal/child"
)

// meshKind is how the two nodes of a mesh reach each other.
type meshKind int

const (
	// public nodes are told each other's addresses by their gateway.
	public meshKind = iota
	// found nodes have no address that anybody knows, and find each other.
	found
	// relayed nodes are found ones that hear nothing of each other.
	relayed
)

// String begins the names of what belongs to the mesh.
func (k meshKind) String() string { return [...]string{"public", "found", "relayed"}[k] }

// port is the nth of those that the processes of the mesh listen on.
func (k meshKind) port(n int) uint16 { return uint16(52000 + 100*int(k) + n) }

// The ports of a mesh, for meshKind.port.
const (
	portAPI = iota
	portTURN
	portICE
	portGateway // of WireGuard, as the two below
	portLeft
	portRight
)

// exposedPort is where nodes of the right side expose its receiver (RFC 863).
const exposedPort = 9

// meshOf is a gateway with two nodes. Each mesh has networks of its own, so that
// they share the hosts.
type meshOf struct {
	kind              meshKind
	gate, left, right *member
	// how to join
	url, pin, tokenFile string
}

// member is a process of a mesh.
type member struct {
	*child.Process
	addr netip.Addr
}

// says is the end of what the process has logged.
func (m *member) says() string {
	const most = 1 << 10
	text := m.Stderr()
	return text[max(0, len(text)-most):]
}

// tunnel is the interface of a process of the mesh.
func (k meshKind) tunnel(of string) string { return fmt.Sprintf("%s%d%s", tunnelPrefix, int(k), of) }

// mesh returns the mesh of a kind, which it starts when it is needed first.
func (w *world) mesh(ctx context.Context, kind meshKind) (*meshOf, error) {
	if m := w.meshes[kind]; m != nil {
		return m, nil
	}
	m, err := w.newMesh(ctx, kind)
	if err != nil {
		return nil, fmt.Errorf("mesh of %s nodes: %w", kind, err)
	}
	w.meshes[kind] = m
	return m, nil
}

func (w *world) newMesh(ctx context.Context, kind meshKind) (*meshOf, error) {
	m := &meshOf{kind: kind, url: "https://" + atGate(kind.port(portAPI))}
	dir := filepath.Join(w.b.dir, kind.String())
	m.tokenFile = filepath.Join(dir, "admin.token")
	var err error
	m.gate, err = w.member(ctx, m, w.lab.gate, "gate", portGateway,
		"up", "--data-dir", dir, "--public-address", gateAddress, "--listen", atGate(kind.port(portAPI)), "--metrics.listen", "",
		"--turn.listen", atGate(kind.port(portTURN)), "--ice.listen", atGate(kind.port(portICE)),
		"--mesh.ipv4-network", fmt.Sprintf("10.21%d.0.0/16", int(kind)), "--mesh.default-network-policy", "accept")
	if err != nil {
		return nil, err
	}
	// What the gateway leaves for the commands of its host.
	raw, err := os.ReadFile(filepath.Join(dir, "local.json"))
	if err != nil {
		return nil, err
	}
	var local struct{ Pin string }
	if err := json.Unmarshal(raw, &local); err != nil {
		return nil, err
	}
	m.pin = local.Pin
	if m.left, err = w.join(ctx, m, w.lab.left, "left", portLeft); err != nil {
		return nil, err
	}
	m.right, err = w.join(ctx, m, w.lab.right, "right", portRight, "--expose", fmt.Sprintf("tcp:%d=127.0.0.1:%d", exposedPort, w.right.port))
	return m, err
}

// join starts a node.
func (w *world) join(ctx context.Context, m *meshOf, s side, id string, port int, more ...string) (*member, error) {
	args := []string{"join", m.url, "--pin", m.pin, "--token-file", m.tokenFile, "--data-dir", ""}
	if m.kind == public {
		args = append(args, "--public-address", s.address)
	}
	return w.member(ctx, m, s, id, port, append(args, more...)...)
}

// member starts a process of a mesh, and returns when it is up.
func (w *world) member(ctx context.Context, m *meshOf, s side, id string, port int, args ...string) (*member, error) {
	var ready struct {
		Event string
		Nodes []struct{ ID, Address string }
	}
	p, err := w.start(ctx, s.command(ctx, w.b.meshgate, append(args, "--id", id, "--output", "json", "--log.level", "info",
		"--wireguard.mode", "tun", "--wireguard.interface", m.kind.tunnel(id), "--wireguard.listen-port", fmt.Sprint(m.kind.port(port)))...), &ready)
	if err != nil {
		return nil, err
	}
	for _, n := range ready.Nodes {
		if a, err := netip.ParseAddr(n.Address); err == nil && n.ID == id && a.Is4() {
			return &member{p, a}, nil
		}
	}
	return nil, fmt.Errorf("%s has no IPv4 address on the mesh: %v", id, ready)
}

// atGate is a port of the host of gateways.
func atGate(port uint16) string { return net.JoinHostPort(gateAddress, strconv.Itoa(int(port))) }

// pair is the way from one node of a mesh to the other.
func (w *world) pair(ctx context.Context, kind meshKind, route route) (*way, error) {
	m, err := w.mesh(ctx, kind)
	if err != nil {
		return nil, err
	}
	y := &way{
		to: m.right.addr, from: w.left, at: w.right, route: route, hub: kind.tunnel("gate"),
		tunnels: []int{m.left.PID(), m.right.PID()},
		says:    func() string { return "left: " + m.left.says() + "\nright: " + m.right.says() },
	}
	if route == overRelay {
		y.helpers = []int{m.gate.PID()}
	}
	return y, nil
}

func (w *world) native(ctx context.Context) (*way, error) { return w.pair(ctx, public, pastGate) }
func (w *world) found(ctx context.Context) (*way, error)  { return w.pair(ctx, found, pastGate) }
func (w *world) relay(ctx context.Context) (*way, error)  { return w.pair(ctx, relayed, overRelay) }

// toGateway is the way from a node to its gateway.
func (w *world) toGateway(ctx context.Context) (*way, error) {
	m, err := w.mesh(ctx, public)
	if err != nil {
		return nil, err
	}
	return &way{
		to: m.gate.addr, from: w.left, at: w.gate, route: endsAtGate, tunnels: []int{m.left.PID(), m.gate.PID()},
		says: m.left.says,
	}, nil
}

// dataChannel is a client of StartDataChannel, as browsers are, and a TCP service
// of a node's host that the node exposes.
func (w *world) dataChannel(ctx context.Context) (*way, error) {
	m, err := w.mesh(ctx, found)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(m.tokenFile)
	if err != nil {
		return nil, err
	}
	var ready started
	client, err := w.role(ctx, w.lab.left, roleDataChannel, dataChannelConfig{
		URL: m.url, Pin: m.pin, Token: strings.TrimSpace(string(token)), Node: "right",
	}, &ready)
	if err != nil {
		return nil, errors.Join(err, errors.New(cmp.Or(m.right.says(), "the node says nothing")))
	}
	return &way{
		to: netip.IPv6Loopback(), from: client, at: w.right, route: pastGate, streams: true,
		tunnels: []int{client.PID(), m.right.PID()}, says: m.right.says,
	}, nil
}
