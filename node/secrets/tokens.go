// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
)

// Lookup returns who holds the token with a hash.
func (s *Secrets) Lookup(hash [sha256.Size]byte) (holder string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[hash]
	return t.Holder, ok
}

// EndedKept is how far Ended looks back.
const EndedKept = time.Hour

// maxEnded bounds the holders whose end is remembered; the one that ended first is
// forgotten first.
const maxEnded = 4096

// Ended reports whether a holder had a token that ended no longer ago than within,
// at most EndedKept, and has none now. What ended while this gateway was down is
// not known here.
func (s *Secrets) Ended(holder string, within time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.ended[holder]
	if !ok || time.Since(at) > within {
		return false
	}
	for _, t := range s.tokens {
		if t.Holder == holder {
			return false
		}
	}
	return true
}

// endedLocked notes that a token of holder has ended now.
func (s *Secrets) endedLocked(holder string) {
	now := time.Now()
	delete(s.ended, holder)
	if len(s.ended) >= maxEnded {
		maps.DeleteFunc(s.ended, func(_ string, at time.Time) bool { return now.Sub(at) > EndedKept })
	}
	if len(s.ended) >= maxEnded {
		oldest, first := "", now
		for other, at := range s.ended {
			if oldest == "" || at.Before(first) {
				oldest, first = other, at
			}
		}
		delete(s.ended, oldest)
	}
	s.ended[holder] = now
}

// Generation grows when a token may have ended.
func (s *Secrets) Generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// Tokens returns all tokens that were acknowledged before, the oldest first.
func (s *Secrets) Tokens(ctx context.Context) ([]mesh.Token, error) {
	if err := s.store.Sync(ctx); err != nil {
		return nil, translate(err)
	}
	entries, _, err := s.store.List(ctx, prefixTokens)
	if err != nil {
		return nil, translate(err)
	}
	list := make([]mesh.Token, 0, len(entries))
	for _, e := range entries {
		hash, err := hashOf(e.Key)
		if err != nil {
			continue // it lets nobody in
		}
		if t, err := decodeToken(hash, e.Value); err == nil {
			list = append(list, t)
		}
	}
	slices.SortStableFunc(list, func(a, b mesh.Token) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, nil
}

// PutToken makes a token count: here when it returns nil, at the other gateways
// a moment later. One that is there is mesh.ErrExists; beyond 100 000 of them it
// is mesh.ErrExhausted.
func (s *Secrets) PutToken(ctx context.Context, t mesh.Token) error {
	if err := mesh.ValidName(t.Holder); err != nil {
		return fmt.Errorf("holder: %w", err)
	}
	if t.CreatedAt.IsZero() {
		t.CreatedAt = time.Now()
	}
	s.mu.Lock()
	full := len(s.tokens) >= s.limit
	s.mu.Unlock()
	if full {
		return fmt.Errorf("%w: the mesh has %d tokens; revoke some", mesh.ErrExhausted, s.limit)
	}
	value, err := encodeToken(t)
	if err != nil {
		return err
	}
	_, err = s.store.Apply(ctx, store.Batch{
		If:  []store.Condition{{Key: keyOf(t.Hash)}},
		Ops: []store.Op{{Key: keyOf(t.Hash), Value: value}},
	})
	switch {
	case errors.Is(err, store.ErrConflict):
		return fmt.Errorf("%w: hash: this token is there already", mesh.ErrExists)
	case err != nil:
		return fmt.Errorf("keep token: %w", translate(err))
	}
	return s.until(ctx, func() bool { _, ok := s.tokens[t.Hash]; return ok })
}

// DeleteTokens ends tokens: here when it returns nil, at the other gateways a
// moment later. Those that are not there have ended already.
func (s *Secrets) DeleteTokens(ctx context.Context, hashes ...[sha256.Size]byte) error {
	for part := range slices.Chunk(hashes, maxDelete) {
		var b store.Batch
		for _, hash := range part {
			b.Ops = append(b.Ops, store.Op{Key: keyOf(hash), Delete: true})
		}
		if _, err := s.store.Apply(ctx, b); err != nil {
			return fmt.Errorf("end tokens: %w", translate(err))
		}
		gone := func() bool {
			return !slices.ContainsFunc(part, func(hash [sha256.Size]byte) bool { _, ok := s.tokens[hash]; return ok })
		}
		if err := s.until(ctx, gone); err != nil {
			return err
		}
	}
	return nil
}

// maxDelete is how many tokens end in one change.
const maxDelete = 1000

// until blocks until done, which is called with s.mu held, is true of what is
// known here.
func (s *Secrets) until(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		if done() {
			s.mu.Unlock()
			return nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// translate adds to an error of the store what it means to callers of the API.
func translate(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, store.ErrFull):
		return fmt.Errorf("%w: %w", mesh.ErrExhausted, err)
	}
	return fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
}
