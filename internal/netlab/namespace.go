// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for namespaces: `ip netns exec NAME` helps
// who looks for what is wrong.
const netnsDir = "/run/netns"

// patience is how long something that takes milliseconds may take.
const patience = 20 * time.Second

// namespace is a network namespace that has a name.
type namespace struct {
	path string
	file *os.File        // keeps it and is how to get in
	nl   *netlink.Handle // its sockets are inside
}

// newNamespace makes one with lo up.
func newNamespace(name string) (*namespace, error) {
	n := &namespace{path: filepath.Join(netnsDir, name)}
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, n.settle)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make namespace %s: %w", name, err), n.close(), discard([]string{n.path}))
	}
	return n, nil
}

// settle gives the namespace of the thread its name.
func (n *namespace) settle() (err error) {
	if err := os.WriteFile(n.path, nil, 0o400); err != nil {
		return err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", n.path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount it: %w", err)
	}
	if n.file, err = os.Open(n.path); err != nil {
		return err
	}
	if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	for _, s := range []struct{ name, value string }{
		{"ipv6/conf/all/disable_ipv6", "0"},
		{"ipv6/conf/default/disable_ipv6", "0"},
		// An address that is set is used at once, without asking whether it is free.
		{"ipv6/conf/all/accept_dad", "0"},
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
	} {
		if err := sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return n.up("lo")
}

// forward makes a router of it.
func (n *namespace) forward() error {
	return n.enter(func() error {
		return errors.Join(sysctl("ipv4/ip_forward", "1"), sysctl("ipv6/conf/all/forwarding", "1"))
	})
}

// sysctl sets a value of the namespace of the calling thread.
func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// close lets go of it; discard ends it.
func (n *namespace) close() error {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.file == nil {
		return nil
	}
	return n.file.Close()
}

// enter runs f on a thread that is in the namespace. Sockets that f makes and
// processes that it starts belong there for good; goroutines that it starts do
// not.
func (n *namespace) enter(f func() error) error {
	return onThread(func() error { return unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET) }, f)
}

// errEnded is for a function that ended its goroutine, as t.FailNow does.
var errEnded = errors.New("the function that ran in the namespace did not return")

// onThread moves a thread with move, runs f on it and moves it back.
func onThread(move, f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errEnded
		defer func() { done <- err }()
		err = away(move, f)
	}()
	return <-done
}

// away is what onThread does on a goroutine that is there for it alone.
func away(move, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := move(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with the goroutine
	}()
	return f()
}

// command is a process in the namespace that was not started yet. Its id is
// that of the program itself.
func (n *namespace) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.path, "--"}, args...)...)
}

// nft applies rules, all or none.
func (n *namespace) nft(rules string) error {
	if rules == "" {
		return nil
	}
	return n.enter(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft in %s: %w: %s", filepath.Base(n.path), err, out)
		}
		return nil
	})
}

// connect joins two namespaces by a pair of interfaces, which are up.
func connect(a *namespace, ifA string, b *namespace, ifB string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ifA
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: ifB, PeerNamespace: netlink.NsFd(int(b.file.Fd()))}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("join %s and %s: %w", a.path, b.path, err)
	}
	return errors.Join(a.hasten(ifA), b.hasten(ifB), a.up(ifA), b.up(ifB))
}

// hasten makes a host ask soon again who has an address. IPv6 joins the group in
// which it is asked some time after it got the address; who asked before waits
// a second for the next chance otherwise.
func (n *namespace) hasten(name string) error {
	return n.enter(func() error {
		var errs []error
		for _, ip := range []string{"ipv4", "ipv6"} {
			errs = append(errs, sysctl(ip+"/neigh/"+name+"/retrans_time_ms", "20"),
				sysctl(ip+"/neigh/"+name+"/mcast_solicit", "20"))
		}
		return errors.Join(errs...)
	})
}

func (n *namespace) link(name string) (netlink.Link, error) {
	l, err := n.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s of %s: %w", name, filepath.Base(n.path), err)
	}
	return l, nil
}

func (n *namespace) up(name string) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	return n.nl.LinkSetUp(l)
}

func (n *namespace) mtu(name string, bytes int) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	return n.nl.LinkSetMTU(l, bytes)
}

// address gives an interface an address and the network that it is in.
func (n *namespace) address(name string, addr netip.Prefix) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.nl.AddrAdd(l, netlinkAddr(addr)); err != nil {
		return fmt.Errorf("give %s of %s the address %s: %w", name, filepath.Base(n.path), addr, err)
	}
	return nil
}

// noAddress takes an address away.
func (n *namespace) noAddress(name string, addr netip.Prefix) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.nl.AddrDel(l, netlinkAddr(addr)); err != nil {
		return fmt.Errorf("take the address %s of %s from %s: %w", addr, name, filepath.Base(n.path), err)
	}
	return nil
}

func netlinkAddr(addr netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(addr)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// route sends what goes to a network by way of via.
func (n *namespace) route(to netip.Prefix, via netip.Addr) error {
	if err := n.nl.RouteReplace(&netlink.Route{Dst: ipNet(to.Masked()), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s via %s in %s: %w", to, via, filepath.Base(n.path), err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// shareNetnsDir makes the directory of the names what iproute2 makes of it: a
// mount of its own, so that a name that goes does so in the mounts of
// everybody.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // it is no mount yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// discard ends the processes in namespaces and takes their names away, with
// which the namespaces end. Names that are not there are no error.
func discard(paths []string) error {
	ids := map[string]bool{}
	for _, path := range paths {
		// While it is open, no other namespace gets its number.
		file, err := os.Open(path)
		if err != nil {
			continue
		}
		defer file.Close()
		var s unix.Stat_t
		if unix.Fstat(int(file.Fd()), &s) == nil {
			ids[fmt.Sprintf("net:[%d]", s.Ino)] = true
		}
	}
	errs := []error{killAll(ids)}
	for _, path := range paths {
		// EINVAL: it has the name and was not mounted yet.
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// Some may have been on their way in when the name went.
	return errors.Join(append(errs, killAll(ids))...)
}

// killAll kills the processes in namespaces, and those that they start
// meanwhile.
func killAll(ids map[string]bool) error {
	for deadline := time.Now().Add(patience); ; {
		alive := inside(ids)
		if len(alive) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the processes %v do not end; kill them by hand", alive)
		}
		for _, pid := range alive {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// inside lists the processes in namespaces.
func inside(ids map[string]bool) []int {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	var list []int
	for _, link := range links {
		id, err := os.Readlink(link)
		if err != nil || !ids[id] {
			continue // it has ended, or is elsewhere
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil && pid != os.Getpid() {
			list = append(list, pid)
		}
	}
	return list
}
