// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// patience is how long the other end of a connection has to answer.
const patience = 30 * time.Second

// build makes the binary that is measured.
func build(ctx context.Context) (path string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "meshgate-bench-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	if path, err = child.Build(ctx, dir, "", "github.com/meshgate/meshgate/cmd/meshgate", "meshgate"); err != nil {
		remove()
		return "", nil, err
	}
	return path, remove, nil
}

// world is everything but the clients.
type world struct {
	window    window
	processes []*child.Process
	service   addresses
	raw       string // URL where offers are answered
	gateway   struct{ URL, Token string }
	// The processes in which DataChannels end.
	rawProcess, gatewayProcess *child.Process
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
	if w.gatewayProcess, err = child.Start(ctx, exec.CommandContext(ctx, binary, args...), &w.gateway); err != nil {
		return nil, err
	}
	w.processes = append(w.processes, w.gatewayProcess)
	create := exec.CommandContext(ctx, binary, "peer", "create", nodePeer)
	create.Env = append(os.Environ(), "MESHGATE_SERVER="+w.gateway.URL, "MESHGATE_TOKEN="+w.gateway.Token)
	config, err := create.Output()
	if err != nil {
		return nil, fmt.Errorf("create a WireGuard peer: %w", err)
	}
	if err := service.Send(string(config)); err != nil {
		return nil, err
	}
	var running bool
	if err := service.Receive(ctx, &running); err != nil {
		return nil, fmt.Errorf("start the WireGuard peer: %w", err)
	}
	return w, nil
}

// role runs this program once more, as something else.
func (w *world) role(ctx context.Context, role string, config, ready any) (*child.Process, error) {
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
	p, err := child.Start(ctx, cmd, ready)
	if err != nil {
		return nil, err
	}
	w.processes = append(w.processes, p)
	return p, nil
}

// close ends all processes, the last one first.
func (w *world) close() {
	for i := len(w.processes) - 1; i >= 0; i-- {
		w.processes[i].End()
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
