// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Environment of a child: the step before which it is killed, and what it does.
const (
	envKill   = "HOSTNET_TEST_KILL"
	envScript = "HOSTNET_TEST_SCRIPT"
)

func TestMain(m *testing.M) {
	script := os.Getenv(envScript)
	if script == "" {
		os.Exit(m.Run())
	}
	kill, err := strconv.Atoi(os.Getenv(envKill))
	if err == nil {
		err = runChild(script, kill)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runChild is a node's life on a host: it makes its TUN interface, which goes
// with the process. It kills itself before the step of number kill.
func runChild(script string, kill int) error {
	tun, err := openTUN("mesh0", false)
	if err != nil {
		return err
	}
	defer tun.Close()
	steps, h := 0, New(nil)
	h.step = func(string) {
		if steps++; steps == kill {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it is on its way
		}
	}
	if err := h.Clean("mesh0"); err != nil || script == "clean" {
		return err
	}
	full := router()
	full.Interface, full.Exit = "mesh0", &Exit{IPv4: true, Block: true}
	plain := full
	plain.Serve, plain.Masquerade, plain.Routes, plain.Exit = nil, nil, nil, nil
	for _, c := range []Config{full, plain, full} {
		if err := h.Set(context.Background(), c); err != nil {
			return err
		}
	}
	if script == "dies" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return h.Close()
}

// openTUN opens a TUN interface, which goes when the file is closed unless it is
// to persist.
func openTUN(name string, persist bool) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if persist {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	}
	return os.NewFile(uintptr(fd), name), err
}

// child runs a child in the host's network and reports whether it was killed.
func (h *host) child(script string, kill int) (killed bool) {
	h.tb.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envScript+"="+script, envKill+"="+strconv.Itoa(kill))
	out, err := cmd.CombinedOutput()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		h.tb.Fatalf("%s, killed at %d: %v: %s", script, kill, err, out)
	}
	return false
}

// maxSteps bounds the search for the last step.
const maxSteps = 200

// However far a node came before it was killed, the next one leaves the host as
// it was before both.
func TestClean_AfterAKillAtEachStep(t *testing.T) {
	k := newHost(t)
	if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
		t.Fatal(err)
	}
	k.run("nft", "add table inet theirs; add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; add rule ip nat out oifname lan0 masquerade")
	k.run("ip", "rule", "add", "from", "203.0.113.0/24", "table", "77")
	k.run("ip", "route", "add", "default", "dev", "lan0")
	k.run("sysctl", "-qw", "net.ipv4.conf.lan0.rp_filter=1")
	before := k.dump()
	steps := 1
	for ; k.child("life", steps); steps++ {
		if steps > maxSteps {
			t.Fatalf("more than %d steps", maxSteps)
		}
		next, name := New(nil), "mesh0"
		if steps%2 == 0 {
			name = "mesh9" // any node of ours does
		}
		tun, err := openTUN(name, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Clean(name); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, k.dump()); diff != "" {
			t.Errorf("killed at step %d, cleaned by %s (-want +got):\n%s", steps, name, diff)
		}
		if err := next.Set(t.Context(), Config{Interface: name, Addresses: prefixes("172.16.0.1/32")}); err != nil {
			t.Error(err)
		}
		if err := errors.Join(next.Close(), tun.Close()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, k.dump()); diff != "" {
			t.Errorf("killed at step %d, and closed (-want +got):\n%s", steps, diff)
		}
	}
	if steps < 15 {
		t.Errorf("a life had %d steps only", steps-1)
	}
	if diff := cmp.Diff(before, k.dump()); diff != "" {
		t.Errorf("after a whole life (-want +got):\n%s", diff)
	}
}

// Who is killed while it cleans up leaves the rest to the next.
func TestClean_KilledItself(t *testing.T) {
	k := newHost(t)
	if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
		t.Fatal(err)
	}
	before := k.dump()
	for step := 1; ; step++ {
		if !k.child("dies", 0) {
			t.Fatal("the child lives")
		}
		if cmp.Equal(before, k.dump()) {
			t.Fatal("a killed node left nothing")
		}
		killed := k.child("clean", step)
		if !killed && step < 3 {
			t.Errorf("it cleaned up in %d steps", step-1)
		}
		k.add("mesh0")
		if err := New(nil).Clean("mesh0"); err != nil {
			t.Fatal(err)
		}
		if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, k.dump()); diff != "" {
			t.Errorf("killed at step %d (-want +got):\n%s", step, diff)
		}
		if !killed {
			break
		}
	}
}

func TestClean_LeavesTheLivingAlone(t *testing.T) {
	k := newHost(t)
	other := New(nil)
	k.add("mesh1")
	c := router()
	c.Interface, c.Routes, c.Addresses = "mesh1", nil, nil
	if err := other.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	k.run("nft", "add table inet meshgate_; add table inet meshgate_mine; add chain inet meshgate_mine ledger; add rule inet meshgate_mine ledger return comment \"setting ipv4/conf/lan0/rp_filter 1 0\"")
	want := k.dump()
	for range 2 {
		if err := New(nil).Clean("mesh0"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, k.dump()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// A TUN interface that outlives its process keeps the routes.
func TestClean_RemovesRoutesOfAnInterfaceThatStayed(t *testing.T) {
	k := newHost(t)
	set(t, New(nil), Config{Routes: prefixes("172.16.0.0/12", "fd00::/32")})
	theirs := route(k.link("mesh0"), prefixes("10.0.0.0/8")[0])
	theirs.Protocol = netlink.RouteProtocol(unix.RTPROT_STATIC)
	if err := k.nl.RouteAdd(theirs); err != nil {
		t.Fatal(err)
	}
	if err := New(nil).Clean("mesh0"); err != nil {
		t.Fatal(err)
	}
	if got := k.state().Routes; !cmp.Equal(got, []string{"10.0.0.0/8"}) {
		t.Errorf("routes %v", got)
	}
}
