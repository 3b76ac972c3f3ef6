// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// writerDir names the variable that makes the test binary a writer.
const writerDir = "MESHGATE_TEST_WRITER_DIR"

// writers is how many goroutines of the writer write at once.
const writers = 8

// writeForEver opens the store in dir and writes until it is killed. It prints
// each key after its write was acknowledged. Snapshots happen all the time.
func writeForEver(dir string) int {
	s, err := raftstore.Open(raftstore.Config{
		Dir: dir, ID: "gw", SnapshotThreshold: 20, SnapshotInterval: 10 * time.Millisecond,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	if err := s.Sync(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var out sync.Mutex
	for w := range writers {
		go func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d/%d/%d", os.Getpid(), w, n)
				_, err := s.Apply(ctx, store.Batch{Ops: []store.Op{
					{Key: "a/" + key, Value: []byte(key)}, {Key: "b/" + key, Value: []byte(key)},
				}})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				out.Lock()
				fmt.Println(key) // straight to the pipe: nothing is buffered
				out.Unlock()
			}
		}()
	}
	select {}
}

// TestKill kills a writing process at moments of no choice. Whatever it had
// acknowledged is there afterwards, and no batch is there by half.
func TestKill_KeepsAcknowledgedWrites(t *testing.T) {
	dir := t.TempDir()
	var acked []string
	for round, writes := range []int{1, 7, 40, 150, 300, 33} {
		acked = append(acked, killAfter(t, dir, writes)...)
		s := mustOpen(t, raftstore.Config{Dir: dir})
		entries := list(t, s)
		have := make(map[string]string, len(entries))
		for _, e := range entries {
			have[e.Key] = string(e.Value)
		}
		for _, key := range acked {
			if have["a/"+key] != key {
				t.Fatalf("round %d: acknowledged write %q is lost", round, key)
			}
		}
		for key := range have {
			half, rest, _ := strings.Cut(key, "/")
			other := map[string]string{"a": "b/", "b": "a/"}[half] + rest
			if _, ok := have[other]; !ok {
				t.Fatalf("round %d: %q is there without %q", round, key, other)
			}
		}
		t.Logf("round %d: %d acknowledged, %d keys, version %d", round, len(acked), len(have), s.Version())
		closeNow(t, s)
	}
}

// killAfter starts a writer, kills it after it acknowledged a number of
// writes, and returns all that it acknowledged until it died.
func killAfter(t *testing.T, dir string, writes int) (acked []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), writerDir+"="+dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acked = append(acked, lines.Text())
		if len(acked) == writes {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // "signal: killed"
	if len(acked) < writes {
		t.Fatalf("the writer ended after %d writes", len(acked))
	}
	return acked
}
