// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
)

// paced is a gateway and a node that answers, in a bubble.
func paced(t *testing.T) *signaling.Service {
	t.Helper()
	w := &world{nodes: map[mesh.NodeID]*signaling.Service{}}
	w.nodes[other] = newService(t, w, other, func(c *signaling.Config) { c.Paths = &echoPaths{} })
	return newService(t, w, self)
}

// sayPaths opens a channel, sends n signals at most, closes it, and says how many
// were answered.
func sayPaths(t *testing.T, gateway *signaling.Service, who string, n int) (answered int, err error) {
	t.Helper()
	call := startSignals(t, gateway, who)
	defer func() {
		call.cancel()
		synctest.Wait() // until the channel is closed at both ends
	}()
	for ; answered < n; answered++ {
		_ = call.Send(&v1.WebRTCSignal{NodeId: string(other), Path: pathSignal(1)}) // receiving says why
		if _, err := call.Receive(); err != nil {
			return answered, err
		}
	}
	return answered, nil
}

// Who closes channels and opens others may not call more often for it.
func TestPaths_OpeningIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := paced(t)
		opened := func(who string) (n int) {
			for range 100 {
				if _, err := sayPaths(t, gateway, who, 1); err == nil {
					n++
				} else if !errors.Is(err, mesh.ErrExhausted) || !strings.Contains(err.Error(), `"`+who+`" opens path channels to "node-b" too often`) {
					t.Fatal(err)
				}
			}
			return n
		}
		if n := opened("mallory"); n != 16 {
			t.Errorf("%d channels at once, want 16", n)
		}
		if n := opened("laptop"); n != 16 {
			t.Errorf("another node opens %d, want 16", n)
		}
		<-time.After(10 * time.Second)
		if n := opened("mallory"); n != 5 {
			t.Errorf("%d channels after 10 s, want 5", n)
		}
	})
}

// Nor does the next channel bring further signals.
func TestPaths_SignalsArePacedOverChannels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := paced(t)
		total := 0
		for range 8 {
			n, err := sayPaths(t, gateway, "mallory", 50)
			total += n
			if err != nil && !errors.Is(err, mesh.ErrExhausted) {
				t.Fatal(err)
			}
		}
		if total != 128 {
			t.Errorf("%d signals at once, want 128", total)
		}
		<-time.After(10 * time.Second)
		if n, err := sayPaths(t, gateway, "mallory", 50); n != 20 || !errors.Is(err, mesh.ErrExhausted) {
			t.Errorf("%d signals after 10 s, want 20: %v", n, err)
		}
	})
}
