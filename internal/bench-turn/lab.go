// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// forged is where the packets of a flood pretend to come from: a quarter of all
// IPv4 addresses, so that no limit by network is of use. They do not leave the
// namespaces.
const forged = "128.0.0.0/2"

// lab is two hosts, network namespaces: one has the servers, the other one
// clients and peers. Each server has a cable of its own between them, so that
// what it does to its interface concerns no other.
type lab struct {
	serverSide, loadSide string // namespaces
	cables               int
	// serverCPU and loadCPU are those to which the two sides are pinned.
	serverCPU, loadCPU int
}

// cable is a veth pair between the two hosts.
type cable struct {
	name string // of the interface, on both hosts
	// server and load are the addresses of its ends.
	server, load netip.Addr
}

// network is that of the cable.
func (c cable) network() netip.Prefix {
	p, _ := c.server.Prefix(24) // 24 bits fit
	return p
}

func newLab(ctx context.Context) (_ *lab, err error) {
	prefix := "mgbt" + strconv.Itoa(os.Getpid())
	l := &lab{serverSide: prefix + "s", loadSide: prefix + "l"}
	if l.serverCPU, l.loadCPU, err = twoCPUs(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	for _, namespace := range []string{l.serverSide, l.loadSide} {
		if err := ip(ctx, "netns", "add", namespace); err != nil {
			return nil, err
		}
		if err := ip(ctx, "-n", namespace, "link", "set", "lo", "up"); err != nil {
			return nil, err
		}
	}
	return l, ip(ctx, "-n", l.loadSide, "route", "add", "local", forged, "dev", "lo")
}

// cable makes another one.
func (l *lab) cable(ctx context.Context) (c cable, err error) {
	l.cables++
	c = cable{
		name:   "cable" + strconv.Itoa(l.cables),
		server: netip.AddrFrom4([4]byte{10, 203, byte(l.cables), 1}),
		load:   netip.AddrFrom4([4]byte{10, 203, byte(l.cables), 2}),
	}
	if err := ip(ctx, "link", "add", c.name, "netns", l.serverSide, "type", "veth", "peer", "name", c.name, "netns", l.loadSide); err != nil {
		return c, err
	}
	for namespace, address := range map[string]netip.Addr{l.serverSide: c.server, l.loadSide: c.load} {
		err = errors.Join(err,
			ip(ctx, "-n", namespace, "addr", "add", address.String()+"/24", "dev", c.name),
			ip(ctx, "-n", namespace, "link", "set", c.name, "up"))
	}
	return c, err
}

// pollBy has the packets that arrive at the server's end of a cable handled by a
// thread of their own, on a CPU. Without it the load's CPU would do it, as a
// packet is through a veth pair within the call that sends it; a network card
// would interrupt the CPU of the server.
func (l *lab) pollBy(ctx context.Context, c cable, cpu int) error {
	file := "/sys/class/net/" + c.name + "/threaded" // of the namespace, as ip shows it to a program
	if out, err := command(ctx, l.serverSide, "sh", "-c", "echo 1 > "+file).CombinedOutput(); err != nil {
		return fmt.Errorf("write 1 to %s: %w: %s", file, err, out)
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	found := false
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(comm), "napi/"+c.name+"-") {
			continue // ended meanwhile, or another one
		}
		found = true
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return fmt.Errorf("process of %s: %w", name, err)
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(pid, &one); err != nil {
			return fmt.Errorf("keep the thread of %s on CPU %d: %w", c.name, cpu, err)
		}
	}
	if !found {
		return fmt.Errorf("the kernel started no thread for the packets of %s, though it was told to", c.name)
	}
	return nil
}

// openToForged has a server's answers to forged addresses leave over a cable.
func (l *lab) openToForged(ctx context.Context, c cable) error {
	return ip(ctx, "-n", l.serverSide, "route", "replace", forged, "via", c.load.String(), "dev", c.name)
}

// close removes the namespaces, and with them all that is in them. Nobody can
// do anything about one that stays.
func (l *lab) close() {
	for _, namespace := range []string{l.serverSide, l.loadSide} {
		_ = ip(context.Background(), "netns", "del", namespace)
	}
}

// command is a program that runs in a namespace. It becomes that process: its id
// is the program's.
func command(ctx context.Context, namespace, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", namespace, name}, args...)...)
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// twoCPUs are the first two that this process may use.
func twoCPUs() (first, second int, err error) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return 0, 0, fmt.Errorf("read the CPUs of this process: %w", err)
	}
	var list []int
	for i := range len(may) * 64 {
		if may.IsSet(i) {
			list = append(list, i)
		}
	}
	if len(list) < 2 {
		return 0, 0, errors.New("server and load need a CPU each, and this process may use one only")
	}
	return list[0], list[1], nil
}

// pinned runs f on one CPU, where the processes that it starts stay.
func pinned(cpu int, f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read the CPUs of this process: %w", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("stay on CPU %d: %w", cpu, err)
	}
	defer func() { err = errors.Join(err, unix.SchedSetaffinity(0, &before)) }()
	return f()
}
