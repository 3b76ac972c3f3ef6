// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// fingerprintBytes is how much of a token's hash names it.
const fingerprintBytes = 8

// Tokens are those that count at every gateway. Errors wrap those of package
// mesh.
type Tokens interface {
	// Tokens returns all that were acknowledged before, the oldest first.
	Tokens(ctx context.Context) ([]mesh.Token, error)
	// PutToken makes a token count.
	PutToken(ctx context.Context, t mesh.Token) error
	// DeleteTokens ends the tokens with the given hashes.
	DeleteTokens(ctx context.Context, hashes ...[sha256.Size]byte) error
}

// tokensService serves meshgate.v1.Tokens.
type tokensService struct{ tokens Tokens } // nil where no state is kept

var _ meshgatev1connect.TokensHandler = (*tokensService)(nil)

// errNoTokens is the answer of a node that keeps none.
var errNoTokens = fmt.Errorf("%w: this node keeps no tokens; ask a gateway", mesh.ErrUnsupported)

// CreateToken makes a token count.
func (s *tokensService) CreateToken(ctx context.Context, req *connect.Request[meshgatev1.CreateTokenRequest]) (*connect.Response[meshgatev1.CreateTokenResponse], error) {
	if s.tokens == nil {
		return nil, errNoTokens
	}
	if err := mesh.ClearName(req.Msg.GetHolder()); err != nil {
		return nil, fmt.Errorf("holder: %w", err)
	}
	if n := len(req.Msg.GetHash()); n != sha256.Size {
		return nil, fmt.Errorf("%w: hash: it has %d bytes, a SHA-256 has %d", mesh.ErrInvalid, n, sha256.Size)
	}
	t := mesh.Token{Hash: [sha256.Size]byte(req.Msg.GetHash()), Holder: req.Msg.GetHolder(), CreatedAt: timestamppb.Now().AsTime()}
	if err := s.tokens.PutToken(ctx, t); err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshgatev1.CreateTokenResponse{Token: tokenToProto(t)}), nil
}

// ListTokens names the holders of all tokens.
func (s *tokensService) ListTokens(ctx context.Context, _ *connect.Request[meshgatev1.ListTokensRequest]) (*connect.Response[meshgatev1.ListTokensResponse], error) {
	if s.tokens == nil {
		return nil, errNoTokens
	}
	list, err := s.tokens.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	answer := &meshgatev1.ListTokensResponse{}
	for _, t := range list {
		answer.Tokens = append(answer.Tokens, tokenToProto(t))
	}
	return connect.NewResponse(answer), nil
}

// RevokeTokens ends tokens.
func (s *tokensService) RevokeTokens(ctx context.Context, req *connect.Request[meshgatev1.RevokeTokensRequest]) (*connect.Response[meshgatev1.RevokeTokensResponse], error) {
	if s.tokens == nil {
		return nil, errNoTokens
	}
	holder, fingerprint := req.Msg.GetHolder(), req.Msg.GetFingerprint()
	if (holder == "") == (fingerprint == "") {
		return nil, fmt.Errorf("%w: give either holder or fingerprint", mesh.ErrInvalid)
	}
	list, err := s.tokens.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	answer := &meshgatev1.RevokeTokensResponse{}
	var hashes [][sha256.Size]byte
	for _, t := range list {
		if t.Holder == holder || fingerprintOf(t) == fingerprint {
			hashes = append(hashes, t.Hash)
			answer.Tokens = append(answer.Tokens, tokenToProto(t))
		}
	}
	if len(hashes) == 0 {
		return nil, fmt.Errorf("%w: no token of this holder or fingerprint; tokens in files of a gateway end when their lines go", mesh.ErrNotFound)
	}
	if err := s.tokens.DeleteTokens(ctx, hashes...); err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

func fingerprintOf(t mesh.Token) string { return hex.EncodeToString(t.Hash[:fingerprintBytes]) }

func tokenToProto(t mesh.Token) *meshgatev1.Token {
	return &meshgatev1.Token{Holder: t.Holder, Fingerprint: fingerprintOf(t), CreatedAt: timestamppb.New(t.CreatedAt)}
}
