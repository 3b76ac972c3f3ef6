// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/sha256"
	"errors"
	"testing"
)

// tokensByHash is a TokenList.
type tokensByHash map[[sha256.Size]byte]string

func (l tokensByHash) Lookup(hash [sha256.Size]byte) (string, bool) {
	holder, ok := l[hash]
	return holder, ok
}
func (l tokensByHash) Generation() uint64 { return uint64(len(l)) }

func TestSharedTokens_KnowTheirOwnAndLeaveTheRest(t *testing.T) {
	list := tokensByHash{sha256.Sum256([]byte("first")): "alice"}
	tokens := NewSharedTokens(list)
	id, err := tokens.Authenticate(t.Context(), Credentials{Token: "first"})
	if err != nil || id.ID != "alice" || !id.Stands() {
		t.Fatalf("%v, %v", id, err)
	}
	for _, c := range []Credentials{{}, {Token: "second"}, {Token: "alice"}, {Username: "alice", Password: "first"}} {
		if id, err := tokens.Authenticate(t.Context(), c); !errors.Is(err, ErrOtherKind) {
			t.Errorf("%#v: %v, %v", c, id, err)
		}
	}
	list[sha256.Sum256([]byte("first"))] = "bob"
	if id.Stands() {
		t.Error("alice has the token of bob")
	}
	delete(list, sha256.Sum256([]byte("first")))
	if id.Stands() || tokens.Generation() != 0 {
		t.Error("a token that has ended stands")
	}
}
