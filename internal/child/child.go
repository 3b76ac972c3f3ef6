// SPDX-License-Identifier: Apache-2.0

// Package child runs the processes that a benchmark measures.
package child

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
	"sync"
	"time"
)

// patience is how long a process has to answer, or to end.
const patience = 60 * time.Second

// Build compiles the command of a package into dir and returns its path.
// module is the directory of the module that the package belongs to; empty
// for that of the working directory.
func Build(ctx context.Context, dir, module, pkg, name string) (string, error) {
	path := filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, pkg)
	cmd.Dir = module
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return path, nil
}

// Process is a child that prints one line of JSON when it is ready. It ends
// with its standard input, or of an interrupt.
type Process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  *bufio.Reader
	stderr tail
}

// Start starts cmd and reads its first line into ready. The caller ends it
// with End.
func Start(ctx context.Context, cmd *exec.Cmd, ready any) (*Process, error) {
	p := &Process{cmd: cmd}
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
	if err := p.Receive(ctx, ready); err != nil {
		p.End()
		return nil, fmt.Errorf("%s did not become ready: %w: %s", filepath.Base(cmd.Path), err, &p.stderr)
	}
	return p, nil
}

// Receive reads one line of JSON. A child that is silent for a minute is
// killed, which ends the wait.
func (p *Process) Receive(ctx context.Context, into any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })()
	line, err := p.lines.ReadBytes('\n')
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return json.Unmarshal(line, into)
}

// Send writes one line of JSON.
func (p *Process) Send(v any) error { return json.NewEncoder(p.stdin).Encode(v) }

// ticks are the unit of CPU time in /proc, in a second (proc_pid_stat(5)).
const ticks = 100

// PID is the child's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// CPU is the CPU time that the child has used.
func (p *Process) CPU() (time.Duration, error) { return CPU(p.PID()) }

// CPU is the CPU time that a process has used.
func CPU(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
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

// Runtime is the CPU time that the threads of a process have used which it has
// now, to the nanosecond where CPU tells hundredths of a second. What a thread
// that runs has used since the last tick of the clock is not in it yet.
func Runtime(pid int) (sum time.Duration, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, errors.Join(fmt.Errorf("process %d has no threads that count their time", pid), err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue // a thread that has ended
		}
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(raw), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("unknown form of /proc/PID/task/TID/schedstat: %q", raw)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// RSS is the memory of the child that is resident now, and the most that ever
// was, in bytes.
func (p *Process) RSS() (now, most int64, err error) { return RSS(p.PID()) }

// RSS is the memory of a process that is resident now, and the most that ever
// was, in bytes (proc_pid_status(5)).
func RSS(pid int) (now, most int64, err error) {
	err = memory(pid, map[string]*int64{"VmRSS": &now, "VmHWM": &most})
	return now, most, err
}

// Anonymous is the part of the resident memory of a process that is no file, such
// as its program, in bytes.
func Anonymous(pid int) (bytes int64, err error) {
	err = memory(pid, map[string]*int64{"RssAnon": &bytes})
	return bytes, err
}

// memory reads lines of the status of a process, whose unit is kB there, in
// bytes.
func memory(pid int, lines map[string]*int64) error {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		into := lines[name]
		if into == nil {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return fmt.Errorf("unknown form of /proc/PID/status: %q", line)
		}
		*into = kib << 10
	}
	return nil
}

// Stderr is the end of what the child wrote to its standard error.
func (p *Process) Stderr() string { return p.stderr.String() }

// End ends the child, by force if it does not listen.
func (p *Process) End() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Signal(os.Interrupt)
	force := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer force.Stop()
	_, _ = io.Copy(io.Discard, p.lines)
	_ = p.cmd.Wait() // an interrupt is no success
}

// Kill ends the child by force, at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	p.End()
}

// maxTail is how much of the standard error of a child is kept, in bytes.
const maxTail = 16 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - maxTail; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String returns what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
