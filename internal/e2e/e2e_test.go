// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// Package e2e runs the built binary and talks to it as users do: over real
// sockets, with clients that others wrote.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for something that takes a second or two
// on an idle machine.
const patience = 60 * time.Second

// program is the binary under test; TestMain builds it.
var program string

func TestMain(m *testing.M) {
	if what := os.Getenv(vanishingEnv); what != "" {
		fmt.Fprintln(os.Stderr, vanishing(what))
		os.Exit(1)
	}
	for env, role := range map[string]func(string) error{crowdEnv: crowd, guestEnv: guest} {
		if what := os.Getenv(env); what != "" {
			if err := role(what); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "meshgate-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "meshgate")
	out, err := exec.Command("go", "build", "-o", program, "../../cmd/meshgate").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// process is a running meshgate that printed its ready line.
type process struct {
	t     testing.TB
	cmd   *exec.Cmd
	ready ready
	done  chan struct{} // closed when the process has ended
	line  chan []byte   // its first line
	log   *syncBuffer
}

// ready is the line that a command prints with --output json.
type ready struct {
	Event, URL, Token, Metrics, TURN string
	Nodes                            []struct{ ID, Address string }
	Services                         []struct {
		Node, Kind, Host string
		Port             uint16
	}
}

func (r ready) node(t testing.TB, id string) string {
	t.Helper()
	for _, n := range r.Nodes {
		if n.ID == id {
			return n.Address
		}
	}
	t.Fatalf("the ready line names no node %q: %+v", id, r)
	return ""
}

// start runs meshgate with args and waits for its ready line. The process is
// interrupted at the end of the test; its log is shown if the test failed.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	return startEnv(t, nil, args...)
}

func startEnv(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p := launch(t, env, args...)
	p.await()
	return p
}

// launch runs meshgate with args and does not wait for its ready line.
func launch(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(program, append(args, "--output", "json")...)
	cmd.Env = append(os.Environ(), env...)
	return follow(t, cmd)
}

// follow is launch for a command that knows where it runs.
func follow(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, done: make(chan struct{}), line: make(chan []byte, 1), log: &syncBuffer{}}
	p.cmd.Stderr = p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.cleanup)
	go func() {
		defer close(p.done)
		r := bufio.NewReader(stdout)
		first, _ := r.ReadBytes('\n')
		p.line <- first
		_, _ = io.Copy(io.Discard, r)
		_ = p.cmd.Wait()
	}()
	return p
}

// await waits for the ready line.
func (p *process) await() {
	p.t.Helper()
	args := strings.Join(p.cmd.Args[1:], " ")
	select {
	case raw := <-p.line:
		if err := json.Unmarshal(raw, &p.ready); err != nil || p.ready.Event != "ready" {
			p.t.Fatalf("meshgate %s did not become ready: %q %v\n%s", args, raw, err, p.log)
		}
	case <-time.After(patience):
		p.t.Fatalf("meshgate %s printed nothing within %s\n%s", args, patience, p.log)
	}
}

// cleanup ends the process in peace, or by force when it does not listen.
func (p *process) cleanup() {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Signal(os.Interrupt)
		select {
		case <-p.done:
		case <-time.After(20 * time.Second):
			p.t.Error("meshgate did not end within 20 s of an interrupt")
			p.kill()
		}
	}
	if p.t.Failed() {
		p.t.Logf("log of meshgate:\n%s", p.log)
	}
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
}

// interrupt ends the process in peace.
func (p *process) interrupt() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatal("meshgate does not end after an interrupt")
	}
}

// tool runs meshgate to its end and returns its standard output.
func (p *process) tool(args ...string) string {
	p.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.t.Fatalf("meshgate %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (p *process) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "MESHGATE_SERVER="+p.ready.URL, "MESHGATE_TOKEN="+p.ready.Token)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), nil
}

// fds counts the open files of the process.
func (p *process) fds() int {
	p.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(list)
}

// rss is the resident memory of the process in bytes.
func (p *process) rss() int64 {
	p.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// goroutines reads the process's own count from its metrics.
func (p *process) goroutines() int {
	p.t.Helper()
	return int(p.metric("go_goroutines"))
}

// metric reads one metric without labels.
func (p *process) metric(name string) float64 {
	p.t.Helper()
	for line := range strings.Lines(get(p.t, p.ready.Metrics)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return v
		}
	}
	p.t.Fatalf("no metric %s", name)
	return 0
}

// eventually polls until ok reports true, and fails with what it said last.
func eventually(t testing.TB, within time.Duration, ok func() (bool, string)) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		good, state := ok()
		if good {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", within, state)
		case <-tick.C:
		}
	}
}

// syncBuffer is a buffer for the output of a running process.
type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
