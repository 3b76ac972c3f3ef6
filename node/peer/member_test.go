// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// Only a mesh that says so has removed the node.
func TestRemoved_IsWhatTheMeshSays(t *testing.T) {
	with := func(c connect.Code, details ...proto.Message) error {
		e := connect.NewError(c, errors.New("no node \"nas\" in the mesh"))
		for _, m := range details {
			d, err := connect.NewErrorDetail(m)
			if err != nil {
				t.Fatal(err)
			}
			e.AddDetail(d)
		}
		return e
	}
	removed := &meshgatev1.Removed{}
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"the mesh says so":     {with(connect.CodeNotFound, removed), true},
		"wrapped":              {fmt.Errorf("gateway gw2: %w", with(connect.CodeNotFound, removed)), true},
		"beside another":       {with(connect.CodeNotFound, &meshgatev1.StoreFault{}, removed), true},
		"a v1 gateway":         {with(connect.CodeNotFound), false},
		"another detail":       {with(connect.CodeNotFound, &meshgatev1.StoreFault{Kind: meshgatev1.StoreFault_KIND_NOT_FOUND}), false},
		"of another code":      {with(connect.CodeUnavailable, removed), false},
		"refused":              {with(connect.CodeUnauthenticated), false},
		"not a gateway's word": {errors.New("removed"), false},
		"nothing":              {nil, false},
	} {
		if got := Removed(tt.err); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
