// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestPings_NobodyTakesAll(t *testing.T) {
	var p pings
	// enter counts one call of c, or says why not.
	enter := func(c Caller, want string) func() {
		t.Helper()
		leave, err := p.enter(c, "gw")
		if want == "" && err != nil || want != "" && (!errors.Is(err, mesh.ErrExhausted) || !strings.Contains(err.Error(), want)) {
			t.Fatalf("%+v: %v, want %q", c, err, want)
		}
		return leave
	}
	alice := Caller{ID: "alice"}
	var calls []func()
	for range maxPingsPerCaller {
		calls = append(calls, enter(alice, ""))
	}
	enter(alice, `4 pings of "alice" are under way at "gw"`)
	calls[0]()
	calls[0] = enter(alice, "")
	enter(Caller{ID: "bob", Node: &mesh.Node{ID: "bob"}}, "")()

	// Those that count others, and those that have no name, share what all have.
	gate := Caller{ID: "gw2", Node: &mesh.Node{ID: "gw2", Features: []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP}}}}
	for i := maxPingsPerCaller; i < maxPings; i += 2 {
		calls = append(calls, enter(gate, ""), enter(Caller{Local: true}, ""))
	}
	enter(Caller{ID: "bob"}, `64 pings are under way at "gw"`)
	for _, leave := range calls {
		leave()
	}
	if p.all != 0 || len(p.byCaller) != 0 {
		t.Errorf("%d left, of %v", p.all, p.byCaller)
	}
}
