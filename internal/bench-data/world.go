// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshgate/meshgate/internal/child"
	"github.com/meshgate/meshgate/node/mesh"
)

// The ways for bytes from the left side to the right one.
const (
	wayVeth     = "veth"         // nothing in between
	wayPlain    = "wireguard-go" // upstream's program on both sides
	wayNative   = "native"       // a node and its gateway
	wayNetstack = "netstack"     // a device without an interface, to upstream's program
)

var ways = []string{wayVeth, wayPlain, wayNative, wayNetstack}

// wireguardPort is that of all tunnels of the right side, counted up.
const wireguardPort = 51820

// way is one that is measured.
type way struct {
	name string
	// to is the address of the right side, and from who sends there.
	to   netip.Addr
	from *child.Process
	// tunnels are the ids of the processes that packets pass.
	tunnels []int
}

// world is all that is measured, with senders and receivers.
type world struct {
	*lab
	b           binaries
	self        string
	left, right *child.Process
	port        uint16 // of the receiver
	ways        []*way
	children    []*child.Process
	plain       []*exec.Cmd
}

func newWorld(ctx context.Context, b binaries, o options) (w *world, err error) {
	w = &world{b: b}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.self, err = os.Executable(); err != nil {
		return w, err
	}
	if w.lab, err = newLab(ctx); err != nil {
		return w, err
	}
	var ready started
	if w.left, err = w.role(ctx, w.lab.left, roleHost, "", &ready); err != nil {
		return w, err
	}
	if w.right, err = w.role(ctx, w.lab.right, roleHost, "", &ready); err != nil {
		return w, err
	}
	w.port = ready.Port
	for _, name := range ways {
		if !o.wants(name) {
			continue
		}
		make := map[string]func(context.Context) (*way, error){
			wayVeth: w.veth, wayPlain: w.plainTunnel, wayNative: w.native, wayNetstack: w.netstack,
		}[name]
		one, err := make(ctx)
		if err != nil {
			return w, fmt.Errorf("%s: %w", name, err)
		}
		one.name = name
		w.ways = append(w.ways, one)
	}
	return w, nil
}

func (w *world) close() {
	for _, c := range w.children {
		c.End()
	}
	for _, cmd := range w.plain {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // an interrupt is no success
	}
	if w.lab != nil {
		w.lab.close()
	}
}

// role starts this program in a role.
func (w *world) role(ctx context.Context, s side, role, config string, ready *started) (*child.Process, error) {
	cmd := s.command(ctx, w.self)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, netstackEnv+"="+config)
	return w.start(ctx, cmd, ready)
}

func (w *world) start(ctx context.Context, cmd *exec.Cmd, ready any) (*child.Process, error) {
	p, err := child.Start(ctx, cmd, ready)
	if err == nil {
		w.children = append(w.children, p)
	}
	return p, err
}

func (w *world) veth(context.Context) (*way, error) {
	return &way{to: netip.MustParseAddr(rightAddress), from: w.left}, nil
}

// plainTunnel is upstream's program on both sides.
func (w *world) plainTunnel(ctx context.Context) (*way, error) {
	left, right, err := keys()
	if err != nil {
		return nil, err
	}
	l, err := w.plainEnd(ctx, w.lab.left, "mgbpl", end{
		key: left, peer: right.Public(), address: "10.201.0.1", network: "10.201.0.2", endpoint: at(wireguardPort),
	})
	if err != nil {
		return nil, err
	}
	r, err := w.plainEnd(ctx, w.lab.right, "mgbpr", end{
		key: right, peer: left.Public(), port: wireguardPort, address: "10.201.0.2", network: "10.201.0.1",
	})
	if err != nil {
		return nil, err
	}
	return &way{to: netip.MustParseAddr("10.201.0.2"), from: w.left, tunnels: []int{l, r}}, nil
}

// netstack is a device of ours without an interface, and upstream's program.
func (w *world) netstack(ctx context.Context) (*way, error) {
	left, right, err := keys()
	if err != nil {
		return nil, err
	}
	r, err := w.plainEnd(ctx, w.lab.right, "mgbnr", end{
		key: right, peer: left.Public(), port: wireguardPort + 1, address: "10.202.0.2", network: "10.202.0.1",
	})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(netstackConfig{
		Key: left.Base64(), Peer: right.Public().String(), Address: "10.202.0.1/32",
		Endpoint: at(wireguardPort + 1), PeerNetwork: "10.202.0.2/32",
	})
	if err != nil {
		return nil, err
	}
	l, err := w.role(ctx, w.lab.left, roleNetstack, string(config), new(started))
	if err != nil {
		return nil, err
	}
	return &way{to: netip.MustParseAddr("10.202.0.2"), from: l, tunnels: []int{l.PID(), r}}, nil
}

