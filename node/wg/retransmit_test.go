// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// TestNetstack_SendsOnceWhileAnswersAreLate shows that a peer that is near and
// answers late for once is not sent anything again before the usual time is over.
func TestNetstack_SendsOnceWhileAnswersAreLate(t *testing.T) {
	const size, late = 4000, 100 * time.Millisecond
	never := tcpip.TCPMinRTOOption(time.Minute)
	h := meet(t, false, 1<<16, 60000, &never)
	send := func() {
		t.Helper()
		if _, err := h.conn.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		got := 0
		h.await("data", func(_ []byte, payload int) bool { got += payload; return got >= size })
	}
	send()
	h.expect += size
	h.send(h.next, tcpFlagAck, 60000, nil) // at once: the peer is near
	send()
	select {
	case p := <-h.fromStack:
		t.Errorf("a packet of %d bytes before the peer could answer", len(p))
	case <-time.After(late):
	}
}
