// SPDX-License-Identifier: Apache-2.0

//go:build linux && !android

package wg

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// Both sockets of a lean device are at one port, and let routers cut what is too
// large.
func TestLean_OpensBothFamilies(t *testing.T) {
	l := newLean()
	_, port, err := l.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]int{}
	err = eachSocket(port, func(fd, family int) error {
		seen[family]++
		option, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER)
		if family == unix.AF_INET {
			option, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
		}
		if option != unix.IP_PMTUDISC_DONT {
			t.Errorf("family %d: discovers MTUs (%d)", family, option)
		}
		return err
	})
	if err != nil || seen[unix.AF_INET] != 1 || seen[unix.AF_INET6] != 1 {
		t.Errorf("sockets %v, %v", seen, err)
	}
	if _, _, err := l.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("opened twice: %v", err)
	}
	if _, _, err := newLean().Open(port); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("another one at its port: %v", err)
	}
	to, err := l.ParseEndpoint("127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.SetMark(0), l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if err := l.Send([][]byte{{1}}, to); !errors.Is(err, net.ErrClosed) {
		t.Errorf("sent after Close: %v", err)
	}
	if err := l.SetMark(1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("marks packets: %v", err)
	}
}
