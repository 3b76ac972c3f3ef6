// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"testing"
	"testing/synctest"
)

func TestPacketQueue_IsBoundedAndOrdered(t *testing.T) {
	q := newPacketQueue(4)
	item := func(n byte) packet { return packet{frame: &frame{data: []byte{n}}} }
	next, want := byte(0), byte(0)
	for range 5 { // around the ring
		for q.push(item(next), false) {
			next++
		}
		if got := next - want; got != 4 {
			t.Fatalf("queue took %d packets, want 4", got)
		}
		batch := make([]packet, 3)
		for range q.pop(batch, true) {
			if batch[0].frame.data[0] != want {
				t.Fatalf("popped %d, want %d", batch[0].frame.data[0], want)
			}
			batch, want = batch[1:], want+1
		}
		if n := q.pop(make([]packet, 9), false); n != 1 {
			t.Fatalf("popped %d, want the rest", n)
		}
		want++
	}
	if n := q.pop(make([]packet, 1), false); n != 0 {
		t.Errorf("popped %d of an empty queue", n)
	}
}

func TestPacketQueue_WaitersWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newPacketQueue(1)
		popped := make(chan int, 1)
		go func() { popped <- q.pop(make([]packet, 2), true) }()
		synctest.Wait()
		q.push(packet{}, true)
		if n := <-popped; n != 1 {
			t.Errorf("waiting pop = %d, want 1", n)
		}
		q.push(packet{}, true)
		pushed := make(chan bool, 1)
		go func() { pushed <- q.push(packet{}, true) }()
		synctest.Wait()
		q.pop(make([]packet, 1), true)
		if !<-pushed {
			t.Error("waiting push failed although there was room")
		}
		go func() { pushed <- q.push(packet{}, true) }()
		synctest.Wait()
		if rest := q.close(); len(rest) != 1 {
			t.Errorf("close returned %d packets, want 1", len(rest))
		}
		if <-pushed || q.push(packet{}, true) || q.pop(make([]packet, 1), true) != 0 {
			t.Error("the queue works after close")
		}
	})
}
