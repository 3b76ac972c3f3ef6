// SPDX-License-Identifier: Apache-2.0

//go:build e2e && soak && linux

package e2e

import (
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

// The same as the short forms, with a blackout of ten seconds and a stream of a
// minute at least, between other kinds of access and for longer copies.

func TestLife_Long(t *testing.T) {
	for _, c := range []struct{ first, second netlab.Kind }{
		{netlab.PortRestricted, netlab.CGNAT},
		{netlab.Symmetric, netlab.Symmetric},
		{netlab.PortRestricted, netlab.UDPBlocked},
		{netlab.Symmetric, netlab.Only443},
	} {
		t.Run(c.first.String()+" and "+c.second.String(), func(t *testing.T) {
			live(t, c.first, c.second, 10*time.Second, time.Minute)
		})
	}
}

func TestLife_NarrowLinksLong(t *testing.T) { copies(t, 100<<20) }

// In the end a way has less room than it was found to have.
func TestLife_NarrowIPv6Long(t *testing.T) { copies6(t, 100<<20, 100<<20, 1280, 1400, 1500, 1280) }
