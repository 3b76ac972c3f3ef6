// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// pipe is a connection whose Write waits for a Read of the other end, with a
// writer that runs until the test ends.
func pipe(t *testing.T, limit int) (w *frameWriter, far net.Conn, stop func() error) {
	t.Helper()
	near, far := net.Pipe()
	w = newFrameWriter(near, limit)
	over, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- w.run(over) }()
	stop = sync.OnceValue(func() error {
		close(over)
		_ = near.Close()
		return <-result
	})
	t.Cleanup(func() {
		_ = stop()
		_ = far.Close()
	})
	return w, far, stop
}

func TestFrameWriter_SendsTogetherWhatCameMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, far, _ := pipe(t, maxFrame)
		var want [][]byte
		for _, ids := range [][]string{{"a"}, {"b", "c", "d"}} {
			var frames []byte
			for _, id := range ids {
				m := &pb.ReplicaHello{To: id}
				if err := w.put(nil, m); err != nil {
					t.Fatal(err)
				}
				var err error
				if frames, err = appendFrame(frames, m, maxFrame); err != nil {
					t.Fatal(err)
				}
			}
			want = append(want, frames)
			synctest.Wait() // the first one is on its way, the others wait
		}
		buf := make([]byte, 1<<10)
		for i, frames := range want {
			n, err := far.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], frames) {
				t.Errorf("write %d: got %x, %v, want %x", i, buf[:n], err, frames)
			}
		}
	})
}

func TestFrameWriter_OrderOfManyIsKept(t *testing.T) {
	w, far, _ := pipe(t, maxFrame)
	const each, senders = 200, 8
	for s := range senders {
		go func() {
			for i := range each {
				_ = w.put(nil, &pb.ReplicaRequest{Id: uint64(i), TimeoutMs: uint64(s)})
			}
		}()
	}
	next := make([]uint64, senders)
	in := newFrameReader(far)
	for range each * senders {
		var req pb.ReplicaRequest
		if _, err := readFrame(in, &req, maxFrame); err != nil {
			t.Fatal(err)
		}
		if req.GetId() != next[req.GetTimeoutMs()] {
			t.Fatalf("sender %d: got message %d, want %d", req.GetTimeoutMs(), req.GetId(), next[req.GetTimeoutMs()])
		}
		next[req.GetTimeoutMs()]++
	}
}

func TestFrameWriter_Bounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, far, _ := pipe(t, 1<<10)
		if err := w.put(nil, &pb.ReplicaHello{To: strings.Repeat("x", 1<<10)}); err == nil || errors.Is(err, errNotQueued) {
			t.Errorf("a message beyond the limit: %v, want an error that lasts", err)
		}
		hello := &pb.ReplicaHello{To: strings.Repeat("x", 1000)}
		frame, err := appendFrame(nil, hello, 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		many := (maxQueued+len(frame)-1)/len(frame) + 1 // one of them is on its way
		for range many {
			if err := w.put(nil, hello); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		stop, result := make(chan struct{}), make(chan error, 1)
		go func() { result <- w.put(stop, hello) }()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("put did not wait while %d bytes do: %v", maxQueued, err)
		default:
		}
		close(stop)
		if err := <-result; !errors.Is(err, errNotQueued) {
			t.Errorf("put that was stopped: %v, want errNotQueued", err)
		}
		go func() { result <- w.put(nil, hello) }()
		in := newFrameReader(far)
		for range many + 1 {
			var got pb.ReplicaHello
			if _, err := readFrame(in, &got, 1<<10); err != nil || got.GetTo() != hello.GetTo() {
				t.Fatalf("got %q, %v", got.GetTo(), err)
			}
		}
		if err := <-result; err != nil {
			t.Errorf("put after there was room: %v", err)
		}
	})
}

func TestFrameWriter_EndsWithItsStream(t *testing.T) {
	for name, end := range map[string]func(far net.Conn, stop func() error){
		"the other end went": func(far net.Conn, _ func() error) { _ = far.Close() },
		"stopped":            func(_ net.Conn, stop func() error) { _ = stop() },
	} {
		synctest.Test(t, func(t *testing.T) {
			w, far, stop := pipe(t, maxFrame)
			hello := &pb.ReplicaHello{To: "x"}
			if err := w.put(nil, hello); err != nil {
				t.Fatal(err)
			}
			end(far, stop)
			<-w.done
			if err := w.put(nil, hello); !errors.Is(err, errNotQueued) {
				t.Errorf("%s: put says %v, want errNotQueued", name, err)
			}
		})
	}
}

func TestReadFrame_LargeAndSmallInTurns(t *testing.T) {
	var buf bytes.Buffer
	var want []string
	for i, n := range []int{0, 10, keptBuffer - 20, keptBuffer, 3 * keptBuffer, 1} {
		want = append(want, fmt.Sprint(i)+strings.Repeat("x", n))
		if err := writeFrame(&buf, &pb.ReplicaHello{To: want[i]}, maxFrame); err != nil {
			t.Fatal(err)
		}
	}
	in := newFrameReader(&buf)
	for i := range want {
		var got pb.ReplicaHello
		if _, err := readFrame(in, &got, maxFrame); err != nil || got.GetTo() != want[i] {
			t.Errorf("message %d: %d bytes, %v", i, len(got.GetTo()), err)
		}
	}
	if _, err := readFrame(in, &pb.ReplicaHello{}, maxFrame); err == nil {
		t.Error("read a message behind the last one")
	}
}
