// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// traceConfig is what runTrace is told.
type traceConfig struct {
	// Args are the program and its arguments.
	Args []string
	// Dir is where the program keeps its files. A step is a change of one of
	// them, or of their names, or something that is sent on a socket.
	Dir string
	// KillAt is the step instead of which the program is killed; 0: none.
	KillAt int
	// Steps is a file that gets a line when steps count, and one for each step.
	Steps string
	// Armed lets steps count from the start; else they do from the first line on
	// standard input on.
	Armed bool
}

// runTrace runs a program under its eyes, and kills it with SIGKILL at a step.
// It ends with the program, and the program with it.
func runTrace(cfg traceConfig) error {
	runtime.LockOSThread() // who traces is a thread
	cmd := exec.Command(cfg.Args[0], cfg.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, roleEnv+"=") && !strings.HasPrefix(v, configEnv+"=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	steps, err := os.OpenFile(cfg.Steps, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer steps.Close()
	t := &tracer{cfg: cfg, pid: cmd.Process.Pid, steps: steps, seen: map[int]bool{}}
	if cfg.Armed {
		t.arm()
	} else {
		go func() {
			if bufio.NewScanner(os.Stdin).Scan() {
				t.arm()
			}
		}()
	}
	return t.run()
}

// tracer follows a process and its threads.
type tracer struct {
	cfg   traceConfig
	pid   int
	steps *os.File
	seen  map[int]bool // threads
	n     int          // steps
	armed atomic.Bool
}

// arm lets steps count, and says so.
func (t *tracer) arm() {
	t.armed.Store(true)
	if _, err := fmt.Fprintln(t.steps, "armed"); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
}

func (t *tracer) run() error {
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(t.pid, &status, syscall.WALL, nil); err != nil {
		return err
	}
	t.seen[t.pid] = true
	err := syscall.PtraceSetOptions(t.pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL)
	if err != nil {
		return err
	}
	if err := syscall.PtraceSyscall(t.pid, 0); err != nil {
		return err
	}
	for {
		thread, err := syscall.Wait4(-1, &status, syscall.WALL, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return err
		case !status.Stopped() && thread == t.pid: // it has ended
			return nil
		case !status.Stopped():
			continue
		}
		signal, err := t.stopped(thread, status)
		if err != nil {
			return err
		}
		if err := syscall.PtraceSyscall(thread, int(signal)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
}

// stopped looks at why a thread stopped, and returns the signal with which it
// goes on.
func (t *tracer) stopped(thread int, status syscall.WaitStatus) (syscall.Signal, error) {
	const ofSyscall = syscall.SIGTRAP | 0x80
	known := t.seen[thread]
	t.seen[thread] = true
	switch signal := status.StopSignal(); {
	case signal == ofSyscall:
		return 0, t.look(thread)
	case signal == syscall.SIGTRAP, signal == syscall.SIGSTOP && !known:
		return 0, nil
	default:
		return signal, nil
	}
}

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h, at an entry.
type syscallInfo struct {
	op     uint8
	_      [3]uint8
	_      uint32
	_, _   uint64
	number uint64
	args   [6]uint64
	_      [2]uint64
}

// look counts a system call that is about to be a step.
func (t *tracer) look(thread int) error {
	const entry = 1 // PTRACE_SYSCALL_INFO_ENTRY
	var info syscallInfo
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO,
		uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno == syscall.ESRCH { // it is dying
		return nil
	}
	if errno != 0 {
		return errno
	}
	if info.op != entry || !t.armed.Load() {
		return nil
	}
	what := t.step(info)
	if what == "" {
		return nil
	}
	t.n++
	if _, err := fmt.Fprintln(t.steps, what); err != nil {
		return err
	}
	if t.n == t.cfg.KillAt {
		return syscall.Kill(t.pid, syscall.SIGKILL)
	}
	return nil
}

// step says which step a system call is; empty for none.
func (t *tracer) step(info syscallInfo) string {
	name, byHandle := "", true
	switch info.number {
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV:
		name = "write"
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		name = "sync"
	case unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE:
		name = "size"
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		name, byHandle = "rename", false
	case unix.SYS_UNLINKAT:
		name, byHandle = "remove", false
	default:
		return ""
	}
	if !byHandle {
		return name
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", t.pid, info.args[0]))
	if err != nil || !strings.HasPrefix(target, t.cfg.Dir) && !strings.HasPrefix(target, "socket:") {
		return ""
	}
	return name + " " + target
}
