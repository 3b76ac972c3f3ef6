// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// A peer that lost its sessions is reached again at once when it is asked for
// a new one, and not after WireGuard's 15 s.
func TestHandshake_MakesANewSession(t *testing.T) {
	a, b := wgtest.Pair(t)
	ping(t, a, b)
	before := only(t, a).LastHandshake
	a.Handshake(b.Key())
	eventually(t, "a new session", func() bool { return only(t, a).LastHandshake.After(before) })
	ping(t, a, b)
	a.Handshake(mesh.WireGuardKey{1}) // nobody
}
