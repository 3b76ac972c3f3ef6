// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/turn/limiter"
)

// Whoever forges the addresses of a network has it flooded by no gateway.
func TestTell_ANetworkGetsItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{strangers: limiter.New(strangersRate, strangersBurst)}
		ask := path.Message{Type: path.BindingRequest, Fingerprint: true, Length: path.AskLength}
		b := ask.Marshal("")
		told := func(from string) (got int) {
			for range 2 * strangersBurst {
				if answer, ok := n.tell(netip.MustParseAddrPort(from), b); ok && len(answer) <= len(b) {
					got++
				}
			}
			return got
		}
		if got := told("198.51.100.1:5000"); got != strangersBurst {
			t.Errorf("a stranger got %d answers, want %d", got, strangersBurst)
		}
		if got := told("[::ffff:198.51.100.7]:5000"); got != 0 {
			t.Errorf("its neighbour got %d more", got)
		}
		if got := told("[2001:db8::1]:5000"); got != strangersBurst {
			t.Errorf("another network got %d, want %d", got, strangersBurst)
		}
	})
}
