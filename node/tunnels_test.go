// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/hostnet"
)

// What there was is believed for a moment, and where nothing can be read.
func TestHostTunnels_AreAskedForOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hostTunnels
		first, second, broken := new(hostnet.Tunnels), new(hostnet.Tunnels), errors.New("broken")
		for i, c := range []struct {
			pass     time.Duration
			forget   bool
			has      *hostnet.Tunnels
			err      error
			want     *hostnet.Tunnels
			wantsErr bool
		}{
			{has: nil, err: broken, want: nil, wantsErr: true},
			{pass: hostAddrsAge, has: first, want: first},
			{pass: hostAddrsAge / 2, has: second, want: first},
			{has: second, forget: true, want: second},
			{pass: hostAddrsAge, err: broken, want: second, wantsErr: true},
			{err: broken, want: second}, // it is not asked
		} {
			<-time.After(c.pass)
			if c.forget {
				h.forget()
			}
			got, err := h.load("mesh0", func(string) (*hostnet.Tunnels, error) { return c.has, c.err })
			if got != c.want || errors.Is(err, broken) != c.wantsErr {
				t.Errorf("%d: got %p, %v; want %p", i, got, err, c.want)
			}
		}
	})
}
