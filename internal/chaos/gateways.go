// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// readiness is how long a program may take to be ready, on a busy machine.
const readiness = 60 * time.Second

// buildProgram builds cmd/meshgate below dir. It runs from within the
// repository.
func buildProgram(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "meshgate")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/meshgate/meshgate/cmd/meshgate").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return program, nil
}

// process is a running meshgate.
type process struct {
	cmd   *exec.Cmd
	first chan []byte   // its first line of output
	done  chan struct{} // closed when it has ended
	log   *logBuffer
}

// launch starts a meshgate that prints JSON.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, log: &logBuffer{}, first: make(chan []byte, 1), done: make(chan struct{})}
	p.cmd.Stderr = p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		r := bufio.NewReader(stdout)
		line, _ := r.ReadBytes('\n')
		p.first <- line
		_, _ = io.Copy(io.Discard, r)
		_ = p.cmd.Wait()
	}()
	return p, nil
}

// await waits until the process is ready.
func (p *process) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	select {
	case line := <-p.first:
		if !bytes.Contains(line, []byte(`"ready"`)) {
			return fmt.Errorf("%s did not become ready: %s%s", p.cmd, line, p.log)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w\n%s", p.cmd, ctx.Err(), p.log)
	}
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// gate is a gateway over its starts.
type gate struct {
	id, dir, program string
	address          string
	args             []string

	mu     sync.Mutex // guards the fields below
	proc   *process
	client *peer.Public
}

// newGate is a gateway that was not started yet, on a loopback address of its
// own.
func newGate(program, dir string, n int, extra ...string) (*gate, error) {
	host := fmt.Sprintf("127.0.0.%d", n)
	port, err := freePort(host)
	if err != nil {
		return nil, err
	}
	g := &gate{id: fmt.Sprintf("gw%d", n), program: program, address: net.JoinHostPort(host, port)}
	g.dir = filepath.Join(dir, g.id)
	g.args = append([]string{
		"up", "--data-dir", g.dir, "--id", g.id, "--public-address", host, "--listen", g.address,
		"--wireguard.mode", "netstack", "--wireguard.listen-port", "0", "--metrics.listen", "", "--ice.listen", host + ":0", "--turn.listen", host + ":0",
		"--output", "json",
	}, extra...)
	return g, nil
}

// The ports from which freePort takes its own. The host gives them to nobody who
// does not ask for them, so that they stay free until a gateway is started, and
// while it is down. The tests of internal/e2e have the ones before them.
const firstPort, lastPort = 26000, 31999

// freePorts counts the ports that freePort has tried.
var freePorts atomic.Int64

// freePort is a TCP port of a host that nobody uses now, another one each time.
func freePort(host string) (string, error) {
	var err error
	for range lastPort - firstPort + 1 {
		n := int64(os.Getpid()) + freePorts.Add(1)
		port := strconv.FormatInt(firstPort+n%(lastPort-firstPort+1), 10)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(host, port)); err == nil {
			return port, l.Close()
		}
	}
	return "", fmt.Errorf("no port from %d to %d is free: %w", firstPort, lastPort, err)
}

// start starts the gateway and waits until it is ready.
func (g *gate) start(ctx context.Context, extra ...string) error {
	return g.run(ctx, exec.Command(g.program, append(append([]string{}, g.args...), extra...)...))
}

// run starts the gateway by a command that ends in its arguments.
func (g *gate) run(ctx context.Context, cmd *exec.Cmd) error {
	p, err := launch(cmd)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.proc, g.client = p, nil
	g.mu.Unlock()
	return p.await(ctx)
}

// kill ends the gateway with SIGKILL; it may be down already.
func (g *gate) kill() {
	g.mu.Lock()
	p := g.proc
	g.mu.Unlock()
	if p != nil {
		p.kill()
	}
}

// local is what a gateway leaves for the commands of its host.
type local struct{ URL, Pin, Token string }

func (g *gate) local() (l local, err error) {
	raw, err := os.ReadFile(filepath.Join(g.dir, "local.json"))
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return l, err
	}
	token, err := os.ReadFile(g.tokenFile())
	l.Token = strings.TrimSpace(string(token))
	return l, err
}

func (g *gate) tokenFile() string { return filepath.Join(g.dir, "admin.token") }

// public is a client of the gateway, for an admin.
func (g *gate) public() (*peer.Public, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.client != nil {
		return g.client, nil
	}
	l, err := g.local()
	if err != nil {
		return nil, err
	}
	var opts peer.TLSOptions
	pin, err := hex.DecodeString(strings.TrimPrefix(l.Pin, "sha256:"))
	if err != nil || len(pin) != sha256.Size {
		return nil, fmt.Errorf("pin %q of %s", l.Pin, g.id)
	}
	copy(opts.Pin[:], pin)
	g.client, err = peer.NewPublic(l.URL, l.Token, opts)
	return g.client, err
}

// gates are three gateways that keep one state.
type gates []*gate

// newGates starts three gateways below dir.
func newGates(ctx context.Context, program, dir string, extra ...string) (all gates, err error) {
	defer func() {
		if err != nil {
			all.kill()
		}
	}()
	var join []string
	for n := 1; n <= 3; n++ {
		g, err := newGate(program, dir, n, extra...)
		if err != nil {
			return all, err
		}
		all = append(all, g)
		if n == 1 {
			g.args = append(g.args, "--cluster.address", g.address)
		}
		if err := g.start(ctx, join...); err != nil {
			return all, err
		}
		if n == 1 {
			l, err := g.local()
			if err != nil {
				return all, err
			}
			join = []string{"--cluster.join", l.URL, "--cluster.pin", l.Pin, "--cluster.token-file", g.tokenFile()}
		}
	}
	return all, nil
}

func (all gates) kill() {
	for _, g := range all {
		g.kill()
	}
}

// leader asks the gateways, but for the one that may be nil, who leads.
func (all gates) leader(ctx context.Context, but *gate) (*gate, error) {
	err := errors.New("nobody was asked")
	for until := time.Now().Add(readiness); time.Now().Before(until) && ctx.Err() == nil; pause(ctx, retryPause) {
		for _, asked := range all {
			if asked == but {
				continue
			}
			var leads string
			if leads, err = asked.leads(ctx); err != nil {
				continue
			}
			for _, g := range all {
				if g.id == leads {
					return g, nil
				}
			}
			err = fmt.Errorf("%s knows no leader", asked.id)
		}
	}
	return nil, fmt.Errorf("who leads: %w", errors.Join(err, ctx.Err()))
}

// leads is the id of the gateway that leads, as this one knows.
func (g *gate) leads(ctx context.Context) (string, error) {
	p, err := g.public()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answer, err := p.Cluster().Status(ctx, connect.NewRequest(&meshgatev1.StatusRequest{}))
	if err != nil {
		return "", err
	}
	for _, r := range answer.Msg.GetReplicas() {
		if r.GetLeader() {
			return r.GetId(), nil
		}
	}
	return "", nil
}

// logBuffer keeps what a process says. It is safe for concurrent use.
type logBuffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String is all that was said.
func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
