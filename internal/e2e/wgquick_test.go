// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace that a pair of interfaces joins with the
// one of the test.
type namespace struct {
	t    testing.TB
	name string
	// host and inside are the addresses of the two ends of the pair.
	host, inside string
}

// newNamespace makes a namespace. It is gone at the end of the test, with all
// that runs in it.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	id := rand.N(1 << 16)
	net24 := fmt.Sprintf("10.%d.%d", 64+id>>8&63, id&255)
	n := &namespace{t: t, name: fmt.Sprintf("mg%d-%d", os.Getpid(), id), host: net24 + ".1", inside: net24 + ".2"}
	outer, inner := fmt.Sprintf("mgo%d", id), fmt.Sprintf("mgi%d", id)
	run(t, "ip", "netns", "add", n.name)
	t.Cleanup(n.remove)
	run(t, "ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", n.name)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", outer).Run() }) // goes with the namespace, unless that is stuck
	run(t, "ip", "address", "add", n.host+"/24", "dev", outer)
	run(t, "ip", "link", "set", outer, "up")
	n.run("ip", "address", "add", n.inside+"/24", "dev", inner)
	n.run("ip", "link", "set", inner, "up")
	n.run("ip", "link", "set", "lo", "up")
	return n
}

func (n *namespace) remove() {
	pids, _ := exec.Command("ip", "netns", "pids", n.name).Output()
	for _, pid := range strings.Fields(string(pids)) {
		_ = exec.Command("kill", "-KILL", pid).Run()
	}
	if out, err := exec.Command("ip", "netns", "del", n.name).CombinedOutput(); err != nil {
		n.t.Errorf("remove namespace: %v: %s", err, out)
	}
}

// command is a command that runs in the namespace.
func (n *namespace) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.name}, args...)...)
}

func (n *namespace) run(args ...string) string {
	n.t.Helper()
	return run(n.t, "ip", append([]string{"netns", "exec", n.name}, args...)...)
}

// listen listens in the namespace for the process of the test: a socket stays
// where it was made.
func (n *namespace) listen(address string) net.Listener {
	n.t.Helper()
	var l net.Listener
	err := n.enter(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = l.Close() })
	return l
}

// enter runs f on a thread that is in the namespace.
func (n *namespace) enter(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer home.Close()
			away, err := os.Open("/run/netns/" + n.name)
			if err != nil {
				return err
			}
			defer away.Close()
			if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			err = f()
			if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
				return back // the thread stays locked and so ends with the goroutine
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-done
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// hello serves one page.
func hello(t testing.TB, l net.Listener, text string) {
	t.Helper()
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// wireguardGo builds the program that WireGuard's authors publish, from the
// module that Meshgate uses as a library.
func wireguardGo(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wireguard-go")
	run(t, "go", "build", "-o", path, "golang.zx2c4.com/wireguard")
	return path
}

// quick brings the file up as a tunnel in the namespace, as a user would, and
// returns the name of its interface.
func (n *namespace) quick(config string) string {
	n.t.Helper()
	name := fmt.Sprintf("mg%d", rand.N(1<<24))
	path := filepath.Join(n.t.TempDir(), name+".conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	up := n.command(ctx, "wg-quick", "up", path)
	up.Env = append(os.Environ(), "WG_QUICK_USERSPACE_IMPLEMENTATION="+wireguardGo(n.t))
	out, err := up.CombinedOutput()
	n.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "exec", n.name, "wg-quick", "down", path).CombinedOutput(); err != nil {
			n.t.Errorf("wg-quick down: %v\n%s", err, out)
		}
	})
	if err != nil {
		n.t.Fatalf("wg-quick up: %v\n%s", err, out)
	}
	return name
}

// A laptop with nothing but WireGuard's own tools and the file that peer
// create printed.
func TestWGQuick_LaptopReachesAndIsReached(t *testing.T) {
	n := newNamespace(t)
	wireguard := freePort(t)
	gate := start(t, "up", "--data-dir", t.TempDir(), "--id", "gate", "--public-address", n.host,
		"--listen", "0.0.0.0:0", "--tls.off", "--wireguard.mode", "netstack", "--wireguard.listen-port", wireguard,
		"--metrics.listen", "127.0.0.1:0", "--ice.listen", n.host+":0", "--turn.listen", n.host+":0",
		"--mesh.default-network-policy", "accept", "--log.level", "warn")
	// Clients show a token over plain HTTP on loopback only.
	gate.ready.URL = strings.Replace(gate.ready.URL, n.host, "127.0.0.1", 1)

	page := loopback(t)
	hello(t, page, "hello from nas")
	nas := joinExposing(t, gate, "nas", map[uint16]net.Listener{80: page})
	device := n.quick(gate.tool("peer", "create", "laptop"))

	if len(nas.ready.Nodes) != 2 {
		t.Errorf("nas has the addresses %v, want one of each family", nas.ready.Nodes)
	}
	for _, at := range nas.ready.Nodes {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		out, err := n.command(ctx, "curl", "-sS", "--retry", "10", "--retry-all-errors", "--max-time", "50",
			"http://"+net.JoinHostPort(at.Address, "80")+"/").CombinedOutput()
		if err != nil || string(out) != "hello from nas" {
			t.Errorf("curl of nas at %s: %v\n%s", at.Address, err, out)
		}
	}
	shook := n.run("wg", "show", device, "latest-handshakes")
	if _, at, ok := strings.Cut(strings.TrimSpace(shook), "\t"); !ok || at == "0" {
		t.Errorf("there was no handshake: %q", shook)
	}

	hello(t, n.listen(":8080"), "hello from laptop")
	forward := startEnv(t, []string{"MESHGATE_SERVER=" + gate.ready.URL, "MESHGATE_TOKEN=" + gate.ready.Token},
		"port-forward", "laptop", "0:localhost:8080")
	client := &http.Client{Timeout: 30 * time.Second}
	resp, err := client.Get(forward.ready.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello from laptop" {
		t.Errorf("page of the laptop: %v %s", err, body)
	}
}
