// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
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

// The ways for bytes from the left side to another one.
const (
	wayVeth        = "veth"         // nothing in between
	wayPlain       = "wireguard-go" // upstream's program on both sides
	wayNative      = "native"       // two nodes that know each other's address
	wayFound       = "ice"          // two nodes without an address, on the direct path that they found
	wayRelay       = "turn"         // two nodes without a direct path, over the TURN server of their gateway
	wayDataChannel = "datachannel"  // a client as browsers are, and a TCP service that a node exposes
	wayGateway     = "gateway"      // a node and its gateway
	wayNetstack    = "netstack"     // a device without an interface, to upstream's program
)

var ways = []string{wayVeth, wayPlain, wayNative, wayFound, wayRelay, wayDataChannel, wayGateway, wayNetstack}

// wireguardPort is that of all plain tunnels of the right side, counted up.
const wireguardPort = 51820

// route says how packets of a way have to go.
type route int

const (
	pastGate   route = iota // not over the host of gateways
	overRelay               // over that, but not as packets of the mesh
	endsAtGate              // to that
)

// way is one that is measured.
type way struct {
	name string
	// to is the address of the receiver, and from who sends there.
	to   netip.Addr
	from *child.Process
	at   receiver
	// tunnels are the ids of the processes that packets pass, helpers those of
	// further ones that work for them.
	tunnels, helpers []int
	route            route
	hub              string // the interface of the mesh at its gateway
	// streams is true when it carries TCP only.
	streams bool
	// says is what its processes have logged; nil for none.
	says func() string
}

// receiver is a process that receives, and the port at which it does.
type receiver struct {
	*child.Process
	port uint16
}

// world is all that is measured, with senders and receivers.
type world struct {
	*lab
	b           binaries
	self        string
	left        *child.Process
	right, gate receiver
	meshes      map[meshKind]*meshOf
	ways        []*way
	children    []*child.Process
	plain       []*exec.Cmd
}

func newWorld(ctx context.Context, b binaries, o options) (w *world, err error) {
	w = &world{b: b, meshes: make(map[meshKind]*meshOf)}
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
	if err := w.hosts(ctx); err != nil {
		return w, err
	}
	for _, name := range ways {
		if !o.wants(name) {
			continue
		}
		make := map[string]func(context.Context) (*way, error){
			wayVeth: w.veth, wayPlain: w.plainTunnel, wayNative: w.native, wayFound: w.found, wayRelay: w.relay,
			wayDataChannel: w.dataChannel, wayGateway: w.toGateway, wayNetstack: w.netstack,
		}[name]
		one, err := make(ctx)
		if err != nil {
			return w, fmt.Errorf("%s: %w", name, err)
		}
		one.name = name
		w.ways = append(w.ways, one)
	}
	for _, y := range w.ways {
		if err := y.settle(ctx, w, o); err != nil {
			return w, fmt.Errorf("%s: %w", y.name, err)
		}
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

// hosts starts who sends and receives with the sockets of the hosts.
func (w *world) hosts(ctx context.Context) (err error) {
	var ready started
	if w.left, err = w.role(ctx, w.lab.left, roleHost, nil, &ready); err != nil {
		return err
	}
	var sinks []uint16
	for _, at := range []struct {
		side
		*receiver
	}{{w.lab.right, &w.right}, {w.lab.gate, &w.gate}} {
		if at.Process, err = w.role(ctx, at.side, roleHost, nil, &ready); err != nil {
			return err
		}
		at.port = ready.Port
		sinks = append(sinks, ready.Port)
	}
	return w.fence(ctx, sinks, []uint16{relayed.port(portLeft), relayed.port(portRight)})
}

// role starts this program in a role.
func (w *world) role(ctx context.Context, s side, role string, config any, ready *started) (*child.Process, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd := s.command(ctx, w.self)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, configEnv+"="+string(text))
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
	return &way{to: netip.MustParseAddr(rightAddress), from: w.left, at: w.right}, nil
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
	return &way{to: netip.MustParseAddr("10.201.0.2"), from: w.left, at: w.right, tunnels: []int{l, r}}, nil
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
	l, err := w.role(ctx, w.lab.left, roleNetstack, netstackConfig{
		Key: left.Base64(), Peer: right.Public().String(), Address: "10.202.0.1/32",
		Endpoint: at(wireguardPort + 1), PeerNetwork: "10.202.0.2/32",
	}, new(started))
	if err != nil {
		return nil, err
	}
	return &way{to: netip.MustParseAddr("10.202.0.2"), from: l, at: w.right, tunnels: []int{l.PID(), r}}, nil
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
		if err := s.ip(ctx, args); err != nil {
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
