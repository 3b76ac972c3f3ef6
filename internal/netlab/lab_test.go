// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package netlab_test

import (
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/internal/netlab"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/turn"
)

// A lab with two sides costs a test next to nothing.
func TestNew_TwoSidesAreThereAtOnce(t *testing.T) {
	var all []time.Duration
	for range 5 {
		began := time.Now()
		lab := netlab.New(t)
		lab.Server("gate")
		lab.Side("a", netlab.Symmetric)
		lab.Side("b", netlab.CGNAT)
		all = append(all, time.Since(began).Round(time.Millisecond))
	}
	t.Logf("a server and two sides after %s", all)
	if best := slices.Min(all); best > 300*time.Millisecond { // others may keep the machine busy
		t.Errorf("a server and two sides took %s, want at most 300 ms", best)
	}
}

// names are the namespaces of a lab, and its lease.
func names(t *testing.T, lab string) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{"/run/netns/" + lab + ".*", "/run/meshgate-netlab/" + lab} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, found...)
	}
	return list
}

// idle starts a process on the host that does nothing, and waits until it is
// there. The caller waits for its end.
func idle(t *testing.T, side *netlab.Side) *exec.Cmd {
	t.Helper()
	cmd := side.Exec(t.Context(), "sh", "-c", "echo up; exec sleep 1000 >/dev/null")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestClose_EndsProcessesAndLeavesNothing(t *testing.T) {
	lab, err := netlab.Start("lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lab.Close() })
	side, err := lab.Side("a", netlab.CGNAT)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(names(t, lab.Name())); n != 5 { // the middle, two NATs, the host, the lease
		t.Errorf("%d names of the lab, want 5: %v", n, names(t, lab.Name()))
	}
	cmd := idle(t, side)
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-gone:
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the process ended with %v", err)
		}
	case <-time.After(late):
		t.Error("the process lives on")
		_ = cmd.Process.Kill()
	}
	if left := names(t, lab.Name()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := lab.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	if _, err := lab.Side("b", netlab.Open); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a side of a closed lab: %v", err)
	}
}

// abandonEnv makes the test program one that builds a lab and is killed.
const abandonEnv = "MESHGATE_NETLAB_ABANDON"

// What a killed run left, processes included, is gone once another lab was
// made; a lab that is in use stays.
func TestStart_SweepsWhatAKilledRunLeft(t *testing.T) {
	if os.Getenv(abandonEnv) != "" {
		lab, err := netlab.Start("abandoned")
		if err != nil {
			t.Fatal(err)
		}
		side, err := lab.Side("a", netlab.PortRestricted)
		if err != nil {
			t.Fatal(err)
		}
		idle(t, side)
		if _, err := os.Stdout.WriteString("\nlab " + lab.Name() + "\n"); err != nil {
			t.Fatal(err)
		}
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	used := netlab.New(t)
	used.Server("gate")
	before := names(t, used.Name())
	child := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), abandonEnv+"=1")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	child.Stdout, child.Stderr = write, write
	if err := child.Run(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the run that should be killed ended with %v", err)
	}
	_ = write.Close()
	// Its orphan holds the pipe open as its standard error: what is there is all that comes.
	raw := make([]byte, 4096)
	n, err := read.Read(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(raw[:n]), "\nlab ")
	name, _, _ := strings.Cut(rest, "\n")
	if !ok || len(names(t, name)) != 4 {
		t.Fatalf("the killed run printed %q and left %v", raw[:n], names(t, name))
	}
	netlab.New(t)
	if left := names(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// The pipe ends with the last process that could write to it.
	if err := read.SetReadDeadline(time.Now().Add(late)); err != nil {
		t.Fatal(err)
	}
	if n, err := read.Read(raw); n != 0 || os.IsTimeout(err) {
		t.Errorf("a process of the killed run still lives: %d bytes, %v", n, err)
	}
	if after := names(t, used.Name()); !slices.Equal(before, after) {
		t.Errorf("the lab in use had %v and has %v", before, after)
	}
}

func TestLab_RefusesWhatItCannotBuild(t *testing.T) {
	for _, prefix := range []string{"", "A", "a-b", "a/b", strings.Repeat("a", 17)} {
		if lab, err := netlab.Start(prefix); err == nil {
			t.Errorf("there is a lab %q", prefix)
			_ = lab.Close()
		}
	}
	lab := netlab.New(t).Lab
	side, err := lab.Side("a", netlab.DualStack)
	if err != nil {
		t.Fatal(err)
	}
	six, err := lab.Side("six", netlab.IPv6Only)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string, kind netlab.Kind) error { _, err := lab.Side(name, kind); return err }
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"no name", add("", netlab.Open), `side "": want 1 to 32 small letters`},
		{"a path for a name", add("../a", netlab.Open), `side "../a": want 1 to 32`},
		{"the name of the middle", add("net", netlab.Open), `side "net": want`},
		{"a name that is taken", add("a", netlab.Open), `side "a": the lab has one of that name`},
		{"no kind", add("b", netlab.Kind(99)), `side "b": there is no kind-99`},
		{"a negative kind", add("b", netlab.Kind(-1)), `there is no kind--1`},
		{"less than nothing lost", side.Loss(-1), "lose -1 percent at a: want 0 to 100"},
		{"more than all lost", side.Loss(101), "want 0 to 100"},
		{"an MTU without IPv6", side.MTU(1279), "MTU 1279 at a: want 1280 to 1500"},
		{"an MTU beyond that of the host", side.MTU(1501), "want 1280 to 1500"},
		{"no address", side.SetAddr(netip.Addr{}), "address invalid IP for a: want"},
		{"an address elsewhere", side.SetAddr(netip.MustParseAddr("8.8.8.8")), "address 8.8.8.8 for a: want one of [192.168.1.0/24"},
		{"the address of the router", side.SetAddr(netip.MustParseAddr("192.168.1.1")), "that is not the router's"},
		{"the address of the network", side.SetAddr(netip.MustParseAddr("192.168.1.0")), "that is not the router's"},
		{"an IPv4 address without IPv4", six.SetAddr(netip.MustParseAddr("192.168.1.7")), "it has none of that IP version"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, c.err, c.want)
		}
	}
}

// Programs treat the addresses of servers and open sides as public ones.
func TestServer_AddressesArePublic(t *testing.T) {
	lab := netlab.New(t)
	server, open, six := lab.Server("gate"), lab.Side("open", netlab.Open), lab.Side("six", netlab.IPv6Only)
	for _, addr := range []netip.Addr{server.Addr4(), server.Addr6(), server.Second(server.Addr4()), open.Addr4(), six.Addr6()} {
		if !turn.IsPublic(addr) || mesh.IsSpecial(addr) || mesh.EmbedsIPv4(addr) {
			t.Errorf("%s is not public", addr)
		}
	}
	if open.Addr6().IsValid() || six.Addr4().IsValid() {
		t.Errorf("the open side has %s, the one of IPv6 %s", open.Addr6(), six.Addr4())
	}
}
