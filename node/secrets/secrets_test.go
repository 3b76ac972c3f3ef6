// SPDX-License-Identifier: Apache-2.0

package secrets_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/secrets"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	keyTURN = "/meshgate/secrets/turn"
	tokens  = "/meshgate/secrets/tokens/"
)

func hash(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

// gateway is one that follows the secrets of s.
func gateway(t testing.TB, s store.Store) *secrets.Secrets {
	t.Helper()
	g := secrets.New(s, nil)
	follow(t, g)
	return g
}

// follow runs g until the end of the test.
func follow(t testing.TB, g *secrets.Secrets) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	<-g.Ready()
}

// within waits for the changes that make done true.
func within(t testing.TB, g *secrets.Secrets, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		_, changed := g.TURN()
		if done() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal(what)
		}
	}
}

func put(t testing.TB, s store.Store, key, value string) {
	t.Helper()
	if _, err := s.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: key, Value: []byte(value)}}}); err != nil {
		t.Fatal(err)
	}
}

func TestTokens_CountAtEveryGatewayUntilTheyEnd(t *testing.T) {
	s := storetest.New()
	a, b := gateway(t, s), gateway(t, s)
	for _, name := range []string{"nas", "alice"} {
		if err := a.PutToken(t.Context(), mesh.Token{Hash: hash(name), Holder: name, CreatedAt: time.Unix(1_700_000_000, 7)}); err != nil {
			t.Fatal(err)
		}
		if holder, ok := a.Lookup(hash(name)); holder != name || !ok {
			t.Errorf("%s at the gateway that made it: %q", name, holder)
		}
	}
	within(t, b, "the other gateway does not know alice", func() bool { holder, ok := b.Lookup(hash("alice")); return ok && holder == "alice" })
	if err := b.PutToken(t.Context(), mesh.Token{Hash: hash("nas"), Holder: "thief"}); !errors.Is(err, mesh.ErrExists) {
		t.Errorf("a token of somebody else: %v", err)
	}
	if err := b.PutToken(t.Context(), mesh.Token{Hash: hash("x"), Holder: "a/b"}); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("a holder that is no name: %v", err)
	}
	list, err := b.Tokens(t.Context())
	if err != nil || len(list) != 2 || !list[0].CreatedAt.Equal(time.Unix(1_700_000_000, 0)) {
		t.Errorf("tokens: %v, %v", list, err)
	}
	for _, g := range []*secrets.Secrets{a, b} {
		if g.Ended("nas", time.Minute) || g.Ended("nobody", time.Minute) {
			t.Error("nothing has ended yet")
		}
	}
	before := a.Generation()
	if err := b.DeleteTokens(t.Context(), hash("nas"), hash("nobody")); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.Lookup(hash("nas")); ok {
		t.Error("a token that has ended still counts")
	}
	within(t, a, "the first gateway takes a token that has ended", func() bool { _, ok := a.Lookup(hash("nas")); return !ok })
	for _, g := range []*secrets.Secrets{a, b} {
		if !g.Ended("nas", time.Minute) || g.Ended("nas", -1) || g.Ended("alice", time.Minute) {
			t.Error("it is to be told whose tokens have ended of late")
		}
	}
	if a.Generation() == before {
		t.Error("nobody is told that a token has ended")
	}
	if _, ok := a.Lookup(hash("alice")); !ok {
		t.Error("the token of somebody else has ended, too")
	}
	if err := b.PutToken(t.Context(), mesh.Token{Hash: hash("another"), Holder: "nas"}); err != nil {
		t.Fatal(err)
	}
	if b.Ended("nas", time.Minute) {
		t.Error("who has another token has lost them all")
	}
}

// The state never holds a token, only what it is recognised by.
func TestTokens_AreNotInTheState(t *testing.T) {
	s := storetest.New()
	g := gateway(t, s)
	const token = "VERYSECRETTOKEN0123456789"
	if err := g.PutToken(t.Context(), mesh.Token{Hash: hash(token), Holder: "nas"}); err != nil {
		t.Fatal(err)
	}
	entries, _, err := s.List(t.Context(), "")
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	if e := entries[0]; strings.Contains(e.Key+string(e.Value), token) || !strings.HasPrefix(e.Key, tokens) {
		t.Errorf("%s: %s", e.Key, e.Value)
	}
}

func TestTURN_IsMadeOnceForAll(t *testing.T) {
	s := storetest.New()
	a, b := gateway(t, s), gateway(t, s)
	if secret, _ := a.TURN(); secret != nil {
		t.Error("there is a secret before one was made")
	}
	var wg sync.WaitGroup
	for _, g := range []*secrets.Secrets{a, b, a, b} {
		wg.Go(func() {
			if err := g.MakeTURN(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var of [2][]byte
	for i, g := range []*secrets.Secrets{a, b} {
		within(t, g, "no secret", func() bool { of[i], _ = g.TURN(); return of[i] != nil })
	}
	if len(of[0]) != 32 || !bytes.Equal(of[0], of[1]) || bytes.Equal(of[0], make([]byte, 32)) {
		t.Errorf("secrets of %d and %d bytes", len(of[0]), len(of[1]))
	}
	put(t, s, keyTURN, "another secret, of an operator's own")
	within(t, a, "no other secret", func() bool { secret, _ := a.TURN(); return string(secret) == "another secret, of an operator's own" })
}

// What makes no sense lets nobody in and stops nothing.
func TestSecrets_NonsenseCountsAsAbsent(t *testing.T) {
	s := storetest.New()
	good := hash("good")
	put(t, s, tokens+hex.EncodeToString(good[:]), `{"holder":"nas"}`)
	put(t, s, "/meshgate/secrets/else", "?")
	g := gateway(t, s)
	for _, value := range []string{"", "{", `{"holder":""}`, `{"holder":"a/b"}`, `{"holder":7}`} {
		put(t, s, tokens+hex.EncodeToString(good[:]), `{"holder":"nas"}`)
		within(t, g, "the good one does not count", func() bool { _, ok := g.Lookup(good); return ok })
		put(t, s, tokens+hex.EncodeToString(good[:]), value)
		within(t, g, value+" lets somebody in", func() bool { _, ok := g.Lookup(good); return !ok })
	}
	put(t, s, tokens+"zz", `{"holder":"nas"}`)
	put(t, s, tokens+strings.ToUpper(hex.EncodeToString(good[:])), `{"holder":"nas"}`)
	put(t, s, tokens+hex.EncodeToString(good[:]), `{"holder":"cam"}`)
	within(t, g, "it stopped", func() bool { holder, _ := g.Lookup(good); return holder == "cam" })
	if list, err := g.Tokens(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("tokens: %v, %v", list, err)
	}
}

func FuzzSecrets(f *testing.F) {
	good := hash("good")
	f.Add(tokens+hex.EncodeToString(good[:]), []byte(`{"holder":"nas","created_at":"2023-11-14T22:13:20Z"}`))
	f.Add(keyTURN, []byte("secret"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s := storetest.New()
		if _, err := s.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: key, Value: value}}}); err != nil {
			return
		}
		g := gateway(t, s)
		list, err := g.Tokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range list {
			if holder, ok := g.Lookup(token.Hash); !ok || holder != token.Holder || mesh.ValidName(holder) != nil {
				t.Errorf("%q: %q lists %v, and looks up %q", key, value, token, holder)
			}
		}
	})
}
