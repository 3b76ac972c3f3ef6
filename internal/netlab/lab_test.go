// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package netlab_test

import (
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

// A lab with two sides costs a test next to nothing.
func TestNew_TwoSidesAreThereAtOnce(t *testing.T) {
	began := time.Now()
	lab := netlab.New(t)
	lab.Server("gate")
	lab.Side("a", netlab.Symmetric)
	lab.Side("b", netlab.CGNAT)
	took := time.Since(began)
	t.Logf("a server and two sides after %s", took.Round(time.Millisecond))
	if took > 300*time.Millisecond {
		t.Errorf("a server and two sides took %s, want at most 300 ms", took)
	}
}
