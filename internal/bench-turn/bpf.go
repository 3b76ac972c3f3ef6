// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// passOn is the kernel's XDP_PASS.
const passOn = 2

// passAll gives an interface a program that passes everything on, and returns its
// file, which the caller may close. What a program at the other end of a veth
// pair sends back is lost without one.
func passAll(name string) (fd int, err error) {
	program := [...]struct {
		code, registers uint8
		offset          int16
		value           int32
	}{
		{code: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K, value: passOn}, // into the register of the result
		{code: unix.BPF_JMP | unix.BPF_EXIT},
	}
	license := [...]byte{0} // it calls nothing that asks for one
	attributes := struct {
		kind, instructions  uint32
		program, license    uint64
		logLevel, logSize   uint32
		log                 uint64
		kernelVersion, flag uint32
	}{
		kind: unix.BPF_PROG_TYPE_XDP, instructions: uint32(len(program)),
		program: uint64(uintptr(unsafe.Pointer(&program))), license: uint64(uintptr(unsafe.Pointer(&license))),
	}
	fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(&license)
	if err != nil {
		return 0, fmt.Errorf("load a program for %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetXdpFdWithFlags(link, fd, unix.XDP_FLAGS_DRV_MODE); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("run a program at %s: %w", name, err)
	}
	return fd, nil
}

// countRuns has the kernel count the time of all programs as long as the file
// that it returns is open.
func countRuns() (fd int, err error) {
	attributes := struct{ kind uint32 }{unix.BPF_STATS_RUN_TIME}
	fd, err = bpf(unix.BPF_ENABLE_STATS, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
	if err != nil {
		return 0, fmt.Errorf("count the time of programs in the kernel: %w", err)
	}
	return fd, nil
}

func bpf(command uintptr, attributes unsafe.Pointer, size uintptr) (fd int, err error) {
	n, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attributes), size)
	if errno != 0 {
		return 0, os.NewSyscallError("bpf", errno)
	}
	return int(n), nil
}

// runs are those of programs in the kernel since somebody counts (countRuns).
type runs struct {
	count int64
	time  time.Duration
}

// since are the runs after earlier ones.
func (r runs) since(before runs) runs { return runs{r.count - before.count, r.time - before.time} }

// less is the time without that of counting, as the runs of a program show it
// that does nothing.
func (r runs) less(nothing runs) time.Duration {
	if nothing.count == 0 {
		return r.time
	}
	return max(0, r.time-time.Duration(float64(nothing.time)/float64(nothing.count)*float64(r.count)))
}

// runsOf are the runs of all programs that a process has open.
func runsOf(pid int) (sum runs, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return sum, err
	}
	programs := make(map[string]bool) // which have been counted
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return sum, err
		}
		fields := make(map[string]string)
		for line := range strings.Lines(string(raw)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.TrimSpace(value)
		}
		spent, ok := fields["run_time_ns"]
		if !ok || programs[fields["prog_id"]] {
			continue
		}
		programs[fields["prog_id"]] = true
		ns, timeErr := strconv.ParseInt(spent, 10, 64)
		count, countErr := strconv.ParseInt(fields["run_cnt"], 10, 64)
		if err := errors.Join(timeErr, countErr); err != nil {
			return sum, fmt.Errorf("unknown form of %s: %w: %q", f, err, raw)
		}
		sum.count += count
		sum.time += time.Duration(ns)
	}
	return sum, nil
}
