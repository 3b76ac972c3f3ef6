// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestShareOf(t *testing.T) {
	for files, want := range map[uint64]Share{
		0:       {16384, 4096, 256, 1024},
		1 << 20: {16384, 4096, 256, 1024},
		65536:   {16384, 4096, 256, 1024},
		4096:    {1024, 256, 256, 256},
		1024:    {256, 64, 64, 64},
		64:      {16, 16, 16, 16},
	} {
		got := ShareOf(files)
		if got != want {
			t.Errorf("of %d files: %+v, want %+v", files, got, want)
		}
		if sum := got.Connections + got.sorted + got.greeted + got.queued; files >= 1024 && uint64(sum) > files/2 {
			t.Errorf("of %d files strangers get %d", files, sum)
		}
	}
}

// fewFiles is what the process of TestShare_LeavesGatewaysTheirPlaces may open.
const fewFiles = 512

// TestShare_LeavesGatewaysTheirPlaces fills the port of a gateway that may open
// few files, with more connections than it has files, and speaks a stream of the
// front through the same port.
func TestShare_LeavesGatewaysTheirPlaces(t *testing.T) {
	if os.Getenv("MESHGATE_TEST_FEW_FILES") != "" {
		serveFewFiles(t)
		return
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestShare_LeavesGatewaysTheirPlaces$")
	child.Env = append(os.Environ(), "MESHGATE_TEST_FEW_FILES=1")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	address, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address = strings.TrimSpace(address)
	var open []net.Conn
	for kind, said := range map[string][]byte{"keep silent": nil, "begin a request": []byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")} {
		for range 2 * fewFiles {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, conn)
			if _, err := conn.Write(said); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if err := ping(address); err != nil {
			t.Errorf("while %d strangers that %s hold the port: %v", 2*fewFiles, kind, err)
		}
		t.Logf("%d connections that %s: the stream answered in %s", 2*fewFiles, kind, time.Since(began))
	}
	for _, conn := range open { // nobody is waited for
		_ = conn.Close()
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	rest, _ := io.ReadAll(lines)
	if err := child.Wait(); err != nil {
		t.Errorf("the gateway: %v\n%s", err, rest)
	}
}

// serveFewFiles serves in a process that may open fewFiles, until its input ends.
func serveFewFiles(t *testing.T) {
	limit := syscall.Rlimit{Cur: fewFiles, Max: fewFiles}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	share := ShareOf(fewFiles)
	f := frontOf(t, newWaiting(min(maxSorted, share.sorted), share.sorted), newWaiting(min(maxGreeted, share.greeted), share.greeted), share.queued)
	serve(t, func(c *Config) {
		if err := c.Public.Close(); err != nil {
			t.Fatal(err)
		}
		c.Public, c.Limits.Connections = f.Listener(), share.Connections
	})
	fmt.Println(f.Listener().Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	file, err := os.Open(os.DevNull) // the disk has its own, too
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
}

// raftPatience is how long a stream may take to answer: raft gives a call 2 s.
const raftPatience = 5 * time.Second

// ping says something to the test stream behind address and reads it back.
func ping(address string) error {
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: raftPatience}, Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{testStream}}}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(raftPatience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		return fmt.Errorf("it says %q: %w", got, err)
	}
	return nil
}
