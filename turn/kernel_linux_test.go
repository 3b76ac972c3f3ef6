// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/xdp"
)

// TestKernel_RelaysChannels has coturn's client and peer talk by a server with a
// kernel path: all of it arrives, and the kernel has relayed what it can.
func TestKernel_RelaysChannels(t *testing.T) {
	n := newLab(t)
	if err := wholeChecksums(n.client, "cable"); err != nil {
		t.Fatal(err)
	}
	start(t, n.client, "", nil, "stdbuf", "-oL", "turnutils_peer", "-L", clientHost, "-p", "3480", "-v")
	server := exec.Command("ip", "netns", "exec", n.server, os.Args[0])
	server.Env = append(os.Environ(), helperEnv+"=1", kernelEnv+"="+string(xdp.Generic))
	server.Stderr = os.Stderr
	stdin, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(3*patience, func() { server.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the server says %q: %v", lines.Text(), server.Wait())
	}
	secrets, err := NewSecrets(testSecret, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := secrets.Mint("kernel", time.Hour)
	out := n.uclient(t.Context(), "-u", c.Username, "-w", c.Password, "-e", clientHost, serverHost)
	if want := "tot_send_msgs=5, tot_recv_msgs=5"; !strings.Contains(out, want) {
		t.Errorf("no %q in what the client says:\n%s", want, out)
	}
	stdin.Close()
	sent := 0
	for lines.Scan() {
		if _, err := fmt.Sscan(lines.Text(), &sent); err != nil {
			t.Errorf("the server says %q", lines.Text())
		}
	}
	if err := server.Wait(); err != nil {
		t.Error(err)
	}
	// Five packets there and five back, of which the first may have had to look for its neighbour.
	if sent < 8 {
		t.Errorf("the kernel has relayed %d packets of 10", sent)
	}
}

// wholeChecksums has the sockets of a namespace write their checksums themselves,
// as on a cable that is not virtual.
func wholeChecksums(namespace, name string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- func() error {
			file, err := os.Open("/run/netns/" + namespace)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			off := &struct{ command, value uint32 }{command: unix.ETHTOOL_STXCSUM}
			request := struct {
				name [unix.IFNAMSIZ]byte
				data unsafe.Pointer
				rest [16]byte
			}{data: unsafe.Pointer(off)}
			copy(request.name[:], name)
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
				return errors.Join(fmt.Errorf("checksums of %s", name), errno)
			}
			return nil
		}()
	}()
	return <-done
}
