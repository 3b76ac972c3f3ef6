// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/signaling"
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
	if got := tokens.Generation(); got != 1 {
		t.Errorf("generation %d, want that of the list", got)
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
	if id.Stands() {
		t.Error("a token that has ended stands")
	}
}

// revocable is a TokenList that changes under the gateway.
type revocable struct {
	mu         sync.Mutex // guards the fields below
	holders    map[[sha256.Size]byte]string
	generation uint64
}

func (l *revocable) Lookup(hash [sha256.Size]byte) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	holder, ok := l.holders[hash]
	return holder, ok
}

func (l *revocable) Generation() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.generation
}

// revoke ends a token, at whatever gateway somebody asked for it.
func (l *revocable) revoke(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.holders, sha256.Sum256([]byte(token)))
	l.generation++
}

// A token of the mesh that is revoked takes along what it opened. Nothing else
// changes with it: only the list says that there is something to look for.
func TestGrant_EndsWithTheSharedToken(t *testing.T) {
	list := &revocable{generation: 7, holders: map[[sha256.Size]byte]string{
		sha256.Sum256([]byte("stolen")): "admin",
		sha256.Sum256([]byte("kept")):   "admin",
	}}
	bubble(t, func(c *Config) {
		c.Access.Authenticators = []Authenticator{NewSharedTokens(list)}
	}, func(t *testing.T, s *served, p *pipes) {
		s.signaling.callers = make(chan signaling.Caller, 10)
		thief, owner := open(t, s, withToken(p.client(t, true), "stolen")), open(t, s, withToken(p.client(t, true), "kept"))
		watch, kept := watching(t, withToken(p.client(t, true), "stolen")), watching(t, withToken(p.client(t, true), "kept"))
		pass(2 * reviewInterval)
		thief.alive(t)
		list.revoke("stolen")
		pass(reviewInterval)
		synctest.Wait()
		if err := thief.caller.Allowed(); err == nil || !strings.Contains(err.Error(), "sign in again") {
			t.Errorf("the session may go on: %v", err)
		}
		if n := len(s.grants.ends); n != 2 {
			t.Fatalf("%d calls go on, want the two of the other token", n)
		}
		for name, end := range map[string]func() error{"channel": thief.end, "watch": func() error { return <-watch.end }} {
			if err := end(); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "sign in again") {
				t.Errorf("%s: %v", name, err)
			}
		}
		owner.alive(t)
		select {
		case err := <-kept.end:
			t.Errorf("the other token's watch ended: %v", err)
		default:
		}
	})
}
