// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
)

// The program starts itself for what needs a process of its own: the role and
// its configuration are in the environment.
const (
	roleEnv   = "MESHGATE_CHAOS_ROLE"
	configEnv = "MESHGATE_CHAOS_CONFIG"

	roleWorld   = "world"
	roleReplica = "replica"
	roleStall   = "stall"
	roleTrace   = "trace"
)

// role is a command that runs this program in a role. Arguments are what to put
// before the program.
func role(ctx context.Context, name string, config any, wrap ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	words := append(wrap, self)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), roleEnv+"="+name, configEnv+"="+string(raw))
	return cmd, nil
}

// asked runs the role that the environment asks for; false when it asks for
// none.
func asked() (bool, error) {
	var err error
	switch name := os.Getenv(roleEnv); name {
	case "":
		return false, nil
	case roleWorld:
		err = as(runWorld)
	case roleReplica:
		err = as(runReplica)
	case roleTrace:
		err = as(runTrace)
	case roleStall:
		err = as(runStall)
	default:
		err = fmt.Errorf("unknown role %q", name)
	}
	return true, err
}

// as runs a role with its configuration.
func as[T any](run func(T) error) error {
	var config T
	if err := json.Unmarshal([]byte(os.Getenv(configEnv)), &config); err != nil {
		return fmt.Errorf("configuration of the role: %w", err)
	}
	return run(config)
}
