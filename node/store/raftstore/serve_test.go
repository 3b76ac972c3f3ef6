// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// TestServeCalls_EndsSilentStreams has a member open a stream of calls and say
// nothing on it, at once or after a ping.
func TestServeCalls_EndsSilentStreams(t *testing.T) {
	for _, pings := range []int{0, 1, 3} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := openFaulty(t, "")
			defer s.Close()
			near, far := net.Pipe()
			defer near.Close()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				s.serveCalls(far, "b")
			}()
			const alive = callIdle - time.Nanosecond
			for id := range uint64(pings) {
				select {
				case <-time.After(alive):
				case <-ended:
					t.Fatalf("it ended before %v", callIdle)
				}
				if err := writeFrame(near, &pb.ReplicaRequest{Id: id, Call: &pb.ReplicaRequest_Ping{Ping: &pb.ReplicaPing{}}}, maxFrame); err != nil {
					t.Fatal(err)
				}
				var resp pb.ReplicaResponse
				if _, err := readFrame(near, &resp, maxFrame); err != nil || resp.GetId() != id {
					t.Fatalf("answer to %d, %v, want one to %d", resp.GetId(), err, id)
				}
			}
			quiet := time.Now()
			select {
			case <-ended:
			case <-time.After(2 * callIdle):
				t.Fatalf("it goes on after %v of silence", 2*callIdle)
			}
			if took := time.Since(quiet); took != callIdle {
				t.Errorf("after %d pings it ended after %v of silence, want %v", pings, took, callIdle)
			}
		})
	}
}
