// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn"
)

// backWithin is how long after a kill clients are without an allocation at most, with
// the time that the server takes to start. Most of that is for a machine that has much
// else to do.
const backWithin = 5 * time.Second

// alone is a server that is a process of its own.
type alone struct {
	*exec.Cmd
	testing.TB
}

func startAlone(t testing.TB, at netip.Addr) alone {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serverEnv+"="+at.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() }) // one that was killed has been waited for
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the server says %q: %v", line, err)
	}
	return alone{cmd, t}
}

// files is how many files and sockets it has open.
func (s alone) files() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Process.Pid))
	if err != nil {
		s.Fatal(err)
	}
	return len(list)
}

// kill ends it as kill -9 does.
func (s alone) kill() {
	if err := s.Process.Kill(); err != nil {
		s.Fatal(err)
	}
	_ = s.Wait() // to be killed is no success
}

// again sends until a has ended, and then gets another allocation, as clients do; nil
// when it does not get one.
func again(t testing.TB, cfg Config, a *Allocation, to netip.AddrPort) *Allocation {
	tick, deadline := time.NewTicker(20*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for {
		_ = a.WriteTo([]byte("is anybody there?"), to) // may say that it has ended
		var b *Allocation
		var err error
		if isClosed(a.Done()) {
			if b, err = Allocate(t.Context(), cfg); err == nil {
				return b
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("it ended with %v, and there is no other one: %v", a.Err(), err)
			return nil
		}
	}
}

// A server that is killed and started anew has its clients back within moments: each
// hears that its allocation is gone, and gets another one. There are as many ports as
// clients, so that none can be left of before.
func TestAllocation_IsBackSoonAfterAKill(t *testing.T) {
	at := netip.AddrFrom4([4]byte{127, 77, byte(os.Getpid() >> 8), byte(os.Getpid())}) // no other test is there
	c, peer := listenUDP(t, loopback)
	_, other := listenUDP(t, loopback)
	secrets, err := turn.NewSecrets([]byte(testSecret), nil)
	if err != nil {
		t.Fatal(err)
	}
	server := startAlone(t, at)
	idle := server.files()
	var configs []Config
	var before []*Allocation
	for i, transport := range []string{"udp", "tcp"} {
		credential := secrets.Mint(fmt.Sprint("user ", i), time.Hour)
		configs = append(configs, Config{
			Server: fmt.Sprintf("turn:%s:%d?transport=%s", at, alonePort, transport), Username: credential.Username, Password: credential.Password,
		})
		before = append(before, mustAllocate(t, configs[i]))
		exchange(t, before[i], c, peer)
	}
	busy := server.files()

	server.kill()
	began := time.Now()
	next := startAlone(t, at)
	started := time.Since(began)
	after, took := make([]*Allocation, len(before)), make([]time.Duration, len(before))
	var running sync.WaitGroup
	for i, a := range before {
		running.Go(func() {
			after[i] = again(t, configs[i], a, other)
			took[i] = time.Since(began)
		})
	}
	running.Wait()
	for i, b := range after {
		if b == nil {
			continue
		}
		t.Logf("over %s: the server was there after %s, the allocation after %s; the one before: %v", b.Transport(), started, took[i], before[i].Err())
		if took[i] > backWithin {
			t.Errorf("over %s it is back after %s", b.Transport(), took[i])
		}
		exchange(t, b, c, peer)
	}
	if n := next.files(); n != busy {
		t.Errorf("%d files are open, before the kill %d", n, busy)
	}
	for _, b := range after {
		if b != nil {
			b.Close()
		}
	}
	eventually(t, "nothing is left open", func() bool { return next.files() <= idle })
}
