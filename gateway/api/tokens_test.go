// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// tokenList is a Tokens in memory.
type tokenList struct {
	list []mesh.Token
	err  error
}

func (l *tokenList) Tokens(context.Context) ([]mesh.Token, error) { return l.list, l.err }

func (l *tokenList) PutToken(_ context.Context, t mesh.Token) error {
	if l.err == nil {
		l.list = append(l.list, t)
	}
	return l.err
}

func (l *tokenList) DeleteTokens(_ context.Context, hashes ...[sha256.Size]byte) error {
	l.list = slices.DeleteFunc(l.list, func(t mesh.Token) bool { return slices.Contains(hashes, t.Hash) })
	return l.err
}

func create(t *testing.T, s *tokensService, holder, token string) *meshgatev1.Token {
	t.Helper()
	hash := sha256.Sum256([]byte(token))
	res, err := s.CreateToken(t.Context(), connect.NewRequest(&meshgatev1.CreateTokenRequest{Holder: holder, Hash: hash[:]}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetToken()
}

func TestTokens_CreateListRevoke(t *testing.T) {
	l := &tokenList{}
	s := &tokensService{tokens: l}
	double := &meshgatev1.CreateTokenRequest{Holder: "nas\u200b", Hash: make([]byte, 32)}
	if _, err := s.CreateToken(t.Context(), connect.NewRequest(double)); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("of a name that looks like another: %v", err)
	}
	first := create(t, s, "nas", "one")
	create(t, s, "nas", "two")
	create(t, s, "alice", "three")
	if first.GetHolder() != "nas" || len(first.GetFingerprint()) != 16 || !first.GetCreatedAt().IsValid() {
		t.Errorf("created %v", first)
	}
	res, err := s.ListTokens(t.Context(), connect.NewRequest(&meshgatev1.ListTokensRequest{}))
	if err != nil || len(res.Msg.GetTokens()) != 3 || res.Msg.GetTokens()[0].GetFingerprint() != first.GetFingerprint() {
		t.Errorf("list: %v, %v", res, err)
	}
	revoke := func(r *meshgatev1.RevokeTokensRequest) (int, error) {
		res, err := s.RevokeTokens(t.Context(), connect.NewRequest(r))
		if err != nil {
			return 0, err
		}
		return len(res.Msg.GetTokens()), nil
	}
	if n, err := revoke(&meshgatev1.RevokeTokensRequest{Fingerprint: first.GetFingerprint()}); n != 1 || err != nil || len(l.list) != 2 {
		t.Errorf("one token: %d, %v", n, err)
	}
	if n, err := revoke(&meshgatev1.RevokeTokensRequest{Holder: "nas"}); n != 1 || err != nil || len(l.list) != 1 {
		t.Errorf("those of a holder: %d, %v", n, err)
	}
	for _, r := range []*meshgatev1.RevokeTokensRequest{{Holder: "nas"}, {Fingerprint: first.GetFingerprint()}, {Fingerprint: first.GetFingerprint()[:8]}} {
		if _, err := revoke(r); !errors.Is(err, mesh.ErrNotFound) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if len(l.list) != 1 || l.list[0].Holder != "alice" {
		t.Errorf("left: %v", l.list)
	}
}

func TestTokens_BadInput(t *testing.T) {
	s := &tokensService{tokens: &tokenList{}}
	hash := bytes.Repeat([]byte{1}, sha256.Size)
	for name, tt := range map[string]struct {
		r     *meshgatev1.CreateTokenRequest
		names string
	}{
		"no holder":   {&meshgatev1.CreateTokenRequest{Hash: hash}, "holder"},
		"bad holder":  {&meshgatev1.CreateTokenRequest{Holder: "a/b", Hash: hash}, "holder"},
		"long holder": {&meshgatev1.CreateTokenRequest{Holder: strings.Repeat("x", 300), Hash: hash}, "holder"},
		"no hash":     {&meshgatev1.CreateTokenRequest{Holder: "nas"}, "hash"},
		"short hash":  {&meshgatev1.CreateTokenRequest{Holder: "nas", Hash: hash[1:]}, "hash"},
		"the token":   {&meshgatev1.CreateTokenRequest{Holder: "nas", Hash: []byte(strings.Repeat("a", 64))}, "hash"},
	} {
		if _, err := s.CreateToken(t.Context(), connect.NewRequest(tt.r)); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, r := range []*meshgatev1.RevokeTokensRequest{{}, {Holder: "nas", Fingerprint: "x"}} {
		if _, err := s.RevokeTokens(t.Context(), connect.NewRequest(r)); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%v: %v", r, err)
		}
	}
}

func TestTokens_OfANodeWithoutState(t *testing.T) {
	s := &tokensService{}
	_, create := s.CreateToken(t.Context(), connect.NewRequest(&meshgatev1.CreateTokenRequest{}))
	_, list := s.ListTokens(t.Context(), connect.NewRequest(&meshgatev1.ListTokensRequest{}))
	_, revoke := s.RevokeTokens(t.Context(), connect.NewRequest(&meshgatev1.RevokeTokensRequest{}))
	for _, err := range []error{create, list, revoke} {
		if !errors.Is(err, mesh.ErrUnsupported) {
			t.Error(err)
		}
	}
}
