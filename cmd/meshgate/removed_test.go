// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/store/raftstore"
)

// A gateway that was removed is told to keep its key, which its id is bound to.
func TestStateAdvice_OfARemovedGateway(t *testing.T) {
	err := stateAdvice(fmt.Errorf("%w: says the leader", raftstore.ErrRemoved), "/d/state")
	for _, want := range []string{"remove /d/state,", "leave node.key", "--cluster.join"} {
		if !errors.Is(err, raftstore.ErrRemoved) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if code := exitCode(err); code != exitRemoved {
		t.Errorf("exit code %d", code)
	}
	if err := stateAdvice(raftstore.ErrDisk, "/d/state"); !errors.Is(err, raftstore.ErrDisk) || strings.Contains(err.Error(), "--cluster.join") {
		t.Errorf("of a disk that fails: %v", err)
	}
}

// systemd does not start a removed gateway again and again.
func TestDeploy_UnitLeavesARemovedGatewayAlone(t *testing.T) {
	raw, err := os.ReadFile("../../deploy/systemd/meshgate.service")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("\nRestartPreventExitStatus=%d\n", exitRemoved); !strings.Contains(string(raw), want) {
		t.Errorf("the unit has no line %q", want)
	}
}
