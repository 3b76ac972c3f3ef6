// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// asker is an interface in whose name the program looks routes up. The kernel
// tells them only to an interface that forwards. A relay is no router: the host's
// own interfaces need not forward, and for their sake nothing is changed about
// them. This one has no address, is never up, carries nothing, and is gone with
// the process.
type asker struct {
	fd    int
	index int
}

// newAsker makes one in the network of the calling thread.
func newAsker() (_ *asker, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	a := &asker{fd: fd}
	defer func() {
		if err != nil {
			_ = a.close()
		}
	}()
	request, err := unix.NewIfreq("meshgatexdp%d")
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, fmt.Errorf("make an interface to look routes up: %w", err)
	}
	made, err := net.InterfaceByName(request.Name())
	if err != nil {
		return nil, err
	}
	a.index = made.Index
	for _, family := range []string{"ipv4", "ipv6"} {
		err := os.WriteFile("/proc/sys/net/"+family+"/conf/"+made.Name+"/forwarding", []byte("1"), 0)
		if err != nil && (family == "ipv4" || !errors.Is(err, fs.ErrNotExist)) { // not all hosts have IPv6
			return nil, fmt.Errorf("let %s forward: %w", made.Name, err)
		}
	}
	return a, nil
}

func (a *asker) close() error { return unix.Close(a.fd) }
