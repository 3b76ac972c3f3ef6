// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestJoin_Proof(t *testing.T) {
	f := newFixture(t)
	strict, err := member.New(member.Config{Registry: f.registry, Self: "gw"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	own := f.registry.Snapshot().IPv6.String()
	prove := func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, own, time.Now()) }
	for name, c := range map[string]struct {
		prove, change func(*v1.JoinRequest)
		err           error
		unproven      error // where unproven joins are allowed
		text          string
	}{
		"proven":                   {prove: prove},
		"a minute old":             {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, own, time.Now().Add(-time.Minute)) }},
		"a minute ahead":           {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, own, time.Now().Add(time.Minute)) }},
		"none":                     {err: mesh.ErrDenied, text: "--mesh.allow-unproven-joins"},
		"by another key":           {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, other, own, time.Now()) }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "signature"},
		"for another mesh":         {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, "fd00::/32", time.Now()) }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "challenge"},
		"relabelled for this mesh": {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, "fd00::/32", time.Now()) }, change: func(r *v1.JoinRequest) { r.Proof.Mesh = own }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "signature"},
		"too old":                  {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, own, time.Now().Add(-3*time.Minute)) }, err: mesh.ErrPrecondition, unproven: mesh.ErrPrecondition, text: "new challenge"},
		"of the future":            {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, own, time.Now().Add(3*time.Minute)) }, err: mesh.ErrPrecondition, unproven: mesh.ErrPrecondition, text: "new challenge"},
		"given a new time":         {prove: func(r *v1.JoinRequest) { mesh.ProveJoin(r, key, own, time.Now().Add(-3*time.Minute)) }, change: func(r *v1.JoinRequest) { r.Proof.Time.Seconds += 170 }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "signature"},
		"for another id":           {prove: prove, change: func(r *v1.JoinRequest) { r.Id = "b" }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "signature"},
		"for another endpoint":     {prove: prove, change: func(r *v1.JoinRequest) { r.PrimaryEndpoint = "192.0.2.9" }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "signature"},
		"for another route":        {prove: prove, change: func(r *v1.JoinRequest) { r.Routes = []string{"10.7.0.0/16"} }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "signature"},
		"zeros":                    {prove: prove, change: func(r *v1.JoinRequest) { clear(r.Proof.Signature) }, err: mesh.ErrDenied, unproven: mesh.ErrDenied, text: "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			wire := &v1.JoinRequest{Id: "a", PublicKey: key.Public().Encode(), PrimaryEndpoint: "192.0.2.1", WireguardEndpoints: []string{"192.0.2.1:51820"}}
			if c.prove != nil {
				c.prove(wire)
			}
			if c.change != nil {
				c.change(wire)
			}
			proof, err := mesh.JoinProofFromProto(wire)
			if err != nil {
				t.Fatal(err)
			}
			r := mesh.JoinRequest{Node: mesh.Node{ID: mesh.NodeID(wire.GetId()), PublicKey: key.Public()}, Proof: proof}
			before := f.version()
			_, err = strict.Join(t.Context(), r)
			if !errors.Is(err, c.err) || (c.err != nil && (!strings.Contains(err.Error(), "proof: ") || !strings.Contains(err.Error(), c.text))) {
				t.Errorf("got %v, want %v", err, c.err)
			}
			if c.err != nil && f.version() != before {
				t.Error("a refused join changed something")
			}
			if _, err := f.Join(t.Context(), r); !errors.Is(err, c.unproven) {
				t.Errorf("where unproven joins are allowed: %v", err)
			}
			if err := f.Leave(t.Context(), "a"); err != nil && c.unproven == nil {
				t.Fatal(err)
			}
		})
	}
}
