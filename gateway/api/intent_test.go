// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Whatever a client sends: it is refused as invalid, or is an intent with a
// valid id, a key that is a point, and lists within their bounds.
func FuzzJoinRequest(f *testing.F) {
	for _, r := range []*v1.JoinRequest{
		{Id: "nas", PublicKey: "CAUSIAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4", PrimaryEndpoint: "gate.example.org", Routes: []string{"10.0.0.1/8"}},
		{Id: "nas", DirectPeers: map[string]v1.ConnectProtocol{"gw": 2}, Proof: &v1.JoinProof{Signature: make([]byte, 64)}},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := &v1.JoinRequest{}
		if proto.Unmarshal(raw, p) != nil {
			return
		}
		r, err := joinRequest(p)
		if err != nil {
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if _, err := mesh.ParseNodeID(string(r.Node.ID)); err != nil || r.Node.PublicKey.IsZero() || r.Node.PublicKey.WireGuard().IsZero() {
			t.Fatalf("took %+v: %v", r.Node, err)
		}
		if len(r.Routes) > maxItems || len(r.DirectPeers) > maxItems || len(r.Node.WireGuardEndpoints) > maxItems {
			t.Fatalf("%d routes, %d direct peers, %d endpoints", len(r.Routes), len(r.DirectPeers), len(r.Node.WireGuardEndpoints))
		}
		for _, route := range r.Routes {
			if route != route.Masked() || route.Addr().Is4In6() {
				t.Fatalf("took the route %v", route)
			}
		}
	})
}
