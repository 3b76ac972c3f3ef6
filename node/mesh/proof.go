// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// proofDomain begins every message that is signed to prove a join, so that a
// signature for anything else is none for a join.
const proofDomain = "meshgate.v1 join proof\x00"

// ProofWindow is how far the time of a proof may be from the clock of whoever
// checks it.
const ProofWindow = 2 * time.Minute

// JoinProof shows that a join was asked for by the holder of its key.
type JoinProof struct {
	// Mesh is the mesh that is meant: its IPv6 network.
	Mesh string
	// At is when the proof was made, in whole seconds of the gateway's time.
	At time.Time
	// Signed is what Signature signs: the two above and what the request asks for.
	Signed, Signature []byte
}

// ProveJoin puts the proof into r that the holder of key asks for it, of the
// given mesh and at the given time of the gateway. Nothing of r may change
// afterwards.
func ProveJoin(r *v1.JoinRequest, key PrivateKey, mesh string, at time.Time) {
	at = at.Truncate(time.Second)
	r.Proof = &v1.JoinProof{
		Mesh:      mesh,
		Time:      timestamppb.New(at),
		Signature: key.Sign(proofMessage(r, mesh, at)),
	}
}

// JoinProofFromProto reads the proof of a request; nil where it has none.
func JoinProofFromProto(r *v1.JoinRequest) (*JoinProof, error) {
	p := r.GetProof()
	if p == nil {
		return nil, nil
	}
	at, err := timeFromProto(p.GetTime())
	if err != nil {
		return nil, fmt.Errorf("time: %w", err)
	}
	if len(p.GetSignature()) != ed25519.SignatureSize {
		return nil, fmt.Errorf("signature: it has %d bytes where %d were expected: %w", len(p.GetSignature()), ed25519.SignatureSize, ErrInvalid)
	}
	at = at.Truncate(time.Second)
	return &JoinProof{Mesh: p.GetMesh(), At: at, Signed: proofMessage(r, p.GetMesh(), at), Signature: p.GetSignature()}, nil
}

// Check says why the proof does not show that the holder of key asks to join
// the mesh now. The error wraps ErrDenied, or ErrPrecondition for a proof that
// is too old.
func (p *JoinProof) Check(key PublicKey, mesh string, now time.Time) error {
	switch age := now.Sub(p.At); {
	case p.Mesh != mesh:
		return fmt.Errorf("%w: it is for mesh %q, this one is %q; ask this gateway for a challenge", ErrDenied, p.Mesh, mesh)
	case !key.Verify(p.Signed, p.Signature):
		return fmt.Errorf("%w: it is not a signature of this request by its public_key", ErrDenied)
	case age < -ProofWindow || age > ProofWindow:
		return fmt.Errorf("%w: it is %v old, the most is %v; ask for a new challenge", ErrPrecondition, age.Truncate(time.Second), ProofWindow)
	}
	return nil
}

// proofMessage is what is signed: the fields that say who joins, and which
// traffic it would draw.
func proofMessage(r *v1.JoinRequest, mesh string, at time.Time) []byte {
	m := []byte(proofDomain)
	add := func(texts ...string) {
		for _, t := range texts {
			m = binary.BigEndian.AppendUint32(m, uint32(len(t)))
			m = append(m, t...)
		}
	}
	add(mesh, strconv.FormatInt(at.Unix(), 10), r.GetId(), r.GetPublicKey(), r.GetPrimaryEndpoint())
	for _, list := range [][]string{r.GetWireguardEndpoints(), r.GetRoutes()} {
		add(strconv.Itoa(len(list)))
		add(list...)
	}
	return m
}
