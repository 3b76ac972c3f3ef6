// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// refusing is a UDP bind that refuses batches, as a kernel does whose link is too
// small for the packets.
type refusing struct {
	conn.Bind
	err   error
	calls []int
}

func (r *refusing) Send(packets [][]byte, _ conn.Endpoint) error {
	r.calls = append(r.calls, len(packets))
	if len(packets) > 1 {
		return r.err
	}
	return nil
}

func TestFragmenting_SendsOneByOneWhatIsRefusedTogether(t *testing.T) {
	r := &refusing{err: fmt.Errorf("sendmmsg: %w", unix.EMSGSIZE)}
	f := &fragmenting{Bind: r}
	batch := [][]byte{{1}, {2}, {3}}
	for range 2 {
		if err := f.Send(batch, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := fmt.Sprint(r.calls), "[3 1 1 1 1 1 1]"; got != want {
		t.Errorf("sent %s packets, want %s", got, want)
	}
	f.until.Store(time.Now().UnixNano())
	r.calls, r.err = nil, nil
	if err := f.Send(batch, nil); err != nil || fmt.Sprint(r.calls) != "[3]" {
		t.Errorf("a second later: %v, %v", r.calls, err)
	}
	// Kernels of before say EINVAL, which is not taken for the way's fault.
	r.calls, r.err = nil, unix.EINVAL
	if err := f.Send(batch, nil); err != nil || fmt.Sprint(r.calls) != "[3 1 1 1]" || f.until.Load() > time.Now().UnixNano() {
		t.Errorf("an older kernel: %v, %v", r.calls, err)
	}
	r.calls, r.err = nil, unix.EPERM
	if err := f.Send(batch, nil); !errors.Is(err, unix.EPERM) || fmt.Sprint(r.calls) != "[3]" {
		t.Errorf("another error: %v, %v", r.calls, err)
	}
}

// The sockets that the library opened let routers cut what is too large.
func TestFragmenting_FindsTheSockets(t *testing.T) {
	for _, mtu := range []int{minMTU, 1420} {
		f := newNative(mtu)
		_, port, err := f.Open(0)
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
				t.Errorf("mtu %d, family %d: discovers MTUs (%d)", mtu, family, option)
			}
			return err
		})
		if err != nil || seen[unix.AF_INET] != 1 || seen[unix.AF_INET6] != 1 {
			t.Errorf("mtu %d: sockets %v, %v", mtu, seen, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
