// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/internal/netlab"
)

// tell runs a command on the host of a node, which finds the node by its data
// directory, and returns what it prints, to people and of errors, and its exit code.
func (n *labNode) tell(t *testing.T, args ...string) (text string, code int) {
	t.Helper()
	args = append(append([]string{program}, args...), "--data-dir", n.dir)
	var out bytes.Buffer
	cmd := n.side.Exec(t.Context(), args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// Commands on the host of a node say by what path its packets go: between two
// NATs that map alike directly, between two that do not over a relay, and why.
func TestExplain_PathsOfNodes(t *testing.T) {
	m := newLabMesh(t)
	home, office := m.join(t, netlab.PortRestricted), m.join(t, netlab.AddressRestricted)
	hotel, phone := m.join(t, netlab.Symmetric), m.join(t, netlab.CGNATSymmetric)

	text, code := home.tell(t, "ping", office.id, "--until-direct", "--interval", "200ms")
	if code != 0 || !strings.Contains(text, ", direct to ") {
		t.Errorf("between two cones: exit %d\n%s", code, text)
	}
	awaitSaid(t, "gateway heard", hotel, phone) // a handshake may still have to begin anew, after 5 s
	text, code = hotel.tell(t, "ping", phone.id, "--until-direct", "--interval", "200ms", "--timeout", "4s")
	if code != 1 || !strings.Contains(text, ", over TURN/UDP of gate") || !strings.Contains(text, phone.id+" is not reached directly: ") {
		t.Errorf("between two symmetric ones: exit %d\n%s", code, text)
	}
	text, code = hotel.tell(t, "status")
	if code != 0 || !strings.Contains(text, "over TURN/UDP of gate since ") || !strings.Contains(text, "this node") {
		t.Errorf("status: exit %d\n%s", code, text)
	}
	text, code = hotel.tell(t, "netcheck")
	if code != 0 || !strings.Contains(text, "address and port-dependent") || !strings.Contains(text, "The NAT here uses another port for each destination") {
		t.Errorf("netcheck behind a symmetric NAT: exit %d\n%s", code, text)
	}
	text, code = home.tell(t, "netcheck")
	if code != 0 || !strings.Contains(text, "endpoint-independent") || strings.Count(text, "relays at") < 3 {
		t.Errorf("netcheck behind a cone: exit %d\n%s", code, text)
	}
	// What is not for the node to tell, its socket does not.
	if text, code = home.tell(t, "ping", "nobody"); code != 1 || !strings.Contains(text, "no node") {
		t.Errorf("a node that is not there: exit %d\n%s", code, text)
	}
}
