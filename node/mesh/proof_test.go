// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// The signed text, byte by byte, as its description says it: other programs
// make proofs, too.
func TestProveJoin_SignsWhatIsDescribed(t *testing.T) {
	key := vectorKey(t)
	r := &v1.JoinRequest{
		Id: "nas", PublicKey: key.Public().Encode(), PrimaryEndpoint: "192.0.2.1",
		WireguardEndpoints: []string{"192.0.2.1:51820"}, Routes: []string{"10.1.0.0/16", "10.2.0.0/16"},
	}
	mesh.ProveJoin(r, key, "fd9f:86d0:8188::/32", time.Unix(1_700_000_000, 999))
	proof, err := mesh.JoinProofFromProto(r)
	if err != nil {
		t.Fatal(err)
	}
	field := func(s string) string { return string([]byte{0, 0, 0, byte(len(s))}) + s }
	want := "meshgate.v1 join proof\x00" + field("fd9f:86d0:8188::/32") + field("1700000000") + field("nas") +
		field("CAUSIAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4") + field("192.0.2.1") +
		field("1") + field("192.0.2.1:51820") + field("2") + field("10.1.0.0/16") + field("10.2.0.0/16")
	if string(proof.Signed) != want {
		t.Errorf("signed\n%s\nwant\n%s", hex.Dump(proof.Signed), hex.Dump([]byte(want)))
	}
	if err := proof.Check(key.Public(), "fd9f:86d0:8188::/32", time.Unix(1_700_000_000, 0)); err != nil {
		t.Error(err)
	}
}

func TestJoinProofFromProto_BadProofs(t *testing.T) {
	if p, err := mesh.JoinProofFromProto(&v1.JoinRequest{}); p != nil || err != nil {
		t.Errorf("none: %v, %v", p, err)
	}
	for field, p := range map[string]*v1.JoinProof{
		"time":      {Time: &timestamppb.Timestamp{Seconds: 1 << 62}, Signature: make([]byte, 64)},
		"signature": {Signature: make([]byte, 63)},
	} {
		if _, err := mesh.JoinProofFromProto(&v1.JoinRequest{Proof: p}); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	empty, err := mesh.JoinProofFromProto(&v1.JoinRequest{Proof: &v1.JoinProof{Signature: make([]byte, 64)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := empty.Check(mesh.PublicKey{}, "", time.Time{}); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("the zero key: %v", err)
	}
}

// Requests that differ in what is signed never have the same signed text.
func FuzzJoinProof(f *testing.F) {
	f.Add([]byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var r, q v1.JoinRequest
		if proto.Unmarshal(a, &r) != nil || proto.Unmarshal(b, &q) != nil {
			return
		}
		p, err := mesh.JoinProofFromProto(&r)
		o, otherErr := mesh.JoinProofFromProto(&q)
		if err != nil || otherErr != nil || p == nil || o == nil {
			return
		}
		key, parseErr := mesh.ParsePublicKey(r.GetPublicKey())
		if parseErr == nil {
			_ = p.Check(key, p.Mesh, p.At)
		}
		same := p.Mesh == o.Mesh && p.At.Equal(o.At) && r.GetId() == q.GetId() && r.GetPublicKey() == q.GetPublicKey() &&
			r.GetPrimaryEndpoint() == q.GetPrimaryEndpoint() && slices.Equal(r.GetWireguardEndpoints(), q.GetWireguardEndpoints()) &&
			slices.Equal(r.GetRoutes(), q.GetRoutes())
		if bytes.Equal(p.Signed, o.Signed) != same {
			t.Errorf("%v and %v are signed alike: %v", &r, &q, !same)
		}
	})
}
