// SPDX-License-Identifier: Apache-2.0

package secrets_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"iter"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/secrets"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
)

// keyOf is where a token is in the state.
func keyOf(token string) string {
	sum := hash(token)
	return tokens + hex.EncodeToString(sum[:])
}

// troubled is a store that is not always well.
type troubled struct {
	*storetest.Memory
	// beforeSync and beforeApply come before a Sync and an Apply, and replace
	// them with an error; nil: nothing does.
	beforeSync, beforeApply func() error

	mu   sync.Mutex // guards ends
	ends []context.CancelCauseFunc
}

func (s *troubled) Sync(ctx context.Context) error {
	if s.beforeSync != nil {
		if err := s.beforeSync(); err != nil {
			return err
		}
	}
	return s.Memory.Sync(ctx)
}

func (s *troubled) Apply(ctx context.Context, b store.Batch) (uint64, error) {
	if s.beforeApply != nil {
		if err := s.beforeApply(); err != nil {
			return 0, err
		}
	}
	return s.Memory.Apply(ctx, b)
}

func (s *troubled) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		s.mu.Lock()
		s.ends = append(s.ends, end)
		s.mu.Unlock()
		for change, err := range s.Memory.Watch(ctx, prefix, after) {
			if err != nil {
				err = context.Cause(ctx)
			}
			if !yield(change, err) {
				return
			}
		}
	}
}

// breakWatches ends all watches with an error.
func (s *troubled) breakWatches(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, end := range s.ends {
		end(err)
	}
	s.ends = nil
}

// What ended while the state was not followed has ended when it is again,
// whatever the trouble was.
func TestRun_GoesOnAfterTrouble(t *testing.T) {
	for name, trouble := range map[string]error{
		"changes that are no longer kept": store.ErrCompacted,
		"no leader":                       &store.NotLeaderError{},
		"an error of another kind":        errors.New("out of sorts"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &troubled{Memory: storetest.New()}
				g := gateway(t, s)
				for _, name := range []string{"revoked", "kept"} {
					if err := g.PutToken(t.Context(), mesh.Token{Hash: hash(name), Holder: "nas"}); err != nil {
						t.Fatal(err)
					}
				}
				put(t, s, keyTURN, "secret")
				for range 2 {
					synctest.Wait()
					generation := g.Generation()
					s.breakWatches(trouble)
					synctest.Wait()
					ops := []store.Op{{Key: keyOf("revoked"), Delete: true}, {Key: keyTURN, Delete: true}}
					if _, err := s.Apply(t.Context(), store.Batch{Ops: ops}); err != nil {
						t.Fatal(err)
					}
					<-time.After(secrets.RetryDelay)
					synctest.Wait()
					if _, ok := g.Lookup(hash("revoked")); ok {
						t.Error("a token that ended meanwhile counts")
					}
					if secret, _ := g.TURN(); secret != nil {
						t.Error("a TURN secret that went meanwhile is in use")
					}
					if _, ok := g.Lookup(hash("kept")); !ok {
						t.Error("another token has ended")
					}
					if g.Generation() == generation {
						t.Error("nobody is told that a token has ended")
					}
				}
				put(t, s, keyTURN, "another")
				synctest.Wait()
				if secret, _ := g.TURN(); string(secret) != "another" {
					t.Errorf("the state is not followed any more: %q", secret)
				}
			})
		})
	}
}

// A list has what was acknowledged anywhere before, also when this replica is
// late.
func TestTokens_AreThoseOfAllGateways(t *testing.T) {
	s := &troubled{Memory: storetest.New()}
	g := gateway(t, s)
	s.beforeSync = func() error {
		put(t, s, keyOf("elsewhere"), `{"holder":"nas"}`)
		return nil
	}
	list, err := g.Tokens(t.Context())
	if err != nil || len(list) != 1 || list[0].Holder != "nas" {
		t.Errorf("%v, %v", list, err)
	}
	s.beforeSync = func() error { return &store.NotLeaderError{} }
	if list, err := g.Tokens(t.Context()); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("while nobody leads: %v, %v", list, err)
	}
}

func TestPutToken_RefusesOneTooMany(t *testing.T) {
	s := storetest.New()
	g := secrets.New(s, nil)
	g.SetLimit(2)
	follow(t, g)
	make := func(name string) error {
		return g.PutToken(t.Context(), mesh.Token{Hash: hash(name), Holder: "nas"})
	}
	for _, name := range []string{"first", "second"} {
		if err := make(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := make("third"); !errors.Is(err, mesh.ErrExhausted) || !strings.Contains(err.Error(), "2 tokens; revoke some") {
		t.Errorf("beyond the limit: %v", err)
	}
	if _, ok := g.Lookup(hash("third")); ok {
		t.Error("what was refused counts")
	}
	if err := g.DeleteTokens(t.Context(), hash("first")); err != nil {
		t.Fatal(err)
	}
	if err := make("third"); err != nil {
		t.Errorf("after one was revoked: %v", err)
	}
}

func TestTokens_SayWhyTheyCannotChange(t *testing.T) {
	for name, tt := range map[string]struct{ trouble, want error }{
		"no space":  {store.ErrFull, mesh.ErrExhausted},
		"no leader": {&store.NotLeaderError{}, mesh.ErrUnavailable},
		"unknown":   {store.ErrUncertain, mesh.ErrUnavailable},
		"closed":    {store.ErrClosed, mesh.ErrUnavailable},
		"too late":  {context.DeadlineExceeded, context.DeadlineExceeded},
	} {
		s := &troubled{Memory: storetest.New()}
		g := gateway(t, s)
		s.beforeApply = func() error { return tt.trouble }
		for what, err := range map[string]error{
			"put":    g.PutToken(t.Context(), mesh.Token{Hash: hash(name), Holder: "nas"}),
			"delete": g.DeleteTokens(t.Context(), hash(name)),
		} {
			if !errors.Is(err, tt.want) || !errors.Is(err, tt.trouble) {
				t.Errorf("%s: %s: got %v, want %v", name, what, err, tt.want)
			}
			for _, other := range []error{mesh.ErrExhausted, mesh.ErrUnavailable} {
				if errors.Is(err, other) && other != tt.want {
					t.Errorf("%s: %s: it is %v, too: %v", name, what, other, err)
				}
			}
		}
	}
}

// Two gateways that found no secret agree on one: the second one's would turn
// away those who have credentials of the first.
func TestMakeTURN_TwoAtATimeAgree(t *testing.T) {
	var arrived sync.WaitGroup
	arrived.Add(2)
	s := &troubled{Memory: storetest.New(), beforeApply: func() error {
		arrived.Done()
		arrived.Wait() // both have found none
		return nil
	}}
	a, b := gateway(t, s), gateway(t, s)
	var wg sync.WaitGroup
	for _, g := range []*secrets.Secrets{a, b} {
		wg.Go(func() {
			if err := g.MakeTURN(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	e, err := s.Get(t.Context(), keyTURN)
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for change, err := range s.Watch(t.Context(), keyTURN, 0) {
		if err != nil {
			t.Fatal(err)
		}
		made++
		if change.Version == e.Version {
			break
		}
	}
	if made != 1 {
		t.Errorf("the secret was made %d times", made)
	}
	for name, g := range map[string]*secrets.Secrets{"first": a, "second": b} {
		within(t, g, "no secret at the "+name, func() bool { secret, _ := g.TURN(); return bytes.Equal(secret, e.Value) })
	}
	s.beforeApply = func() error { return errors.New("asked again") }
	if err := a.MakeTURN(t.Context()); err != nil {
		t.Errorf("when there is one: %v", err)
	}
}
