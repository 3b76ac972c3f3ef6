// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// patience is how long a process has to say that it is ready, or to end.
const patience = 30 * time.Second

// build makes the binary that is measured.
func build(ctx context.Context) (path string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "meshgate-bench-")
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "meshgate")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/meshgate/meshgate/cmd/meshgate").CombinedOutput()
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("build meshgate: %w: %s", err, out), os.RemoveAll(dir))
	}
	return path, func() { _ = os.RemoveAll(dir) }, nil
}

// process is a child that prints one line of JSON when it is ready. It ends
// with its standard input, or of an interrupt.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  *bufio.Reader
	stderr bytes.Buffer // to be read after Wait
}

// spawn starts a child and reads its first line into ready.
func spawn(ctx context.Context, cmd *exec.Cmd, ready any) (*process, error) {
	p := &process{cmd: cmd}
	cmd.Stderr = &p.stderr
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.lines = bufio.NewReader(stdout)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := p.receive(ctx, ready); err != nil {
		p.end()
		return nil, fmt.Errorf("%s did not become ready: %w: %s", filepath.Base(cmd.Path), err, &p.stderr)
	}
	return p, nil
}

// receive reads one line of JSON.
func (p *process) receive(ctx context.Context, into any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// A child that is silent for too long is killed, which ends the read.
	defer context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })()
	line, err := p.lines.ReadBytes('\n')
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return json.Unmarshal(line, into)
}

// send writes one line of JSON.
func (p *process) send(v any) error { return json.NewEncoder(p.stdin).Encode(v) }

// ticks are the unit of CPU time in /proc, in a second (proc_pid_stat(5)).
const ticks = 100

// cpu is the CPU time that the child has used.
func (p *process) cpu() (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name is in parentheses and may hold anything; utime and stime are the
	// 12th and 13th field behind it.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("unknown form of /proc/PID/stat: %q", raw)
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, err
	}
	return time.Duration(user+system) * time.Second / ticks, nil
}

// end ends the child, by force if it does not listen.
func (p *process) end() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Signal(os.Interrupt)
	force := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer force.Stop()
	_, _ = io.Copy(io.Discard, p.lines)
	_ = p.cmd.Wait() // an interrupt is no success
}

// world is everything but the clients.
type world struct {
	window    window
	processes []*process
	service   addresses
	raw       string // URL where offers are answered
	gateway   struct{ URL, Token string }
	// The processes in which DataChannels end.
	rawProcess, gatewayProcess *process
}

// newWorld starts services, a raw WebRTC peer in front of them, a gateway that
// exposes them, and a stock WireGuard peer that has them too.
func newWorld(ctx context.Context, binary string, win window) (w *world, err error) {
	w = &world{window: win}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	service, err := w.role(ctx, roleService, win, &w.service)
	if err != nil {
		return nil, err
	}
	if w.rawProcess, err = w.role(ctx, roleRaw, rawConfig{Window: win, Service: w.service}, &w.raw); err != nil {
		return nil, err
	}
	args := []string{"up", "--dev", "--listen", "127.0.0.1:0", "--log.level", "error", "--output", "json"}
	for port, at := range w.service.ports() {
		args = append(args, "--expose", "tcp:"+strconv.Itoa(int(port))+"="+at)
	}
	if w.gatewayProcess, err = spawn(ctx, exec.CommandContext(ctx, binary, args...), &w.gateway); err != nil {
		return nil, err
	}
	w.processes = append(w.processes, w.gatewayProcess)
	create := exec.CommandContext(ctx, binary, "peer", "create", nodePeer)
	create.Env = append(os.Environ(), "MESHGATE_SERVER="+w.gateway.URL, "MESHGATE_TOKEN="+w.gateway.Token)
	config, err := create.Output()
	if err != nil {
		return nil, fmt.Errorf("create a WireGuard peer: %w", err)
	}
	if err := service.send(string(config)); err != nil {
		return nil, err
	}
	var running bool
	if err := service.receive(ctx, &running); err != nil {
		return nil, fmt.Errorf("start the WireGuard peer: %w", err)
	}
	return w, nil
}

// role runs this program once more, as something else.
func (w *world) role(ctx context.Context, role string, config, ready any) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, configEnv+"="+string(text))
	p, err := spawn(ctx, cmd, ready)
	if err != nil {
		return nil, err
	}
	w.processes = append(w.processes, p)
	return p, nil
}

// close ends all processes, the last one first.
func (w *world) close() {
	for i := len(w.processes) - 1; i >= 0; i-- {
		w.processes[i].end()
	}
}

const (
	// roleEnv makes this program one of the roles, configEnv configures it.
	roleEnv   = "MESHGATE_BENCH_ROLE"
	configEnv = "MESHGATE_BENCH_CONFIG"

	roleService = "service"
	roleRaw     = "raw"
)

func runRole(role string) error {
	config := os.Getenv(configEnv)
	switch role {
	case roleService:
		return runService(config)
	case roleRaw:
		return runRaw(config)
	}
	return fmt.Errorf("no such role: %s", strings.TrimSpace(role))
}

// say prints one line of JSON for the parent.
func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