// native is a gateway on the right side and a node on the left one.
func (w *world) native(ctx context.Context) (*way, error) {
	const token = "token-of-the-benchmark"
	tokens := filepath.Join(w.b.dir, "tokens")
	if err := os.WriteFile(tokens, fmt.Appendf(nil, "%x left\n", sha256.Sum256([]byte(token))), 0o600); err != nil {
		return nil, err
	}
	type ready struct {
		Event string
		Nodes []struct{ ID, Address string }
	}
	var gate, node ready
	r, err := w.start(ctx, w.lab.right.command(ctx, w.b.meshgate,
		"up", "--output", "json", "--id", "right", "--data-dir", filepath.Join(w.b.dir, "right"), "--public-address", rightAddress,
		"--listen", net.JoinHostPort(rightAddress, "8443"), "--metrics.listen", "", "--log.level", "warn",
		"--wireguard.mode", "tun", "--wireguard.interface", "mgbr", "--wireguard.listen-port", fmt.Sprint(wireguardPort+2),
		"--mesh.default-network-policy", "accept", "--auth.tokens-file", tokens), &gate)
	if err != nil {
		return nil, err
	}
	// What the gateway leaves for the commands of its host.
	raw, err := os.ReadFile(filepath.Join(w.b.dir, "right", "local.json"))
	if err != nil {
		return nil, err
	}
	var local struct{ Pin string }
	if err := json.Unmarshal(raw, &local); err != nil {
		return nil, err
	}
	l, err := w.start(ctx, w.lab.left.command(ctx, w.b.meshgate,
		"join", "https://"+net.JoinHostPort(rightAddress, "8443"), "--pin", local.Pin, "--output", "json", "--id", "left", "--data-dir", "", "--token", token,
		"--log.level", "warn", "--wireguard.mode", "tun", "--wireguard.interface", "mgbl"), &node)
	if err != nil {
		return nil, err
	}
	for _, n := range gate.Nodes {
		if a, err := netip.ParseAddr(n.Address); err == nil && n.ID == "right" && a.Is4() {
			return &way{to: a, from: w.left, tunnels: []int{l.PID(), r.PID()}}, nil
		}
	}
	return nil, fmt.Errorf("the gateway has no IPv4 address on the mesh: %v", gate)
}

// plainEnd runs upstream's program on a side, with one peer.
func (w *world) plainEnd(ctx context.Context, s side, name string, e end) (pid int, err error) {
	cmd := s.command(ctx, w.b.plain, "-f", name)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	w.plain = append(w.plain, cmd)
	socket := filepath.Join("/var/run/wireguard", name+".sock")
	set := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s/32\n", hex.EncodeToString(e.key[:]), e.port, hex.EncodeToString(e.peer[:]), e.network)
	if e.endpoint != "" {
		set += "endpoint=" + e.endpoint + "\n"
	}
	// It says nothing when it is ready: its control socket is there then.
	for tell(ctx, socket, set+"\n") != nil {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("wireguard-go is not ready: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	for _, args := range []string{
		"addr add " + e.address + "/32 dev " + name, "link set " + name + " mtu 1420 up", "route add " + e.network + "/32 dev " + name,
	} {
		if err := ip(ctx, append([]string{"-n", s.namespace}, strings.Fields(args)...)...); err != nil {
			return 0, err
		}
	}
	return cmd.Process.Pid, nil
}

// end is one end of a plain tunnel.
type end struct {
	key              mesh.WireGuardPrivateKey
	peer             mesh.WireGuardKey
	port             int
	address, network string // ours, and that of the other end
	endpoint         string // of the other end; empty when it calls
}

// tell gives an instruction to a WireGuard device.
func tell(ctx context.Context, socket, text string) error {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "errno=0" {
		return errors.Join(fmt.Errorf("wireguard-go does not take its configuration: %q", line), err)
	}
	return nil
}

// keys are those of two ends.
func keys() (left, right mesh.WireGuardPrivateKey, err error) {
	l, err := mesh.GenerateKey()
	if err != nil {
		return left, right, err
	}
	r, err := mesh.GenerateKey()
	return l.WireGuard(), r.WireGuard(), err
}

// at is a port of the right side.
func at(port int) string { return net.JoinHostPort(rightAddress, fmt.Sprint(port)) }

func parseKey(text string) (key [32]byte, err error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != len(key) {
		return key, errors.Join(fmt.Errorf("no key: %d bytes", len(raw)), err)
	}
	return [32]byte(raw), nil
}
