// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/meshgate/meshgate/internal/child"
)

const (
	// roleEnv makes this program one of the roles, configEnv configures it.
	roleEnv   = "MESHGATE_BENCH_CONTROL_ROLE"
	configEnv = "MESHGATE_BENCH_CONTROL_CONFIG"

	roleReplica = "replica"
	roleLoad    = "load"
)

func runRole(role string) error {
	config := []byte(os.Getenv(configEnv))
	switch role {
	case roleReplica:
		var c replicaConfig
		if err := json.Unmarshal(config, &c); err != nil {
			return err
		}
		return runReplica(c)
	case roleLoad:
		var c loadConfig
		if err := json.Unmarshal(config, &c); err != nil {
			return err
		}
		return runLoad(c)
	}
	return fmt.Errorf("no such role: %s", role)
}

// startRole runs this program once more, as something else.
func startRole(ctx context.Context, role string, config, ready any) (*child.Process, error) {
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
	return child.Start(ctx, cmd, ready)
}

// say prints one line of JSON for the parent.
func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// moduleRoot is the directory of the module that this program is built from.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the root of the module: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// processes end together, the last one first.
type processes []*child.Process

func (p processes) end() {
	for i := len(p) - 1; i >= 0; i-- {
		p[i].End()
	}
}
